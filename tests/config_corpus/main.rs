//! Configurations as installers write them, and wrong ones, read by kube-ipvs and by the real kube-proxy: after the
//! differences of [`difference`] both write the same configuration, field by field, or complain about the same.
//!
//! A case is a folder of `cases`: `config.yaml` is the file of `--config`, `flags` has a flag a line, `complaint` is what
//! both must name where the words are each program's own. Needs the control plane and nothing else.
//! `cargo xtask test --level control-plane` runs it; `UPDATE=1` writes `configz.json` anew.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect, and tells what it compared"
)]

mod difference;
mod outcome;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testbed::control_plane::program;
use testbed::daemon::binary;

use crate::difference::DIFFERENCES;
use crate::outcome::Outcome;

/// A folder of `cases`.
struct Case {
    name: String,
    folder: PathBuf,
    config: Option<String>,
    flags: Vec<String>,
    /// What both must say where they refuse it.
    complaint: Option<String>,
}

impl Case {
    fn read(folder: PathBuf) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let flags = text("flags").unwrap_or_default();
        Self {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            config: text("config.yaml"),
            flags: flags
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::to_owned)
                .collect(),
            complaint: text("complaint").map(|text| text.trim().to_owned()),
            folder,
        }
    }

    fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config_corpus/cases");
        let mut folders: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        folders.sort();
        folders.into_iter().map(Self::read).collect()
    }

    /// The mode that it asks for; `""` where it asks for none.
    fn mode(&self) -> String {
        let of_file = |text: &String| {
            let tree: Value = serde_saphyr::from_multiple(text).ok()?.into_iter().next()?;
            Some(match &tree["mode"] {
                Value::Null => String::new(),
                Value::String(mode) => mode.clone(),
                other => other.to_string(),
            })
        };
        match &self.config {
            Some(text) => of_file(text).unwrap_or_default(),
            None => self.flag("proxy-mode").unwrap_or_default(),
        }
    }

    /// The value of a flag that has it behind an equal sign.
    fn flag(&self, name: &str) -> Option<String> {
        let with_name = |line: &String| {
            let (flag, value) = line.strip_prefix("--")?.split_once('=')?;
            (flag.replace('_', "-") == name).then(|| value.to_owned())
        };
        self.flags.iter().rev().find_map(with_name)
    }
}

/// Gives a program a file and flags, and has it write its configuration.
fn ask(mut command: Command, config: Option<&str>, flags: &[String]) -> (Outcome, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let (read, written) = (folder.path().join("config.yaml"), folder.path().join("written.yaml"));
    if let Some(config) = config {
        fs::write(&read, config).unwrap();
        command.arg("--config").arg(&read);
    }
    // A flag may want one more word, so they come last.
    let output = command
        .arg("--write-config-to")
        .arg(&written)
        .args(flags)
        .output()
        .unwrap();
    let text = fs::read_to_string(&written).ok();
    (Outcome::of(&output, text.as_deref()), text)
}

fn kube_proxy() -> Command {
    let mut command = Command::new(program().unwrap());
    command.arg("kube-proxy");
    command
}

/// How often each difference had to be made, or what is left that no row explains.
fn check(case: &Case) -> Result<Vec<usize>, String> {
    let (ours, text) = ask(Command::new(binary()), case.config.as_deref(), &case.flags);
    let mut counts = vec![0; DIFFERENCES.len()];
    let (mut config, mut flags) = (case.config.clone(), case.flags.clone());
    for (count, difference) in counts.iter_mut().zip(DIFFERENCES) {
        *count += usize::from((difference.ask)(case, &mut config, &mut flags));
    }
    let (mut theirs, _) = ask(kube_proxy(), config.as_deref(), &flags);
    for (count, difference) in counts.iter_mut().zip(DIFFERENCES) {
        *count += usize::from((difference.expect)(case, &mut theirs));
    }
    theirs.compare(&ours, case.complaint.as_deref())?;
    // kube-proxy reads what we write, our own document behind it included, and writes the same. With flags it need not:
    // a zero is a value there, and a default in a file.
    if let (Some(text), Some(_), Outcome::Written { .. }) = (text, &case.config, &theirs) {
        let (mut again, _) = ask(kube_proxy(), Some(&text), &[]);
        for difference in DIFFERENCES {
            (difference.expect)(case, &mut again);
        }
        again
            .compare_written(&ours)
            .map_err(|left| format!("read again by kube-proxy: {left}"))?;
    }
    Ok(counts)
}

#[test]
fn configurations_are_read_as_by_kube_proxy() {
    let cases = Case::all();
    let good = cases.iter().filter(|case| !case.name.starts_with("bad-")).count();
    assert!(good >= 25 && cases.len() - good >= 50, "{good} of {}", cases.len());
    let mut totals = vec![0; DIFFERENCES.len()];
    let mut wrong = BTreeMap::new();
    for case in &cases {
        match check(case) {
            Ok(counts) => totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count),
            Err(left) => drop(wrong.insert(&case.name, left)),
        }
    }
    for (name, left) in &wrong {
        println!("== {name}\n{left}");
    }
    println!("differences in {} cases:", cases.len());
    for (total, difference) in totals.iter().zip(DIFFERENCES) {
        println!("{total:6}  {}", difference.what);
    }
    assert!(wrong.is_empty(), "{:?}", wrong.keys());
    // A row that no case needs is none.
    let unused: Vec<_> = totals
        .iter()
        .zip(DIFFERENCES)
        .filter(|(total, _)| **total == 0)
        .map(|(_, difference)| difference.what)
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

/// What upstream's own types make of a file for `/configz`. The unit tests of the agent compare theirs with the same
/// files.
#[test]
fn configz_is_upstreams() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut checked = 0;
    for case in Case::all() {
        let path = case.folder.join("configz.json");
        if !path.exists() {
            continue;
        }
        let output = Command::new(program().unwrap())
            .arg("configz")
            .arg(case.folder.join("config.yaml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let upstream: Value = serde_json::from_slice(&output.stdout).unwrap();
        if update {
            fs::write(&path, format!("{upstream:#}\n")).unwrap();
        }
        let kept: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(upstream, kept, "{}", case.name);
        checked += 1;
    }
    assert!(checked >= 2, "{checked}");
}

/// The table of feature gates in the agent's source is that of the release.
#[test]
fn feature_gates_are_those_of_the_release() {
    let output = Command::new(program().unwrap()).arg("feature-gates").output().unwrap();
    let upstream: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expect: Vec<_> = upstream
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, gate)| {
            let stage = match gate["stage"].as_str().unwrap() {
                "ALPHA" => "Alpha",
                "BETA" => "Beta",
                "" => "Stable",
                "DEPRECATED" => "Deprecated",
                other => panic!("stage {other:?}"),
            };
            let lock = if gate["locked"] == true { "Locked" } else { "Free" };
            format!("(\"{name}\", {stage}, {}, {lock}),", gate["default"])
        })
        .collect();
    let table = include_str!("../../crates/agent/src/config/gate_table.rs");
    let rows: Vec<_> = table
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("(\""))
        .collect();
    assert!(rows.len() > 100, "{}", rows.len());
    assert_eq!(rows, expect);
}
