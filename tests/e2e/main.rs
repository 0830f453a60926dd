//! kube-ipvs in a cluster, from `kubectl apply -k` to a node without a trace of it: the same steps on kind and on a
//! cluster in a kernel with IPVS. `cargo xtask e2e` builds what it needs and starts it.

#![allow(clippy::print_stdout, reason = "this program reports to a person")]

mod deploying;
mod kubeadm;
mod life;
mod look;
mod overlay;
mod scene;
mod traffic;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use testbed::cluster::in_kernel::Programs;
use testbed::cluster::{Cluster, InKernel, Kind};

use scene::Scene;

type Step = fn(&Scene) -> Result<()>;

/// In this order, each in the state that the one before left.
const STEPS: &[(&str, Step)] = &[
    ("workload", deploying::workload),
    ("apply", deploying::apply),
    ("rights", deploying::rights),
    ("services", traffic::services),
    ("events", deploying::events),
    ("scaling", traffic::scaling),
    ("rolling-restart", traffic::rolling_restart),
    ("proxy-restart", traffic::proxy_restart),
    ("health", life::health),
    ("configuration", life::configuration),
    ("iptables-mode", life::iptables_mode),
    ("least-privilege", life::least_privilege),
    ("uninstall", deploying::uninstall),
    ("image-swap", kubeadm::image_swap),
    ("image-swap-configuration", kubeadm::image_swap_configuration),
    ("image-swap-default-mode", kubeadm::image_swap_default_mode),
    ("image-swap-uninstall", kubeadm::image_swap_uninstall),
];

/// What the caller asked for.
#[derive(Default)]
struct Args {
    kind: bool,
    keep: bool,
    deploy: PathBuf,
    images: Vec<PathBuf>,
    control_plane: PathBuf,
    node: PathBuf,
    kubeadm: PathBuf,
    skip: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args = parse(std::env::args().skip(1))?;
    if let Some(unknown) = args.skip.iter().find(|name| STEPS.iter().all(|(step, _)| step != name)) {
        let names: Vec<_> = STEPS.iter().map(|(name, _)| *name).collect();
        bail!("no step is called {unknown:?}; there are {}", names.join(" "));
    }
    let folder = tempfile::tempdir()?;
    let start = Instant::now();
    if args.kind {
        let mut kind = Kind::start(folder.path())?;
        let last_words = if args.keep { kind.keep() } else { String::new() };
        let scene = scene(&args, Box::new(kind), folder.path());
        let done = steps(&scene, start);
        if args.keep {
            println!("the cluster stays: {last_words}");
            // Its kubeconfig is in there.
            let _ = folder.keep();
        }
        return done;
    }
    let programs = Programs {
        control_plane: args.control_plane.clone(),
        node: args.node.clone(),
    };
    let images: Vec<&Path> = args.images.iter().map(PathBuf::as_path).collect();
    println!("a control plane and a node: about a minute");
    let cluster = InKernel::start(&programs, &images, folder.path())?;
    let kubeconfig = cluster.kubeconfig().to_owned();
    let scene = scene(&args, Box::new(cluster), folder.path());
    let done = steps(&scene, start);
    if args.keep {
        look::serve(
            &args.deploy.join("../target/e2e/look"),
            &args.control_plane,
            &kubeconfig,
        )?;
    }
    done
}

fn scene(args: &Args, cluster: Box<dyn Cluster>, folder: &Path) -> Scene {
    Scene {
        cluster,
        folder: folder.to_owned(),
        deploy: args.deploy.clone(),
        kubeadm: args.kubeadm.clone(),
        images: args.images.clone(),
        skipped: args.skip.clone(),
    }
}

fn steps(scene: &Scene, start: Instant) -> Result<()> {
    for (name, step) in STEPS {
        let seconds = start.elapsed().as_secs();
        if scene.skipped.iter().any(|skipped| skipped == name) {
            println!("== {seconds:4} s  {name}: left out, as asked");
            continue;
        }
        println!("== {seconds:4} s  {name}");
        step(scene).with_context(|| format!("step {name}"))?;
    }
    println!(
        "e2e: {} steps passed, {} left out, {} s",
        STEPS.len() - scene.skipped.len(),
        scene.skipped.len(),
        start.elapsed().as_secs()
    );
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--kind" => args.kind = true,
            "--keep" => args.keep = true,
            "--deploy" => args.deploy = value()?.into(),
            "--image" => args.images.push(value()?.into()),
            "--control-plane" => args.control_plane = value()?.into(),
            "--node" => args.node = value()?.into(),
            "--kubeadm" => args.kubeadm = value()?.into(),
            "--skip" => args.skip.push(value()?),
            _ => bail!("unknown argument {word:?}; `cargo xtask e2e` knows them"),
        }
    }
    Ok(args)
}
