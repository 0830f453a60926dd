//! The program as images have it: static, stripped, without this machine's paths in it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use testbed::tool;

use super::platform::Platform;
use crate::cargo::{executable, root};

/// Builds it for a platform: some minutes the first time.
///
/// # Errors
/// A compiler is missing and cannot be installed, or the build fails.
pub(crate) fn build(platform: Platform) -> Result<PathBuf> {
    let target = platform.target();
    let mut configuration = vec![format!("target.{target}.rustflags={:?}", flags())];
    if platform != Platform::here() {
        let compiler = platform.cross_compiler();
        tool::install(&compiler)?;
        configuration.push(format!("target.{target}.linker={:?}", compiler[0].1));
        // A tool chain of the distribution has its own way to other targets.
        if tool::exists("rustup") {
            tool::run(&["rustup", "target", "add", target])?;
        }
    }
    let mut arguments = vec![
        "build",
        "--locked",
        "--release",
        "-p",
        "agent",
        "--bin",
        "kube-ipvs",
        "--target",
        target,
    ];
    for option in &configuration {
        arguments.extend(["--config", option]);
    }
    executable(&arguments)
}

/// Static, and the same bytes wherever the sources lie.
fn flags() -> [String; 3] {
    let registry = std::env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/kube-ipvs", root().display()),
        format!("--remap-path-prefix={}=/cargo", registry.display()),
    ]
}
