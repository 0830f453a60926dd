//! Configurations as installers write them, and wrong ones, read by kube-ipvs and by the real kube-proxy of the newest
//! release, and of older ones where the environment names them: after the differences of [`difference`] both write the
//! same configuration, field by field, or complain about the same.
//!
//! A case is a folder of `cases`: `config.yaml` is the file of `--config`, `flags` has a flag a line, `complaint` is what
//! both must name where the words are each program's own. Needs the control plane and nothing else.
//! `cargo xtask test --level control-plane` runs it beside the newest, `--level releases` beside all; `UPDATE=1` writes `configz.json` anew.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect, and tells what it compared"
)]

mod difference;
mod outcome;
mod release;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testbed::control_plane::program;
use testbed::daemon::binary;

use crate::difference::DIFFERENCES;
use crate::outcome::Outcome;
use crate::release::Release;

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

    /// A field of the file; `null` where there is none.
    fn field(&self, name: &str) -> Value {
        let first = |text: &String| serde_saphyr::from_multiple::<Value>(text).ok()?.into_iter().next();
        let tree = self.config.as_ref().and_then(first).unwrap_or_default();
        tree.get(name).cloned().unwrap_or_default()
    }

    /// The mode that it asks for; `""` where it asks for none.
    fn mode(&self) -> String {
        if self.config.is_none() {
            return self.flag("proxy-mode").unwrap_or_default();
        }
        match self.field("mode") {
            Value::Null => String::new(),
            Value::String(mode) => mode,
            other => other.to_string(),
        }
    }

    /// `nodePortAddresses`, by the file or by the flag.
    fn node_port_addresses(&self) -> Vec<String> {
        let of_file = self.field("nodePortAddresses");
        let of_file = of_file.as_array().into_iter().flatten();
        let of_file = of_file.filter_map(|address| address.as_str().map(str::to_owned));
        let of_flag = self.flag("nodeport-addresses").unwrap_or_default();
        let of_flag = of_flag.split(',').filter(|text| !text.is_empty()).map(str::to_owned);
        of_file.chain(of_flag).collect()
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

/// How often each difference had to be made beside one release, or what is left that no row explains.
fn check(case: &Case, release: &Release, (ours, text): &(Outcome, Option<String>)) -> Result<Vec<usize>, String> {
    let rows: Vec<_> = DIFFERENCES.iter().map(|row| row.of(release.minor)).collect();
    let mut counts = vec![0; rows.len()];
    let (mut config, mut flags) = (case.config.clone(), case.flags.clone());
    for (count, row) in counts.iter_mut().zip(&rows) {
        *count += usize::from(row.is_some_and(|row| (row.ask)(case, &mut config, &mut flags)));
    }
    let (mut theirs, _) = ask(release.command(), config.as_deref(), &flags);
    for (count, row) in counts.iter_mut().zip(&rows) {
        *count += usize::from(row.is_some_and(|row| (row.expect)(case, &mut theirs)));
    }
    theirs.compare(ours, case.complaint.as_deref())?;
    // kube-proxy reads what we write, our own document behind it included, and writes the same. With flags it need not:
    // a zero is a value there, and a default in a file.
    if let (Some(text), Some(_), Outcome::Written { .. }) = (text, &case.config, &theirs) {
        let (mut again, _) = ask(release.command(), Some(text), &[]);
        for row in rows.into_iter().flatten() {
            (row.expect)(case, &mut again);
        }
        again
            .compare_written(ours)
            .map_err(|left| format!("read again by kube-proxy: {left}"))?;
    }
    Ok(counts)
}

#[test]
fn configurations_are_read_as_by_kube_proxy() {
    let cases = Case::all();
    let good = cases.iter().filter(|case| !case.name.starts_with("bad-")).count();
    assert!(good >= 25 && cases.len() - good >= 50, "{good} of {}", cases.len());
    let releases = Release::all();
    let mut totals = vec![vec![0; releases.len()]; DIFFERENCES.len()];
    let mut wrong = BTreeMap::new();
    for case in &cases {
        let ours = ask(Command::new(binary()), case.config.as_deref(), &case.flags);
        for (column, release) in releases.iter().enumerate() {
            match check(case, release, &ours) {
                Ok(counts) => totals
                    .iter_mut()
                    .zip(counts)
                    .for_each(|(row, count)| row[column] += count),
                Err(left) => drop(wrong.insert((&case.name, release.minor), left)),
            }
        }
    }
    for ((name, minor), left) in &wrong {
        println!("== {name}, 1.{minor}\n{left}");
    }
    let heads: Vec<_> = releases
        .iter()
        .map(|release| format!("  1.{}", release.minor))
        .collect();
    println!("{}  differences in {} cases", heads.concat(), cases.len());
    let mut unused = Vec::new();
    for (row, counts) in DIFFERENCES.iter().zip(&totals) {
        let mut line = String::new();
        for (release, count) in releases.iter().zip(counts) {
            match row.of(release.minor) {
                Some(_) if *count == 0 => unused.push(format!("1.{}: {}", release.minor, row.what)),
                Some(_) => line += &format!("{count:6}"),
                None => line += "     -",
            }
        }
        println!("{line}  {}", row.what);
        // Without the older releases nothing is known of a row that is about them alone.
        if releases.len() > 1 && releases.iter().all(|release| row.of(release.minor).is_none()) {
            unused.push(format!("no release: {}", row.what));
        }
    }
    assert!(wrong.is_empty(), "{:?}", wrong.keys());
    // A row that no case needs is none.
    assert!(unused.is_empty(), "{unused:#?}");
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
