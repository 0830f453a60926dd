//! The rules of the policy tables `ip kube-ipvs` and `ip6 kube-ipvs`: what IPVS cannot do. Their number does not depend
//! on the services; what is known of these are elements (`element`).
//!
//! Every verdict is for new connections only (T29). The hooks that matter, by priority (net/netfilter/ipvs/ip_vs_core.c,
//! linux/netfilter_ipv4.h): NAT of destinations −100; IPVS schedules what this node sends at −98, and what arrives for a
//! local address behind the filters of the input hook; NAT of sources 100. NAT chains run inside the kernel's NAT hook
//! whatever their priority, so a verdict on the node's own traffic must stand between, at −99.
//!
//! A packet to a VIP crosses prerouting, input, IPVS, output again, postrouting; not forward.

use std::fmt::Write as _;

use nftables::{Chain, ChainKind, Command, Family, Field, Hook, Interface, Is, Rule, Statement, Table, Verdict};
use service_model::{LocalTraffic, Source};

use crate::element::{REFUSE, SetName};

/// Name of both tables.
pub const TABLE: &str = "kube-ipvs";

/// Who made a table: its comment, for people. What the tables of another version are is told by their rules.
const WRITER: &str = concat!("kube-ipvs ", env!("CARGO_PKG_VERSION"));

/// A chain that no packet comes to. The comment of its rule has a hash of the definitions of all chains and sets, so that a
/// table whose rules are right, and a set is not, is made anew (audit F20).
const SCHEMA: &str = "schema";

/// What the rules of one family depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The table's family.
    pub family: Family,
    /// The bit of the mark that means masquerading, from 0 (`iptables.masqueradeBit`).
    pub masquerade_bit: u8,
    /// Who is who among the clients.
    pub local: LocalTraffic,
}

/// The table of a family.
pub fn table(family: Family) -> Table {
    Table {
        family,
        name: TABLE.to_owned(),
    }
}

fn place() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

fn at(set: SetName) -> Statement {
    Statement::In(place(), set.as_str().to_owned())
}

fn is(source: &Source, is: Is) -> Statement {
    match source {
        Source::Within(range) => Statement::SaddrWithin(is, *range),
        Source::Interface(name) => Statement::From(is, Interface::Named(name.to_string())),
        Source::InterfacePrefix(prefix) => Statement::From(is, Interface::Prefix(prefix.to_string())),
    }
}

const RETURN: Statement = Statement::Verdict(Verdict::Return);

const SHORT: &str = "T2 short circuit";
const SHORT_AT_NODE_PORT: &str = "T2 short circuit at NodePorts";

impl Rules {
    /// The commands that make the table as it should be, whatever was there: one transaction. Elements are not among
    /// them, and gone after it.
    pub fn commands(&self) -> Vec<Command> {
        let table = table(self.family);
        let mut commands = vec![
            // So that there is one to be deleted.
            Command::AddTable(table.clone(), String::new()),
            Command::DeleteTable(table.clone()),
            Command::AddTable(table.clone(), WRITER.to_owned()),
        ];
        commands.extend(self.schema());
        commands.extend(
            self.rules()
                .into_iter()
                .map(|rule| Command::AddRule(table.clone(), rule)),
        );
        commands
    }

    /// Chains and sets.
    fn schema(&self) -> impl Iterator<Item = Command> {
        let (table, family) = (table(self.family), self.family);
        let chains = chains().into_iter().map({
            let table = table.clone();
            move |chain| Command::AddChain(table.clone(), chain)
        });
        let sets = SetName::ALL.into_iter().map(move |set| set.definition(family));
        chains.chain(sets.map(move |set| Command::AddSet(table.clone(), set)))
    }

