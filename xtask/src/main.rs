//! What a contributor runs: `cargo xtask demo`, `test`, `ci`, `kernel`, `run`.
//!
//! Each says what it does, installs what it needs with the system's package manager, and does nothing twice.

#![allow(clippy::print_stdout, reason = "these commands speak to a person")]

mod bench;
mod cargo;
mod ci;
mod conformance;
mod crash;
mod demo;
mod e2e;
mod fuzz;
mod image;
mod matrix;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use testbed::kernel::{Job, Name, Provider};

/// Tasks of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show kube-ipvs serving real Services on a kernel with IPVS.
    Demo {
        /// The objects come from a real kube-apiserver (built with Go, once) instead of manifests.
        #[arg(long)]
        control_plane: bool,
        /// A kernel without IPVS, such as the running one may be: the iptables mode takes over, and it is said.
        #[arg(long, conflicts_with = "control_plane")]
        fallback: bool,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Run every level of test that this machine can run.
    Test {
        /// Only these levels: plain, kernel, control-plane, matrix, crash, fuzz, conformance, modules, releases. Default:
        /// all but the last two.
        #[arg(long, value_delimiter = ',')]
        level: Vec<test::Level>,
        #[command(flatten)]
        kernel: KernelArgs,
        /// Only tests whose names contain this.
        filter: Option<String>,
    },
    /// Ask thousands of questions about Services on a kernel with IPVS, and compare with what the API promises.
    Matrix {
        #[command(flatten)]
        args: matrix::Args,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Stop, kill and restart the proxy on a kernel with IPVS while clients run, and see that none notices.
    Crash {
        #[command(flatten)]
        args: crash::Args,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Run kube-ipvs in a cluster, on kind or on one made here, from its manifests to its removal.
    E2e {
        #[command(flatten)]
        args: e2e::Args,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Run upstream's own tests of Services on a cluster made here, with kube-ipvs and with every mode of kube-proxy.
    Conformance {
        #[command(flatten)]
        args: conformance::Args,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Feed made-up bytes to what reads bytes of others, until something panics, hangs or grows. Findings are kept in
    /// fuzz/artifacts, each with the command that shows it again; the exit status is then 1.
    Fuzz(fuzz::Args),
    /// Make container images, as OCI archives, without a container engine.
    Image(image::Args),
    /// Format, lints, documentation.
    Ci,
    /// Measure on a kernel with IPVS: cold start, memory, the way of a change. Decides nothing.
    Bench {
        #[command(flatten)]
        args: bench::Args,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Build the User-Mode-Linux test kernel into target/kernel, some minutes, once.
    Kernel,
    /// Run a command on a kernel with IPVS.
    Run {
        #[command(flatten)]
        kernel: KernelArgs,
        /// Program and arguments; a program without a slash is looked up on the path.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// The demo's part inside the guest.
    #[command(hide = true)]
    GuestDemo {
        #[arg(long)]
        fallback: bool,
        #[arg(long)]
        control_plane: Option<PathBuf>,
    },
    /// The part of `conformance` inside its namespaces: one cluster, with one proxy.
    #[command(hide = true)]
    ConformanceLab { order: PathBuf },
    /// The part of `conformance` inside a node.
    #[command(hide = true)]
    ConformanceNode { settings: PathBuf },
}

#[derive(clap::Args)]
struct KernelArgs {
    /// Where the kernel comes from: native, uml or qemu. Default: the first that works.
    #[arg(long)]
    kernel: Option<Name>,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo {
            fallback: true, kernel, ..
        } => demo::fallback::run(kernel.kernel),
        Task::Demo {
            control_plane, kernel, ..
        } => demo::run(control_plane, kernel.kernel),
        Task::Test { level, kernel, filter } => test::run(&level, kernel.kernel, filter.as_deref()),
        Task::Matrix { args, kernel } => matrix::run(&args, kernel.kernel),
        Task::Crash { args, kernel } => crash::run(&args, kernel.kernel),
        Task::E2e { args, kernel } => e2e::run(&args, kernel.kernel),
        Task::Conformance { args, kernel } => conformance::run(&args, kernel.kernel),
        Task::ConformanceLab { order } => conformance::lab::run(&order),
        Task::ConformanceNode { settings } => {
            testbed::cluster::lab::run_guest(&settings)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Ci => ci::run(),
        Task::Bench { args, kernel } => bench::run(&args, kernel.kernel),
        Task::Kernel => {
            let kernel = testbed::kernel::build_uml(&cargo::cache())?;
            println!("built {}", kernel.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Run { kernel, command } => {
            let provider = Provider::for_tests(kernel.kernel, &cargo::cache())?;
            eprintln!("kernel: {provider}");
            let status = provider.run(&Job::new(command, std::env::current_dir()?))?;
            Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
        }
        Task::GuestDemo { fallback: true, .. } => demo::fallback::guest(),
        Task::GuestDemo { control_plane, .. } => demo::guest(control_plane.as_deref()),
    }
}

/// Debian packages that the guest's side needs, each with a program that shows it is there.
const GUEST_PACKAGES: &[(&str, &str)] = &[
    ("ipvsadm", "ipvsadm"),
    ("iproute2", "ip"),
    ("nftables", "nft"),
    ("iptables", "iptables-nft"),
    ("ipset", "ipset"),
    ("conntrack", "conntrack"),
    ("procps", "sysctl"),
    ("busybox-static", "busybox"),
    ("util-linux", "unshare"),
    ("kmod", "modprobe"),
    ("strace", "strace"),
];
