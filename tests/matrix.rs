//! Runs the connectivity matrix on this kernel: worlds one after the other, each with its proxies; tells what differs.
//!
//! `cargo xtask matrix` runs it in the guest. Exit status 1 if a cell differs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a person; it stops at what it did not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::matrix::cell::{Cell, Plan, plans};
use testbed::matrix::cluster::Cluster;
use testbed::matrix::mutant::{Mutant, Verdict};
use testbed::matrix::proxy::{Kind, Proxies};
use testbed::matrix::question::Mode;
use testbed::matrix::runner::Haste;
use testbed::matrix::server::is_supported;
use testbed::matrix::service::Protocol;
use testbed::matrix::site::Node;
use testbed::matrix::{mutant, report, runner};

/// What was asked for.
struct Options {
    kind: Kind,
    filter: Option<String>,
    subset: bool,
    /// Other agents of the nodes use iptables-legacy.
    legacy: bool,
    mutants: bool,
    /// An nft file that is loaded on each node before mutants are made: a trial of the mechanism.
    rules: Option<PathBuf>,
    report: PathBuf,
}

fn options() -> Options {
    let mut options = Options {
        kind: Kind::KubeIpvs(Mode::Ipvs),
        filter: None,
        subset: false,
        legacy: false,
        mutants: false,
        rules: None,
        report: PathBuf::from("target/matrix"),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap();
        match word.as_str() {
            "--proxy" => options.kind = value().parse().unwrap(),
            "--iptables" => options.kind = Kind::KubeIpvs(Mode::Iptables),
            "--filter" => options.filter = Some(value()),
            "--report" => options.report = value().into(),
            "--subset" => options.subset = true,
            "--legacy" => options.legacy = true,
            "--mutants" => options.mutants = true,
            "--rules" => options.rules = Some(value().into()),
            other => panic!("unknown word {other}"),
        }
    }
    options
}

fn world(plan: &Plan) -> &'static str {
    match plan.setting.name {
        "" => "base",
        name => name,
    }
}

fn wanted(plan: &Plan, cell: &Cell, options: &Options) -> bool {
    let named = options.filter.as_ref().is_none_or(|filter| {
        filter == world(plan)
            || cell.name.contains(filter.as_str())
            || cell.promise.decisions.iter().any(|decision| decision == filter)
    });
    named && (!options.subset || cell.subset) && is_supported(cell.protocol)
}

fn main() -> ExitCode {
    match run(&options()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("matrix: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every cell agrees; with mutants, whether each is caught.
fn run(options: &Options) -> Result<bool> {
    if options.mutants {
        return run_mutants(options);
    }
    let plans = plans(options.kind.mode());
    if !is_supported(Protocol::Sctp) {
        println!("this kernel has no SCTP: those cells are not asked");
    }
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for plan in &plans {
        let cells: Vec<_> = plan.cells.iter().filter(|cell| wanted(plan, cell, options)).collect();
        if cells.is_empty() {
            continue;
        }
        let name = world(plan);
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::new(&plan.setting)?;
        if options.legacy {
            // As the kubelet of such a node has made them.
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                cluster.on_nodes(&format!("{program} -t mangle -N KUBE-KUBELET-CANARY"))?;
            }
            if plan.setting.forward_drop {
                // A policy of the other implementation nobody here could overrule.
                let node = cluster.nodes.get(&Node::C).context("no such node")?;
                for program in ["iptables", "ip6tables"] {
                    node.sh(&format!("{program} -P FORWARD ACCEPT"))?;
                    node.sh(&format!("{program}-legacy -P FORWARD DROP"))?;
                }
            }
        }
        let built = start.elapsed().as_secs_f64();
        let proxies = match Proxies::start(options.kind, &cluster, &plan.setting, &plan.services, folder.path()) {
            Ok(proxies) => proxies,
            Err(error) => {
                println!("world {name}: {error:#}");
                outcomes.extend(runner::unserved(plan, &cells, "the proxy does not serve"));
                continue;
            }
        };
        let serving = start.elapsed().as_secs_f64();
        println!("world {name}: {} cells", cells.len());
        let found = runner::run(plan, &cells, &cluster, Haste::None)?;
        println!(
            "world {name:18} {:5} cells, {:4} differ (built after {built:.0} s, serving after {serving:.0} s, asked after {:.0} s)",
            found.len(),
            found.iter().filter(|outcome| !outcome.agrees).count(),
            start.elapsed().as_secs_f64()
        );
        outcomes.extend(found);
        drop(proxies);
        keep_logs(options, folder.path(), name)?;
    }
    ensure!(!outcomes.is_empty(), "no cell has this name or decision");
    let seconds = start.elapsed().as_secs_f64();
    print!(
        "{}",
        report::write(&options.report, options.kind, &plans, &outcomes, seconds)?
    );
    Ok(outcomes.iter().all(|outcome| outcome.agrees))
}

/// What kube-proxy said, for a person who asks why.
fn keep_logs(options: &Options, from: &Path, world: &str) -> Result<()> {
    let to = options.report.join("logs");
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(&path, to.join(format!("{}-{world}-{name}", options.kind.name())))?;
        }
    }
    Ok(())
}

/// Each rule in the worlds that have it, until a cell tells.
fn run_mutants(options: &Options) -> Result<bool> {
    let mut verdicts: BTreeMap<Mutant, Verdict> = BTreeMap::new();
    let mut told = true;
    for plan in &plans(options.kind.mode()) {
        let cells: Vec<_> = plan.cells.iter().filter(|cell| wanted(plan, cell, options)).collect();
        if cells.is_empty() {
            continue;
        }
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::new(&plan.setting)?;
        let started = Proxies::start(options.kind, &cluster, &plan.setting, &plan.services, folder.path());
        let mut proxies = match started {
            Ok(proxies) => proxies,
            Err(error) => {
                println!("world {}: {error:#}", world(plan));
                told = false;
                continue;
            }
        };
        proxies.kill();
        if let Some(rules) = &options.rules {
            cluster.on_nodes(&format!("nft -f {}", rules.display()))?;
        }
        let mut open = mutant::mutants(&cluster)?;
        open.retain(|mutant| !matches!(verdicts.get(mutant), Some(Verdict::Caught(_) | Verdict::NotAsked)));
        if open.is_empty() {
            continue;
        }
        // What differs anyway tells nothing about a mutant.
        let before = runner::run(plan, &cells, &cluster, Haste::None)?;
        let agree: BTreeSet<_> = before
            .iter()
            .filter(|outcome| outcome.agrees)
            .map(|outcome| &outcome.name)
            .collect();
        let cells: Vec<_> = cells.into_iter().filter(|cell| agree.contains(&cell.name)).collect();
        println!(
            "world {}: {} of {} cells agree without a mutant; {} mutants",
            world(plan),
            cells.len(),
            before.len(),
            open.len()
        );
        for mutant in open {
            let verdict = mutant::run(&mutant, plan, &cells, &cluster, &mut proxies)?;
            println!("mutant {mutant}: {verdict}");
            verdicts.insert(mutant, verdict);
        }
    }
    let missed: Vec<_> = verdicts
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::NotCaught(_)))
        .map(|(mutant, _)| format!("\n  {mutant}"))
        .collect();
    println!(
        "{} mutants, {} not caught{}",
        verdicts.len(),
        missed.len(),
        missed.concat()
    );
    ensure!(!verdicts.is_empty(), "there is no rule to take out");
    Ok(told && missed.is_empty())
}
