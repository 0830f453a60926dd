//! What can be checked without running anything: format, lints, documentation.

use std::process::ExitCode;

use anyhow::{Context, Result};
use testbed::tool;

use crate::cargo::cargo;
use crate::fuzz::cargo_in_fuzz;

/// Name of each step, and cargo's arguments.
const STEPS: &[(&str, &str)] = &[
    ("format", "fmt --all --check"),
    ("lints", "clippy --locked --workspace --all-targets -- -D warnings"),
    // Not among all targets, since they need a kernel to run.
    (
        "lints of the kernel tests",
        "clippy --locked -p integration --test kernel --test control_plane --test matrix --test crash --test iptables_golden --test config_corpus --test modules --test bench --test e2e -- -D warnings",
    ),
    (
        "documentation",
        "doc --locked --workspace --no-deps --document-private-items",
    ),
    ("edges", "test --locked -p integration --test edges"),
];

pub(crate) fn run() -> Result<ExitCode> {
    for (name, arguments) in STEPS {
        println!("== {name}: cargo {arguments}");
        let mut command = cargo(&arguments.split(' ').collect::<Vec<_>>());
        command.env("RUSTDOCFLAGS", "-D warnings");
        tool::show(command).context(*name)?;
    }
    println!("== the fuzz targets: format, lints");
    tool::show(cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])).context("format")?;
    let mut command = cargo_in_fuzz(&["clippy", "--bins"])?;
    command.args(["--", "-D", "warnings"]);
    tool::show(command).context("lints")?;
    println!("ci: format, lints, documentation and edges are in order");
    Ok(ExitCode::SUCCESS)
}
