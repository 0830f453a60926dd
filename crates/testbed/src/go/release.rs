//! Programs of older releases: a kube-proxy to compare with, an API server to be served by. Each is built as the main
//! module that it is, with its own `go.mod`. There the staging modules are folders of a repository that the module does
//! not carry; the published modules of the same release take their place.
//!
//! `tests/control-plane/releases.sum` names the releases, and has the hashes that their own `go.sum` lack. A release is
//! added by a line `k8s.io/kubernetes vX.Y.Z`; a run with `UPDATE=1` writes the rest. Of a release there is kube-proxy;
//! of those of `API_SERVERS` there is the API server in its place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{folder, linker_flags, prepare, run};
use crate::tool;

/// Environment variable with the paths of the kube-proxies that [`build`] made, separated as in `PATH`.
pub const KUBE_PROXIES: &str = "KUBE_IPVS_KUBE_PROXIES";
/// The same of the API servers.
pub const OLDER_API_SERVERS: &str = "KUBE_IPVS_OLDER_API_SERVERS";
/// The oldest release that is promised. There is no kube-proxy of it: proxy.golang.org answers 403 to its module
/// `k8s.io/kube-proxy` v0.31.14.
const API_SERVERS: [&str; 2] = ["v1.30.14", "v1.31.14"];
const SUMS: &str = "tests/control-plane/releases.sum";
const MODULE: &str = "k8s.io/kubernetes";
/// Version of a staging module in Kubernetes' own `go.mod`, and where it lies.
const UNVERSIONED: &str = "v0.0.0";
const STAGED: &str = " => ./staging/src/";

/// What was built, oldest first.
pub struct Programs {
    /// Of the releases that `API_SERVERS` does not name.
    pub kube_proxies: Vec<PathBuf>,
    /// Of those that it names.
    pub api_servers: Vec<PathBuf>,
}

/// Builds a program of every release of `releases.sum` into `target/control-plane`: some minutes for each the first
/// time, seconds after that.
///
/// # Errors
/// As [`build`](super::build); or a module is not the one whose hash is in `releases.sum`.
pub fn build(workspace: &Path) -> Result<Programs> {
    prepare()?;
    let folder = folder(workspace)?;
    let path = workspace.join(SUMS);
    let mut sums = Sums {
        lines: fs::read_to_string(&path)?.lines().map(str::to_owned).collect(),
        update: std::env::var_os("UPDATE").is_some(),
    };
    let releases: BTreeSet<String> = sums
        .lines
        .iter()
        .filter_map(|line| release(line))
        .map(str::to_owned)
        .collect();
    ensure!(!releases.is_empty(), "{SUMS} names no release");
    let mut programs = Programs {
        kube_proxies: Vec::new(),
        api_servers: Vec::new(),
    };
    for version in &releases {
        let (name, programs) = if API_SERVERS.contains(&version.as_str()) {
            ("kube-apiserver", &mut programs.api_servers)
        } else {
            ("kube-proxy", &mut programs.kube_proxies)
        };
        programs.push(compile(&folder, name, version, &mut sums)?);
        // After each: a build that fails leaves those before it.
        if sums.update {
            let lines: Vec<_> = sums.lines.iter().map(String::as_str).collect();
            fs::write(&path, format!("{}\n", lines.join("\n")))?;
        }
    }
    Ok(programs)
}

/// The file of hashes.
struct Sums {
    lines: BTreeSet<String>,
    /// It may grow.
    update: bool,
}

