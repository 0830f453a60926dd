//! Which chains and ipsets are kube-proxy's, which are ours, and how they go. Pure.
//!
//! By names and not by the prefix: `KUBE-FIREWALL`, `KUBE-MARK-DROP`, `KUBE-KUBELET-CANARY` and `KUBE-IPTABLES-HINT` are
//! the kubelet's, `KUBE-ROUTER-…`, `KUBE-NWPLCY-…`, `KUBE-POD-FW-…` and the sets `KUBE-SRC-…`, `KUBE-DST-…` those of
//! kube-router's network policies, which k3s has, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Write as _};

use super::ruleset::{Chain, Ruleset, Wanted};

/// Chains of kube-proxy's IPVS and iptables modes, of this decade's versions.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-LOAD-BALANCER",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIRE-WALL",
    "KUBE-PROXY-CANARY",
];
/// Of one service or endpoint each, in its iptables mode.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-XLB-",
    "KUBE-FW-",
    "KUBE-SEP-",
];
/// ipsets, without `KUBE-` and `KUBE-6-`.
const SETS: [&str; 20] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-MASQ",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP",
    "NODE-PORT-LOCAL-SCTP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// The kernel's limit (`IPSET_MAXNAMELEN` less its NUL), to which kube-proxy cuts.
const SET_NAME: usize = 31;

pub(super) fn is_chain_of_kube_proxy(name: &str) -> bool {
    CHAINS.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

pub(super) fn is_set_of_kube_proxy(name: &str) -> bool {
    let is = |full: String| full.get(..SET_NAME).unwrap_or(&full) == name;
    SETS.iter()
        .any(|set| is(format!("KUBE-{set}")) || is(format!("KUBE-6-{set}")))
}

/// A chain that we put there (T28): kube-proxy's IPVS mode has the same, and is told by what else it has.
pub(super) fn is_chain_of_ours(ruleset: &Ruleset, table: &str, name: &str, chain: &Chain) -> bool {
    let others = ruleset
        .chains()
        .any(|(table, name, _)| (table, name) == ("nat", "KUBE-SERVICES"));
    table == "filter" && !others && Wanted::is_like(name, &chain.rules)
}

/// What goes of one table, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    table: String,
    /// Rules of chains that stay, as `iptables-save` prints them.
    jumps: Vec<String>,
    chains: Vec<String>,
}

/// What goes of one family's rules of one backend, and what stays because somebody else uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Removals {
    pub(super) tables: Vec<Removal>,
    /// Chain, and the chain that leads to it.
    pub(super) in_use: Vec<(String, String)>,
}

/// Finds the chains that go, and the jumps to them in the kernel's own chains. What is used from a chain that stays (a
/// network plugin may jump to KUBE-MARK-MASQ) stays, with all that it uses itself.
pub(super) fn removals(ruleset: &Ruleset, goes: impl Fn(&str, &str, &Chain) -> bool) -> Removals {
    let mut found = Removals::default();
    let tables: BTreeSet<&str> = ruleset.chains().map(|(table, ..)| table).collect();
    for table in tables {
        let chains: Vec<_> = ruleset.chains().filter(|(of, ..)| *of == table).collect();
        let is_named = |(_, name, chain): &&(&str, &str, &Chain)| !chain.is_builtin() && goes(table, name, chain);
        let mut going: BTreeSet<&str> = chains.iter().filter(is_named).map(|(_, name, _)| *name).collect();
        // Each chain that stays is looked at once: what a chain in use uses stays, and is looked at in its turn.
        let by_name: BTreeMap<&str, &Chain> = chains.iter().map(|(_, name, chain)| (*name, *chain)).collect();
        let is_staying = |(_, name, chain): &&(&str, &str, &Chain)| !chain.is_builtin() && !going.contains(name);
        let mut staying: VecDeque<&str> = chains.iter().filter(is_staying).map(|(_, name, _)| *name).collect();
        while let Some(by) = staying.pop_front() {
            let rules = by_name.get(by).map_or(&[][..], |chain| &chain.rules);
            for target in rules.iter().filter_map(|rule| target(rule)) {
                if let Some(used) = going.take(target.as_str()) {
                    found.in_use.push((used.to_owned(), by.to_owned()));
                    staying.push_back(used);
                }
            }
        }
        let leads_there = |rule: &&String| target(rule).is_some_and(|chain| going.contains(chain.as_str()));
        let builtin = chains.iter().filter(|(.., chain)| chain.is_builtin());
        let jumps = builtin.flat_map(|(.., chain)| chain.rules.iter().filter(leads_there));
        let removal = Removal {
            table: table.to_owned(),
            jumps: jumps.cloned().collect(),
            chains: going.iter().map(|name| (*name).to_owned()).collect(),
        };
        if !removal.chains.is_empty() {
            found.tables.push(removal);
        }
    }
    found
}

impl Removal {
    /// For `iptables-restore --noflush`: naming a chain empties it, then nothing leads to it, then it goes.
    pub(super) fn restore(&self) -> String {
        let mut text = format!("*{}\n", self.table);
        for chain in &self.chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for jump in &self.jumps {
            let _ = writeln!(text, "{}", deleted(jump));
        }
        for chain in &self.chains {
            let _ = writeln!(text, "-X {chain}");
        }
        text + "COMMIT\n"
    }

