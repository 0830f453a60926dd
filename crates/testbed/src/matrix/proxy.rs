//! The proxy under test on every node of a cluster: kube-ipvs, or the real kube-proxy in one of its modes, reading the
//! same objects.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cluster::Cluster;
use super::question::Mode;
use super::service::{Service, nodes};
use super::setting::{Detector, NodePortAddresses, Setting};
use super::site::{BRIDGE, CLUSTER_CIDR, Family, LINK_PREFIX, NODE_NETWORK, Node, router};
use super::upstream::{Api, KubeProxy, KubeProxySettings};
use super::yaml;
use crate::control_plane;
use crate::daemon::Daemon;
use crate::netns::Netns;

/// How long the addresses of all VIPs may take.
const ADDRESSES: Duration = Duration::from_secs(60);
/// Protocol number of the routes of kube-ipvs.
const ROUTE_PROTOCOL: u8 = 163;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours, in this mode.
    KubeIpvs(Mode),
    /// Upstream's, `mode: ipvs`.
    KubeProxyIpvs,
    /// Upstream's, `mode: iptables`.
    KubeProxyIptables,
    /// Upstream's, `mode: nftables`.
    KubeProxyNftables,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kube-ipvs" => Ok(Self::KubeIpvs(Mode::Ipvs)),
            "kube-proxy-ipvs" => Ok(Self::KubeProxyIpvs),
            "kube-proxy-iptables" => Ok(Self::KubeProxyIptables),
            "kube-proxy-nftables" => Ok(Self::KubeProxyNftables),
            _ => Err(format!(
                "unknown proxy {text:?}, must be kube-ipvs, kube-proxy-ipvs, kube-proxy-iptables or kube-proxy-nftables"
            )),
        }
    }
}

impl Kind {
    /// As on the command line; kube-ipvs with its mode.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeIpvs(Mode::Ipvs) => "kube-ipvs",
            Self::KubeIpvs(Mode::Iptables) => "kube-ipvs (iptables)",
            Self::KubeProxyIpvs => "kube-proxy-ipvs",
            Self::KubeProxyIptables => "kube-proxy-iptables",
            Self::KubeProxyNftables => "kube-proxy-nftables",
        }
    }

    /// What the oracle has to promise.
    pub fn mode(self) -> Mode {
        match self {
            Self::KubeIpvs(mode) => mode,
            Self::KubeProxyIpvs => Mode::Ipvs,
            Self::KubeProxyIptables | Self::KubeProxyNftables => Mode::Iptables,
        }
    }
}

/// Proxies on all nodes. They are killed when this is dropped; what they programmed stays.
pub struct Proxies {
    folder: PathBuf,
    setting: Setting,
    running: BTreeMap<Node, Running>,
    _api: Option<Api>,
}

enum Running {
    Ours { _daemon: Box<Daemon> },
    Upstream(KubeProxy),
}

impl Proxies {
    /// Starts them with these objects; every service is programmed when this returns.
    ///
    /// # Errors
    /// One ends, or does not serve within a minute or two.
    pub fn start(
        kind: Kind,
        cluster: &Cluster,
        setting: &Setting,
        services: &[Service],
        folder: &Path,
    ) -> Result<Self> {
        let mut proxies = Self {
            folder: folder.to_owned(),
            setting: *setting,
            running: BTreeMap::new(),
            _api: None,
        };
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests)?;
        fs::write(manifests.join("nodes.yaml"), yaml::documents(&nodes(setting)))?;
        for service in services {
            let file = manifests.join(format!("{}.yaml", service.name));
            fs::write(file, yaml::documents(&service.manifests()))?;
        }
        match kind {
            Kind::KubeIpvs(mode) => {
                for (node, netns) in &cluster.nodes {
                    proxies.start_ours(*node, netns, mode)?;
                }
            }
            _ => {
                let program = control_plane::program()?;
                let objects = services.iter().flat_map(Service::manifests);
                let objects = objects.chain(nodes(setting)).collect();
                let address = (router(Family::V4), API_PORT).into();
                proxies._api = Some(Api::start(&cluster.router, address, objects)?);
                for (node, netns) in &cluster.nodes {
                    let told = upstream_settings(kind, &node.name(), setting, address);
                    let proxy = KubeProxy::start(&program, netns, &told, folder)?;
                    proxies.running.insert(*node, Running::Upstream(proxy));
                }
            }
        }
        // kube-ipvs says itself when it serves.
        for running in proxies.running.values_mut() {
            if let Running::Upstream(proxy) = running {
                proxy.wait_until_synchronized()?;
                // What came while it synchronized for the first time is in the next one.
                thread::sleep(Duration::from_secs(2));
            }
        }
        Ok(proxies)
    }

    /// Kills those of all nodes; the data path stays.
    pub fn kill(&mut self) {
        self.running.clear();
    }

    /// Starts kube-ipvs again on one node, waits until it serves, and kills it.
    ///
    /// # Errors
    /// It does not serve.
    pub fn restart_ours(&mut self, node: Node, netns: &Netns) -> Result<()> {
        self.start_ours(node, netns, Mode::Ipvs)?;
        self.running.remove(&node);
        Ok(())
    }

    fn start_ours(&mut self, node: Node, netns: &Netns, mode: Mode) -> Result<()> {
        let manifests = self.folder.join("manifests").to_string_lossy().into_owned();
        let mut words = vec![
            "--manifests".to_owned(),
            manifests,
            "--hostname-override".to_owned(),
            node.name(),
        ];
        if mode != Mode::Ipvs {
            words.push(format!("--proxy-mode={}", mode.name()));
        }
        words.extend(flags(&self.setting));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut daemon = Daemon::start(netns, &words)?;
        daemon.wait_until_serving()?;
        if mode == Mode::Ipvs {
            wait_for_addresses(netns)?;
        }
        self.running.insert(
            node,
            Running::Ours {
                _daemon: Box::new(daemon),
            },
        );
        Ok(())
    }
}

