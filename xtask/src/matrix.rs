//! The connectivity matrix on a kernel with IPVS: every question beside its promise, in a table.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use testbed::daemon::BINARY;
use testbed::kernel::{Job, Name, Provider};
use testbed::matrix::proxy::Kind;
use testbed::{control_plane, tool};

use crate::cargo::{cache, executable, root};

/// What is asked, of whom.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Mode of kube-ipvs: ipvs or iptables.
    #[arg(long, default_value = "ipvs", value_parser = ["ipvs", "iptables"])]
    mode: String,
    /// Instead of kube-ipvs: kube-proxy-ipvs, kube-proxy-iptables or kube-proxy-nftables, the real kube-proxy.
    #[arg(long, default_value = "kube-ipvs")]
    proxy: Kind,
    /// Only cells whose name contains this, that show this decision (T15), or of this world (base).
    #[arg(long)]
    filter: Option<String>,
    /// Some hundred cells, of every group.
    #[arg(long)]
    subset: bool,
    /// The nodes' other agents use iptables-legacy, so the iptables mode does.
    #[arg(long)]
    legacy: bool,
    /// Delete each rule of kube-ipvs in turn and see that a cell tells.
    #[arg(long)]
    mutants: bool,
}

/// The command of the guest, and what it finds by its environment.
pub(crate) fn run(args: &Args, kernel: Option<Name>) -> Result<ExitCode> {
    let provider = if args.mode == "iptables" {
        tool::install(crate::GUEST_PACKAGES)?;
        Provider::for_fallback(kernel, &cache())?
    } else {
        Provider::for_tests(kernel, &cache())?
    };
    println!("kernel: {provider}");
    Ok(match guest(args, &provider)? {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The quick run in both modes, as a level of `cargo xtask test`; the iptables mode's on the running kernel where that
/// can.
pub(crate) fn subset(provider: &Provider, filter: Option<&str>) -> Result<String> {
    tool::install(crate::GUEST_PACKAGES)?;
    let fallback = Provider::for_fallback(None, &cache())?;
    let args = |mode: &str| -> Result<Args> {
        Ok(Args {
            mode: mode.to_owned(),
            proxy: "kube-ipvs".parse().map_err(anyhow::Error::msg)?,
            filter: filter.map(str::to_owned),
            subset: true,
            legacy: false,
            mutants: false,
        })
    };
    for (mode, provider) in [("ipvs", provider), ("iptables", &fallback)] {
        println!("mode {mode}, kernel: {provider}");
        match guest(&args(mode)?, provider)? {
            0 => {}
            status => bail!("the matrix in mode {mode} ended with status {status}"),
        }
    }
    Ok(format!(
        "the subset on {provider}, in mode iptables on {fallback}; tables in target/matrix"
    ))
}

fn guest(args: &Args, provider: &Provider) -> Result<i32> {
    tool::install(crate::GUEST_PACKAGES)?;
    let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", "matrix"])?;
    let mut job = Job::new(vec![program.to_string_lossy().into_owned()], root());
    // The table of groups and proxies is made of whole runs.
    let whole = args.filter.is_none() && !args.subset;
    let report = root().join(if whole { "target/matrix" } else { "target/matrix/part" });
    job.command
        .extend(["--report".to_owned(), report.to_string_lossy().into_owned()]);
    job.command.extend(["--proxy".to_owned(), args.proxy.name().to_owned()]);
    if let Kind::KubeIpvs(_) = args.proxy {
        let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
        job.environment
            .push((BINARY.to_owned(), binary.to_string_lossy().into_owned()));
        if args.mode == "iptables" {
            job.command.push("--iptables".to_owned());
        }
    } else {
        let program = control_plane::build(&root())?;
        let variable = control_plane::PROGRAM.to_owned();
        job.environment.push((variable, program.to_string_lossy().into_owned()));
    }
    if let Some(filter) = &args.filter {
        job.command.extend(["--filter".to_owned(), filter.clone()]);
    }
    if args.subset {
        job.command.push("--subset".to_owned());
    }
    if args.legacy {
        job.command.push("--legacy".to_owned());
    }
    if args.mutants {
        job.command.push("--mutants".to_owned());
    }
    job.memory = 6144;
    job.limit = Duration::from_secs(3600);
    provider.run(&job)
}
