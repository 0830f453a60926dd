//! `cargo xtask crash`: the process stopped, killed and started again, with clients running.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use testbed::daemon::BINARY;
use testbed::kernel::{Job, Name, Provider};
use testbed::tool;

use crate::cargo::{cache, executable, root};

/// A mode of kube-ipvs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    #[default]
    Ipvs,
    Iptables,
}

/// What is done, and how much of it.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Mode of kube-ipvs.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Less of everything, within a minute.
    #[arg(long)]
    short: bool,
    /// One part alone.
    #[arg(long, value_parser = ["kill-points", "sigkill", "rollout"])]
    only: Option<String>,
    /// Of the kill points only the sequences whose names contain this.
    #[arg(long)]
    filter: Option<String>,
    /// How often the process is killed at random moments [default: 1000, short: 25].
    #[arg(long)]
    kills: Option<usize>,
    /// Of the random moments and changes; printed by every run.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args, kernel: Option<Name>) -> Result<ExitCode> {
    tool::install(crate::GUEST_PACKAGES)?;
    let provider = match args.mode {
        Mode::Ipvs => Provider::for_tests(kernel, &cache())?,
        Mode::Iptables => Provider::for_fallback(kernel, &cache())?,
    };
    println!("kernel: {provider}");
    Ok(match guest(args, &provider)? {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The short run in both modes, as a level of `cargo xtask test`; the iptables mode's on the running kernel where that
/// can.
pub(crate) fn short(provider: &Provider) -> Result<String> {
    tool::install(crate::GUEST_PACKAGES)?;
    let fallback = Provider::for_fallback(None, &cache())?;
    for (mode, provider) in [(Mode::Ipvs, provider), (Mode::Iptables, &fallback)] {
        println!("mode {mode:?}, kernel: {provider}");
        let args = Args {
            mode,
            short: true,
            ..Args::default()
        };
        match guest(&args, provider)? {
            0 => {}
            status => bail!("the crash tests in mode {mode:?} ended with status {status}"),
        }
    }
    Ok(format!("the short form on {provider}, in mode iptables on {fallback}"))
}

fn guest(args: &Args, provider: &Provider) -> Result<i32> {
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", "crash"])?;
    let mut job = Job::new(vec![program.to_string_lossy().into_owned()], root());
    let mode = args.mode.to_possible_value();
    let mode = mode.map_or_else(String::new, |mode| mode.get_name().to_owned());
    job.command.extend(["--mode".to_owned(), mode]);
    if args.short {
        job.command.push("--short".to_owned());
    }
    if let Some(part) = &args.only {
        job.command.extend(["--only".to_owned(), part.clone()]);
    }
    if let Some(filter) = &args.filter {
        job.command.extend(["--filter".to_owned(), filter.clone()]);
    }
    if let Some(kills) = args.kills {
        job.command.extend(["--kills".to_owned(), kills.to_string()]);
    }
    if let Some(seed) = args.seed {
        job.command.extend(["--seed".to_owned(), seed.to_string()]);
    }
    let variables = [
        (BINARY, binary.to_string_lossy().into_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ];
    job.environment = variables.map(|(name, value)| (name.to_owned(), value)).into();
    job.limit = Duration::from_secs(5400);
    provider.run(&job)
}