/// Until every VIP that is routed is an address, too (L4). Serving does not wait for it, but the source of a node's own
/// connection to a VIP of IPv6 becomes the VIP itself then: one client until then, another one after (T20).
fn wait_for_addresses(netns: &Netns) -> Result<()> {
    let lines = |line: &str| Ok::<_, anyhow::Error>(netns.sh(line)?.lines().count());
    let deadline = Instant::now() + ADDRESSES;
    for family in ["-4", "-6"] {
        while lines(&format!("ip {family} -o address show dev kube-ipvs0 scope global"))?
            < lines(&format!("ip {family} route show table local proto {ROUTE_PROTOCOL}"))?
        {
            ensure!(Instant::now() < deadline, "VIPs do not become addresses of kube-ipvs0");
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// The flags of kube-ipvs in a world.
pub fn flags(setting: &Setting) -> Vec<String> {
    let mut words = Vec::new();
    if setting.detector == Detector::ClusterCidr {
        words.push(format!("--cluster-cidr={CLUSTER_CIDR}"));
    }
    if !matches!(setting.detector, Detector::ClusterCidr | Detector::None) {
        words.push(format!("--detect-local-mode={}", setting.detector.mode()));
    }
    match setting.detector {
        Detector::BridgeInterface => words.push(format!("--pod-bridge-interface={BRIDGE}")),
        Detector::InterfaceNamePrefix => words.push(format!("--pod-interface-name-prefix={LINK_PREFIX}")),
        Detector::ClusterCidr | Detector::NodeCidr | Detector::None => {}
    }
    if setting.masquerade_all {
        words.push("--masquerade-all".to_owned());
    }
    if setting.node_port_addresses != NodePortAddresses::All {
        words.push(format!(
            "--nodeport-addresses={}",
            node_port_addresses(setting).join(",")
        ));
    }
    words
}

/// What the real kube-proxy is told in a world.
pub fn upstream_settings(kind: Kind, node: &str, setting: &Setting, server: SocketAddr) -> KubeProxySettings {
    let only = |detector: Detector, text: &str| {
        if setting.detector == detector {
            text.to_owned()
        } else {
            String::new()
        }
    };
    let node_port_addresses = match (kind, setting.node_port_addresses) {
        // Nothing means the primary addresses in its nftables mode, and all in the others.
        (Kind::KubeProxyNftables, NodePortAddresses::All) => vec!["0.0.0.0/0", "::/0"],
        _ => node_port_addresses(setting),
    };
    KubeProxySettings {
        node: node.to_owned(),
        server,
        mode: match kind {
            Kind::KubeProxyIpvs => "ipvs",
            Kind::KubeProxyNftables => "nftables",
            _ => "iptables",
        },
        detect_local_mode: setting.detector.mode(),
        cluster_cidr: only(Detector::ClusterCidr, CLUSTER_CIDR),
        bridge_interface: only(Detector::BridgeInterface, BRIDGE),
        interface_name_prefix: only(Detector::InterfaceNamePrefix, LINK_PREFIX),
        masquerade_all: setting.masquerade_all,
        localhost_node_ports: true,
        node_port_addresses: node_port_addresses.into_iter().map(str::to_owned).collect(),
        feature_gates: BTreeMap::new(),
    }
}

/// The port of the fake API server.
const API_PORT: u16 = 8001;

/// `nodePortAddresses` of a world.
fn node_port_addresses(setting: &Setting) -> Vec<&'static str> {
    match setting.node_port_addresses {
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Cidr => NODE_NETWORK.to_vec(),
        NodePortAddresses::Primary => vec!["primary"],
    }
}
