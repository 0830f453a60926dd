//! The rules and ipsets of a kube-proxy, or the rules of ours, taken out of the host: found, printed, removed.

use anyhow::{Error, Result};
use ipvs::Ipsets;

use super::iptables::{self, Node};
use super::leftover::{Removal, is_chain_of_kube_proxy, is_chain_of_ours, is_set_of_kube_proxy, removals};
use super::ruleset::{Backend, Family};

/// Whose chains go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// What T28 put there.
    Ours,
    /// And all of kube-proxy's.
    KubeProxy,
}

/// What was found in iptables.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) changes: Vec<Change>,
    /// What stays, and why.
    pub(crate) notes: Vec<String>,
}

/// What goes of one table of one family of one backend.
#[derive(Debug)]
pub(crate) struct Change {
    program: String,
    restore: String,
    removal: Removal,
}

/// Looks at all rules; `None` where there is no iptables.
///
/// # Errors
/// A program cannot be started, or none of them can read anything.
pub(crate) fn look(whose: Whose) -> Result<Option<Found>> {
    let node = iptables::read()?;
    Ok((!node.tools.is_empty()).then(|| find(&node, whose, |_, _| false)))
}

/// `stays`: chains of the table filter that are not to go.
pub(super) fn find(node: &Node, whose: Whose, stays: impl Fn((Backend, Family), &str) -> bool) -> Found {
    let mut found = Found::default();
    for (backend, family, ruleset) in &node.tables {
        let Some(tool) = node.tools.iter().find(|tool| tool.backend == *backend) else {
            continue;
        };
        let removals = removals(ruleset, |table, name, chain| match whose {
            _ if table == "filter" && stays((*backend, *family), name) => false,
            Whose::Ours => is_chain_of_ours(ruleset, table, name, chain),
            Whose::KubeProxy => is_chain_of_kube_proxy(name),
        });
        let program = tool.name(*family, "");
        let note = |(chain, by): &(String, String)| format!("{program}: chain {chain} stays: {by} uses it");
        found.notes.extend(removals.in_use.iter().map(note));
        found.changes.extend(removals.tables.into_iter().map(|removal| Change {
            program: program.clone(),
            restore: tool.name(*family, "-restore"),
            removal,
        }));
    }
    found
}

impl Change {
    /// As command lines, each with its program.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.removal.lines(&self.program)
    }

    /// Short: there may be a chain for each endpoint.
    pub(super) fn summary(&self) -> String {
        format!("{}: {} removed", self.program, self.removal)
    }

    /// All of it or nothing.
    pub(crate) fn execute(&self) -> Result<()> {
        iptables::restore(&self.restore, &self.removal.restore())
    }
}

/// Names of kube-proxy's ipsets that are there.
///
/// # Errors
/// They cannot be read.
pub(crate) fn ipsets() -> Result<Vec<String>> {
    let mut names = Ipsets::open()?.names()?;
    names.retain(|name| is_set_of_kube_proxy(name));
    names.sort_unstable();
    Ok(names)
}

/// Removes ipsets, and returns how many are gone. One that fails keeps no other from going.
///
/// # Errors
/// The first that cannot be removed.
pub(crate) fn destroy(names: &[String]) -> Result<usize> {
    let mut ipsets = Ipsets::open()?;
    let mut failed = None;
    for name in names {
        if let Err(error) = ipsets.destroy(name) {
            failed.get_or_insert(Error::from(error).context(format!("ipset {name}")));
        }
    }
    failed.map_or(Ok(names.len()), Err)
}

/// The command line that stands for it.
pub(crate) fn destroy_line(name: &str) -> String {
    format!("ipset destroy {name}")
}
