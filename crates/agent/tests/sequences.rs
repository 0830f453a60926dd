//! Manifests that change under `kube-ipvs --dry-run`: each folder of `tests/sequences` is a case.
//!
//! A folder holds `before/` and `after/`, optionally `arguments` (more flags, one a line), and `change`: the ops that
//! lead from one to the other; missing = none. Each file is replaced by a rename, so a change of several files may be
//! read in several steps. `UPDATE=1` writes `change` anew.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longer than any wait of a case.
const LONG: Duration = Duration::from_secs(60);
/// Addresses of a service that a case does not have: its ops tell that those before it are all there.
const MARKER: &str = "10.96.255.";

/// A process that prints its ops, ended with the test.
struct Planner {
    process: Child,
    lines: Receiver<String>,
    folder: tempfile::TempDir,
    marked: u8,
}

impl Drop for Planner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Planner {
    fn start(case: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        put_all(&case.join("before"), folder.path());
        put(folder.path(), "marker.yaml", &marker(0));
        let arguments = fs::read_to_string(case.join("arguments")).unwrap_or_default();
        let mut process = Command::new(env!("CARGO_BIN_EXE_kube-ipvs"))
            .args(["--dry-run", "--hostname-override", "node-a", "--manifests"])
            .arg(folder.path())
            // They come in the background, when nothing else is to be done.
            .arg("--vip-addresses=false")
            .args(arguments.lines())
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines(process.stdout.take().unwrap());
        let mut planner = Self {
            process,
            lines,
            folder,
            marked: 0,
        };
        planner.until_marked();
        planner
    }

    /// The ops up to those of the marker; none of its own.
    fn until_marked(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            let line = self.lines.recv_timeout(LONG).expect("ops come");
            if !line.contains(MARKER) {
                found.push(line);
            } else if line.contains(&format!("{MARKER}{}", self.marked)) {
                return found;
            }
        }
    }

    /// The ops of all commits up to one that begins now.
    fn mark(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        // The first marker's ops may be in the midst of a commit, the second one's are in another.
        for _ in 0..2 {
            self.marked += 1;
            put(self.folder.path(), "marker.yaml", &marker(self.marked));
            found.extend(self.until_marked());
        }
        found
    }
}

fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn marker(number: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: marker}}\nspec: {{clusterIP: {MARKER}{number}, ports: [{{port: 1}}]}}\n"
    )
}

/// At once: under another name first.
fn put(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join("next"), text).unwrap();
    fs::rename(folder.join("next"), folder.join(name)).unwrap();
}

fn names(folder: &Path) -> BTreeSet<OsString> {
    let files = fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().file_name()).collect()
}

/// The files of a folder, and no others but the marker.
fn put_all(from: &Path, to: &Path) {
    let wanted = names(from);
    for name in &wanted {
        let text = fs::read_to_string(from.join(name)).unwrap();
        put(to, name.to_str().unwrap(), &text);
    }
    for name in names(to).difference(&wanted).filter(|name| *name != "marker.yaml") {
        fs::remove_file(to.join(name)).unwrap();
    }
}

#[test]
fn every_sequence() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sequences");
    let mut cases: Vec<_> = names(&folder).into_iter().map(|name| folder.join(name)).collect();
    cases.retain(|case| case.is_dir());
    assert!(!cases.is_empty());
    for case in cases {
        let mut planner = Planner::start(&case);
        planner.mark();
        put_all(&case.join("after"), planner.folder.path());
        let found: String = planner.mark().iter().map(|line| format!("{line}\n")).collect();
        let path = case.join("change");
        if std::env::var_os("UPDATE").is_some() {
            match found.is_empty() {
                true => drop(fs::remove_file(&path)),
                false => fs::write(&path, &found).unwrap(),
            }
        }
        assert_eq!(
            found,
            fs::read_to_string(&path).unwrap_or_default(),
            "{}",
            path.display()
        );
    }
}