fn compile(folder: &Path, name: &str, version: &str, sums: &mut Sums) -> Result<PathBuf> {
    let Module { source, hash } = download(folder, version)?;
    let line = format!("{MODULE} {version} {hash}");
    ensure!(sums.update || sums.lines.contains(&line), "not in {SUMS}: {line}");
    let own = fs::read_to_string(source.join("go.sum"))?;
    let program = folder.join(format!("{name}-{version}"));
    let [modules, hashes] = ["mod", "sum"].map(|end| folder.join(format!("{version}.{end}")));
    fs::write(
        &modules,
        with_published(&fs::read_to_string(source.join("go.mod"))?, version)?,
    )?;
    // Go accepts no line without a hash, which is how a new release is named.
    let hashed = sums
        .lines
        .iter()
        .map(String::as_str)
        .filter(|line| line.contains(" h1:"));
    let known: Vec<_> = own.lines().chain(hashed).collect();
    fs::write(&hashes, format!("{}\n", known.join("\n")))?;
    eprintln!("building the {name} of {version} with Go: minutes the first time, seconds after that");
    let mut command = Command::new("go");
    command
        .current_dir(&source)
        // The source has a workspace and a folder `vendor`, both without what they name.
        .env("GOWORK", "off")
        .args(["build", "-v", "-trimpath", "-ldflags", &linker_flags(version)?])
        .arg(if sums.update { "-mod=mod" } else { "-mod=readonly" })
        .arg(format!("-modfile={}", modules.display()))
        .arg("-o")
        .arg(&program)
        .arg(format!("./cmd/{name}"));
    run(command)?;
    if sums.update {
        let own: BTreeSet<_> = own.lines().collect();
        let all = fs::read_to_string(&hashes)?;
        sums.lines
            .extend(all.lines().filter(|line| !own.contains(line)).map(str::to_owned));
        sums.lines.remove(&format!("{MODULE} {version}"));
        sums.lines.insert(line);
    }
    Ok(program)
}

/// The release that a line of the file of hashes names.
fn release(line: &str) -> Option<&str> {
    line.strip_prefix(MODULE)?.strip_prefix(' ')?.split(' ').next()
}

/// A module in Go's cache.
struct Module {
    source: PathBuf,
    hash: String,
}

fn download(folder: &Path, version: &str) -> Result<Module> {
    let mut command = Command::new("go");
    command
        .current_dir(folder)
        .args(["mod", "download", "-json", &format!("{MODULE}@{version}")]);
    let module: Value = serde_json::from_str(&tool::output(command)?)?;
    let text = |name: &str| {
        let text = module.get(name).and_then(Value::as_str);
        text.map(str::to_owned)
            .with_context(|| format!("{MODULE}@{version} has no {name}: {module}"))
    };
    Ok(Module {
        source: text("Dir")?.into(),
        hash: text("Sum")?,
    })
}

/// The `go.mod` of a release (`v1.37.2`) with its staging modules as they are published (`v0.37.2`).
fn with_published(modules: &str, version: &str) -> Result<String> {
    let published = version
        .strip_prefix("v1.")
        .map(|rest| format!("v0.{rest}"))
        .with_context(|| format!("{version:?} is no release of Kubernetes 1"))?;
    let lines = modules.lines().filter(|line| !line.contains(STAGED)).map(|line| {
        let words = line.split(' ');
        let words: Vec<_> = words
            .map(|word| if word == UNVERSIONED { &published } else { word })
            .collect();
        words.join(" ") + "\n"
    });
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_are_published_ones() {
        let modules = "require (\n\tk8s.io/api v0.0.0\n\tk8s.io/utils v0.0.0-20250604170112-4c0f3b243397\n\tk8s.io/kms v0.0.0 // indirect\n)\n\n\
                       replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let expect = "require (\n\tk8s.io/api v0.34.4\n\tk8s.io/utils v0.0.0-20250604170112-4c0f3b243397\n\tk8s.io/kms v0.34.4 // indirect\n)\n\n\
                      replace (\n)\n";
        assert_eq!(with_published(modules, "v1.34.4").unwrap(), expect);
        with_published(modules, "v2.0.0").unwrap_err();
    }

    #[test]
    fn releases_are_named_by_hashes_of_kubernetes() {
        assert_eq!(release("k8s.io/kubernetes v1.34.4 h1:Yy6="), Some("v1.34.4"));
        assert_eq!(release("k8s.io/kubernetes v1.38.0"), Some("v1.38.0"));
        assert_eq!(release("k8s.io/kubernetes-other v1.34.4 h1:Yy6="), None);
        assert_eq!(release("k8s.io/api v0.34.4 h1:Yy6="), None);
    }
}
