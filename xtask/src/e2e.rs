//! `cargo xtask e2e`: what the program in `tests/e2e` needs is looked for, all of it before anything is built; then built;
//! then it runs, here beside kind or on a kernel with IPVS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use testbed::cluster::{Kind, in_kernel};
use testbed::kernel::{Job, Name, Provider};
use testbed::{control_plane, go, tool};

use crate::cargo::{cache, executable, root};
use crate::image::{self, Variant, platform::Platform};

mod render;
mod tools;

/// On what, and how.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the cluster comes from.
    #[arg(long, value_enum, default_value = "kernel")]
    cluster: Where,
    /// Leave the cluster for a look.
    #[arg(long)]
    keep: bool,
    /// Instead of building images: archives that have them, under the names of deploy/.
    #[arg(long, value_name = "ARCHIVE", value_delimiter = ',')]
    image: Vec<PathBuf>,
    /// Steps to leave out, by the names that a run prints. Without `health` the manifests lose their probes.
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    skip: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Where {
    /// kind, in this machine's docker.
    Kind,
    /// kubelet, containerd and a control plane of upstream's programs, inside a kernel with IPVS.
    Kernel,
}

pub(crate) fn run(args: &Args, kernel: Option<Name>) -> Result<ExitCode> {
    let missing = missing(args.cluster);
    if !missing.is_empty() {
        eprintln!("this machine cannot run it:");
        for sentence in missing {
            eprintln!("  {sentence}");
        }
        return Ok(ExitCode::FAILURE);
    }
    let plane = control_plane::build(&root())?;
    render::check(&plane, &go::helm(&root())?)?;
    let folder = root().join("target/image");
    let mut images = args.image.clone();
    if images.is_empty() {
        for variant in [Variant::Plain, Variant::Iptables] {
            images.push(image::build(variant, &[Platform::here()], &folder)?);
        }
    }
    images.push(tools::archive(&folder)?);
    let program = executable(&["test", "--locked", "--no-run", "-p", "integration", "--test", "e2e"])?;
    let mut words = vec![program.to_string_lossy().into_owned()];
    let mut option = |name: &str, value: &Path| -> Result<()> {
        let value = value.canonicalize().with_context(|| format!("{}", value.display()))?;
        words.extend([name.to_owned(), value.to_string_lossy().into_owned()]);
        Ok(())
    };
    option("--deploy", &root().join("deploy"))?;
    for image in &images {
        option("--image", image)?;
    }
    option(
        "--kubeadm",
        &go::build(&root(), "kubeadm", "k8s.io/kubernetes/cmd/kubeadm")?,
    )?;
    if args.cluster == Where::Kernel {
        option("--control-plane", &plane)?;
        option("--node", &go::build(&root(), "node", "./node")?)?;
    }
    words.extend(args.skip.iter().flat_map(|step| ["--skip".to_owned(), step.clone()]));
    if args.keep {
        words.push("--keep".to_owned());
    }
    match args.cluster {
        Where::Kind => {
            words.push("--kind".to_owned());
            let (first, rest) = words.split_first().context("no program")?;
            let mut command = Command::new(first);
            command.args(rest);
            tool::show(command)?;
        }
        Where::Kernel => in_guest(words, args.keep, kernel)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The node's kernel is a guest's: the cluster mounts over folders of the system.
fn in_guest(words: Vec<String>, keep: bool, kernel: Option<Name>) -> Result<()> {
    if kernel == Some(Name::Native) {
        bail!("the cluster mounts over folders of the system; it is for a guest: --kernel uml or qemu");
    }
    tool::install(crate::GUEST_PACKAGES)?;
    tool::install(in_kernel::PACKAGES)?;
    tool::install(&[("curl", "curl")])?;
    let provider = Provider::for_tests(Some(kernel.unwrap_or(Name::Uml)), &cache())?;
    println!("kernel: {provider}");
    fs::create_dir_all(root().join("target/e2e"))?;
    let mut job = Job::new(words, root());
    job.environment.push(("RUST_BACKTRACE".to_owned(), "1".to_owned()));
    job.memory = 8192;
    job.limit = Duration::from_secs(if keep { 86_400 } else { 2400 });
    match provider.run(&job)? {
        0 => Ok(()),
        status => bail!("the run ended with status {status}"),
    }
}

/// What is not here and cannot be installed, one sentence each.
fn missing(cluster: Where) -> Vec<String> {
    let mut missing = match cluster {
        Where::Kind => Kind::missing(),
        Where::Kernel => Vec::new(),
    };
    let packages = [in_kernel::PACKAGES, crate::GUEST_PACKAGES, &[("golang-go", "go")]].concat();
    let there = |mark: &str| tool::exists(mark) || Path::new(mark).exists();
    if !tool::exists("apt-get") {
        let needed = packages
            .iter()
            .filter(|(_, mark)| cluster == Where::Kernel && !there(mark));
        missing.extend(needed.map(|(package, mark)| {
            format!("{mark} is not here, and there is no apt-get to install the Debian package {package}")
        }));
        missing.push("there is no apt-get to fetch the packages of the images from".to_owned());
    }
    missing
}
