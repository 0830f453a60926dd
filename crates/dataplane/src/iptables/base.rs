//! What is there whatever the services: the chains that all share, their fixed rules, and the jumps to them from the
//! kernel's own chains.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use service_model::{Family, NodePortPlaces};

use super::chain::Table;
use super::name::ChainName;
use super::rule::{Is, Match, Rule, Target, only};

pub(crate) const SERVICES: ChainName = ChainName::Base("KUBE-SERVICES");
pub(crate) const EXTERNAL_SERVICES: ChainName = ChainName::Base("KUBE-EXTERNAL-SERVICES");
pub(crate) const NODE_PORTS: ChainName = ChainName::Base("KUBE-NODEPORTS");
pub(crate) const PROXY_FIREWALL: ChainName = ChainName::Base("KUBE-PROXY-FIREWALL");
pub(crate) const MARK_MASQ: ChainName = ChainName::Base("KUBE-MARK-MASQ");
const FORWARD: ChainName = ChainName::Base("KUBE-FORWARD");
const POSTROUTING: ChainName = ChainName::Base("KUBE-POSTROUTING");
/// The kubelet has one, too, with the same rule; it is never removed.
pub(crate) const FIREWALL: ChainName = ChainName::Base("KUBE-FIREWALL");

/// A rule in a chain of the kernel's own that leads to one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) table: Table,
    /// The kernel's chain.
    pub(crate) from: &'static str,
    /// Ours.
    pub(crate) to: ChainName,
    /// Comment, if any.
    comment: &'static str,
    /// For new connections only (T29).
    new: bool,
}

/// As a line of a restore text.
impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-I {}", self.from)?;
        if self.new {
            f.write_str(" -m conntrack --ctstate NEW")?;
        }
        if !self.comment.is_empty() {
            write!(f, " -m comment --comment \"{}\"", self.comment)?;
        }
        write!(f, " -j {}", self.to)
    }
}

/// The jumps in the order in which they are written: where one is not there, it is inserted **before** all that is in the
/// kernel's chain (upstream's order, so the last of a chain ends up first).
pub(crate) fn jumps() -> Vec<Jump> {
    const EXTERNAL: &str = "kubernetes externally-visible service portals";
    const PORTALS: &str = "kubernetes service portals";
    const BALANCER: &str = "kubernetes load balancer firewall";
    let filter = |from, to, comment, new| Jump {
        table: Table::Filter,
        from,
        to,
        comment,
        new,
    };
    let nat = |from, to, comment| Jump {
        table: Table::Nat,
        from,
        to,
        comment,
        new: false,
    };
    vec![
        filter("INPUT", EXTERNAL_SERVICES, EXTERNAL, true),
        filter("FORWARD", EXTERNAL_SERVICES, EXTERNAL, true),
        // T5: this node is refused by a load balancer's address, too. Upstream lets it try in vain.
        filter("OUTPUT", EXTERNAL_SERVICES, EXTERNAL, true),
        filter("INPUT", NODE_PORTS, "kubernetes health check service ports", false),
        filter("FORWARD", SERVICES, PORTALS, true),
        filter("OUTPUT", SERVICES, PORTALS, true),
        filter("FORWARD", FORWARD, "kubernetes forwarding rules", false),
        filter("INPUT", PROXY_FIREWALL, BALANCER, true),
        filter("OUTPUT", PROXY_FIREWALL, BALANCER, true),
        filter("FORWARD", PROXY_FIREWALL, BALANCER, true),
        nat("OUTPUT", SERVICES, PORTALS),
        nat("PREROUTING", SERVICES, PORTALS),
        nat("POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
        filter("INPUT", FIREWALL, "", false),
        filter("OUTPUT", FIREWALL, "", false),
    ]
}

/// What the fixed rules of a family depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base<'a> {
    pub(crate) family: Family,
    /// The bits of a packet's mark that mean masquerading.
    pub(crate) mark: u32,
    /// Packets that belong to no connection are dropped where they are forwarded.
    pub(crate) drop_invalid: bool,
    pub(crate) places: &'a NodePortPlaces,
}

