//! Builds with cargo, and where the results are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_owned)
}

/// Where kernels are kept.
pub(crate) fn cache() -> PathBuf {
    root().join("target/kernel")
}

/// A cargo command in the workspace. It does not inherit what `cargo run` says about the package xtask: build scripts
/// ask for such variables (ring's does), and a build by `cargo xtask` after one by `cargo` would run them again, with all
/// that depends on them.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Builds what the arguments ask for and returns the path of the one executable in it.
pub(crate) fn executable(arguments: &[&str]) -> Result<PathBuf> {
    eprintln!("building: cargo {}", arguments.join(" "));
    let mut command = cargo(arguments);
    command
        .args(["--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let output = command.output().context("start cargo")?;
    if !output.status.success() {
        bail!("cargo {}: {}", arguments.join(" "), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from));
    match (found.next(), found.next()) {
        (Some(executable), None) => Ok(executable),
        (None, _) => bail!("cargo {} built no executable", arguments.join(" ")),
        (Some(_), Some(_)) => bail!("cargo {} built several executables", arguments.join(" ")),
    }
}
