//! Tells the program of which commit it is, for `kube_ipvs_build_info`: the commit's hash and its date, not that of the
//! build, so that the same sources give the same bytes. Without a git repository both are empty.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Written at each commit and at each change of the branch.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name]);
        if !path.is_empty() && Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["log", "-1", "--format=%H"]);
    let date = git(&["log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"]);
    println!("cargo::rustc-env=KUBE_IPVS_COMMIT={commit}");
    println!("cargo::rustc-env=KUBE_IPVS_COMMIT_DATE={date}");
}

/// What git says; empty where it cannot.
fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").args(arguments).env("TZ", "UTC").output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    }
}
