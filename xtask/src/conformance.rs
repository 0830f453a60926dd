//! `cargo xtask conformance`: upstream's own tests of Services, on nodes that are kernels with IPVS, with kube-ipvs and
//! with every mode of kube-proxy.
//!
//! Reading order: [`proxy`] (what is compared), [`suite`] (which tests, and one of them run), [`lab`] (one cluster, inside
//! namespaces of its own), [`verdict`] (how they ended, and what may not be), [`page`] (docs/conformance.md), [`tools`] (the
//! tests' images).

pub(crate) mod lab;
mod page;
mod proxy;
mod suite;
mod tools;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use testbed::cluster::{in_kernel, lab as cluster};
use testbed::daemon::BINARY;
use testbed::kernel::{Name, Provider};
use testbed::{control_plane, go, tool};

use crate::cargo::{cache, executable, root};
use lab::Order;
use proxy::Proxy;
use verdict::{Verdict, Verdicts};

/// Tests of zones want a node in each of three.
const NODES: u8 = 3;
/// A node has one processor: with more tests at a time each of them waits.
const WORKERS: u8 = 4;

/// With which proxy, and which tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these proxies. Default: all; with --short kube-ipvs alone.
    #[arg(long, value_enum, value_delimiter = ',')]
    proxy: Vec<Proxy>,
    /// Only tests whose names contain this.
    #[arg(long)]
    filter: Option<String>,
    /// The few tests that every change must pass.
    #[arg(long)]
    short: bool,
    /// Number of nodes. Tests of zones want three, some of them six.
    #[arg(long, default_value_t = NODES, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// Tests at a time.
    #[arg(long, default_value_t = WORKERS, value_parser = clap::value_parser!(u8).range(1..=32))]
    workers: u8,
    /// Write the tables of docs/conformance.md. A proxy that is not asked for has its verdicts of its last whole run.
    #[arg(long, conflicts_with_all = ["filter", "short"])]
    write_docs: bool,
}

