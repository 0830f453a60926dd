//! Numbers for the README, measured in one run on one kernel.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use testbed::daemon::BINARY;
use testbed::kernel::{Job, Name, Provider};
use testbed::{control_plane, tool};

use crate::cargo::{cache, executable, root};

pub(crate) fn run(services: u32, changes: u32, with_control_plane: bool, kernel: Option<Name>) -> Result<ExitCode> {
    tool::install(crate::GUEST_PACKAGES)?;
    let provider = Provider::for_tests(kernel, &cache())?;
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
    let command = vec![
        bench.to_string_lossy().into_owned(),
        services.to_string(),
        changes.to_string(),
    ];
    let mut job = Job::new(command, root());
    job.environment
        .push((BINARY.to_owned(), binary.to_string_lossy().into_owned()));
    if with_control_plane {
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
