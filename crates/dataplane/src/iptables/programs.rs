//! The programs of iptables: the one thing that the fallback executes.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::thread;

use service_model::Family;

use super::tables::{Settings, Tables};
use crate::probe;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Seconds for which the lock of xtables is waited for: upstream's.
const LOCK: &str = "5";

/// Which of its two implementations a node's agents use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
    /// `iptables`, whatever it is: there are no others.
    Plain,
}

/// How the tables are read and written.
pub trait Programs {
    /// `iptables-save`, both tables of ours.
    ///
    /// # Errors
    /// In words.
    fn save(&mut self, family: Family) -> Result<String, String>;

    /// `iptables-restore --noflush`.
    ///
    /// # Errors
    /// In words; nothing of a table is written then.
    fn restore(&mut self, family: Family, text: &str) -> Result<(), String>;
}

/// The node's own programs.
#[derive(Clone, Copy, Debug)]
pub struct Installed {
    variant: Variant,
}

impl Installed {
    /// The implementation whose tables other agents of the node use, by their rules: the kubelet's chains decide, then
    /// the greater number of rules (as the iptables-wrappers of the Kubernetes project do); nft where there are none.
    /// Where the kernel refuses what every cluster needs of it, the other one.
    ///
    /// # Errors
    /// There is no iptables, or none that this kernel can do with.
    pub fn find() -> Result<Self, String> {
        let named = [
            Self { variant: Variant::Nft },
            Self {
                variant: Variant::Legacy,
            },
        ];
        let mut found: Vec<_> = named.into_iter().filter(|programs| programs.are_there()).collect();
        found.sort_by_cached_key(|programs| Reverse(programs.use_by_others()));
        let plain = Self {
            variant: Variant::Plain,
        };
        found.extend(Some(plain).filter(|plain| found.is_empty() && plain.are_there()));
        if found.is_empty() {
            return Err("iptables is not installed".to_owned());
        }
        let mut refused = Vec::new();
        for programs in found {
            match programs.try_out() {
                Ok(()) => return Ok(programs),
                Err(error) => {
                    tracing::warn!(
                        variant = programs.variant.as_str(),
                        error,
                        "this iptables cannot be used"
                    );
                    refused.push(error);
                }
            }
        }
        // What was tried would have loaded it.
        refused.extend((!probe::has_connection_tracker()).then(|| probe::NO_CONNECTION_TRACKER.to_owned()));
        Err(refused.join("; "))
    }

    fn are_there(self) -> bool {
        execute(&name(self.variant, Family::V4, ""), &["-V"], "").is_ok()
    }

    /// How many chains of the kubelet there are, and how many rules.
    fn use_by_others(mut self) -> (usize, usize) {
        let saved = FAMILIES.into_iter().filter_map(|family| self.save(family).ok());
        saved.fold((0, 0), |(hints, rules), text| {
            let chains = text
                .lines()
                .filter(|line| line.starts_with(":KUBE-IPTABLES-HINT") || line.starts_with(":KUBE-KUBELET-CANARY"));
            let lines = text.lines().filter(|line| line.starts_with("-A "));
            (hints + chains.count(), rules + lines.count())
        })
    }

    /// Writes the rules of a cluster without services into a scratch network namespace; where none may be made, reading
    /// is all that can be tried.
    fn try_out(mut self) -> Result<(), String> {
        let empty = Tables::new(Settings::default());
        let texts = FAMILIES.map(|family| empty.plan(family).map(|restore| (family, restore.text)));
        let mut write = move || -> Result<(), String> {
            let mut texts = texts.iter().flatten();
            texts.try_for_each(|(family, text)| self.restore(*family, text))
        };
        let scratch = thread::Builder::new()
            .name("probe".into())
            .spawn(move || probe::isolate().then(&mut write));
        match scratch.map(thread::JoinHandle::join) {
            Ok(Ok(Some(written))) => written,
            _ => self.save(Family::V4).map(drop),
        }
    }

    /// Which they are.
    pub fn variant(&self) -> Variant {
        self.variant
    }
}

impl Programs for Installed {
    fn save(&mut self, family: Family) -> Result<String, String> {
        succeeded(&name(self.variant, family, "-save"), &[], "")
    }

    fn restore(&mut self, family: Family, text: &str) -> Result<(), String> {
        let words = ["-w", LOCK, "--noflush", "--counters"];
        succeeded(&name(self.variant, family, "-restore"), &words, text).map(drop)
    }
}

fn name(variant: Variant, family: Family, what: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let suffix = match variant {
        Variant::Nft => "-nft",
        Variant::Legacy => "-legacy",
        Variant::Plain => "",
    };
    format!("{program}{suffix}{what}")
}

fn succeeded(program: &str, words: &[&str], input: &str) -> Result<String, String> {
    let output = execute(program, words, input).map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}: {}", output.status, said.trim()))
}

/// Runs a program with an input, to its end.
///
/// # Errors
/// It cannot be started: [`io::ErrorKind::NotFound`] where there is none.
pub fn execute(program: &str, words: &[&str], input: &str) -> io::Result<Output> {
    let mut command = Command::new(program);
    command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let pipe = child.stdin.take();
    thread::scope(|scope| {
        // Beside the reader: a text may be longer than a pipe.
        scope.spawn(|| pipe.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output()
    })
}

impl Variant {
    /// As in the names of the programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
            Self::Plain => "iptables",
        }
    }
}
