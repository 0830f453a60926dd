//! The images that upstream's tests ask for, made here: upstream's agnhost over Debian's packages. No registry is needed.

use std::collections::BTreeMap;
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
    "conntrack",
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
/// Images that upstream's tests ask for and that are made here, by their last name, each with its program and
/// the argument of a container that gives none.
const NAMES: &[(&str, &[&str])] = &[
    ("agnhost", &["/agnhost", "pause"]),
    ("busybox", &["sh"]),
    ("distroless-iptables", &["sh"]),
    ("pause", &["sleep", "infinity"]),
    (REGRESSION, &["/regression-issue-74839"]),
];
/// A server that sends what no connection expects.
const REGRESSION: &str = "regression-issue-74839";
/// Upstream's programs of these images, each a package of the module.
const PROGRAMS: &str = "k8s.io/kubernetes/test/images";

/// Makes the archive of all.
///
/// # Errors
/// A package cannot be had, or upstream's list of images has none of these.
pub(crate) fn archive(tests: &Path, folder: &Path) -> Result<PathBuf> {
    let platform = Platform::here();
    let program =
        |name: &str| -> Result<Vec<u8>> { Ok(fs::read(go::build(&root(), name, &format!("{PROGRAMS}/{name}"))?)?) };
    let porter = go::directory(&root(), &format!("{PROGRAMS}/agnhost/porter"))?;
    let mut files = Tree::default();
    debian::add(&mut files, PACKAGES, platform, &cache())?;
    for (name, target) in LINKS {
        files.link(name, target);
    }
    files
        .folder("tmp", 0o1777)
        .folder("uploads", 0o755)
        .file("agnhost", 0o755, program("agnhost")?)
        .file(REGRESSION, 0o755, program(REGRESSION)?);
    // With these agnhost serves TLS.
    for name in ["localhost.crt", "localhost.key"] {
        files.file(name, 0o644, fs::read(porter.join(name))?);
    }
    let layer = files.layer()?;
    let image = |name: &str, words: &[&str]| {
        let mut words = words.iter().map(|word| (*word).to_owned());
        Image {
            name: name.to_owned(),
            platform,
            layers: vec![layer.clone()],
            entrypoint: words.by_ref().take(1).collect(),
            arguments: words.collect(),
            labels: Vec::new(),
        }
    };
    let list = tool::run(&[&*tests.to_string_lossy(), "-list-images"])?;
    let names = wanted(&list);
    ensure!(!names.is_empty(), "no image among those of {}", tests.display());
    let mut images = vec![image(PAUSE, &["sleep", "infinity"])];
    images.extend(names.into_iter().map(|(name, words)| image(name, words)));
    fs::create_dir_all(folder)?;
    let path = folder.join("conformance-tools.tar");
    archive::write(&images, &path)?;
    Ok(path)
}

/// Of upstream's images those that are made here, with what they run.
fn wanted(list: &str) -> BTreeMap<&str, &'static [&'static str]> {
    let entry = |image: &str| {
        let last = image.rsplit_once('/')?.1.split_once(':')?.0;
        NAMES.iter().find(|(name, _)| *name == last).map(|(_, entry)| *entry)
    };
    list.lines()
        .map(str::trim)
        .filter_map(|image| Some((image, entry(image)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_last_name() {
        let list = "example.org/e2e/agnhost:2.66.1\nexample.org/e2e/busybox:1.37.0-2\nexample.org/e2e/nginx:1\n\
                    example.org/agnhost/other:1\nagnhost\n";
        let wanted: Vec<_> = wanted(list).into_keys().collect();
        assert_eq!(
            wanted,
            ["example.org/e2e/agnhost:2.66.1", "example.org/e2e/busybox:1.37.0-2"]
        );
    }
}
