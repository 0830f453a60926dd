//! Upstream's own programs, built with Go from their modules: those of `tests/control-plane`, those of older
//! releases ([`release`]), and helm.

pub mod release;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::tool;

/// Oldest Go that the modules build with.
const GO: (u32, u32) = (1, 26);
/// Its Kubernetes libraries are of 1.34: `template`, which is what it is here for, asks no cluster.
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.19.4";

/// Builds a package of the module `tests/control-plane` into `target/control-plane` of the workspace: the control plane
/// takes some five minutes the first time, then all take seconds. The programs have the version of the release.
///
/// # Errors
/// There is no Go that is new enough and none can be installed; or the build fails.
pub fn build(workspace: &Path, name: &str, package: &str) -> Result<PathBuf> {
    compile(workspace, name, package, &["build"])
}

/// The same of a package's tests, as a program.
///
/// # Errors
/// As [`build`].
pub fn build_tests(workspace: &Path, name: &str, package: &str) -> Result<PathBuf> {
    compile(workspace, name, package, &["test", "-c"])
}

/// The folder with the sources of a package, of the module `tests/control-plane` or of one that it needs.
///
/// # Errors
/// There is no Go, or no such package.
pub fn directory(workspace: &Path, package: &str) -> Result<PathBuf> {
    prepare()?;
    let mut command = Command::new("go");
    command
        .current_dir(workspace.join("tests/control-plane"))
        .args(["list", "-f", "{{.Dir}}", package]);
    Ok(PathBuf::from(tool::output(command)?.trim()))
}

fn compile(workspace: &Path, name: &str, package: &str, how: &[&str]) -> Result<PathBuf> {
    prepare()?;
    let folder = folder(workspace)?;
    let program = folder.join(name);
    let module = workspace.join("tests/control-plane");
    let mut version = Command::new("go");
    version
        .current_dir(&module)
        .args(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]);
    let version = tool::output(version)?;
    eprintln!("building {name} with Go: minutes the first time, seconds after that");
    let mut command = Command::new("go");
    command
        .current_dir(&module)
        .args(how)
        .args(["-v", "-trimpath", "-ldflags", &linker_flags(version.trim())?, "-o"])
        .arg(&program)
        .arg(package);
    run(command)?;
    Ok(program)
}

/// Builds helm into the same folder, where it is not there.
///
/// # Errors
/// As [`build`].
pub fn helm(workspace: &Path) -> Result<PathBuf> {
    let folder = folder(workspace)?;
    let program = folder.join("helm");
    if program.is_file() {
        return Ok(program);
    }
    prepare()?;
    eprintln!("building {HELM} with Go: minutes, once");
    let mut command = Command::new("go");
    command
        .current_dir(&folder)
        .env("GOBIN", &folder)
        .args(["install", "-v", "-trimpath", "-ldflags", "-s -w", HELM]);
    run(command)?;
    Ok(program)
}

/// Gives upstream's programs the version (`v1.37.2`) of the release that they are of, as its own builds do
/// (hack/lib/version.sh). Without it they call themselves v0.0.0, and what they check beside their version fails.
fn linker_flags(version: &str) -> Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("{version:?} is no version");
    };
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (variable, value) in [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)] {
            flags.push_str(&format!(" -X {package}.{variable}={value}"));
        }
    }
    Ok(flags)
}

fn folder(workspace: &Path) -> Result<PathBuf> {
    let folder = workspace.join("target/control-plane");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn prepare() -> Result<()> {
    if version().is_none() {
        tool::install(&[
            ("golang-go", "go"),
            ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
        ])?;
    }
    let version = version().context("go does not tell its version")?;
    // Since 1.21 Go fetches the toolchain that a module asks for.
    ensure!(
        version >= (1, 21),
        "Go {}.{} is here, {}.{} or newer is needed",
        version.0,
        version.1,
        GO.0,
        GO.1
    );
    Ok(())
}

fn version() -> Option<(u32, u32)> {
    let text = tool::sh("go env GOVERSION").ok()?;
    let mut parts = text.trim().strip_prefix("go")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Runs a build and counts what it compiles.
fn run(mut command: Command) -> Result<()> {
    let mut child = command
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start go")?;
    // One line a package; what is no package is an error.
    let mut packages = 0_u32;
    for line in BufReader::new(child.stderr.take().context("no pipe")?)
        .lines()
        .map_while(Result::ok)
    {
        if line.contains(' ') {
            eprintln!("{line}");
        } else {
            packages += 1;
            if packages.is_multiple_of(200) {
                eprintln!("  {packages} packages compiled");
            }
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "go build: {status}");
    Ok(())
}
