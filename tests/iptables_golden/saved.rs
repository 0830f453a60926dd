//! What `iptables-save` says of one family, as chains that can be compared.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Rules by table and chain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Saved {
    pub(crate) v4: bool,
    pub(crate) chains: BTreeMap<(String, String), Vec<String>>,
}

/// Chains whose rules match different packets, so that their order says nothing: upstream writes services in the order
/// of a hash table.
const UNORDERED: [&str; 4] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
];

impl Saved {
    pub(crate) fn parse(v4: bool, text: &str) -> Self {
        let mut chains: BTreeMap<_, Vec<String>> = BTreeMap::new();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if !["filter", "nat"].contains(&table) {
                // The canary has made it; there is nothing else in it.
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap();
                chains.entry((table.to_owned(), name.to_owned())).or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
                chains
                    .get_mut(&(table.to_owned(), chain.to_owned()))
                    .unwrap()
                    .push(rule.to_owned());
            }
        }
        let mut saved = Self { v4, chains };
        saved.sort();
        saved
    }

    /// Orders what has no order. The last rules of the services' chain stay the last.
    pub(crate) fn sort(&mut self) {
        for ((_, name), rules) in &mut self.chains {
            if UNORDERED.contains(&&**name) {
                rules.sort_by_key(|rule| (rule.contains("this must be the last rule"), rule.clone()));
            }
        }
    }

    /// The chains of a table whose names begin so.
    pub(crate) fn begin(&mut self, table: &str, prefix: &str) -> impl Iterator<Item = (&str, &mut Vec<String>)> {
        let all = self.chains.iter_mut();
        all.filter(move |((of, name), _)| of == table && name.starts_with(prefix))
            .map(|((_, name), rules)| (name.as_str(), rules))
    }

    /// One chain; an empty one where it is not there.
    pub(crate) fn chain(&mut self, table: &str, name: &str) -> &mut Vec<String> {
        self.chains.entry((table.to_owned(), name.to_owned())).or_default()
    }

    /// What the two do not have in common, `-` here, `+` there.
    pub(crate) fn difference(&self, other: &Self) -> String {
        let mut text = String::new();
        let keys: std::collections::BTreeSet<_> = self.chains.keys().chain(other.chains.keys()).collect();
        for key in keys {
            let (here, there) = (self.chains.get(key), other.chains.get(key));
            if here == there {
                continue;
            }
            writeln!(text, "{} {} (v4: {})", key.0, key.1, self.v4).unwrap();
            for (sign, rules) in [('-', here), ('+', there)] {
                match rules {
                    None => writeln!(text, " {sign} no such chain").unwrap(),
                    Some(rules) => {
                        // Where nothing is in order, what both have is left out.
                        let both = [here, there].map(|rules| rules.cloned().unwrap_or_default());
                        let said = |rule: &&String| {
                            !UNORDERED.contains(&&*key.1) || !both.iter().all(|rules| rules.contains(rule))
                        };
                        let said = rules.iter().filter(said);
                        said.for_each(|rule| writeln!(text, " {sign} {rule}").unwrap());
                    }
                }
            }
        }
        text
    }
}
