//! What can be checked without running anything: format, lints, documentation.

use std::process::ExitCode;

use anyhow::{Context, Result};
use testbed::tool;

use crate::cargo::cargo;

pub(crate) fn run() -> Result<ExitCode> {
    let steps: [(&str, &[&str]); 5] = [
        ("format", &["fmt", "--all", "--check"]),
        (
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ],
        ),
        (
            "documentation",
            &[
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--locked",
            ],
        ),
        ("edges", &["test", "--locked", "-p", "integration", "--test", "edges"]),
    ];
    for (name, arguments) in steps {
        println!("== {name}: cargo {}", arguments.join(" "));
        let mut command = cargo(arguments);
        command.env("RUSTDOCFLAGS", "-D warnings");
        tool::show(command).context(name)?;
    }
    println!("ci: format, lints, documentation and edges are in order");
    Ok(ExitCode::SUCCESS)
}
