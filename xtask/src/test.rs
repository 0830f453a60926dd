//! Every level of test that this machine can run; what did not run is named with its reason.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use testbed::kernel::{Job, Name, Provider};
use testbed::tool;

use crate::cargo::{cache, cargo, executable, root};

/// A level of test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Unit, property, case and edge tests: needs nothing.
    Plain,
    /// On a kernel with IPVS, with traffic.
    Kernel,
    /// On a kernel with IPVS: with a real API server, and beside the real kube-proxy's rules and configurations.
    ControlPlane,
    /// On a kernel with IPVS: the quick run of the connectivity matrix.
    Matrix,
    /// On a kernel with IPVS: the short form of the crash tests.
    Crash,
    /// A minute of each fuzz target, beside the other levels.
    Fuzz,
    /// On nodes that are kernels with IPVS: some of upstream's own tests.
    Conformance,
    /// On a distribution's kernel, without one module after the other. Not among the default levels.
    Modules,
    /// Beside programs of every release that is tried, built once: how each kube-proxy reads configurations, and that old
    /// API servers are followed. Not among the default levels.
    Releases,
}

/// Levels that are run where they are named.
const NAMED_ONLY: [Level; 2] = [Level::Modules, Level::Releases];

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Kernel => "kernel",
            Self::ControlPlane => "control-plane",
            Self::Matrix => "matrix",
            Self::Crash => "crash",
            Self::Fuzz => "fuzz",
            Self::Conformance => "conformance",
            Self::Modules => "modules",
            Self::Releases => "releases",
        }
    }
}

/// How a level ended.
struct Outcome {
    level: Level,
    seconds: f64,
    result: Result<String>,
}

