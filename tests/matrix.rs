//! Runs the connectivity matrix on this kernel: worlds one after the other, each with its proxies; tells what differs.
//!
//! `cargo xtask matrix` runs it in the guest. Exit status 1 if a cell differs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a person; it stops at what it did not expect"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::matrix::cell::{Cell, plans};
use testbed::matrix::cluster::Cluster;
use testbed::matrix::proxy::{Kind, Proxies};
use testbed::matrix::question::Mode;
use testbed::matrix::{report, runner};

/// What was asked for.
struct Options {
    kind: Kind,
    filter: Option<String>,
    subset: bool,
    report: PathBuf,
}

fn options() -> Options {
    let mut options = Options {
        kind: Kind::KubeIpvs(Mode::Ipvs),
        filter: None,
        subset: false,
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
            other => panic!("unknown word {other}"),
        }
    }
    options
}

fn wanted(cell: &Cell, options: &Options) -> bool {
    let named = options.filter.as_ref().is_none_or(|filter| {
        cell.name.contains(filter.as_str()) || cell.promise.decisions.iter().any(|decision| decision == filter)
    });
    named && (!options.subset || cell.subset)
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

/// Whether every cell agrees.
fn run(options: &Options) -> Result<bool> {
    let plans = plans(options.kind.mode());
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for plan in &plans {
        let cells: Vec<_> = plan.cells.iter().filter(|cell| wanted(cell, options)).collect();
        if cells.is_empty() {
            continue;
        }
        let name = if plan.setting.name.is_empty() {
            "base"
        } else {
            plan.setting.name
        };
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::new(&plan.setting)?;
        let built = start.elapsed().as_secs_f64();
        let proxies = Proxies::start(options.kind, &cluster, &plan.setting, &plan.services, folder.path())?;
        let serving = start.elapsed().as_secs_f64();
        let found = runner::run(plan, &cells, &cluster)?;
        println!(
            "world {name:18} {:5} cells, {:4} differ (built after {built:.0} s, serving after {serving:.0} s, asked after {:.0} s)",
            found.len(),
            found.iter().filter(|outcome| !outcome.agrees).count(),
            start.elapsed().as_secs_f64()
        );
        outcomes.extend(found);
        drop(proxies);
    }
    ensure!(!outcomes.is_empty(), "no cell has this name or decision");
    let seconds = start.elapsed().as_secs_f64();
    print!(
        "{}",
        report::write(&options.report, options.kind, &plans, &outcomes, seconds)?
    );
    Ok(outcomes.iter().all(|outcome| outcome.agrees))
}
