//! The part inside: this process is the first of its own PID, mount and network namespaces. It makes a cluster with one
//! proxy, runs the tests and writes how they ended. Whatever ends it ends guests, processes, mounts and interfaces.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testbed::cluster::lab::{Lab, Programs, Proxy as Command, Settings};
use testbed::kernel::{Name, Provider};
use testbed::tool;

use super::proxy::Proxy;
use super::suite::{self, Suite};
use super::verdict::{Outcome, Verdict};
use crate::cargo::cache;

/// After this the guests are ended, and with them the run.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// What one run is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(super) proxy: Proxy,
    pub(super) kube_ipvs: PathBuf,
    pub(super) control_plane: PathBuf,
    pub(super) node: PathBuf,
    pub(super) dns: PathBuf,
    pub(super) tests: PathBuf,
    pub(super) images: PathBuf,
    pub(super) nodes: usize,
    pub(super) workers: usize,
    pub(super) short: bool,
    pub(super) filter: Option<String>,
    /// An empty folder, on which the run mounts a tmpfs of its own.
    pub(super) scratch: PathBuf,
    pub(super) logs: PathBuf,
    /// Where verdicts go.
    pub(super) verdicts: PathBuf,
}

/// Reads an order, and carries it out.
pub(crate) fn run(order: &Path) -> Result<ExitCode> {
    let text = fs::read_to_string(order).with_context(|| format!("read {}", order.display()))?;
    let order: Order = serde_json::from_str(&text).context("an order")?;
    tool::run(&["mount", "-t", "tmpfs", "tmpfs", &order.scratch.to_string_lossy()])?;
    tool::sh("ip link set lo up")?;
    let start = Instant::now();
    println!("   a control plane, {} nodes and {}", order.nodes, order.proxy.name());
    let lab = Lab::start(&Provider::for_tests(Some(Name::Uml), &cache())?, settings(&order)?)?;
    println!("   ready after {} s", start.elapsed().as_secs());
    let suite = suite(&order, &lab)?;
    let (together, alone, left_out) = suite::choose(suite.list()?, order.short, order.filter.as_deref());
    println!(
        "   {} tests beside each other ({} at a time), {} alone, {} left out",
        together.len(),
        order.workers,
        alone.len(),
        left_out.len()
    );
    let run = Run {
        suite: &suite,
        total: together.len() + alone.len(),
        started: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
    };
    let mut verdicts = run.all(&lab, together, order.workers)?;
    verdicts.extend(run.all(&lab, alone, 1)?);
    again(&run, &lab, &mut verdicts)?;
    verdicts.sort_by(|a, b| a.test.cmp(&b.test));
    fs::write(&order.verdicts, serde_json::to_string_pretty(&verdicts)?)?;
    println!("   {} tests in {} s", verdicts.len(), start.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

fn settings(order: &Order) -> Result<Settings> {
    let this = std::env::current_exe().context("find this program")?;
    Ok(Settings {
        nodes: order.nodes,
        programs: Programs {
            control_plane: order.control_plane.clone(),
            node: order.node.clone(),
            dns: order.dns.clone(),
        },
        proxy: Command {
            command: order.proxy.command(&order.kube_ipvs, &order.control_plane),
            mode: order.proxy.mode().to_owned(),
        },
        images: vec![order.images.clone()],
        guest: vec![this.display().to_string(), "conformance-node".to_owned()],
        folder: order.scratch.join("cluster"),
        logs: order.logs.clone(),
        limit: LIMIT,
    })
}

fn suite(order: &Order, lab: &Lab) -> Result<Suite> {
    let scratch = order.scratch.join("tests");
    let logs = order.logs.join("tests");
    fs::create_dir_all(&scratch)?;
    fs::create_dir_all(&logs)?;
    let kubectl = order.scratch.join("kubectl");
    let program = order.control_plane.display();
    fs::write(&kubectl, format!("#!/bin/sh\nexec '{program}' kubectl \"$@\"\n"))?;
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755))?;
    Ok(Suite {
        program: order.tests.clone(),
        kubeconfig: lab.kubeconfig().to_owned(),
        kubectl,
        scratch,
        logs,
    })
}

/// Tests that failed beside others run once more, alone: the processors of a busy machine are no fault of a proxy.
fn again(run: &Run, lab: &Lab, verdicts: &mut [Verdict]) -> Result<()> {
    for verdict in verdicts {
        let Outcome::Failed(before) = &verdict.outcome else {
            continue;
        };
        let before = before.clone();
        let Some(again) = run.all(lab, vec![verdict.test.clone()], 1)?.pop() else {
            continue;
        };
        verdict.outcome = match again.outcome {
            Outcome::Passed => Outcome::PassedAlone(before),
            other => other,
        };
        verdict.log = again.log;
    }
    Ok(())
}

/// Tests on their way.
struct Run<'a> {
    suite: &'a Suite,
    total: usize,
    started: AtomicUsize,
    done: AtomicUsize,
    stopped: AtomicBool,
}

impl Run<'_> {
    /// Runs tests, some at a time. Ends at once with a node.
    fn all(&self, lab: &Lab, tests: Vec<String>, workers: usize) -> Result<Vec<Verdict>> {
        let queue = Mutex::new(VecDeque::from(tests));
        let verdicts = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers)
                .map(|_| scope.spawn(|| self.work(&queue, &verdicts)))
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                if let Err(error) = lab.alive() {
                    self.stopped.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(300));
            }
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        Ok(verdicts.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn work(&self, queue: &Mutex<VecDeque<String>>, verdicts: &Mutex<Vec<Verdict>>) -> Result<()> {
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(test) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                return Ok(());
            };
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            let verdict = self.suite.run(number, &test)?;
            let done = self.done.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            let count = if done > self.total {
                "again".to_owned()
            } else {
                format!("{done}/{}", self.total)
            };
            println!("   {count:>7} {:4} s  {}", verdict.seconds, line(&verdict));
            verdicts.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
        }
        Ok(())
    }
}

/// A verdict in a line, or with its reason in two.
fn line(verdict: &Verdict) -> String {
    let because = |why: &str| format!("\n        {}", why.lines().next().unwrap_or_default());
    match &verdict.outcome {
        Outcome::Passed | Outcome::PassedAlone(_) => format!("passed   {}", verdict.test),
        Outcome::Skipped(why) => format!("skipped  {}{}", verdict.test, because(why)),
        Outcome::Failed(why) => format!("FAILED   {}{} ({})", verdict.test, because(why), verdict.log.display()),
    }
}