pub(crate) fn run(only: &[Level], kernel: Option<Name>, filter: Option<&str>) -> Result<ExitCode> {
    let levels: Vec<_> = [
        Level::Plain,
        Level::Kernel,
        Level::ControlPlane,
        Level::Matrix,
        Level::Crash,
        Level::Conformance,
        Level::Modules,
        Level::Releases,
        Level::Fuzz,
    ]
    .into_iter()
    .filter(|level| only.contains(level) || only.is_empty() && !NAMED_ONLY.contains(level))
    .collect();
    tool::install(crate::GUEST_PACKAGES)?;
    let mut provider = None;
    let mut outcomes = Vec::new();
    let mut not_run: Vec<_> = NOT_HERE.iter().map(|(name, why)| (*name, (*why).to_owned())).collect();
    let mut fuzzing = None;
    if levels.contains(&Level::Fuzz) {
        match crate::fuzz::missing() {
            None => fuzzing = Some(Fuzzing::start(filter)),
            Some(why) => not_run.push((Level::Fuzz.name(), why)),
        }
    }
    let mut programs = levels.contains(&Level::Conformance).then(build_ahead);
    for level in levels {
        println!("== level {}", level.name());
        let start = Instant::now();
        if [Level::ControlPlane, Level::Conformance].contains(&level)
            && let Some(programs) = programs.take()
        {
            // What failed is built again by the level, which says so.
            let _ = programs.join();
        }
        let result = match level {
            Level::Plain => plain(filter),
            Level::Conformance => crate::conformance::short(filter),
            Level::Modules => without_modules(filter),
            Level::Releases => releases(filter),
            Level::Fuzz => match fuzzing.take() {
                Some(fuzzing) => {
                    outcomes.push(fuzzing.wait());
                    continue;
                }
                None => continue,
            },
            _ => with_kernel(&mut provider, kernel, level, filter),
        };
        outcomes.push(Outcome {
            level,
            seconds: start.elapsed().as_secs_f64(),
            result,
        });
    }
    println!("\n== summary");
    println!(
        "kernel: {}",
        provider
            .as_ref()
            .map_or_else(|| "none was needed".to_owned(), ToString::to_string)
    );
    for Outcome { level, seconds, result } in &outcomes {
        match result {
            Ok(what) => println!("passed  {:<14} {seconds:6.1} s  {what}", level.name()),
            Err(error) => println!("FAILED  {:<14} {seconds:6.1} s  {error:#}", level.name()),
        }
    }
    let ran = |name: &str| outcomes.iter().any(|outcome| outcome.level.name() == name);
    for (name, why) in not_run.iter().filter(|(name, _)| !ran(name)) {
        println!("not run {name:<14} {why}");
    }
    Ok(if outcomes.iter().all(|outcome| outcome.result.is_ok()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds what the later levels need of Go behind the first ones, for which it gives way: minutes, where nothing is there.
fn build_ahead() -> JoinHandle<Result<()>> {
    thread::spawn(|| {
        give_way()?;
        crate::conformance::build()
    })
}

/// This thread, and all that it starts from now on, has the processors that nothing else wants (nice(2), which is of a
/// thread on Linux).
fn give_way() -> Result<()> {
    rustix::process::nice(19)?;
    Ok(())
}

/// The level `fuzz`: it runs from the start behind all others, for which it gives way, and is waited for at the end.
struct Fuzzing {
    start: Instant,
    thread: JoinHandle<(Result<String>, Instant)>,
}

impl Fuzzing {
    fn start(filter: Option<&str>) -> Self {
        let filter = filter.map(str::to_owned);
        let level = move || {
            give_way()?;
            crate::fuzz::level(filter.as_deref())
        };
        let work = move || (level(), Instant::now());
        Self {
            start: Instant::now(),
            thread: thread::spawn(work),
        }
    }

    fn wait(self) -> Outcome {
        if !self.thread.is_finished() {
            println!("it runs since the start; its output is in target/fuzz/logs");
        }
        let (result, end) = self
            .thread
            .join()
            .unwrap_or_else(|_| (Err(anyhow!("it panicked")), Instant::now()));
        Outcome {
            level: Level::Fuzz,
            seconds: (end - self.start).as_secs_f64(),
            result,
        }
    }
}

/// Levels that exist and are not part of this command.
const NOT_HERE: &[(&str, &str)] = &[
    (
        "modules",
        "an emulated kernel is booted for each module that it lacks: cargo xtask test --level modules",
    ),
    (
        "releases",
        "a kube-proxy or an API server of each older release is built with Go, some minutes each: cargo xtask test --level releases",
    ),
    (
        "e2e",
        "a whole cluster from its manifests to their removal takes minutes: cargo xtask e2e",
    ),
];

fn plain(filter: Option<&str>) -> Result<String> {
    let mut command = cargo(&["test", "--workspace", "--locked"]);
    if let Some(filter) = filter {
        command.arg(filter);
    }
    tool::show(command)?;
    Ok("unit, property, case and edge tests".to_owned())
}

fn with_kernel(
    provider: &mut Option<Provider>,
    kernel: Option<Name>,
    level: Level,
    filter: Option<&str>,
) -> Result<String> {
    let provider = match provider {
        Some(provider) => provider,
        None => provider.insert(Provider::for_tests(kernel, &cache())?),
    };
    println!("kernel: {provider}");
    if level == Level::Matrix {
        return crate::matrix::subset(provider, filter);
    }
    if level == Level::Crash {
        return crate::crash::short(provider);
    }
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    let (tests, environment) = match level {
        Level::ControlPlane => (
            &["config_corpus", "control_plane", "iptables_golden"][..],
            vec![control_plane()?],
        ),
        _ => (&["kernel"][..], Vec::new()),
    };
    for test in tests {
        // Rules and configurations are compared, no IPVS is needed: the running kernel is the fastest.
        let provider = match *test {
            "iptables_golden" | "config_corpus" => &Provider::for_fallback(None, &cache())?,
            _ => provider,
        };
        let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", test])?;
        let filter: Vec<_> = filter.into_iter().collect();
        on(provider, &job(&program, &binary, environment.clone(), &filter))?;
    }
    Ok(format!("on {provider}"))
}

/// Boots a kernel for each test, without the module that the test is named after.
fn without_modules(filter: Option<&str>) -> Result<String> {
    let provider = Provider::for_tests(Some(Name::Qemu), &cache())?;
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", "modules"])?;
    let path = program.to_string_lossy();
    let list = tool::run(&[&*path, "--list", "--format=terse"])?;
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let names: Vec<_> = names
        .filter(|name| filter.is_none_or(|text| name.contains(text)))
        .collect();
    for name in &names {
        println!("a kernel without {name}");
        let mut job = job(&program, &binary, Vec::new(), &["--exact", name]);
        job.withheld = vec![(*name).to_owned()];
        job.memory = 1024;
        on(&provider, &job)?;
    }
    Ok(format!("withheld from {provider}: {}", names.join(", ")))
}

/// Compares readings of configurations with the kube-proxy of every release that is tried, and serves beside the API
/// servers of the oldest. No kernel is needed but the running one.
fn releases(filter: Option<&str>) -> Result<String> {
    use testbed::go::release::{KUBE_PROXIES, OLDER_API_SERVERS, build};
    let programs = build(&root())?;
    let mut environment = vec![control_plane()?];
    for (name, paths) in [
        (KUBE_PROXIES, &programs.kube_proxies),
        (OLDER_API_SERVERS, &programs.api_servers),
    ] {
        let paths = std::env::join_paths(paths)?.to_string_lossy().into_owned();
        environment.push((name.to_owned(), paths));
    }
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    let provider = Provider::for_fallback(None, &cache())?;
    for test in ["config_corpus", "older_api_servers"] {
        let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", test])?;
        let filter: Vec<_> = filter.into_iter().collect();
        on(&provider, &job(&program, &binary, environment.clone(), &filter))?;
    }
    let names = |paths: &[PathBuf]| {
        let names = paths.iter().filter_map(|path| path.file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
        names.join(", ")
    };
    Ok(format!(
        "configurations beside {} and the control plane's; served by {}",
        names(&programs.kube_proxies),
        names(&programs.api_servers)
    ))
}

/// How often some tests do what they do: sequences of `tests/kernel/worlds.rs`, rounds of `tests/take_over.rs`.
const COUNTS: [&str; 2] = ["KUBE_IPVS_WORLDS", "KUBE_IPVS_TAKE_OVERS"];

/// The control plane, as the variable that the tests find it by.
fn control_plane() -> Result<(String, String)> {
    let program = testbed::control_plane::build(&root())?;
    Ok((
        testbed::control_plane::PROGRAM.to_owned(),
        program.to_string_lossy().into_owned(),
    ))
}

/// A test program as a job.
fn job(program: &Path, binary: &Path, environment: Vec<(String, String)>, words: &[&str]) -> Job {
    let mut command = vec![program.to_string_lossy().into_owned(), "--test-threads=1".to_owned()];
    command.extend(words.iter().map(|word| (*word).to_owned()));
    let mut job = Job::new(command, root().join("tests"));
    job.environment = environment;
    job.environment.push((
        testbed::daemon::BINARY.to_owned(),
        binary.to_string_lossy().into_owned(),
    ));
    job.environment.push(("RUST_BACKTRACE".to_owned(), "1".to_owned()));
    let given = COUNTS
        .iter()
        .filter_map(|name| Some((*name).to_owned()).zip(std::env::var(name).ok()));
    job.environment.extend(given);
    job.memory = 6144;
    job.limit = Duration::from_secs(1500);
    job
}

fn on(provider: &Provider, job: &Job) -> Result<()> {
    match provider.run(job)? {
        0 => Ok(()),
        status => bail!("the tests ended with status {status}"),
    }
}
