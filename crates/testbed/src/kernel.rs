//! A kernel with IPVS, wherever this machine has one, and a command run on it.
//!
//! Every provider runs the same command on the same file system; what differs is the kernel below. In the guest there
//! is a tmpfs at `/run` with `TMPDIR` in it, no network but what the command makes, and `KUBE_IPVS_KERNEL` tells which
//! provider it is.

mod guest;
mod native;
mod qemu;
mod uml;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};

pub use qemu::Image;
pub use uml::{CONFIG, build as build_uml};

/// Environment variable with the path of a User-Mode-Linux kernel.
pub const TEST_KERNEL: &str = "KUBE_IPVS_TEST_KERNEL";
/// Environment variable that the guest sees: which kernel it runs on.
pub const IN_GUEST: &str = "KUBE_IPVS_KERNEL";

/// Where a kernel with IPVS comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The running kernel, in a new network namespace.
    Native,
    /// A User-Mode-Linux kernel: an ordinary program.
    Uml(PathBuf),
    /// A distribution's kernel in QEMU.
    Qemu(Image),
}

/// What `--kernel` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// [`Provider::Native`].
    Native,
    /// [`Provider::Uml`].
    Uml,
    /// [`Provider::Qemu`].
    Qemu,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "native" => Ok(Self::Native),
            "uml" => Ok(Self::Uml),
            "qemu" => Ok(Self::Qemu),
            _ => Err(format!("unknown kernel {text:?}, must be native, uml or qemu")),
        }
    }
}

/// A command for the guest.
#[derive(Clone, Debug)]
pub struct Job {
    /// Program and arguments; the program's path is absolute.
    pub command: Vec<String>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Additional environment.
    pub environment: Vec<(String, String)>,
    /// Modules that its kernel is to lack, by name.
    pub withheld: Vec<String>,
    /// An interface of this namespace, up, whose other end the guest has as `vec0`. `None` = no network to the outside.
    pub link: Option<String>,
    /// MiB of memory of the guest.
    pub memory: u32,
    /// After this the guest is ended.
    pub limit: Duration,
}

impl Job {
    /// A job with 3 GiB and half an hour.
    pub fn new(command: Vec<String>, directory: PathBuf) -> Self {
        Self {
            command,
            directory,
            environment: Vec::new(),
            withheld: Vec::new(),
            link: None,
            memory: 3072,
            limit: Duration::from_secs(1800),
        }
    }
}

impl Provider {
    /// The best kernel that is at hand without building one: native, then a given or built UML kernel. `None` = none.
    pub fn at_hand(cache: &Path) -> Option<Self> {
        if native::works() {
            return Some(Self::Native);
        }
        uml::find(cache).map(Self::Uml)
    }

    /// The kernel that was asked for, or the best for many tests: it is built where that must be.
    ///
    /// # Errors
    /// It does not work here, or cannot be built.
    pub fn for_tests(name: Option<Name>, cache: &Path) -> Result<Self> {
        match name {
            Some(name) => Self::named(name, cache),
            None => match Self::at_hand(cache) {
                Some(provider) => Ok(provider),
                None => Self::named(Name::Uml, cache),
            },
        }
    }

    /// The kernel that was asked for, or the best for the iptables mode, which needs no IPVS: the running one where it
    /// has what that needs.
    ///
    /// # Errors
    /// As [`for_tests`](Self::for_tests).
    pub fn for_fallback(name: Option<Name>, cache: &Path) -> Result<Self> {
        match name {
            None | Some(Name::Native) if native::has_iptables() => Ok(Self::Native),
            name => Self::for_tests(name, cache),
        }
    }

    /// The kernel that was asked for, or the one that starts soonest: QEMU with a distribution's kernel where none is
    /// at hand.
    ///
    /// # Errors
    /// As [`for_tests`](Self::for_tests).
    pub fn for_demo(name: Option<Name>, cache: &Path) -> Result<Self> {
        match name {
            Some(name) => Self::named(name, cache),
            None => match Self::at_hand(cache) {
                Some(provider) => Ok(provider),
                None => Self::named(Name::Qemu, cache),
            },
        }
    }

    fn named(name: Name, cache: &Path) -> Result<Self> {
        match name {
            Name::Native if native::works() => Ok(Self::Native),
            Name::Native => bail!("the running kernel has no IPVS or no dummy device, or we are not root"),
            Name::Uml => Ok(Self::Uml(match uml::find(cache) {
                Some(kernel) => kernel,
                None => build_uml(cache)?,
            })),
            Name::Qemu => Ok(Self::Qemu(qemu::prepare(cache)?)),
        }
    }

    /// Runs a job and returns its exit status. Its output goes to our standard output.
    ///
    /// # Errors
    /// The guest cannot be started, ends without a status, or runs into the job's limit.
    pub fn run(&self, job: &Job) -> Result<i32> {
        match self {
            Self::Native | Self::Uml(_) if !job.withheld.is_empty() => bail!("modules are withheld by qemu alone"),
            Self::Native | Self::Qemu(_) if job.link.is_some() => bail!("a guest of uml alone has a link"),
            Self::Native => native::run(job),
            Self::Uml(kernel) => uml::run(kernel, job),
            Self::Qemu(image) => qemu::run(image, job),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native (the running kernel)"),
            Self::Uml(kernel) => {
                let name = kernel.file_name().unwrap_or_default().to_string_lossy();
                write!(f, "uml (User-Mode Linux, {name})")
            }
            Self::Qemu(_) => f.write_str("qemu (a distribution's kernel)"),
        }
    }
}
