//! A reader that goes before the end is no error: nothing is said, and the exit status is SIGPIPE's. The daemon goes on
//! without its log.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::io::{self, BufRead, BufReader, PipeWriter};
use std::path::Path;
use std::process::{Command, Stdio};

/// Of a program that SIGPIPE ended, as a shell shows it.
const READER_GONE: i32 = 141;

fn cases() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/cases")
        .display()
        .to_string()
}

fn kube_ipvs(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-ipvs"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A pipe without a reader.
fn closed() -> PipeWriter {
    let (_, writer) = io::pipe().unwrap();
    writer
}

#[test]
fn what_prints_ends_quietly() {
    let manifests = format!("--manifests={}/t20-affinity/manifests", cases());
    let node = "--hostname-override=node-a";
    let plan = ["plan", &manifests, node];
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["plan", "--help"],
        &["cleanup", "--help"],
        &plan,
        &[&plan[..], &["--output=json"]].concat(),
        &[&plan[..], &["--proxy-mode=iptables"]].concat(),
        &["--dry-run", &manifests, node],
    ] {
        let child = kube_ipvs(arguments)
            .env("RUST_LOG", "error")
            .stdout(closed())
            .stderr(Stdio::piped())
            .spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(READER_GONE),
            "{arguments:?}: {}",
            output.status
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "", "{arguments:?}");
    }
}

/// Where standard error has no reader the status still tells.
#[test]
fn what_is_remarked_may_go_unread() {
    let rejected = format!("--manifests={}/bad-fields/manifests", cases());
    let node = "--hostname-override=node-a";
    for (arguments, status) in [
        (&["plan", &rejected, node][..], 2),
        (&["plan", "--manifests=/nowhere"], 1),
        (&["--no-such-flag"], 1),
        (&["--config=/nowhere"], 1),
    ] {
        let found = kube_ipvs(arguments)
            .stdout(Stdio::null())
            .stderr(closed())
            .status()
            .unwrap();
        assert_eq!(found.code(), Some(status), "{arguments:?}: {found}");
    }
}

#[test]
fn the_daemon_needs_no_reader_of_its_log() {
    let manifests = format!("--manifests={}/t20-affinity/manifests", cases());
    let arguments = ["--dry-run", &manifests, "--hostname-override=node-a", "-v=9"];
    let mut daemon = kube_ipvs(&arguments)
        .stdout(Stdio::piped())
        .stderr(closed())
        .spawn()
        .unwrap();
    let mut plan = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let first = plan.next().unwrap().unwrap();
    assert!(first.contains("kube-ipvs"), "{first}");
    let id = daemon.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}
