//! The inside of a node of the lab: its network, its processes, and their end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::machine;
use crate::cluster::node::{Node, NodeSettings};
use crate::tool;

/// The interface to the bridge.
const CARD: &str = "vec0";

/// What a guest finds in its file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GuestSettings {
    pub(super) node: NodeSettings,
    /// Where all else is.
    pub(super) gateways: Vec<String>,
    /// Pods of the other nodes, each range with its node's address.
    pub(super) routes: Vec<(String, String)>,
    pub(super) images: Vec<PathBuf>,
    pub(super) kubeconfig: PathBuf,
    /// The proxy's command line.
    pub(super) proxy: Vec<String>,
}

/// Makes this guest the node that a file of settings describes, and stays until a process of it ends.
///
/// # Errors
/// The kernel has no network card, a program cannot be started, or one ended: with the end of its log.
pub fn run(settings: &Path) -> Result<()> {
    let text = fs::read_to_string(settings).with_context(|| format!("read {}", settings.display()))?;
    let settings: GuestSettings = serde_json::from_str(&text).context("settings of a node")?;
    machine::prepare()?;
    connect(&settings)?;
    let mut node = Node::start(settings.node.clone())?;
    let (program, arguments) = settings.proxy.split_first().context("no proxy")?;
    let mut proxy = Command::new(program);
    proxy.args(arguments);
    node.child("proxy", proxy)?;
    let images: Vec<_> = settings.images.iter().map(PathBuf::as_path).collect();
    node.import(&images)?;
    node.join(&settings.kubeconfig)?;
    node.watch()
}

fn connect(settings: &GuestSettings) -> Result<()> {
    tool::sh(&format!("ip link set {CARD} up"))
        .context("a kernel without UML_NET_VECTOR has no network card; cargo xtask kernel builds one that has it")?;
    tool::sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    for address in &settings.node.addresses {
        let (length, no_check) = if address.contains(':') { (64, "nodad") } else { (24, "") };
        tool::sh(&format!("ip addr add {address}/{length} dev {CARD} {no_check}"))?;
    }
    for gateway in &settings.gateways {
        tool::sh(&format!("ip {} route add default via {gateway}", family(gateway)))?;
    }
    for (pods, address) in &settings.routes {
        tool::sh(&format!("ip {} route add {pods} via {address}", family(address)))?;
    }
    Ok(())
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6" } else { "-4" }
}
