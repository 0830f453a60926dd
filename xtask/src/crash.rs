//! `cargo xtask crash`: the process stopped, killed and started again, with clients running.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use testbed::daemon::BINARY;
use testbed::kernel::{Job, Name, Provider};
use testbed::tool;

use crate::cargo::{cache, executable, root};

/// What is done, and how much of it.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
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
    let provider = Provider::for_tests(kernel, &cache())?;
    println!("kernel: {provider}");
    Ok(match guest(args, &provider)? {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The short run, as a level of `cargo xtask test`.
pub(crate) fn short(provider: &Provider) -> Result<String> {
    let args = Args {
        short: true,
        ..Args::default()
    };
    match guest(&args, provider)? {
        0 => Ok(format!("the short form on {provider}")),
        status => bail!("the crash tests ended with status {status}"),
    }
}

fn guest(args: &Args, provider: &Provider) -> Result<i32> {
    tool::install(crate::GUEST_PACKAGES)?;
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", "crash"])?;
    let mut job = Job::new(vec![program.to_string_lossy().into_owned()], root());
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
