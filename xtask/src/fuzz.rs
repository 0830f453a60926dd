//! Fuzzing: builds the targets of `fuzz/` with libFuzzer and the stable compiler, runs them, and says what they found.
//!
//! The layout is cargo-fuzz's, which works on it by hand; it is not needed here. Instrumentation is asked for by code
//! generation flags that stable has. There is no sanitizer: the code under test is safe Rust, and what it does wrong is a
//! panic, an overflow of the stack, a hang or memory without end.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use testbed::tool;

use crate::cargo::{cargo, root};

/// What the compiler is asked for, as cargo-fuzz asks for it. `fuzzing` opens what the targets call.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// libFuzzer is C++.
const PACKAGES: &[(&str, &str)] = &[("g++", "c++")];

/// Which targets, for how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target; may be repeated. Default: all of them.
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// Seconds of each target. Default: an hour for all that are run, divided.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Targets that run at once. Default: one for each processor.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// List the targets and exit.
    #[arg(long)]
    list: bool,
}

/// How targets are run.
#[derive(Clone, Copy)]
struct Pace {
    seconds: u64,
    jobs: usize,
    /// One input that takes longer is a finding. Wall clock, so it is generous where others have the processors.
    hang: Duration,
}

/// How one target ended.
struct Run {
    target: String,
    executions: u64,
    per_second: u64,
    /// What was found, and how it is seen again.
    finding: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let all = targets()?;
    if args.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.targets {
        ensure!(all.contains(name), "no target {name}; there are {}", all.join(", "));
    }
    let mut chosen = all;
    chosen.retain(|target| args.targets.is_empty() || args.targets.contains(target));
    if let Some(why) = missing() {
        bail!("{why}");
    }
    let jobs = args.jobs.unwrap_or_else(processors).max(1);
    let share = u64::try_from(chosen.len()).map_or(1, |count| 3600 / count.max(1));
    let pace = Pace {
        seconds: args.seconds.unwrap_or(share).max(1),
        jobs,
        hang: Duration::from_secs(60),
    };
    let folder = build(Stdio::inherit())?;
    println!("{} targets, {} s each, {jobs} at once", chosen.len(), pace.seconds);
    let runs = run_all(&folder, chosen, &pace, |run| println!("{run}"))?;
    let found = runs.iter().filter(|run| run.finding.is_some()).count();
    println!(
        "{} targets, {} executions, {found} with findings",
        runs.len(),
        executions(&runs)
    );
    Ok(if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A minute of each target, while others have the processors. What they say is in files.
pub(crate) fn level(filter: Option<&str>) -> Result<String> {
    let pace = Pace {
        seconds: 60,
        jobs: processors(),
        hang: Duration::from_secs(1200),
    };
    let mut chosen = targets()?;
    chosen.retain(|target| filter.is_none_or(|text| target.contains(text)));
    if chosen.is_empty() {
        return Ok("no target has such a name".to_owned());
    }
    let path = logs()?.join("build");
    let folder = build(File::create(&path)?.into()).with_context(|| format!("see {}", path.display()))?;
    let runs = run_all(&folder, chosen, &pace, |_| ())?;
    let found: Vec<_> = runs.iter().filter(|run| run.finding.is_some()).collect();
    if !found.is_empty() {
        let lines: String = found.iter().map(|run| format!("\n{run}")).collect();
        bail!("{} of {} targets found something:{lines}", found.len(), runs.len());
    }
    Ok(format!("{} targets, {} executions", runs.len(), executions(&runs)))
}

/// Why there can be no fuzzing here.
pub(crate) fn missing() -> Option<String> {
    let why = |error: anyhow::Error| format!("libFuzzer needs a C++ compiler: {error:#}");
    if let Err(error) = tool::install(PACKAGES) {
        return Some(why(error));
    }
    // An empty crate shows whether the flags are taken.
    let mut probe = Command::new(rustc());
    probe
        .args(["-", "--crate-type=lib", "--crate-name=probe", "--emit=metadata,obj"])
        .args(FLAGS.split_whitespace())
        .arg("--out-dir")
        .arg(logs().ok()?);
    match probe.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().next().unwrap_or_default();
            Some(format!("the compiler does not instrument: {first}"))
        }
        Err(error) => Some(format!("the compiler does not start: {error}")),
    }
}

