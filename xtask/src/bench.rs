//! Numbers for the README, measured in one run on one kernel.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use testbed::daemon::BINARY;
use testbed::kernel::{Job, Name, Provider};
use testbed::{control_plane, tool};

use crate::cargo::{cache, executable, root};

/// What is measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Services, each with five endpoints.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoint changes.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// Without a real API server: the kernel part alone.
    #[arg(long)]
    no_control_plane: bool,
    /// The iptables mode's writing alone, with both implementations.
    #[arg(long)]
    iptables: bool,
}

pub(crate) fn run(args: &Args, kernel: Option<Name>) -> Result<ExitCode> {
    tool::install(crate::GUEST_PACKAGES)?;
    let provider = if args.iptables {
        Provider::for_fallback(kernel, &cache())?
    } else {
        Provider::for_tests(kernel, &cache())?
    };
    let binary = executable(&["build", "--locked", "--release", "-p", "agent", "--bin", "kube-ipvs"])?;
    let bench = executable(&[
        "test",
        "--locked",
        "--release",
        "--no-run",
        "-p",
        "integration",
        "--test",
        "bench",
    ])?;
    println!("kernel: {provider}");
    let mut command = vec![
        bench.to_string_lossy().into_owned(),
        args.services.to_string(),
        args.changes.to_string(),
    ];
    command.extend(args.iptables.then(|| "iptables".to_owned()));
    let mut job = Job::new(command, root());
    job.environment
        .push((BINARY.to_owned(), binary.to_string_lossy().into_owned()));
    if !args.no_control_plane && !args.iptables {
        let program = control_plane::build(&root())?;
        job.environment.push((
            control_plane::PROGRAM.to_owned(),
            program.to_string_lossy().into_owned(),
        ));
    }
    job.memory = 8192;
    job.limit = Duration::from_secs(3000);
    Ok(ExitCode::from(u8::try_from(provider.run(&job)?).unwrap_or(1)))
}
