//! `kube-ipvs host-rules`: short-lived, and beside `cleanup` the only code that runs iptables (L19).

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};

use super::iptables::{self, LOCK, Node, Tools, execute, succeeded};
use super::removal::{self, Whose};
use super::ruleset::{Backend, Family, Ruleset, Tables, Wanted, places};
use crate::cli::HostRulesArgs;
use crate::config::ForwardAccept;
use crate::stdout::print_lines;

/// Puts the rules in place where they are needed, or removes kube-proxy's, and prints what it did, one line each.
///
/// # Errors
/// There is no iptables, none of it can read this kernel's rules, or a change was refused; the other changes are made.
pub(crate) fn run(args: &HostRulesArgs) -> Result<ExitCode> {
    let node = iptables::read()?;
    ensure!(
        !node.tools.is_empty(),
        "there is no iptables on the path: neither iptables-nft, iptables-legacy nor iptables"
    );
    let mut did = Vec::new();
    let failed = if args.kube_proxy_leftovers {
        remove(args, &node, &mut did)
    } else {
        ensure_all(args, &node, &mut did)
    };
    if did.is_empty() && failed.is_none() {
        did.push("nothing to do".to_owned());
    }
    let printed = print_lines(&did).context("print what was done");
    failed.map_or(printed, Err)?;
    Ok(ExitCode::SUCCESS)
}

fn wanted(args: &HostRulesArgs) -> Vec<Wanted> {
    let mut all = vec![Wanted::forward(args.iptables_masquerade_bit)];
    if !args.health_port.is_empty() {
        all.push(Wanted::health(&args.health_port));
    }
    all
}

/// kube-proxy's chains have the names of ours: what is wanted stays. Returns the first failure.
fn remove(args: &HostRulesArgs, node: &Node, did: &mut Vec<String>) -> Option<anyhow::Error> {
    let mode = args.iptables_forward_accept;
    let wanted = wanted(args);
    let stays = |place: (Backend, Family), chain: &str| {
        let named = |wanted: &&Wanted| wanted.chain == chain;
        wanted
            .iter()
            .filter(named)
            .any(|wanted| places(mode, &node.tables, wanted).contains(&place))
    };
    let found = removal::find(node, Whose::KubeProxy, stays);
    let mut failed = None;
    did.extend(found.notes);
    for change in &found.changes {
        match change.execute() {
            Ok(()) => did.push(change.summary()),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    match removal::ipsets().and_then(|sets| removal::destroy(&sets)) {
        Ok(0) => {}
        Ok(gone) => did.push(format!("{gone} ipsets removed")),
        Err(error) => drop(failed.get_or_insert(error)),
    }
    failed
}

fn ensure_all(args: &HostRulesArgs, node: &Node, did: &mut Vec<String>) -> Option<anyhow::Error> {
    let (mode, tables) = (args.iptables_forward_accept, &node.tables);
    let all = wanted(args);
    let mut failed = hidden_policy(mode, tables, &all);
    for wanted in &all {
        for (backend, family) in places(mode, tables, wanted) {
            let place = tables.iter().find(|(b, f, _)| (*b, *f) == (backend, family));
            let tool = node.tools.iter().find(|tool| tool.backend == backend);
            if let (Some((.., ruleset)), Some(tool)) = (place, tool)
                && let Err(error) = ensure_chain(*tool, family, ruleset, wanted, did)
            {
                failed.get_or_insert(error);
            }
        }
    }
    failed
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
        iptables::restore(&tool.name(family, "-restore"), &wanted.restore())?;
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
