//! The images that upstream's tests ask for, made here: upstream's agnhost over Debian's packages. No registry is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use testbed::cluster::runtime::PAUSE;
use testbed::{go, tool};

use crate::cargo::root;
use crate::image::archive::{self, Image};
use crate::image::platform::Platform;
use crate::image::tree::Tree;
use crate::image::{cache, debian};

/// What upstream's images have from their distribution. `wget` is the real one: the resolver of a static busybox ends with
/// a fault.
const PACKAGES: &[&str] = &[
    "base-passwd",
    "bash",
    "bind9-dnsutils",
    "coreutils",
    "curl",
    "dash",
    "grep",
    "hostname",
    "iproute2",
    "mawk",
    "netbase",
    "netcat-openbsd",
    "procps",
    "sed",
    "socat",
    "util-linux",
    "wget",
];
/// Names that Debian's packages make when they are installed.
const LINKS: &[(&str, &str)] = &[
    ("usr/bin/awk", "mawk"),
    ("usr/bin/nc", "nc.openbsd"),
    ("usr/bin/sh", "dash"),
    ("etc/passwd", "../usr/share/base-passwd/passwd.master"),
    ("etc/group", "../usr/share/base-passwd/group.master"),
];
/// Images of upstream's tests that this one stands for, by their last name.
const NAMES: &[&str] = &["agnhost", "busybox"];

/// Makes the archive of all.
///
/// # Errors
/// A package cannot be had, or upstream's list of images has none of these.
pub(crate) fn archive(tests: &Path, folder: &Path) -> Result<PathBuf> {
    let platform = Platform::here();
    let agnhost = fs::read(go::build(&root(), "agnhost", "k8s.io/kubernetes/test/images/agnhost")?)?;
    let mut files = Tree::default();
    debian::add(&mut files, PACKAGES, platform, &cache())?;
    for (name, target) in LINKS {
        files.link(name, target);
    }
    files
        .folder("tmp", 0o1777)
        .folder("uploads", 0o755)
        .file("agnhost", 0o755, agnhost);
    let layer = files.layer()?;
    let image = |name: &str, entrypoint: &[&str]| Image {
        name: name.to_owned(),
        platform,
        layers: vec![layer.clone()],
        entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
        labels: Vec::new(),
    };
    let list = tool::run(&[&*tests.to_string_lossy(), "-list-images"])?;
    let names = wanted(&list);
    ensure!(!names.is_empty(), "no image among those of {}", tests.display());
    let mut images = vec![image(PAUSE, &["sleep", "infinity"])];
    for name in names {
        let entrypoint = if name.contains("/agnhost:") { "/agnhost" } else { "sh" };
        images.push(image(name, &[entrypoint]));
    }
    fs::create_dir_all(folder)?;
    let path = folder.join("conformance-tools.tar");
    archive::write(&images, &path)?;
    Ok(path)
}

/// Of upstream's images those that are made here.
fn wanted(list: &str) -> BTreeSet<&str> {
    let last = |image: &str| Some(image.rsplit_once('/')?.1.split_once(':')?.0.to_owned());
    let ours = |image: &&str| last(image).is_some_and(|name| NAMES.contains(&name.as_str()));
    list.lines().map(str::trim).filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_last_name() {
        let list = "example.org/e2e/agnhost:2.66.1\nexample.org/e2e/busybox:1.37.0-2\nexample.org/e2e/nginx:1\n\
                    example.org/agnhost/other:1\nagnhost\n";
        let wanted: Vec<_> = wanted(list).into_iter().collect();
        assert_eq!(wanted, ["example.org/e2e/agnhost:2.66.1", "example.org/e2e/busybox:1.37.0-2"]);
    }
}
