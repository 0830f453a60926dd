//! The distribution's kernel in QEMU, on the machine's own file system through virtiofs. With KVM where that works,
//! else emulated: some ten seconds to boot, and about ten times slower.
//!
//! Debian's cloud kernel is small and has virtiofs, not 9p. What it needs before it has a root file system, and the
//! modules of the tests, are in an initial file system that is made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Job;
use super::guest::Run;
use crate::tool;

const IMAGE: &str = "linux-image-cloud-amd64";
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "busybox"),
    ("kmod", "depmod"),
    ("cpio", "cpio"),
    ("gzip", "gzip"),
];
/// Two, so that threads of ours run at the same time; User-Mode Linux has one.
const PROCESSORS: &str = "2";
/// Emulated, a job takes so many times as long.
const SLOWER: u32 = 10;
/// Debian 12 has it within QEMU, later ones on its own.
const VIRTIOFSD: &[&str] = &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// Modules to load, in order; each after those that it needs. What a kernel does not have is left out.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtiofs",
    "dummy",
    "veth",
    "nf_conntrack",
    "sctp",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_fo",
    "ip_vs_ovf",
    "ip_vs_lblc",
    "ip_vs_lblcr",
    "ip_vs_dh",
    "ip_vs_sh",
    "ip_vs_mh",
    "ip_vs_sed",
    "ip_vs_nq",
    "ip_vs_twos",
    "nfnetlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "nft_reject",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_reject_inet",
    "nft_redir",
    "nf_conntrack_netlink",
    "xt_conntrack",
    "xt_comment",
    "xt_mark",
    "xt_addrtype",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_recent",
    "xt_sctp",
    "xt_statistic",
    "xt_tcpudp",
    "ipt_REJECT",
    "ip6t_REJECT",
    "iptable_filter",
    "iptable_nat",
    "ip6table_filter",
    "ip6table_nat",
    "bridge",
    "br_netfilter",
];
const NOISE: &[&str] = &["reboot: Power down", "Powering off", "The system is going down"];

/// A kernel and its initial file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    kernel: PathBuf,
    initial: PathBuf,
}

/// Installs QEMU, fetches the kernel and makes the initial file system, each where it is missing.
pub(super) fn prepare(cache: &Path) -> Result<Image> {
    ensure!(cfg!(target_arch = "x86_64"), "the qemu provider is for x86-64 only");
    tool::install(PACKAGES)?;
    if virtiofsd().is_none() {
        tool::install(&[("virtiofsd", "/usr/libexec/virtiofsd")])?;
    }
    let folder = cache.join("qemu");
    let image = Image {
        kernel: folder.join("vmlinuz"),
        // Another list of modules is another file.
        initial: folder.join(format!("initial-{}.gz", MODULES.len())),
    };
    if image.kernel.exists() && image.initial.exists() {
        return Ok(image);
    }
    fs::create_dir_all(&folder)?;
    let work = tempfile::Builder::new().prefix("make-").tempdir_in(&folder)?;
    let unpacked = unpack_kernel(work.path())?;
    let initial = make_initial(work.path(), &unpacked)?;
    fs::rename(initial, &image.initial)?;
    let boot = find(&unpacked.join("boot"), "vmlinuz-")?;
    fs::copy(boot, &image.kernel)?;
    Ok(image)
}

/// Fetches the package that the meta package stands for, and unpacks it; nothing is installed.
fn unpack_kernel(work: &Path) -> Result<PathBuf> {
    let depends = || tool::sh(&format!("apt-cache depends {IMAGE}"));
    if !depends().is_ok_and(|text| text.contains("Depends:")) {
        tool::sh("apt-get update -qq")?;
    }
    let text = depends()?;
    let package = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("no kernel package")?;
    eprintln!("fetching {package}");
    let mut download = Command::new("apt-get");
    download
        .current_dir(work)
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]);
    tool::output(download)?;
    let unpacked = work.join("package");
    tool::run(&[
        "dpkg-deb",
        "-x",
        &find(work, "linux-image")?.to_string_lossy(),
        &unpacked.to_string_lossy(),
    ])?;
    Ok(unpacked)
}

