//! Proof that the matrix can fail: with the daemons killed and their rules left, one rule or the elements of one set
//! are taken out on every node and in both families, and a cell of the decisions that its comment names must differ.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::Result;
use serde_json::Value;

use super::cell::{Cell, Plan};
use super::cluster::Cluster;
use super::proxy::Proxies;
use super::runner::{self, Haste};
use crate::netns::Netns;

/// kube-ipvs's tables have this name.
const TABLE: &str = "kube-ipvs";
const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// Cells that a mutant is shown first.
const FIRST: usize = 60;

/// Something that is taken out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mutant {
    /// `rule`, `set` or `map`.
    kind: &'static str,
    /// Chain of the rule, or name of the set.
    place: String,
    /// The comment; rules of one chain with one comment are counted.
    comment: String,
    number: usize,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.kind, self.place, self.comment)?;
        if self.number > 0 {
            write!(f, " (number {})", self.number + 1)?;
        }
        Ok(())
    }
}

impl Mutant {
    /// The numbers that the comment begins with.
    pub fn decisions(&self) -> Vec<&str> {
        let words = self.comment.split([' ', ',', ':', ';']).filter(|word| !word.is_empty());
        words.take_while(|word| is_decision(word)).collect()
    }
}

fn is_decision(word: &str) -> bool {
    let number = word.strip_prefix('T').or_else(|| word.strip_prefix('L'));
    number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// How a mutant ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// By this cell.
    Caught(String),
    /// By none of so many.
    NotCaught(usize),
    /// Its decisions are about something else than traffic.
    NotAsked,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught(cell) => write!(f, "caught by {cell}"),
            Self::NotCaught(cells) => write!(f, "NOT CAUGHT by {cells} cells"),
            Self::NotAsked => f.write_str("not asked: its decisions are not about traffic"),
        }
    }
}

/// Everything in a node's tables that can be taken out, with handles, per family.
struct Found {
    mutant: Mutant,
    family: &'static str,
    handle: u64,
}

fn list(netns: &Netns) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        // No table is no mutant.
        let Ok(text) = netns.sh(&format!("nft -a -j list table {family} {TABLE}")) else {
            continue;
        };
        let json: Value = serde_json::from_str(&text)?;
        // What no rule looks up is the daemon's, not traffic's.
        let used = |set: &str| text.contains(&format!("\"@{set}\""));
        let items = json.get("nftables").and_then(Value::as_array).into_iter().flatten();
        let mut found: Vec<Found> = Vec::new();
        for item in items {
            let Some((kind, object)) = [("rule", "chain"), ("set", "name"), ("map", "name")]
                .into_iter()
                .find_map(|(kind, place)| Some(((kind, place), item.get(kind)?)))
            else {
                continue;
            };
            let (kind, place) = kind;
            let word = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (place, comment) = (word(place), word("comment"));
            if kind != "rule" && !used(&place) {
                continue;
            }
            let same =
                |one: &&Found| one.mutant.kind == kind && one.mutant.place == place && one.mutant.comment == comment;
            let number = if kind == "rule" {
                found.iter().filter(same).count()
            } else {
                0
            };
            found.push(Found {
                mutant: Mutant {
                    kind,
                    place,
                    comment,
                    number,
                },
                family,
                handle: object.get("handle").and_then(Value::as_u64).unwrap_or_default(),
            });
        }
        all.extend(found);
    }
    Ok(all)
}

/// The mutants that a cluster's rules allow.
///
/// # Errors
/// nft is missing, or writes what cannot be read.
pub fn mutants(cluster: &Cluster) -> Result<Vec<Mutant>> {
    let mut all = BTreeSet::new();
    for netns in cluster.nodes.values() {
        all.extend(list(netns)?.into_iter().map(|found| found.mutant));
    }
    Ok(all.into_iter().collect())
}

/// Takes it out everywhere, asks, and puts everything back.
///
/// # Errors
/// The world breaks.
pub fn run(mutant: &Mutant, plan: &Plan, cells: &[&Cell], cluster: &Cluster, proxies: &mut Proxies) -> Result<Verdict> {
    let decisions = mutant.decisions();
    if !decisions.is_empty() && decisions.iter().all(|decision| decision.starts_with('L')) {
        return Ok(Verdict::NotAsked);
    }
    let cites = |cell: &&Cell| {
        decisions.is_empty()
            || cell
                .promise
                .decisions
                .iter()
                .any(|decision| decisions.contains(decision))
    };
    let mut concerned: Vec<&Cell> = cells.iter().copied().filter(cites).collect();
    // Those of the quick run first.
    concerned.sort_by_key(|cell| !cell.subset);
    for netns in cluster.nodes.values() {
        take_out(mutant, netns)?;
    }
    let mut verdict = Verdict::NotCaught(concerned.len());
    let (first, rest) = concerned.split_at(FIRST.min(concerned.len()));
    for part in [first, rest] {
        let differs = runner::run(plan, part, cluster, Haste::Impatient)?
            .into_iter()
            .find(|outcome| !outcome.agrees);
        if let Some(outcome) = differs {
            verdict = Verdict::Caught(outcome.name);
            break;
        }
    }
    // By the daemon, which writes its tables anew: nft cannot load all that it lists.
    for (node, netns) in &cluster.nodes {
        remove(netns)?;
        proxies.restart_ours(*node, netns)?;
    }
    Ok(verdict)
}

fn take_out(mutant: &Mutant, netns: &Netns) -> Result<()> {
    for found in list(netns)?.into_iter().filter(|found| found.mutant == *mutant) {
        let (family, place, handle) = (found.family, &found.mutant.place, found.handle);
        netns.sh(&match mutant.kind {
            "rule" => format!("nft delete rule {family} {TABLE} {place} handle {handle}"),
            kind => format!("nft flush {kind} {family} {TABLE} {place}"),
        })?;
    }
    Ok(())
}

fn remove(netns: &Netns) -> Result<()> {
    FAMILIES
        .iter()
        .try_for_each(|family| netns.sh(&format!("nft delete table {family} {TABLE}")).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decisions(comment: &str) -> Vec<String> {
        let mutant = Mutant {
            kind: "rule",
            place: "c".to_owned(),
            comment: comment.to_owned(),
            number: 0,
        };
        mutant.decisions().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_comment_begins_with_decisions() {
        assert_eq!(decisions("T15 source ranges"), ["T15"]);
        assert_eq!(decisions("T9 T12, T13: masquerade"), ["T9", "T12", "T13"]);
        assert!(decisions("The mark T9").is_empty());
        assert!(decisions("").is_empty());
    }
}
