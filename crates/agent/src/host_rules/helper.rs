//! `kube-ipvs host-rules`: short-lived, and the only code that runs iptables (L19).

use std::io::{self, ErrorKind, Write};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use tracing::debug;

use super::ruleset::{Backend, Family, Ruleset, Tables, Wanted, places};
use crate::cli::{ForwardAccept, HostRulesArgs};

/// Seconds for which the lock of xtables is waited for.
const LOCK: &str = "10";

/// Programs of one backend: `iptables-nft`, `ip6tables-nft-save`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tools {
    backend: Backend,
    suffix: &'static str,
}

/// Puts the rules in place where they are needed, and prints what it did, one line each.
///
/// # Errors
/// There is no iptables, none of it can read this kernel's rules, or a change was refused; the other changes are made.
pub(crate) fn run(args: &HostRulesArgs) -> Result<ExitCode> {
    let mode = args.iptables_forward_accept;
    let tools = find()?;
    let mut tables = Vec::new();
    let mut unreadable = None;
    for (tool, family) in tools.iter().flat_map(|tool| [(*tool, Family::V4), (*tool, Family::V6)]) {
        match read(tool, family) {
            Ok(ruleset) => tables.push((tool.backend, family, ruleset)),
            Err(error) => {
                debug!(error = format!("{error:#}"), "rules that cannot be read are none");
                unreadable.get_or_insert(error);
            }
        }
    }
    if let Some(error) = unreadable.filter(|_| tables.is_empty()) {
        return Err(error);
    }
    let mut all = vec![Wanted::forward(args.iptables_masquerade_bit)];
    if !args.health_port.is_empty() {
        all.push(Wanted::health(&args.health_port));
    }
    let mut failed = hidden_policy(mode, &tables, &all);
    let mut did = Vec::new();
    for wanted in &all {
        for (backend, family) in places(mode, &tables, wanted) {
            let place = tables.iter().find(|(b, f, _)| (*b, *f) == (backend, family));
            let tool = tools.iter().find(|tool| tool.backend == backend);
            if let (Some((.., ruleset)), Some(tool)) = (place, tool)
                && let Err(error) = ensure_chain(*tool, family, ruleset, wanted, &mut did)
            {
                failed.get_or_insert(error);
            }
        }
    }
    if did.is_empty() && failed.is_none() {
        did.push("nothing to do".to_owned());
    }
    let mut out = io::stdout().lock();
    for line in &did {
        writeln!(out, "{line}").context("print what was done")?;
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// A table whose policy may be one that iptables does not show, and in which nothing is put.
fn hidden_policy(mode: ForwardAccept, tables: &Tables, all: &[Wanted]) -> Option<anyhow::Error> {
    let used = |place: (Backend, Family)| all.iter().any(|wanted| places(mode, tables, wanted).contains(&place));
    let hidden = |(backend, family, ruleset): &&(Backend, Family, Ruleset)| {
        ruleset.is_incompatible() && !used((*backend, *family)) && mode != ForwardAccept::Never
    };
    let (_, family, _) = tables.iter().find(hidden)?;
    Some(anyhow!(
        "nf_tables' table filter ({family:?}) holds what iptables cannot change: its policies are not known"
    ))
}

/// The chain first, then the jump that leads to it, at the head. What is right is left alone.
fn ensure_chain(tool: Tools, family: Family, ruleset: &Ruleset, wanted: &Wanted, did: &mut Vec<String>) -> Result<()> {
    let (program, chain, from) = (tool.name(family, ""), wanted.chain, wanted.from);
    if ruleset.rules(chain) != wanted.rules {
        let restore = tool.name(family, "-restore");
        let output = execute(&restore, &["-w", LOCK, "--noflush"], &wanted.restore())?;
        succeeded(&restore, &output)?;
        did.push(format!("{program}: chain {chain} written"));
    }
    let jump = |command: &'static str, place: &[&'static str]| {
        let words = ["-w", LOCK, "-t", "filter", command, from].into_iter();
        let words: Vec<_> = words.chain(place.iter().copied()).chain(wanted.jump()).collect();
        execute(&program, &words, "")
    };
    if !jump("-C", &[])?.status.success() {
        let inserted = jump("-I", &["1"]).and_then(|output| succeeded(&program, &output));
        inserted.with_context(|| format!("insert the jump from {from} to {chain}"))?;
        did.push(format!("{program}: jump from {from} to {chain} inserted"));
    }
    Ok(())
}

/// Only tables that exist are printed, so that reading creates none.
fn read(tool: Tools, family: Family) -> Result<Ruleset> {
    let program = tool.name(family, "-save");
    let text = succeeded(&program, &execute(&program, &[], "")?)?;
    Ok(Ruleset::parse(&text))
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
    if found.is_empty() {
        let plain = version("")?
            .context("there is no iptables on the path: neither iptables-nft, iptables-legacy nor iptables")?;
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
    fn name(self, family: Family, what: &str) -> String {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{program}{}{what}", self.suffix)
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::NotFound)
}

fn execute(program: &str, words: &[&str], input: &str) -> Result<Output> {
    debug!(program, ?words, input, "run");
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // Shorter than a pipe. One that ends without reading says why on its standard error.
        let _ = pipe.write_all(input.as_bytes());
    }
    child.wait_with_output().with_context(|| format!("run {program}"))
}

/// The standard output, where the status says success.
fn succeeded(program: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
