//! What a run found: tables for people and programs, and the manifests of what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::cell::Plan;
use super::proxy::Kind;
use super::runner::Outcome;
use super::service::nodes;
use super::yaml;

/// Differing cells whose manifests are printed, not only named.
const PRINTED: usize = 2;
/// Differing cells that are told on the terminal.
const TOLD: usize = 40;

/// Cells that agree, of all, by a key.
fn counts<'a>(
    outcomes: &'a [Outcome],
    keys: impl Fn(&'a Outcome) -> Vec<&'a str>,
) -> BTreeMap<&'a str, (usize, usize)> {
    let mut all: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for outcome in outcomes {
        for key in keys(outcome) {
            let (agree, of) = all.entry(key).or_default();
            *agree += usize::from(outcome.agrees);
            *of += 1;
        }
    }
    all
}

/// The summary: by group and by decision.
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut text = String::from("| group | cells | agree | differ |\n|---|---|---|---|\n");
    for (group, (agree, of)) in counts(outcomes, |outcome| vec![&outcome.group]) {
        let _ = writeln!(text, "| {group} | {of} | {agree} | {} |", of - agree);
    }
    text.push_str("\n| decision | cells | agree | differ |\n|---|---|---|---|\n");
    let by_decision = counts(outcomes, |outcome| outcome.decisions.clone());
    let mut by_decision: Vec<_> = by_decision.into_iter().collect();
    by_decision.sort_by_key(|(name, _)| name.trim_start_matches('T').parse::<u32>().unwrap_or_default());
    for (decision, (agree, of)) in by_decision {
        let _ = writeln!(text, "| {decision} | {of} | {agree} | {} |", of - agree);
    }
    text
}

/// The command that repeats a cell.
fn command(kind: Kind, name: &str) -> String {
    let proxy = match kind {
        Kind::KubeIpvs(mode) => format!(" --mode {}", mode.name()),
        _ => format!(" --proxy {}", kind.name()),
    };
    format!("cargo xtask matrix{proxy} --filter {name}")
}

/// Writes `NAME.md`, `NAME.json` and the manifests of differing cells into a folder, and returns what a person should
/// read now.
///
/// # Errors
/// The folder cannot be written.
pub fn write(folder: &Path, kind: Kind, plans: &[Plan], outcomes: &[Outcome], seconds: f64) -> Result<String> {
    fs::create_dir_all(folder)?;
    let name = kind.name().replace([' ', '(', ')'], "");
    let differ: Vec<_> = outcomes.iter().filter(|outcome| !outcome.agrees).collect();
    let line = format!(
        "{}: {} cells, {} agree with the promise, {} differ; {seconds:.0} s",
        kind.name(),
        outcomes.len(),
        outcomes.len() - differ.len(),
        differ.len()
    );
    let mut page = format!("# The connectivity matrix: {line}\n\n{}\n", summary(outcomes));
    page.push_str("## What differs\n\n| cell | decisions | promised | seen |\n|---|---|---|---|\n");
    for outcome in &differ {
        let decisions = outcome.decisions.join(" ");
        let _ = writeln!(
            page,
            "| {} | {decisions} | {} | {} |",
            outcome.name, outcome.expected, outcome.seen
        );
    }
    page.push_str("\n## All cells\n\n| cell | decisions | promised | seen |\n|---|---|---|---|\n");
    for outcome in outcomes {
        let decisions = outcome.decisions.join(" ");
        let _ = writeln!(
            page,
            "| {} | {decisions} | {} | {} |",
            outcome.name, outcome.expected, outcome.seen
        );
    }
    fs::write(folder.join(format!("{name}.md")), page)?;
    let json = json!({"proxy": kind.name(), "mode": kind.mode().name(), "seconds": seconds, "cells": outcomes});
    fs::write(folder.join(format!("{name}.json")), json.to_string())?;

    compare(folder)?;

    let mut told = String::new();
    for (number, outcome) in differ.iter().enumerate() {
        if number == TOLD {
            let _ = writeln!(
                told,
                "… and {} more, in {}",
                differ.len() - TOLD,
                folder.join(format!("{name}.md")).display()
            );
            break;
        }
        let manifests = manifests(plans, outcome);
        let file = folder
            .join("worlds")
            .join(&name)
            .join(format!("{}.yaml", outcome.name.replace('/', "_")));
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, &manifests)?;
        let _ = writeln!(
            told,
            "DIFFERS {} ({})\n  asked    {}\n  promised {}\n  seen     {}\n  world    {}\n  again    {}",
            outcome.name,
            outcome.decisions.join(" "),
            outcome.question,
            outcome.expected,
            outcome.seen,
            file.display(),
            command(kind, &outcome.name),
        );
        if number < PRINTED {
            let _ = writeln!(told, "{manifests}");
        }
    }
    let _ = writeln!(told, "{}\n{line}", summary(outcomes));
    Ok(told)
}

/// A table of groups and proxies of all runs whose results are in a folder, for `comparison.md` there.
///
/// # Errors
/// The folder cannot be read or written.
pub fn compare(folder: &Path) -> Result<()> {
    let mut runs: BTreeMap<String, BTreeMap<String, (usize, usize)>> = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(run) = serde_json::from_str::<Value>(&fs::read_to_string(&path)?) else {
            continue;
        };
        let proxy = run.get("proxy").and_then(Value::as_str).unwrap_or_default();
        let groups = runs.entry(proxy.to_owned()).or_default();
        for cell in run.get("cells").and_then(Value::as_array).into_iter().flatten() {
            let group = cell.get("group").and_then(Value::as_str).unwrap_or_default();
            let (agree, of) = groups.entry(group.to_owned()).or_default();
            *agree += usize::from(cell.get("agrees").and_then(Value::as_bool).unwrap_or_default());
            *of += 1;
        }
    }
    let groups: BTreeSet<&String> = runs.values().flat_map(BTreeMap::keys).collect();
    let mut page = String::from("# Cells that agree with the promise, by group and proxy\n\n| group |");
    for proxy in runs.keys() {
        let _ = write!(page, " {proxy} |");
    }
    let _ = writeln!(page, "\n|---|{}", "---|".repeat(runs.len()));
    for group in groups {
        let _ = write!(page, "| {group} |");
        for found in runs.values() {
            match found.get(group) {
                Some((agree, of)) => {
                    let _ = write!(page, " {agree} of {of} |");
                }
                None => page.push_str(" – |"),
            }
        }
        page.push('\n');
    }
    fs::write(folder.join("comparison.md"), page)?;
    Ok(())
}

fn manifests(plans: &[Plan], outcome: &Outcome) -> String {
    let asked = |plan: &&Plan| plan.cells.iter().any(|cell| cell.name == outcome.name);
    let Some(plan) = plans.iter().find(asked) else {
        return String::new();
    };
    let service = plan.services.iter().find(|service| service.name == outcome.service);
    let mut objects = nodes(&plan.setting);
    objects.extend(service.into_iter().flat_map(super::service::Service::manifests));
    yaml::documents(&objects)
}
