//! The program `kube-ipvs`: command line, configuration, logging, and the threads that carry it.
//!
//! Reading order: [`cli`] and [`settings`] (what was asked), [`daemon`] (who runs where), [`sync`] (the one thread that
//! writes), [`plan`] (the same without a kernel), [`host_rules`] (what others' rules need), [`cleanup`] (all of it out
//! again). It decides nothing about Services.

mod bridge;
mod cleanup;
mod cli;
mod config;
mod conntrack_sysctls;
mod daemon;
mod dry_run;
mod duration;
mod feature_gate;
mod host_rules;
mod listeners;
mod mode;
mod node_name;
mod plan;
mod privilege;
mod server_settings;
mod service_settings;
mod settings;
mod start;
mod start_settings;
mod sync;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, EXIT_ERROR, EXIT_NO_IPVS, LogArgs, LogFormat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; wrong usage is one, with kube-proxy's exit status.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_ERROR)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let done = match cli.command {
        Some(Command::Plan(args)) => {
            log_to_stderr(&args.log);
            plan::run(&args)
        }
        Some(Command::Cleanup(args)) => {
            log_to_stderr(&args.log);
            cleanup::run(&args)
        }
        Some(Command::HostRules(args)) => {
            log_to_stderr(&args.log);
            host_rules::helper::run(&args)
        }
        None if cli.daemon.cleanup => {
            log_to_stderr(&cli.daemon.log);
            cleanup::run(&cli.daemon.into())
        }
        None => {
            log_to_stderr(&cli.daemon.log);
            daemon::run(cli.daemon).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("kube-ipvs: {error:#}");
        ExitCode::from(if error.is::<mode::NoIpvs>() {
            EXIT_NO_IPVS
        } else {
            EXIT_ERROR
        })
    })
}

/// The log goes to standard error; `RUST_LOG` overrides the verbosity.
fn log_to_stderr(args: &LogArgs) {
    let level = match args.verbosity {
        0..=3 => "info",
        4..=5 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match args.logging_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