/// Names of the targets.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("rs")) {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A cargo command on the crate of the targets, with a folder of its own for what is built: instrumented, it is nothing
/// for other builds. The target is named, so that build scripts are not instrumented.
pub(crate) fn cargo_in_fuzz(arguments: &[&str]) -> Result<Command> {
    let mut command = cargo(arguments);
    command
        .args(["--manifest-path", "fuzz/Cargo.toml", "--locked", "--release"])
        .args(["--target", &host()?])
        .env("CARGO_TARGET_DIR", build_folder())
        .env("RUSTFLAGS", FLAGS);
    Ok(command)
}

/// Builds the targets and returns the folder where they are.
fn build(output: Stdio) -> Result<PathBuf> {
    let mut command = cargo_in_fuzz(&["build", "--bins"])?;
    eprintln!("building the fuzz targets");
    let status = command.stderr(output).status().context("start cargo")?;
    ensure!(status.success(), "build the fuzz targets: {status}");
    Ok(build_folder().join(host()?).join("release"))
}

/// Runs targets, and gives each that has ended to `each`.
fn run_all(folder: &Path, targets: Vec<String>, pace: &Pace, each: impl Fn(&Run) + Sync) -> Result<Vec<Run>> {
    let queue = Mutex::new(VecDeque::from(targets));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = || {
        let mut runs = Vec::new();
        while let Some(target) = next() {
            let run = run_one(folder, &target, pace).with_context(|| target.clone())?;
            each(&run);
            runs.push(run);
        }
        Ok(runs)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..pace.jobs).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            let runs: Result<Vec<Run>> = worker.join().map_err(|_| anyhow!("a worker panicked"))?;
            all.extend(runs?);
        }
        Ok(all)
    })
}

/// Seeds first, all of them, then what comes of them until the time is over.
fn run_one(folder: &Path, target: &str, pace: &Pace) -> Result<Run> {
    let program = folder.join(target);
    let fuzz = root().join("fuzz");
    let (corpus, artifacts) = (fuzz.join("corpus").join(target), fuzz.join("artifacts").join(target));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let path = logs()?.join(target);
    let log = File::create(&path).with_context(|| format!("write {}", path.display()))?;
    let mut command = Command::new(&program);
    command
        .arg(&corpus)
        .arg(fuzz.join("seeds").join(target))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={}", pace.seconds))
        .arg(format!("-timeout={}", pace.hang.as_secs()))
        .args(["-rss_limit_mb=2048", "-print_final_stats=1"]);
    let dictionary = fuzz.join("dictionaries").join(format!("{target}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let number = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    let finding = (!status.success()).then(|| finding(&text, &program, &path));
    Ok(Run {
        target: target.to_owned(),
        executions: number("stat::number_of_executed_units:"),
        per_second: number("stat::average_exec_per_sec:"),
        finding,
    })
}

/// What a log tells of a finding, and the command that shows it again.
fn finding(log: &str, program: &Path, path: &Path) -> String {
    let written = log
        .lines()
        .find_map(|line| line.split_once("Test unit written to ").map(|(_, input)| input.trim()));
    let mut lines = log.lines().skip_while(|line| !line.contains("panicked at"));
    let panic: Vec<_> = lines.by_ref().take(2).collect();
    let what = if panic.is_empty() {
        log.lines()
            .find(|line| line.contains("ERROR: libFuzzer"))
            .unwrap_or("it died and said nothing")
            .to_owned()
    } else {
        // The whole event may be among it.
        panic.join(" ").chars().take(500).collect()
    };
    let again = written.map_or_else(String::new, |input| format!("\n  again: {} {input}", program.display()));
    format!("{what}{again}\n  log: {}", path.display())
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            target,
            executions,
            per_second,
            finding,
        } = self;
        match finding {
            None => write!(
                f,
                "passed  {target:<16} {executions:>12} executions {per_second:>8} a second"
            ),
            Some(finding) => write!(f, "FOUND   {target:<16} {finding}"),
        }
    }
}

fn executions(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.executions).sum()
}

fn build_folder() -> PathBuf {
    root().join("target/fuzz")
}

/// What builds and targets say.
fn logs() -> Result<PathBuf> {
    let folder = build_folder().join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

fn rustc() -> std::ffi::OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The machine, as the compiler names it.
fn host() -> Result<String> {
    let mut command = Command::new(rustc());
    command.arg("-vV").current_dir(root());
    let version = tool::output(command)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}