    /// The same as command lines.
    pub(super) fn lines(&self, program: &str) -> Vec<String> {
        let jumps = self.jumps.iter().map(|jump| deleted(jump));
        let empty = self.chains.iter().map(|chain| format!("-F {chain}"));
        let delete = self.chains.iter().map(|chain| format!("-X {chain}"));
        let all = jumps.chain(empty).chain(delete);
        all.map(|line| format!("{program} -t {} {line}", self.table)).collect()
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chains, jumps) = (self.chains.len(), self.jumps.len());
        write!(
            f,
            "{chains} chains of the table {} and {jumps} jumps to them",
            self.table
        )
    }
}

fn deleted(jump: &str) -> String {
    jump.replacen("-A ", "-D ", 1)
}

/// Where a rule of `iptables-save` leads, if anywhere: the word behind `-j` or `-g`.
fn target(rule: &str) -> Option<String> {
    let mut words = words(rule).into_iter();
    words.find(|word| word == "-j" || word == "-g")?;
    words.next()
}

/// Words of a line; a comment with blanks is one, in quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut escaped) = (None::<String>, false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.get_or_insert_default().push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => {
                word.get_or_insert_default();
                quoted = !quoted;
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-DN-1 - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES" -j RETURN
-A CNI-DN-1 -s 10.0.0.0/8 -p tcp -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -j KUBE-SVC-ABC
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m comment --comment "a \"quoted\" word" -g KUBE-IPVS-FILTER
-A INPUT -j KUBE-ROUTER-INPUT
COMMIT
"#;

    fn of_kube_proxy(text: &str) -> Removals {
        removals(&Ruleset::parse(text), |_, name, _| is_chain_of_kube_proxy(name))
    }

    #[test]
    fn l13_the_chains_of_kube_proxy_go_and_those_of_others_stay() {
        let found = of_kube_proxy(SAVED);
        let texts: Vec<_> = found.tables.iter().map(Removal::restore).collect();
        assert_eq!(
            texts,
            [
                "*filter\n:KUBE-IPVS-FILTER - [0:0]\n\
                 -D INPUT -m comment --comment \"a \\\"quoted\\\" word\" -g KUBE-IPVS-FILTER\n-X KUBE-IPVS-FILTER\nCOMMIT\n",
                "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-ABC - [0:0]\n\
                 -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
                 -X KUBE-SERVICES\n-X KUBE-SVC-ABC\nCOMMIT\n",
            ]
        );
        assert_eq!(found.in_use, [("KUBE-MARK-MASQ".to_owned(), "CNI-DN-1".to_owned())]);
        assert_eq!(
            found.tables[0].lines("iptables-nft")[1..],
            ["-F KUBE-IPVS-FILTER", "-X KUBE-IPVS-FILTER"].map(|line| format!("iptables-nft -t filter {line}"))
        );
        assert_eq!(of_kube_proxy(""), Removals::default());
    }

    #[test]
    fn l13_what_a_chain_in_use_uses_stays_too() {
        let text = "*nat\n:MINE - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SVC-B - [0:0]\n\
                    -A MINE -j KUBE-SERVICES\n-A KUBE-SERVICES -j KUBE-SVC-A\n";
        let found = of_kube_proxy(text);
        assert_eq!(found.tables[0].chains, ["KUBE-SVC-B"]);
        assert_eq!(found.in_use.len(), 2);
    }

    /// A chain of another program that leads to all of them: ten thousand services. Each chain and rule is looked at once;
    /// all of them for each chain that stays took minutes.
    #[test]
    fn l13_many_chains_in_use_are_found_at_once() {
        use std::fmt::Write;
        const CHAINS: usize = 30_000;
        let mut text = String::from("*nat\n:MINE - [0:0]\n-A MINE -j KUBE-SVC-0\n");
        for number in 0..CHAINS {
            writeln!(text, "-A KUBE-SVC-{number} -j KUBE-SVC-{}", number + 1).unwrap();
        }
        let found = of_kube_proxy(&text);
        assert_eq!((found.tables.len(), found.in_use.len()), (0, CHAINS));
    }

    #[test]
    fn l13_ours_is_what_we_write_where_no_kube_proxy_is() {
        let forward = Wanted::forward(3).restore().replace("COMMIT\n", "");
        let check = |text: &str, expect: &[&str]| {
            let ruleset = Ruleset::parse(text);
            let found = removals(&ruleset, |table, name, chain| {
                is_chain_of_ours(&ruleset, table, name, chain)
            });
            let chains: Vec<_> = found.tables.iter().flat_map(|removal| removal.chains.clone()).collect();
            assert_eq!(chains, expect, "{text}");
        };
        check(&forward, &["KUBE-FORWARD"]);
        check(&format!("{forward}*nat\n:KUBE-SERVICES - [0:0]\n"), &[]);
        check(&format!("{forward}-A KUBE-FORWARD -j DROP\n"), &[]);
        check(&Wanted::health(&[31_000, 31_001]).restore(), &["KUBE-NODE-PORT"]);
        check("*filter\n:KUBE-NODE-PORT - [0:0]\n", &[]);
        check(
            "*filter\n:KUBE-NODE-PORT - [0:0]\n-A KUBE-NODE-PORT -m set --match-set X dst -j ACCEPT\n",
            &[],
        );
    }

    #[test]
    fn l13_sets_go_by_their_names() {
        for name in [
            "KUBE-CLUSTER-IP",
            "KUBE-6-LOOP-BACK",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
            "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
            "KUBE-HEALTH-CHECK-NODE-PORT",
        ] {
            assert!(is_set_of_kube_proxy(name), "{name}");
        }
        for name in ["KUBE-SRC-ABC", "KUBE-DST-2FAIL", "KUBE-", "KUBE-6-", "cali40s:x", ""] {
            assert!(!is_set_of_kube_proxy(name), "{name}");
        }
    }
}