pub(crate) fn run(args: &Args, kernel: Option<Name>) -> Result<ExitCode> {
    let folder = root().join("target/conformance");
    let whole = args.filter.is_none() && !args.short;
    let proxies = match args.proxy.as_slice() {
        [] if args.short => vec![Proxy::KubeIpvs],
        [] => <Proxy as clap::ValueEnum>::value_variants().to_vec(),
        some => some.to_vec(),
    };
    let order = prepare(args, kernel, &folder)?;
    let mut verdicts = Verdicts::new();
    for proxy in proxies {
        println!("== {}", proxy.name());
        verdicts.insert(proxy, one(&order, proxy, &folder, whole)?);
    }
    let mut complaints = verdict::complaints(&verdicts);
    if verdicts.values().all(Vec::is_empty) {
        complaints.push("no test was run".to_owned());
    }
    summary(&verdicts);
    if args.write_docs {
        write_docs(&mut verdicts, &order, &folder)?;
    }
    for complaint in &complaints {
        println!("{complaint}");
    }
    Ok(if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The few tests that every change must pass, as a level of `cargo xtask test`.
///
/// # Errors
/// One of them does not pass.
pub(crate) fn short(filter: Option<&str>) -> Result<String> {
    if let Some(filter) = filter.filter(|filter| !suite::short_has(filter)) {
        return Ok(format!("no test of the short list has {filter:?} in its name"));
    }
    let args = Args {
        proxy: vec![Proxy::KubeIpvs],
        filter: filter.map(str::to_owned),
        short: true,
        nodes: NODES,
        workers: WORKERS,
        write_docs: false,
    };
    ensure!(
        run(&args, Some(Name::Uml))? == ExitCode::SUCCESS,
        "kube-ipvs does not pass what it must; logs in target/conformance"
    );
    Ok("the short list of upstream's tests, on nodes of User-Mode Linux".to_owned())
}

/// Builds the programs of a run that are Go, the control plane first.
///
/// # Errors
/// A build fails.
pub(crate) fn build() -> Result<()> {
    control_plane::build(&root())?;
    for name in ["node", "dns"] {
        go::build(&root(), name, &format!("./{name}"))?;
    }
    go::build_tests(&root(), "e2e", "./e2e").map(drop)
}

/// Builds and installs all that a run needs. The order is complete but for its proxy.
fn prepare(args: &Args, kernel: Option<Name>, folder: &Path) -> Result<Order> {
    if kernel.is_some_and(|kernel| kernel != Name::Uml) {
        bail!("nodes are guests of User-Mode Linux: --kernel uml");
    }
    tool::install(crate::GUEST_PACKAGES)?;
    tool::install(in_kernel::PACKAGES)?;
    tool::install(cluster::PACKAGES)?;
    println!("kernel: {}", Provider::for_tests(Some(Name::Uml), &cache())?);
    let tests = go::build_tests(&root(), "e2e", "./e2e")?;
    let scratch = folder.join("run");
    fs::create_dir_all(&scratch)?;
    fs::create_dir_all(folder.join("whole"))?;
    Ok(Order {
        proxy: Proxy::KubeIpvs,
        kube_ipvs: match std::env::var_os(BINARY) {
            Some(given) => given.into(),
            None => executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?,
        },
        control_plane: control_plane::build(&root())?,
        node: go::build(&root(), "node", "./node")?,
        dns: go::build(&root(), "dns", "./dns")?,
        images: tools::archive(&tests, &root().join("target/image"))?,
        tests,
        nodes: args.nodes.into(),
        workers: args.workers.into(),
        short: args.short,
        filter: args.filter.clone(),
        scratch,
        logs: PathBuf::new(),
        verdicts: PathBuf::new(),
    })
}

/// One proxy, in namespaces of its own. A death signal on this side and a first process on the other take all of it down,
/// however this process ends.
fn one(order: &Order, proxy: Proxy, folder: &Path, whole: bool) -> Result<Vec<Verdict>> {
    let logs = folder.join(proxy.name());
    if logs.exists() {
        fs::remove_dir_all(&logs).with_context(|| format!("empty {}", logs.display()))?;
    }
    fs::create_dir_all(&logs)?;
    let order = Order {
        proxy,
        verdicts: if whole {
            earlier(folder, proxy)
        } else {
            logs.join("verdicts.json")
        },
        logs: logs.clone(),
        ..order.clone()
    };
    let path = logs.join("order.json");
    fs::write(&path, serde_json::to_string(&order)?)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args([
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--mount-proc",
            "--net",
            "--",
        ])
        .arg(std::env::current_exe().context("find this program")?)
        .arg("conformance-lab")
        .arg(&path)
        .env("TMPDIR", &order.scratch)
        .env("HOME", &order.scratch);
    tool::show(command).with_context(|| format!("the run with {}; logs in {}", proxy.name(), logs.display()))?;
    read(&order.verdicts)
}

/// Where the verdicts of a whole run stay.
fn earlier(folder: &Path, proxy: Proxy) -> PathBuf {
    folder.join("whole").join(format!("{}.json", proxy.name()))
}

fn read(path: &Path) -> Result<Vec<Verdict>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("verdicts in {}", path.display()))
}

fn summary(verdicts: &Verdicts) {
    println!("\n== summary");
    for (proxy, verdicts) in verdicts {
        let passed = verdicts.iter().filter(|verdict| verdict.outcome.passed()).count();
        println!("{:<20} {passed} of {} tests passed", proxy.name(), verdicts.len());
    }
}

fn write_docs(verdicts: &mut Verdicts, order: &Order, folder: &Path) -> Result<()> {
    for proxy in <Proxy as clap::ValueEnum>::value_variants() {
        if !verdicts.contains_key(proxy) {
            let earlier = earlier(folder, *proxy);
            ensure!(earlier.is_file(), "{} has no verdicts of a whole run", proxy.name());
            verdicts.insert(*proxy, read(&earlier)?);
        }
    }
    let suite = suite::Suite {
        program: order.tests.clone(),
        // Nothing runs: any file that names a cluster will do.
        kubeconfig: order.scratch.join("none"),
        kubectl: order.scratch.join("none"),
        scratch: order.scratch.clone(),
        logs: order.scratch.clone(),
    };
    let (_, _, left_out) = suite::choose(suite.list()?, false, None);
    let page = root().join("docs/conformance.md");
    let text = fs::read_to_string(&page).context("read docs/conformance.md")?;
    fs::write(&page, page::written(&text, verdicts, &left_out)?).context("write docs/conformance.md")?;
    println!("written: docs/conformance.md");
    Ok(())
}
