//! What a crash does to clients: the process stopped after every message of a change, killed at random moments, and
//! servers that roll under load.
//!
//! `cargo xtask crash` runs it in the guest. Exit status 1 if a client saw what it must not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for a person; it stops at what it did not expect"
)]

mod kernel_state;
mod kill_points;
mod mode;
mod rollout;
mod scene;
mod sequence;
mod sigkill;
mod stopping;
mod witness;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use testbed::kernel::IN_GUEST;

use mode::Mode;

/// What was asked for.
pub(crate) struct Options {
    pub(crate) mode: Mode,
    /// Less of everything.
    pub(crate) short: bool,
    only: Option<String>,
    /// Only sequences whose names contain it.
    pub(crate) filter: Option<String>,
    /// Of the SIGKILL loop.
    pub(crate) kills: Option<usize>,
    pub(crate) seed: u64,
}

/// What a part came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) failures: usize,
}

type Part = fn(&Options) -> Result<Verdict>;

/// Parts by name.
const PARTS: &[(&str, Part)] = &[
    ("kill-points", kill_points::run),
    ("sigkill", sigkill::run),
    ("rollout", rollout::run),
];

fn options() -> Options {
    let mut options = Options {
        mode: Mode::Ipvs,
        short: false,
        only: None,
        filter: None,
        kills: None,
        seed: fastrand::u64(..),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap();
        match word.as_str() {
            "--mode" => options.mode = value().parse().unwrap(),
            "--short" => options.short = true,
            "--only" => options.only = Some(value()),
            "--filter" => options.filter = Some(value()),
            "--kills" => options.kills = Some(value().parse().unwrap()),
            "--seed" => options.seed = value().parse().unwrap(),
            other => panic!("unknown word {other}"),
        }
    }
    options
}

/// IPVS tells the console of every client that it refuses; in a guest that is our output.
fn keep_console_quiet() {
    if std::env::var(IN_GUEST).is_ok_and(|kernel| kernel != "native") {
        let _ = std::fs::write("/proc/sys/kernel/printk", "3");
    }
}

fn main() -> ExitCode {
    let options = options();
    keep_console_quiet();
    println!("mode {:?}, seed {}", options.mode, options.seed);
    let mut passed = true;
    for (name, part) in PARTS {
        if options.only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let start = Instant::now();
        let result = part(&options);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(Verdict { failures: 0 }) => println!("passed  {name:<14} {seconds:6.1} s"),
            Ok(Verdict { failures }) => println!("FAILED  {name:<14} {seconds:6.1} s  {failures} violations"),
            Err(ref error) => println!("FAILED  {name:<14} {seconds:6.1} s  {error:#}"),
        }
        passed &= matches!(result, Ok(Verdict { failures: 0 }));
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
