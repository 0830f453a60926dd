//! The images of the test itself: one with a server, clients and the tools of a node, and the one that holds a pod.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use testbed::cluster::runtime::PAUSE;
use testbed::go;

use crate::cargo::root;
use crate::image::archive::{self, Image};
use crate::image::platform::Platform;
use crate::image::tree::Tree;
use crate::image::{cache, debian};

const NAME: &str = "kube-ipvs.test/tools:1";
const PACKAGES: &[&str] = &[
    "busybox-static",
    "curl",
    "ipvsadm",
    "iproute2",
    "iptables",
    "nftables",
    "netbase",
];
/// Of busybox, that a pod's commands use.
const APPLETS: &[&str] = &["sh", "cat", "grep", "pidof", "sleep"];

/// Makes the archive of both.
pub(crate) fn archive(folder: &Path) -> Result<PathBuf> {
    let platform = Platform::here();
    let agnhost = go::build(&root(), "agnhost", "k8s.io/kubernetes/test/images/agnhost")?;
    let mut tools = Tree::default();
    debian::add(&mut tools, PACKAGES, platform, &cache())?;
    for applet in APPLETS {
        tools.link(&format!("usr/bin/{applet}"), "busybox");
    }
    tools
        .folder("tmp", 0o1777)
        .file("usr/bin/agnhost", 0o755, fs::read(agnhost)?);
    let layer = tools.layer()?;
    let image = |name: &str, entrypoint: &[&str]| Image {
        name: name.to_owned(),
        platform,
        layers: vec![layer.clone()],
        entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
        arguments: Vec::new(),
        labels: Vec::new(),
    };
    fs::create_dir_all(folder)?;
    let path = folder.join("test-tools.tar");
    archive::write(
        &[image(NAME, &["agnhost"]), image(PAUSE, &["sleep", "infinity"])],
        &path,
    )?;
    Ok(path)
}
