//! A cluster of one node on the kernel that this process runs on: control plane, scheduler, containerd, kubelet, and a
//! client's network outside. Made for a guest of the test kernel, whose only job it is: it mounts over the system's
//! folders.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::node::{Node, NodeSettings, wait_for};
use super::{Cluster, machine};
use crate::control_plane::ControlPlane;
use crate::netns::Netns;
use crate::tool;

/// Debian packages of a node, each with what shows that it is there.
pub const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("openssl", "openssl"),
    ("mount", "mount"),
];
/// Name of the node.
pub const NODE: &str = "node-a";
const ADDRESS: &str = "192.0.2.10";
const OUTSIDE: &str = "192.0.2.1";
/// The pods of the node.
const PODS: &str = "10.244.0.0/24";

/// The programs that it is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// As [`crate::control_plane::build`] makes it.
    pub control_plane: PathBuf,
    /// kubelet and kube-scheduler.
    pub node: PathBuf,
}

/// The cluster. Its processes are killed when this is dropped; containers go with the guest.
pub struct InKernel {
    plane: ControlPlane,
    node: Node,
    outside: Netns,
}

impl InKernel {
    /// Starts it with its files in a folder, which ought to be on a tmpfs; the node is ready when this returns.
    ///
    /// # Errors
    /// A program cannot be started, or the node is not ready within four minutes.
    pub fn start(programs: &Programs, images: &[&Path], folder: &Path) -> Result<Self> {
        machine::prepare()?;
        let outside = connect()?;
        let mut node = Node::start(NodeSettings {
            name: NODE.to_owned(),
            addresses: vec![ADDRESS.to_owned()],
            pods: vec![PODS.to_owned()],
            dns: None,
            program: programs.node.clone(),
            folder: folder.to_owned(),
            logs: folder.to_owned(),
        })?;
        let here = Netns::current()?;
        let plane = ControlPlane::start_for_nodes(&programs.control_plane, &here, ADDRESS, folder)?;
        node.import(images)?;
        let mut scheduler = Command::new(&programs.node);
        scheduler
            .args(["kube-scheduler", "--leader-elect=false", "--kubeconfig"])
            .arg(&plane.kubeconfig);
        node.child("kube-scheduler", scheduler)?;
        node.join(&plane.kubeconfig)?;
        let cluster = Self { plane, node, outside };
        let ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        wait_for("the node", || {
            Ok(cluster.kubectl(&["get", "nodes", "-o", ready])? == "True")
        })
        .with_context(|| format!("the kubelet said:\n{}", cluster.node.log_end("kubelet")))?;
        Ok(cluster)
    }
}

impl Cluster for InKernel {
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    fn kubeconfig(&self) -> &Path {
        &self.plane.kubeconfig
    }

    fn import(&self, archive: &Path) -> Result<()> {
        self.node.import(&[archive])
    }

    fn outside(&self, words: &[&str]) -> Result<String> {
        self.outside.run(|| tool::run(words))
    }
}

/// The node's network card, and the client's namespace at its other end.
fn connect() -> Result<Netns> {
    let outside = Netns::new()?;
    tool::sh("ip link add eth0 type veth peer name outside")?;
    outside.take_interface("outside")?;
    for line in [
        format!("ip addr add {ADDRESS}/24 dev eth0"),
        "ip link set eth0 up".to_owned(),
        format!("ip route add default via {OUTSIDE}"),
    ] {
        tool::sh(&line)?;
    }
    for line in [
        format!("ip addr add {OUTSIDE}/24 dev outside"),
        "ip link set outside up".to_owned(),
    ] {
        outside.sh(&line)?;
    }
    Ok(outside)
}
