//! User-Mode Linux: the kernel as a program, on the machine's own file system.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use super::guest::Run;
use super::{Job, TEST_KERNEL};
use crate::tool;

/// The kernel's configuration.
pub const CONFIG: &str = include_str!("um.defconfig");
/// Name of the built kernel in the cache.
const BUILT: &str = "linux-um";
/// What the kernel itself says at every start.
const NOISE: &[&str] = &["Failed to initialize ubd device", "reboot: ", "Core dump limits"];

/// A given kernel, else a built one.
pub(super) fn find(cache: &Path) -> Option<PathBuf> {
    let given = env::var_os(TEST_KERNEL)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    given
        .or_else(|| Some(cache.join(BUILT)))
        .filter(|kernel| kernel.is_file())
}

pub(super) fn run(kernel: &Path, job: &Job) -> Result<i32> {
    let run = Run::new(job, "uml", "sync\nbusybox poweroff -f")?;
    let mut carrier = Command::new(kernel);
    carrier
        .arg(format!("mem={}M", job.memory))
        // A second processor waits for the tick at every wake-up; one is faster for all but computation.
        .args(["ncpus=1", "seccomp=on", "rootfstype=hostfs", "rootflags=/", "rw"])
        .arg(format!("init={}", run.script().display()))
        .args(["con=null", "con0=fd:0,fd:1", "quiet"])
        // Its memory is a file here; a disk would make it slow.
        .env(
            "TMPDIR",
            if Path::new("/dev/shm").is_dir() {
                "/dev/shm"
            } else {
                "/tmp"
            },
        );
    if let Some(link) = &job.link {
        // A tap device as transport ends the kernel when it comes up (7.2.13: no transmit queue to count).
        carrier.arg(format!("vec0:transport=raw,ifname={link},depth=64,gro=1"));
    }
    run.finish(carrier, job.limit, NOISE)
}

/// Builds the kernel from Debian's source package into the cache: some eight minutes on two processors, once.
///
/// # Errors
/// The package cannot be had, or the build fails; its log is named.
pub fn build(cache: &Path) -> Result<PathBuf> {
    tool::install(&[
        ("build-essential", "make"),
        ("flex", "flex"),
        ("bison", "bison"),
        ("bc", "bc"),
        ("xz-utils", "xz"),
        ("libelf-dev", "/usr/include/libelf.h"),
        ("rsync", "rsync"),
        ("python3", "python3"),
    ])?;
    fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
    let folder = tempfile::Builder::new().prefix("build-").tempdir_in(cache)?;
    let archive = source(folder.path())?;
    eprintln!("unpacking {}", archive.display());
    tool::run(&[
        "tar",
        "-C",
        &folder.path().to_string_lossy(),
        "--strip-components=1",
        "-xf",
        &archive.to_string_lossy(),
    ])?;
    let tree = folder.path();
    fs::write(tree.join("arch/um/configs/kube_ipvs_defconfig"), CONFIG)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let log = cache.join("build.log");
    eprintln!(
        "building a User-Mode-Linux kernel on {processors} processors, some minutes; log in {}",
        log.display()
    );
    let make = |target: &str| -> Result<()> {
        let out = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new("make");
        command
            .current_dir(tree)
            .args(["ARCH=um", &format!("-j{processors}"), target]);
        command.stdout(out.try_clone()?).stderr(out);
        tool::show(command).with_context(|| format!("see {}", log.display()))
    };
    make("kube_ipvs_defconfig")?;
    make("linux")?;
    let kernel = cache.join(BUILT);
    tool::run(&[
        "strip",
        "-o",
        &kernel.to_string_lossy(),
        &tree.join("linux").to_string_lossy(),
    ])?;
    Ok(kernel)
}

/// Debian's newest kernel source, as an archive. UML before 6.13 crashes on processors with a large xstate, so a stable
/// release's own is too old: a newer suite's package is fetched and unpacked, not installed.
fn source(folder: &Path) -> Result<PathBuf> {
    eprintln!("looking for a Debian kernel source");
    let lists = folder.join("apt");
    for part in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(lists.join(part))?;
    }
    let mirror = mirror()?;
    let list = lists.join("sources.list");
    fs::write(
        &list,
        ["sid", "trixie-backports"]
            .map(|suite| format!("deb [trusted=yes] {mirror} {suite} main\n"))
            .concat(),
    )?;
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .current_dir(folder)
            .args(["-q", "-o"])
            .arg(format!("Dir::Etc::SourceList={}", list.display()))
            .args(["-o", "Dir::Etc::SourceParts=/dev/null", "-o"])
            .arg(format!("Dir::State::Lists={}", lists.join("lists").display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", lists.display()))
            .args(["-o", "APT::Sandbox::User=root"])
            .args(words);
        tool::output(command)
    };
    apt(&["update"])?;
    let mut cache = Command::new("apt-cache");
    cache
        .arg("-o")
        .arg(format!("Dir::Etc::SourceList={}", list.display()))
        .args(["-o", "Dir::Etc::SourceParts=/dev/null", "-o"])
        .arg(format!("Dir::State::Lists={}", lists.join("lists").display()))
        .arg("-o")
        .arg(format!("Dir::Cache={}", lists.display()))
        .args(["search", "--names-only", r"^linux-source-[0-9.]+$"]);
    let found = tool::output(cache)?;
    let version = |name: &str| -> Vec<u32> {
        name.trim_start_matches("linux-source-")
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    let newest = found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| version(name) >= vec![6, 13])
        .max_by_key(|name| version(name));
    let Some(newest) = newest else {
        bail!("{mirror} has no linux-source of 6.13 or newer")
    };
    eprintln!("fetching {newest}");
    apt(&["download", newest])?;
    let package = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get downloaded nothing")?;
    tool::run(&[
        "dpkg-deb",
        "-x",
        &package.to_string_lossy(),
        &folder.join("package").to_string_lossy(),
    ])?;
    fs::remove_file(package)?;
    fs::read_dir(folder.join("package/usr/src"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("linux-source-") && path.to_string_lossy().contains(".tar"))
        .context("the package has no source archive")
}

/// The mirror that this machine's own lists name.
fn mirror() -> Result<String> {
    let uris = tool::sh("apt-get indextargets --format $(REPO_URI)")?;
    let main = uris
        .lines()
        .find(|uri| !uri.contains("security") && uri.trim_end_matches('/').ends_with("/debian"));
    Ok(main.unwrap_or("http://deb.debian.org/debian/").to_owned())
}