impl Base<'_> {
    /// The chains of a table that are written whole at every sync.
    pub(crate) fn chains(&self, table: Table) -> Vec<ChainName> {
        match table {
            Table::Filter => {
                let mut chains = vec![SERVICES, EXTERNAL_SERVICES, FORWARD, NODE_PORTS, PROXY_FIREWALL];
                chains.extend(Some(FIREWALL).filter(|_| self.has_localhost()));
                chains
            }
            Table::Nat => vec![SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ],
        }
    }

    /// The fixed rules of a table. They come after those of services, which the last of them need.
    pub(crate) fn rules(&self, table: Table) -> Vec<Rule> {
        match table {
            Table::Filter => self.filter(),
            Table::Nat => self.nat(),
        }
    }

    /// NodePorts answer on 127.0.0.1.
    fn has_localhost(&self) -> bool {
        let v4 = self.family == Family::V4;
        match self.places {
            NodePortPlaces::EveryLocal { loopback } => v4 && *loopback,
            NodePortPlaces::At(addresses) => v4 && addresses.iter().any(IpAddr::is_loopback),
        }
    }

    fn filter(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.has_localhost() {
            // With route_localnet, which they need, neighbors could reach what listens on 127.0.0.1 (CVE-2020-8558).
            rules.push(Rule {
                chain: FIREWALL,
                matches: vec![
                    comment("block incoming localnet connections"),
                    Match::To(Is::So, LOOPBACK),
                    Match::From(Is::Not, service_model::Source::Within(LOOPBACK)),
                    Match::State(Is::Not, "RELATED,ESTABLISHED,DNAT"),
                ],
                target: Some(Target::Drop),
            });
        }
        if self.drop_invalid {
            // A late packet that is not translated back would make the client reset its connection (k/k#74839).
            rules.push(Rule {
                chain: FORWARD,
                matches: vec![Match::State(Is::So, "INVALID")],
                target: Some(Target::Drop),
            });
        }
        rules.push(Rule {
            chain: FORWARD,
            matches: vec![comment("kubernetes forwarding rules"), Match::Mark(Is::So, self.mark)],
            target: Some(Target::Accept),
        });
        rules.push(Rule {
            chain: FORWARD,
            matches: vec![
                comment("kubernetes forwarding conntrack rule"),
                Match::State(Is::So, "RELATED,ESTABLISHED"),
            ],
            target: Some(Target::Accept),
        });
        rules
    }

    fn nat(&self) -> Vec<Rule> {
        let rule = |chain, matches, target| Rule {
            chain,
            matches,
            target: Some(target),
        };
        let mut rules = vec![
            rule(POSTROUTING, vec![Match::Mark(Is::Not, self.mark)], Target::Return),
            // Cleared, so that a packet that comes by again is not masqueraded twice.
            rule(POSTROUTING, Vec::new(), Target::XorMark(self.mark)),
            rule(
                POSTROUTING,
                vec![comment("kubernetes service traffic requiring SNAT")],
                Target::Masquerade,
            ),
            rule(MARK_MASQ, Vec::new(), Target::OrMark(self.mark)),
        ];
        rules.extend(destinations(self.family, self.places).into_iter().map(|to| {
            let note = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
            let matches = [vec![comment(note)], to].concat();
            rule(SERVICES, matches, Target::Jump(NODE_PORTS))
        }));
        rules
    }
}

/// How to tell that a packet is for a place where NodePorts answer: for each returned list a rule.
pub(crate) fn destinations(family: Family, places: &NodePortPlaces) -> Vec<Vec<Match>> {
    match places {
        NodePortPlaces::EveryLocal { loopback } => {
            let but = (!loopback).then(|| Match::To(Is::Not, loopback_of(family)));
            vec![[Match::DestinationLocal].into_iter().chain(but).collect()]
        }
        NodePortPlaces::At(addresses) => addresses
            .iter()
            .map(|address| vec![Match::To(Is::So, only(*address))])
            .collect(),
    }
}

const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

fn loopback_of(family: Family) -> IpNet {
    match family {
        Family::V4 => LOOPBACK,
        Family::V6 => only(Ipv6Addr::LOCALHOST.into()),
    }
}

fn comment(text: &str) -> Match {
    Match::Comment(text.to_owned())
}