fn make_initial(work: &Path, unpacked: &Path) -> Result<PathBuf> {
    eprintln!("making the initial file system");
    let root = work.join("initial");
    for folder in ["bin", "modules", "dev", "root"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(which("busybox")?, root.join("bin/busybox"))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|folder| unpacked.join(folder))
        .find(|folder| folder.is_dir());
    let modules = modules.context("the package has no modules")?;
    let version = find(&modules, "")?;
    let base = modules.parent().and_then(Path::parent).context("no base")?;
    let name = version.file_name().unwrap_or_default().to_string_lossy().into_owned();
    tool::run(&["depmod", "-b", &base.to_string_lossy(), &name])?;
    let needs = fs::read_to_string(version.join("modules.dep"))?;
    // The kernel hands words that it does not know to init as its environment. Nothing loads a module later: the file
    // system has none for this kernel.
    let mut script = String::from(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\nexec >/dev/console 2>&1 </dev/console\n\
         load() { case \",$withheld,\" in *,$1,*) ;; *) /bin/busybox insmod /modules/$2 ;; esac; }\n",
    );
    for file in in_order(&needs) {
        let name = file.rsplit('/').next().unwrap_or_default().to_owned();
        // Modules may be compressed; insmod of busybox wants them plain.
        let plain = name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned();
        let copy = root.join("modules").join(&name);
        fs::copy(version.join(&file), &copy)?;
        if name.ends_with(".xz") {
            tool::run(&["xz", "-d", &copy.to_string_lossy()])?;
        } else if name.ends_with(".zst") {
            tool::run(&["zstd", "-q", "-d", "--rm", &copy.to_string_lossy()])?;
        }
        let module = plain.trim_end_matches(".ko");
        script.push_str(&format!("load {module} {plain}\n"));
    }
    script.push_str(
        "/bin/busybox mount -t virtiofs root /root\n/bin/busybox mount -t devtmpfs dev /root/dev\n\
         exec /bin/busybox switch_root /root \"$job\"\n",
    );
    let init = root.join("init");
    fs::write(&init, script)?;
    tool::run(&["chmod", "755", &init.to_string_lossy()])?;
    let archive = work.join("initial.gz");
    let line = format!(
        "cd '{}' && find . | cpio -o -H newc --quiet | gzip -1 >'{}'",
        root.display(),
        archive.display()
    );
    tool::run(&["sh", "-c", &line])?;
    Ok(archive)
}

/// The files of the modules and of what they need, needed ones first, by `modules.dep`.
fn in_order(needs: &str) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let stem = format!("/{module}.ko");
        let Some((file, rest)) = needs
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| file.contains(&stem))
        else {
            continue;
        };
        // In the file the nearest comes first.
        for needed in rest.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|other| other == needed) {
                order.push(needed.to_owned());
            }
        }
    }
    order
}

pub(super) fn run(image: &Image, job: &Job) -> Result<i32> {
    let run = Run::new(job, "qemu", "sync\nbusybox poweroff -f")?;
    let socket = run.script().with_file_name("virtiofs");
    let mut server = serve_files(&socket)?;
    let (accelerator, limit) = if kvm_works() {
        ("kvm", job.limit)
    } else {
        ("tcg,thread=multi", job.limit * SLOWER)
    };
    eprintln!("qemu: accelerator {accelerator}");
    let mut carrier = Command::new("qemu-system-x86_64");
    carrier
        .args([
            "-accel",
            accelerator,
            "-cpu",
            "max",
            "-smp",
            PROCESSORS,
            "-m",
            &format!("{}M", job.memory),
            "-object",
        ])
        .arg(format!("memory-backend-memfd,id=mem,size={}M,share=on", job.memory))
        .args([
            "-numa",
            "node,memdev=mem",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-net",
            "none",
        ])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initial)
        .args([
            "-append",
            &format!(
                "console=ttyS0 quiet panic=-1 withheld={} job={}",
                job.withheld.join(","),
                run.script().display()
            ),
            "-chardev",
        ])
        .arg(format!("socket,id=files,path={}", socket.display()))
        .args(["-device", "vhost-user-fs-pci,chardev=files,tag=root"]);
    let result = run.finish(carrier, limit, NOISE);
    let _ = server.kill();
    let _ = server.wait();
    result
}

fn serve_files(socket: &Path) -> Result<Child> {
    let program = virtiofsd().context("no virtiofsd")?;
    let mut command = Command::new(program);
    let path = socket.to_string_lossy();
    if program.starts_with("/usr/lib/qemu") {
        command.args([
            &format!("--socket-path={path}"),
            "-o",
            "source=/",
            "-o",
            "sandbox=chroot",
            "-o",
            "cache=auto",
        ]);
    } else {
        command.args([
            "--socket-path",
            &path,
            "--shared-dir",
            "/",
            "--sandbox",
            "none",
            "--cache",
            "auto",
        ]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start virtiofsd")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        if let Some(status) = child.try_wait()? {
            bail!("virtiofsd ended with {status}");
        }
        ensure!(Instant::now() < deadline, "virtiofsd does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(child)
}

fn virtiofsd() -> Option<&'static str> {
    VIRTIOFSD.iter().copied().find(|path| Path::new(path).exists())
}

/// `/dev/kvm` may be there and hang: a machine that does nothing is tried, with a time limit.
fn kvm_works() -> bool {
    let words = [
        "timeout",
        "-s",
        "KILL",
        "5",
        "qemu-system-x86_64",
        "-accel",
        "kvm",
        "-cpu",
        "max",
        "-m",
        "64M",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-monitor",
        "stdio",
    ];
    Path::new("/dev/kvm").exists() && tool::feed(&words, "quit\n").is_ok()
}

fn find(folder: &Path, start: &str) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .with_context(|| format!("nothing that starts with {start:?} in {}", folder.display()))
}

fn which(program: &str) -> Result<PathBuf> {
    let path = tool::run(&["sh", "-c", &format!("command -v {program}")])?;
    Ok(PathBuf::from(path.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let needs = "k/virtio.ko:\nk/ip_vs.ko: k/conntrack.ko k/defrag.ko\nk/ip_vs_rr.ko: k/ip_vs.ko k/conntrack.ko k/defrag.ko\nk/dummy.ko:\n";
        assert_eq!(
            in_order(needs),
            [
                "k/dummy.ko",
                "k/defrag.ko",
                "k/conntrack.ko",
                "k/ip_vs.ko",
                "k/ip_vs_rr.ko"
            ]
        );
    }
}
