//! The programs of iptables, in the short-lived helper: which are there, and how they are run (L19).

use std::io::{self, ErrorKind};
use std::process::Output;

use anyhow::{Context, Result, bail};
use dataplane::iptables::programs;
use tracing::debug;

use super::ruleset::{Backend, Family, Ruleset};

/// Seconds for which the lock of xtables is waited for.
pub(super) const LOCK: &str = "10";

/// Programs of one backend: `iptables-nft`, `ip6tables-nft-save`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tools {
    pub(super) backend: Backend,
    suffix: &'static str,
}

/// The rules of a node, as far as they can be read.
pub(super) struct Node {
    /// Empty where there is no iptables.
    pub(super) tools: Vec<Tools>,
    pub(super) tables: Vec<(Backend, Family, Ruleset)>,
}

/// Reads all rules; those that a program cannot read are none.
///
/// # Errors
/// A program cannot be started, or none of them can read anything.
pub(super) fn read() -> Result<Node> {
    let tools = find()?;
    let mut tables = Vec::new();
    let mut unreadable = None;
    for (tool, family) in tools.iter().flat_map(|tool| [(*tool, Family::V4), (*tool, Family::V6)]) {
        match tool.rules(family) {
            Ok(ruleset) => tables.push((tool.backend, family, ruleset)),
            Err(error) => {
                debug!(error = format!("{error:#}"), "rules that cannot be read are none");
                unreadable.get_or_insert(error);
            }
        }
    }
    match unreadable {
        Some(error) if tables.is_empty() => Err(error),
        _ => Ok(Node { tools, tables }),
    }
}

/// The backends whose programs are there. Where they have no names of their own, `iptables` tells which one it is.
fn find() -> Result<Vec<Tools>> {
    let version = |suffix: &'static str| match execute(&format!("iptables{suffix}"), &["-V"], "") {
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    };
    let mut found = Vec::new();
    for (backend, suffix) in [(Backend::Nft, "-nft"), (Backend::Legacy, "-legacy")] {
        if version(suffix)?.is_some() {
            found.push(Tools { backend, suffix });
        }
    }
    if found.is_empty()
        && let Some(plain) = version("")?
    {
        let backend = if plain.contains("nf_tables") {
            Backend::Nft
        } else {
            Backend::Legacy
        };
        found.push(Tools { backend, suffix: "" });
    }
    Ok(found)
}

impl Tools {
    pub(super) fn name(self, family: Family, what: &str) -> String {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{program}{}{what}", self.suffix)
    }

    /// Only tables that exist are printed, so that reading creates none.
    fn rules(self, family: Family) -> Result<Ruleset> {
        let program = self.name(family, "-save");
        let text = succeeded(&program, &execute(&program, &[], "")?)?;
        Ok(Ruleset::parse(&text))
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::NotFound)
}

/// Gives a text to `iptables-restore`: what it names is changed, the rest stays.
pub(super) fn restore(program: &str, text: &str) -> Result<()> {
    succeeded(program, &execute(program, &["-w", LOCK, "--noflush"], text)?).map(drop)
}

pub(super) fn execute(program: &str, words: &[&str], input: &str) -> Result<Output> {
    debug!(program, ?words, input, "run");
    programs::execute(program, words, input).with_context(|| format!("run {program}"))
}

/// The standard output, where the status says success.
pub(super) fn succeeded(program: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
