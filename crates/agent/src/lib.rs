//! The program `kube-ipvs`: command line, configuration, logging, and the threads that carry it.
//!
//! Reading order: `cli`, `config` and `settings` (what was asked), `daemon` (who runs where), `sync` (the one
//! thread that writes), `servers` with `http`, `metrics` and `progress` (what others are told), `plan` (the same
//! without a kernel), `host_rules` (what others' rules need), `cleanup` (all of it out again), `stdout` (what the
//! commands print). It decides nothing about Services.
//!
//! A library, so that fuzz targets reach what reads bytes of others; `bin/kube-ipvs.rs` is the program.

#![warn(
    clippy::print_stderr,
    reason = "eprintln! panics where the reader is gone: stdout::remark does not"
)]

mod bridge;
mod cleanup;
mod cli;
mod config;
mod conntrack_sysctls;
mod daemon;
mod deny_exec;
mod dry_run;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host_needs;
mod host_rules;
mod http;
mod instance;
mod ip_family;
mod listeners;
mod log;
mod metrics;
mod mode;
mod node_name;
mod plan;
mod privilege;
mod progress;
mod server_settings;
mod servers;
mod service_settings;
mod settings;
mod start;
mod start_settings;
mod stdout;
mod sync;

use std::process::ExitCode;

use anyhow::{Error, Result};
use tracing::debug;

use crate::cleanup::Job;
use crate::cli::{Cli, Command, DaemonArgs, EXIT_ERROR, EXIT_NO_IPVS, EXIT_READER_GONE};
use crate::config::{Configuration, logging_of};
use crate::settings::Settings;

/// What the program does: the command line is the process's.
pub fn main() -> ExitCode {
    let cli = match Cli::parse_from_go(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; wrong usage is one, with kube-proxy's exit status.
            if error.use_stderr() {
                let _ = error.print();
                return ExitCode::from(EXIT_ERROR);
            }
            let printed = stdout::print(|out| write!(out, "{error}"));
            return printed.map_or_else(|error| failed(&error.into()), |()| ExitCode::SUCCESS);
        }
    };
    let done = match cli.command {
        Some(command) => run(command),
        None => run_daemon(cli.daemon),
    };
    done.unwrap_or_else(|error| failed(&error))
}

/// Says what went wrong, as one chain.
fn failed(error: &Error) -> ExitCode {
    if stdout::reader_is_gone(error.as_ref()) {
        return ExitCode::from(EXIT_READER_GONE);
    }
    stdout::remark(format_args!("kube-ipvs: {error:#}"));
    ExitCode::from(if error.is::<mode::NoIpvs>() {
        EXIT_NO_IPVS
    } else {
        EXIT_ERROR
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Plan(args) => plan::run(*args),
        Command::Cleanup(args) => {
            log::to_stderr(&logging_of(&args.log)?);
            cleanup::run(Job::from(&args))
        }
        Command::HostRules(args) => {
            log::to_stderr(&logging_of(&args.log)?);
            host_rules::helper::run(&args)
        }
    }
}

/// The daemon, and what its flags ask for instead of it, in kube-proxy's order.
fn run_daemon(args: DaemonArgs) -> Result<ExitCode> {
    let configuration = Configuration::load(&args.configuration)?;
    let (verbosity, _lines) = log::beside(&configuration.kube_proxy.logging);
    for (name, value) in &args.all_flags {
        debug!(name, value, "flag");
    }
    configuration.report();
    if let Some(path) = &args.configuration.write_config_to {
        configuration.write(path)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.cleanup {
        return cleanup::run(Job::of_daemon(&configuration, &args));
    }
    configuration.doubt()?;
    daemon::run(Settings::new(configuration, args)?, verbosity).map(|()| ExitCode::SUCCESS)
}
