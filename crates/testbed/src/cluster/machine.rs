//! What a node needs of its machine and a guest of the test kernel does not have by itself: control groups, mounts that
//! propagate, some files that the kubelet reads or writes. All of it is gone with the guest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::tool;

/// Prepares the guest.
///
/// # Errors
/// The kernel lacks control groups, or refuses a mount.
pub(crate) fn prepare() -> Result<()> {
    tool::sh("mount --make-rshared /")?;
    // The guest's files are the machine's own: what nodes write in fixed places must not get there.
    for folder in ["/var/lib", "/var/log"] {
        tool::sh(&format!("mount -t tmpfs tmpfs {folder}"))?;
    }
    tool::sh("mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").context("read the control groups")?;
    for name in controllers.split_whitespace() {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{name}"))
            .with_context(|| format!("enable the control groups' {name}"))?;
    }
    clock_speed()?;
    kernel_settings()
}

/// The kubelet wants a speed of the processor, and User-Mode Linux tells none.
fn clock_speed() -> Result<()> {
    let mut text = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    if text.contains("cpu MHz") {
        return Ok(());
    }
    text.truncate(text.trim_end().len());
    text.push_str("\ncpu MHz\t\t: 1000.000\n\n");
    fs::write("/run/cpuinfo", text)?;
    tool::sh("mount --bind /run/cpuinfo /proc/cpuinfo").map(drop)
}

/// The kubelet writes limits of kernel keys, which a kernel without them lacks. It may write into a copy.
fn kernel_settings() -> Result<()> {
    let (real, copy) = (Path::new("/proc/sys/kernel"), Path::new("/run/sys-kernel"));
    if real.join("keys").is_dir() {
        return Ok(());
    }
    copy_readable(real, copy)?;
    fs::create_dir_all(copy.join("keys"))?;
    for name in ["root_maxkeys", "root_maxbytes"] {
        fs::write(copy.join("keys").join(name), "1000000\n")?;
    }
    tool::sh("mount --bind /run/sys-kernel /proc/sys/kernel").map(drop)
}

/// Copies what can be read: some settings cannot.
fn copy_readable(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_readable(&entry.path(), &copy)?;
        } else if let Ok(content) = fs::read(entry.path()) {
            fs::write(copy, content)?;
        }
    }
    Ok(())
}
