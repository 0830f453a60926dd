//! What `iptables-save` prints, what is wanted of it, and where. Pure.

use std::collections::BTreeMap;

use crate::config::ForwardAccept;

/// Which kernel interface a family of tools writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Nft,
    Legacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// One family's rules of one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    /// By table and name.
    chains: BTreeMap<(String, String), Chain>,
    incompatible: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Of a chain of the kernel's own.
    policy: Option<String>,
    /// As `iptables-save` prints them.
    pub(super) rules: Vec<String>,
}

impl Chain {
    /// The kernel's own: it has a policy and cannot go.
    pub(super) fn is_builtin(&self) -> bool {
        self.policy.is_some()
    }
}

impl Ruleset {
    /// Reads `iptables-save`'s text. What is unknown in it is passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut ruleset = Self::default();
        let mut table = "";
        for line in text.lines() {
            if line.starts_with("# Table `filter' ") && line.contains("incompatible") {
                ruleset.incompatible = true;
            } else if let Some(name) = line.strip_prefix('*') {
                table = name.trim();
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                let name = words.next().unwrap_or_default();
                let policy = words.next().filter(|policy| *policy != "-");
                ruleset.chain_mut(table, name).policy = policy.map(str::to_owned);
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let name = rule.split_whitespace().next().unwrap_or_default();
                ruleset.chain_mut(table, name).rules.push(line.trim_end().to_owned());
            }
        }
        ruleset
    }

    fn chain_mut(&mut self, table: &str, name: &str) -> &mut Chain {
        self.chains.entry((table.to_owned(), name.to_owned())).or_default()
    }

    /// The policy of a chain of the table `filter` is DROP.
    fn drops(&self, chain: &str) -> bool {
        self.chains
            .get(&("filter".to_owned(), chain.to_owned()))
            .is_some_and(|chain| chain.policy.as_deref() == Some("DROP"))
    }

    /// Table, name and chain of each.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&str, &str, &Chain)> {
        let all = self.chains.iter();
        all.map(|((table, name), chain)| (table.as_str(), name.as_str(), chain))
    }

    /// The rules of a chain of the table `filter`.
    pub(super) fn rules(&self, chain: &str) -> &[String] {
        self.chains
            .get(&("filter".to_owned(), chain.to_owned()))
            .map_or(&[], |chain| chain.rules.as_slice())
    }

    /// The table `filter` holds, by nft, what iptables can neither show nor change; the policy may be among it.
    pub(super) fn is_incompatible(&self) -> bool {
        self.incompatible
    }

    /// The kubelet leaves a chain that tells others which backend is in use (iptables-wrappers).
    fn has_hint(&self) -> bool {
        ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"]
            .iter()
            .any(|hint| self.chains.contains_key(&("mangle".to_owned(), (*hint).to_owned())))
    }

    fn count(&self) -> usize {
        self.chains.values().map(|chain| chain.rules.len()).sum()
    }
}

/// A chain of ours in the table `filter`, and the jump that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) from: &'static str,
    pub(super) chain: &'static str,
    /// Comment of the jump.
    pub(super) comment: &'static str,
    /// As `iptables-save` prints them.
    pub(super) rules: Vec<String>,
}

