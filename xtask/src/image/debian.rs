//! Files of Debian packages and of all that they depend on, for any platform, without installing anything: apt with a
//! state of its own, in which nothing is installed yet. Signatures are checked against the machine's keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testbed::tool;

use super::platform::Platform;
use super::tree::Tree;

/// Folders that every distribution of today has as links into `usr`. Older packages still have files there.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
/// For people, not for programs.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/info/",
    "usr/share/gdb/",
    "usr/share/bash-completion/",
    "usr/lib/systemd/",
    "etc/systemd/",
    "etc/init.d/",
];

/// The authorities that Debian trusts, in one text: for an API server whose kubeconfig names none of its own.
///
/// # Errors
/// As [`add`].
pub(crate) fn authorities(cache: &Path) -> Result<Vec<u8>> {
    // The same files on every platform.
    let unpacked = unpack(cache, &["ca-certificates"], Platform::here())?;
    let mut files: Vec<_> = fs::read_dir(unpacked.join("usr/share/ca-certificates/mozilla"))
        .context("look for authorities")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    let texts = files.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.concat())
}

/// Adds packages with what they need. `cache` keeps the downloads.
///
/// # Errors
/// There is no apt-get, or it cannot have the packages.
pub(crate) fn add(tree: &mut Tree, packages: &[&str], platform: Platform, cache: &Path) -> Result<()> {
    let unpacked = unpack(cache, packages, platform)?;
    for name in MERGED {
        tree.link(name, &format!("usr/{name}"));
    }
    tree.take(&unpacked, &|path| {
        let first = path.split('/').next().unwrap_or_default();
        if MERGED.contains(&path) {
            None
        } else if MERGED.contains(&first) {
            Some(format!("usr/{path}"))
        } else {
            Some(path.to_owned()).filter(|path| !LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)))
        }
    })
}

fn unpack(cache: &Path, packages: &[&str], platform: Platform) -> Result<PathBuf> {
    let folder = cache.join(format!("{}-{}", platform.name(), packages.join("-")));
    let unpacked = folder.join("files");
    // Complete or not there.
    if unpacked.is_dir() {
        return Ok(unpacked);
    }
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part))?;
    }
    fs::write(folder.join("status"), "")?;
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        for (option, value) in [
            ("Dir::State::Lists", folder.join("lists").display().to_string()),
            ("Dir::State::status", folder.join("status").display().to_string()),
            ("Dir::Cache", folder.join("cache").display().to_string()),
            ("APT::Architecture", platform.name().to_owned()),
            ("APT::Architectures", platform.name().to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        tool::output({
            command.args(words);
            command
        })
    };
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "--download-only", "-y", "-qq", "--no-install-recommends"];
    install.extend(packages);
    apt(&install)?;
    let part = folder.join("part");
    let mut archives: Vec<_> = fs::read_dir(folder.join("cache/archives"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    archives.sort();
    for archive in archives {
        tool::run(&["dpkg-deb", "-x", &archive.to_string_lossy(), &part.to_string_lossy()])
            .with_context(|| format!("unpack {}", archive.display()))?;
    }
    fs::rename(part, &unpacked)?;
    Ok(unpacked)
}
