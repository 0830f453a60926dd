//! Manifests in, plan out, as text: each folder of `tests/cases` is a case, and a bug report becomes one.
//!
//! A folder holds `manifests/`, optionally `arguments` (more flags of `kube-ipvs plan`, one a line), and what is
//! expected: `plan` (standard output, without the rules of the policy tables), `rules` (those; checked where the file
//! is there), `rejected` (standard error; missing = none), `iptables` (standard output in that mode; checked where the
//! file is there), `warned` (what the log warns of; checked where the file is there). DIR stands for the folder of the
//! manifests. `UPDATE=1` writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The JSON form has the same ops, in the same order.
fn check_json(case: &Path) {
    let run = |more: &[&str]| {
        let arguments = fs::read_to_string(case.join("arguments")).unwrap_or_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-ipvs"));
        command
            .args(["plan", "--hostname-override", "node-a", "--manifests"])
            .arg(case.join("manifests"));
        command.args(arguments.lines()).args(more).output().unwrap().stdout
    };
    let json: serde_json::Value = serde_json::from_slice(&run(&["-o", "json"])).unwrap();
    let ops: Vec<_> = json["ops"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|op| op["op"].as_str().unwrap().lines())
        .collect();
    assert_eq!(
        ops,
        String::from_utf8_lossy(&run(&[])).lines().collect::<Vec<_>>(),
        "{}",
        case.display()
    );
    assert_eq!(
        json["rejections"].as_array().unwrap().is_empty(),
        !case.join("rejected").exists()
    );
}

fn run_plan(case: &Path, more: &[&str], log: &str) -> Output {
    let arguments = fs::read_to_string(case.join("arguments")).unwrap_or_default();
    Command::new(env!("CARGO_BIN_EXE_kube-ipvs"))
        .args(["plan", "--hostname-override", "node-a", "--manifests"])
        .arg(case.join("manifests"))
        .args(arguments.lines())
        .args(more)
        .env("RUST_LOG", log)
        .output()
        .unwrap()
}

fn check(case: &Path, update: bool) -> Vec<String> {
    let output = run_plan(case, &[], "error");
    let mut wrong = Vec::new();
    let is_rule = |line: &&str| {
        let words: Vec<_> = line.split(' ').collect();
        ["table", "chain", "set", "map", "rule"].contains(&words[1]) && ["add", "delete"].contains(&words[0])
    };
    let manifests = case.join("manifests").display().to_string();
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .replace(&manifests, "DIR")
            .replace(concat!("kube-ipvs ", env!("CARGO_PKG_VERSION")), "kube-ipvs VERSION")
    };
    let warned = text(&run_plan(case, &[], "warn").stderr);
    // Without the time.
    let warned = warned
        .lines()
        .filter_map(|line| Some(format!("{}\n", line.get(line.find("WARN")?..)?)));
    let stdout = text(&output.stdout);
    let (rules, plan): (Vec<_>, Vec<_>) = stdout.split_inclusive('\n').partition(is_rule);
    for (file, found) in [
        ("plan", plan.concat()),
        ("rules", rules.concat()),
        ("rejected", text(&output.stderr)),
        (
            "iptables",
            text(&run_plan(case, &["--proxy-mode=iptables"], "error").stdout),
        ),
        ("warned", warned.collect()),
    ] {
        let path = case.join(file);
        if ["rules", "iptables", "warned"].contains(&file) && !path.exists() {
            continue;
        }
        if update && found.is_empty() {
            let _ = fs::remove_file(&path);
        } else if update {
            fs::write(&path, &found).unwrap();
        }
        let expect = fs::read_to_string(&path).unwrap_or_default();
        if expect != found {
            wrong.push(format!("{}:\n--- expected\n{expect}--- found\n{found}", path.display()));
        }
    }
    let status = if case.join("rejected").exists() { 2 } else { 0 };
    if output.status.code() != Some(status) {
        wrong.push(format!(
            "{}: status {:?}, want {status}",
            case.display(),
            output.status.code()
        ));
    }
    wrong
}

#[test]
fn every_case() {
    let update = std::env::var_os("UPDATE").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases");
    let mut cases: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(!cases.is_empty());
    cases.iter().for_each(|case| check_json(case));
    let wrong: Vec<_> = cases.iter().flat_map(|case| check(case, update)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