impl Wanted {
    /// kube-proxy's, name by name: masqueraded packets, and packets of connections that are accepted already.
    pub(super) fn forward(masquerade_bit: u8) -> Self {
        let mark = 1_u32.checked_shl(masquerade_bit.into()).unwrap_or_default();
        let rules = [
            format!(r#""kubernetes forwarding rules" -m mark --mark {mark:#x}/{mark:#x}"#),
            r#""kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED"#.to_owned(),
        ];
        Self {
            from: "FORWARD",
            chain: "KUBE-FORWARD",
            comment: "kubernetes forwarding rules",
            rules: rules
                .iter()
                .map(|rule| format!("-A KUBE-FORWARD -m comment --comment {rule} -j ACCEPT"))
                .collect(),
        }
    }

    /// Health-check node ports; kube-proxy's chain, with ports in place of its ipset.
    pub(super) fn health(ports: &[u16]) -> Self {
        let rule = |port: &u16| {
            format!(
                r#"-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes health check node port" -m tcp --dport {port} -j ACCEPT"#
            )
        };
        Self {
            from: "INPUT",
            chain: "KUBE-NODE-PORT",
            comment: "kubernetes health check rules",
            rules: ports.iter().map(rule).collect(),
        }
    }

    /// A chain of this name with these rules is one that we write, for whatever bit and ports.
    pub(super) fn is_like(chain: &str, rules: &[String]) -> bool {
        let health = Self::health(&[0]);
        let is_health = |rule: &String| {
            let (start, end) = health.rules.first()?.split_once("--dport 0")?;
            let port = rule.strip_prefix(start)?.strip_suffix(end)?.strip_prefix("--dport ")?;
            port.parse::<u16>().ok()
        };
        (0..32)
            .map(Self::forward)
            .any(|forward| forward.chain == chain && forward.rules == rules)
            || health.chain == chain && !rules.is_empty() && rules.iter().all(|rule| is_health(rule).is_some())
    }

    /// For `iptables-restore --noflush`: the chain has these rules, and no others, at once.
    pub(super) fn restore(&self) -> String {
        let (chain, rules) = (self.chain, self.rules.join("\n"));
        format!("*filter\n:{chain} - [0:0]\n{rules}\nCOMMIT\n")
    }

    /// The jump without its command and chain, as words.
    pub(super) fn jump(&self) -> [&'static str; 6] {
        ["-m", "comment", "--comment", self.comment, "-j", self.chain]
    }
}

/// The rules of a node, as far as they could be read.
pub(super) type Tables = [(Backend, Family, Ruleset)];

/// The tables that get a chain. With `auto` those whose policy is DROP, in both backends: an accept in one does not
/// overrule a drop in the other. With `always` those of the backend that the node uses, too.
pub(super) fn places(mode: ForwardAccept, tables: &Tables, wanted: &Wanted) -> Vec<(Backend, Family)> {
    let used = match mode {
        ForwardAccept::Never => return Vec::new(),
        ForwardAccept::Auto => None,
        ForwardAccept::Always => in_use(tables),
    };
    tables
        .iter()
        .filter(|(backend, _, ruleset)| ruleset.drops(wanted.from) || used == Some(*backend))
        .map(|(backend, family, _)| (*backend, *family))
        .collect()
}

/// The backend that the node uses: the kubelet's hint, else a policy of DROP, else more rules, else nf_tables.
fn in_use(tables: &Tables) -> Option<Backend> {
    let weigh = |of: Backend| {
        let mut ours = tables.iter().filter(|(backend, ..)| *backend == of).peekable();
        ours.peek()?;
        let sets: Vec<_> = ours.map(|(.., ruleset)| ruleset).collect();
        let hint = sets.iter().any(|ruleset| ruleset.has_hint());
        let drops = sets
            .iter()
            .any(|ruleset| ruleset.drops("FORWARD") || ruleset.drops("INPUT"));
        Some((hint, drops, sets.iter().map(|ruleset| ruleset.count()).sum::<usize>()))
    };
    match (weigh(Backend::Nft), weigh(Backend::Legacy)) {
        (None, None) => None,
        (nft, legacy) if legacy > nft => Some(Backend::Legacy),
        _ => Some(Backend::Nft),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Backend::{Legacy, Nft};
    use Family::{V4, V6};
    use ForwardAccept::{Always, Auto, Never};

    const DOCKER: &str = "\
# Generated by iptables-nft-save v1.8.9 (nf_tables) on Wed Nov 25 03:36:55 2026
*nat
:POSTROUTING ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [12:345]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
";
    const HINT: &str = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";

    #[test]
    fn policies_and_rules_are_read() {
        let ruleset = Ruleset::parse(DOCKER);
        assert!(ruleset.drops("FORWARD") && !ruleset.drops("INPUT") && !ruleset.drops("OUTPUT"));
        assert_eq!(ruleset.rules("FORWARD"), ["-A FORWARD -j DOCKER-USER"]);
        assert_eq!((ruleset.count(), ruleset.has_hint()), (2, false));
        assert!(Ruleset::parse(HINT).has_hint());
        // The same chain in another table is another.
        assert!(!Ruleset::parse("*raw\n:FORWARD DROP [0:0]\n").drops("FORWARD"));
        assert!(Ruleset::parse("# Table `filter' is incompatible, use 'nft' tool.\n").is_incompatible());
        let chains = "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n*filter\n";
        assert!(Ruleset::parse(chains).is_incompatible() && !Ruleset::parse(DOCKER).is_incompatible());
        assert_eq!(Ruleset::parse("").count(), 0);
        assert_eq!(Ruleset::parse("*\n:\n-A \nCOMMIT").rules("FORWARD"), [""; 0]);
    }

    #[test]
    fn t28_where_rules_are_put() {
        let check = |tables: &[(Backend, Family, &str)], mode, expect: &[(Backend, Family)]| {
            let tables: Vec<_> = tables
                .iter()
                .map(|(backend, family, text)| (*backend, *family, Ruleset::parse(text)))
                .collect();
            assert_eq!(
                places(mode, &tables, &Wanted::forward(14)),
                expect,
                "{tables:?} {mode:?}"
            );
        };
        let plain = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j RETURN\nCOMMIT\n";
        // Nothing drops.
        check(&[(Nft, V4, plain), (Nft, V6, "")], Auto, &[]);
        check(&[(Nft, V4, plain), (Nft, V6, "")], Always, &[(Nft, V4), (Nft, V6)]);
        // A policy in one family, or in both backends.
        check(&[(Nft, V4, DOCKER), (Nft, V6, "")], Auto, &[(Nft, V4)]);
        check(
            &[(Nft, V4, DOCKER), (Legacy, V4, DOCKER)],
            Auto,
            &[(Nft, V4), (Legacy, V4)],
        );
        check(&[(Nft, V4, DOCKER), (Nft, V6, DOCKER)], Never, &[]);
        // Which backend is the node's: hint, then policy, then number of rules, then nf_tables.
        check(&[(Nft, V4, plain), (Legacy, V4, HINT)], Always, &[(Legacy, V4)]);
        check(
            &[(Nft, V4, HINT), (Legacy, V4, DOCKER)],
            Always,
            &[(Nft, V4), (Legacy, V4)],
        );
        check(&[(Nft, V4, ""), (Legacy, V4, plain)], Always, &[(Legacy, V4)]);
        check(&[(Nft, V4, ""), (Legacy, V4, "")], Always, &[(Nft, V4)]);
        check(
            &[(Legacy, V4, ""), (Legacy, V6, "")],
            Always,
            &[(Legacy, V4), (Legacy, V6)],
        );
        check(&[], Always, &[]);
    }

    #[test]
    fn t28_the_rules_are_those_of_kube_proxy() {
        let wanted = Wanted::forward(14);
        assert_eq!(
            wanted.restore(),
            "*filter\n:KUBE-FORWARD - [0:0]\n\
             -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
             -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" \
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
        );
        assert_eq!(
            wanted.jump().join(" "),
            "-m comment --comment kubernetes forwarding rules -j KUBE-FORWARD"
        );
        assert!(Wanted::forward(31).restore().contains("0x80000000/0x80000000"));
        let health = Wanted::health(&[31_000, 31_001]);
        assert_eq!((health.from, health.rules.len()), ("INPUT", 2));
        // What was put reads as what is wanted.
        assert_eq!(Ruleset::parse(&health.restore()).rules(health.chain), health.rules);
    }
}