    /// What tells that a table is this one, as [`nftables::Nftables::rules`] reads it: chain and fingerprint of each rule,
    /// by chain. The first rule stands for chains and sets.
    pub fn fingerprints(&self) -> Vec<(String, Vec<u8>)> {
        let print = |rule: Rule| {
            let bytes = nftables::message::fingerprint(self.family, &rule);
            (rule.chain, bytes)
        };
        let mut all: Vec<_> = self.rules().into_iter().map(print).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// The rules, in order.
    pub fn rules(&self) -> Vec<Rule> {
        let mut list = List(Vec::new());
        let lines: Vec<_> = self.schema().map(|command| command.to_string()).collect();
        list.add(&schema_comment(&lines), SCHEMA, [RETURN]);
        self.refuse(&mut list);
        self.prerouting(&mut list);
        self.input(&mut list);
        self.output(&mut list);
        self.postrouting(&mut list);
        list.0
    }

    fn bit(&self) -> u32 {
        1_u32.checked_shl(self.masquerade_bit.into()).unwrap_or(0)
    }

    /// A chain to go to: the connection is refused at once, every time. IPVS's own refusal is an ICMP error, whose rate
    /// the kernel limits.
    fn refuse(&self, list: &mut List) {
        let icmp = match self.family {
            Family::Ip => 1,
            Family::Ip6 => 58,
        };
        list.add("T8 a VIP answers ping", REFUSE, [Statement::Proto(icmp), RETURN]);
        list.add("T5 T6 refused", REFUSE, [Statement::Proto(6), Statement::RejectTcp]);
        list.add("T5 T6 refused", REFUSE, [Statement::RejectPort]);
    }

    fn prerouting(&self, list: &mut List) {
        let new = || Statement::CtNew;
        let outside = Statement::NotIn(
            [place(), vec![Field::Saddr]].concat(),
            SetName::Sources.as_str().to_owned(),
        );
        list.add(
            "T15 source ranges",
            "pre",
            [
                new(),
                at(SetName::Restricted),
                outside,
                Statement::Verdict(Verdict::Drop),
            ],
        );
        list.add(
            "T9 T10 T14 masquerade",
            "pre",
            [new(), at(SetName::Masquerade), Statement::MarkOr(self.bit())],
        );
        if let Some(pods) = &self.local.pods {
            list.add(
                "T11 masquerade who is no pod",
                "pre",
                [
                    new(),
                    is(pods, Is::Not),
                    at(SetName::ClusterIps),
                    Statement::MarkOr(self.bit()),
                ],
            );
        }
        for (comment, map, insiders) in [
            (SHORT, SetName::Redirects, self.local.insiders.as_ref()),
            (
                SHORT_AT_NODE_PORT,
                SetName::NodePortRedirects,
                self.local.node_port_insiders(),
            ),
        ] {
            if let Some(insiders) = insiders {
                list.add(comment, "pre-nat", [is(insiders, Is::So), redirect(map)]);
            }
        }
        list.add(
            "T30 services before hostPorts",
            "pre-nat",
            [at(SetName::Services), Statement::DnatToItself],
        );
        list.add(
            "T30 T6 VIPs before hostPorts",
            "pre-nat",
            [to_vip(), Statement::DnatToItself],
        );
    }

    fn input(&self, list: &mut List) {
        let new = || Statement::CtNew;
        let at_insiders = || vec![new(), at(SetName::Insiders)];
        for (comment, statements) in stale() {
            list.add(comment, "in", statements);
        }
        if let Some(insiders) = self.local.insiders.as_ref()
            && self.local.own_pods.as_ref() != Some(insiders)
        {
            let not_own = self.local.own_pods.as_ref().map(|own| is(own, Is::Not));
            let redirected = [new(), Statement::CtDnat, is(insiders, Is::So)];
            let marked = [at(SetName::Services), Statement::MarkOr(self.bit())];
            let far = redirected.into_iter().chain(not_own).chain(marked);
            list.add("T2 masquerade pods of other nodes", "in", far);
        }
        list.add(
            "T2 sent there",
            "in",
            [vec![Statement::CtDnat], at_insiders(), vec![RETURN]].concat(),
        );
        list.add("T6 nobody else", "in", [at_insiders(), vec![refuse()]].concat());
        list.add("T1 T4 T5 verdicts", "in", [new(), verdicts()]);
        list.add("ours", "in", [new(), at(SetName::Services), RETURN]);
        let health_ports = || {
            let set = SetName::HealthPorts.as_str().to_owned();
            [
                new(),
                Statement::Proto(6),
                Statement::In(vec![Field::Dport], set),
                RETURN,
            ]
        };
        list.add("T6 health-check node ports", "in", health_ports());
        list.add("T6 undefined ports", "in", [new(), to_vip(), refuse()]);
        // Behind IPVS (99), which has sent it to an endpoint that is a VIP: it would reach what listens on this node.
        list.add("T6 health-check node ports", "in-late", health_ports());
        list.add("T6 VIPs as endpoints", "in-late", [new(), to_vip(), refuse()]);
    }

    /// What this node itself sends. IPVS sends what it has scheduled through this hook again, hence the source.
    fn output(&self, list: &mut List) {
        let own = || [Statement::CtNew, Statement::SourceLocal(Is::So)];
        let add = |list: &mut List, comment: &str, chain: &str, rest: Vec<Statement>| {
            list.add(comment, chain, own().into_iter().chain(rest));
        };
        add(
            list,
            "T15 source ranges",
            "out",
            vec![at(SetName::RestrictedNode), Statement::Verdict(Verdict::Drop)],
        );
        add(
            list,
            "T12 masquerade the node",
            "out",
            vec![at(SetName::Services), Statement::MarkOr(self.bit())],
        );
        add(list, SHORT, "out-nat", vec![redirect(SetName::Redirects)]);
        let at_node_port = vec![redirect(SetName::NodePortRedirects)];
        add(list, SHORT_AT_NODE_PORT, "out-nat", at_node_port);
        add(
            list,
            "T30 services before hostPorts",
            "out-nat",
            vec![at(SetName::Services), Statement::DnatToItself],
        );
        add(
            list,
            "T30 T6 VIPs before hostPorts",
            "out-nat",
            vec![to_vip(), Statement::DnatToItself],
        );
        let at_insiders = || vec![at(SetName::Insiders)];
        for (comment, statements) in stale() {
            let own = [Statement::SourceLocal(Is::So)];
            list.add(comment, "out-verdict", own.into_iter().chain(statements));
        }
        add(
            list,
            "T2 sent there",
            "out-verdict",
            [vec![Statement::CtDnat], at_insiders(), vec![RETURN]].concat(),
        );
        add(
            list,
            "T6 nobody else",
            "out-verdict",
            [at_insiders(), vec![refuse()]].concat(),
        );
        add(list, "T1 T4 T5 verdicts", "out-verdict", vec![verdicts()]);
    }

    fn postrouting(&self, list: &mut List) {
        let marked = Statement::MarkIs {
            mask: self.bit(),
            value: self.bit(),
        };
        list.add(
            "T9 T11 T12 masquerade",
            "post",
            [marked, Statement::MarkAnd(!self.bit()), Statement::Masquerade],
        );
        // Endpoints with an address of this node are left out: their connections to themselves are no hairpins.
        let itself = [place(), vec![Field::Saddr]].concat();
        list.add(
            "T13 hairpin",
            "post",
            [
                Statement::SourceLocal(Is::Not),
                Statement::In(itself, SetName::Hairpin.as_str().to_owned()),
                Statement::Masquerade,
            ],
        );
    }

    /// The table as an `nft` script.
    pub fn script(&self) -> String {
        let mut text = String::new();
        for command in self.commands() {
            let _ = writeln!(text, "{command}");
        }
        text
    }
}

/// UDP of flows that are about to be ended. IPVS would send it to another endpoint than the flow expects answers from; the
/// answers would begin a flow of their own, which is in the way of the client's next one for half a minute.
fn stale() -> [(&'static str, Vec<Statement>); 2] {
    let drop = |which| {
        let udp = [Statement::Proto(17), Statement::CtConfirmed, which];
        udp.into_iter().chain([Statement::Verdict(Verdict::Drop)]).collect()
    };
    // Since IPVS had it, a flow expects them from an endpoint.
    let older = Statement::In(
        vec![Field::ReplySaddr, Field::L4Proto, Field::ReplySport],
        SetName::Services.as_str().to_owned(),
    );
    let leaving = Statement::In(
        [place(), vec![Field::ReplySaddr, Field::ReplySport]].concat(),
        SetName::Draining.as_str().to_owned(),
    );
    [
        ("L8 older than the service", drop(older)),
        ("L8 of an endpoint that goes", drop(leaving)),
    ]
}

fn refuse() -> Statement {
    Statement::Verdict(Verdict::Goto(REFUSE.to_owned()))
}

fn redirect(map: SetName) -> Statement {
    Statement::DnatMap(place(), map.as_str().to_owned())
}

fn verdicts() -> Statement {
    Statement::VerdictMap(place(), SetName::Verdicts.as_str().to_owned())
}

fn to_vip() -> Statement {
    Statement::In(vec![Field::Daddr], SetName::Vips.as_str().to_owned())
}

struct List(Vec<Rule>);

impl List {
    fn add(&mut self, comment: &str, chain: &str, statements: impl IntoIterator<Item = Statement>) {
        self.0.push(Rule {
            chain: chain.to_owned(),
            statements: statements.into_iter().collect(),
            comment: comment.to_owned(),
        });
    }
}

fn schema_comment(lines: &[String]) -> String {
    format!("L24 schema {:016x}", nftables::message::text_hash(&lines.join("\n")))
}

fn chains() -> Vec<Chain> {
    let called = |name: &str| Chain {
        name: name.to_owned(),
        hook: None,
    };
    let base = |name: &str, kind, hook, priority| Chain {
        name: name.to_owned(),
        hook: Some((kind, hook, priority)),
    };
    vec![
        called(SCHEMA),
        called(REFUSE),
        base("pre", ChainKind::Filter, Hook::Prerouting, -110),
        base("pre-nat", ChainKind::Nat, Hook::Prerouting, -105),
        base("in", ChainKind::Filter, Hook::Input, 0),
        base("in-late", ChainKind::Filter, Hook::Input, 101),
        base("out", ChainKind::Filter, Hook::Output, -110),
        base("out-nat", ChainKind::Nat, Hook::Output, -105),
        base("out-verdict", ChainKind::Filter, Hook::Output, -99),
        base("post", ChainKind::Nat, Hook::Postrouting, 90),
    ]
}

#[cfg(test)]
mod tests {
    use nftables::{DataType, Set, SetData};

    use super::*;

    /// The hash is of the text, so the text must have all that a set can differ in.
    #[test]
    fn f20_whatever_a_set_differs_in_is_told() {
        let lines = |set: &Set| vec![Command::AddSet(table(Family::Ip), set.clone()).to_string()];
        let changes: [fn(&mut Set); 5] = [
            |set| set.intervals = !set.intervals,
            |set| set.timeouts = !set.timeouts,
            |set| set.key.push(DataType::Mark),
            |set| set.data = SetData::Values(vec![DataType::Mark]),
            |set| set.name.push('x'),
        ];
        for name in SetName::ALL {
            let set = name.definition(Family::Ip);
            for (number, change) in changes.into_iter().enumerate() {
                let mut other = set.clone();
                change(&mut other);
                assert_ne!(
                    schema_comment(&lines(&set)),
                    schema_comment(&lines(&other)),
                    "{name:?} {number}"
                );
            }
        }
    }
}
