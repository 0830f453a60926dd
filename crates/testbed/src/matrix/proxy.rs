//! The proxy under test on every node of a cluster: kube-ipvs, or the real kube-proxy in one of its modes, reading the
//! same objects.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::cluster::Cluster;
use super::question::Mode;
use super::service::{Service, nodes};
use super::setting::{Detector, NodePortAddresses, Setting};
use super::site::{BRIDGE, CLUSTER_CIDR, Family, LINK_PREFIX, NODE_NETWORK, Node, router};
use super::yaml;
use crate::control_plane;
use crate::daemon::Daemon;
use crate::fake_api::FakeApi;
use crate::netns::Netns;

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
    Ours(Box<Daemon>),
    Upstream(Child),
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
        fs::write(manifests.join("nodes.yaml"), yaml::documents(&nodes()))?;
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
                let objects = services.iter().flat_map(Service::manifests).chain(nodes()).collect();
                proxies._api = Some(Api::start(&cluster.router, objects)?);
                for (node, netns) in &cluster.nodes {
                    let child = proxies.start_upstream(kind, *node, netns, &program)?;
                    proxies.running.insert(*node, Running::Upstream(child));
                }
            }
        }
        // kube-ipvs says itself when it serves.
        if !matches!(kind, Kind::KubeIpvs(_)) {
            for (node, netns) in &cluster.nodes {
                proxies.wait_until_synchronized(*node, netns)?;
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
        let setting = &self.setting;
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
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut daemon = Daemon::start(netns, &words)?;
        daemon.wait_until_serving()?;
        self.running.insert(node, Running::Ours(Box::new(daemon)));
        Ok(())
    }

    fn start_upstream(&self, kind: Kind, node: Node, netns: &Netns, program: &Path) -> Result<Child> {
        let at = |what: &str| self.folder.join(format!("{}.{what}", node.name()));
        let server = format!("http://{}:{}", router(Family::V4), API_PORT);
        fs::write(
            at("kubeconfig"),
            json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "matrix",
                "clusters": [{"name": "matrix", "cluster": {"server": server}}],
                "users": [{"name": "matrix", "user": {}}],
                "contexts": [{"name": "matrix", "context": {"cluster": "matrix", "user": "matrix"}}],
            })
            .to_string(),
        )?;
        let setting = &self.setting;
        let mode = match kind {
            Kind::KubeProxyIpvs => "ipvs",
            Kind::KubeProxyNftables => "nftables",
            _ => "iptables",
        };
        let cidr = if setting.detector == Detector::ClusterCidr {
            CLUSTER_CIDR
        } else {
            ""
        };
        // kube-proxy's IPVS mode reads masqueradeAll from the iptables section.
        let sync = json!({"masqueradeAll": setting.masquerade_all, "syncPeriod": "30s", "minSyncPeriod": "1s"});
        let bridge = if setting.detector == Detector::BridgeInterface {
            BRIDGE
        } else {
            ""
        };
        let prefix = if setting.detector == Detector::InterfaceNamePrefix {
            LINK_PREFIX
        } else {
            ""
        };
        // Nothing means the primary addresses in its nftables mode, and all in the others.
        let of_upstream = match (kind, setting.node_port_addresses) {
            (Kind::KubeProxyNftables, NodePortAddresses::All) => vec!["0.0.0.0/0", "::/0"],
            _ => node_port_addresses(setting),
        };
        fs::write(
            at("config"),
            json!({
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
                "hostnameOverride": node.name(), "mode": mode,
                "clientConnection": {
                    "kubeconfig": at("kubeconfig"),
                    "contentType": "application/json", "acceptContentTypes": "application/json",
                },
                "clusterCIDR": cidr, "detectLocalMode": setting.detector.mode(),
                "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
                "nodePortAddresses": of_upstream,
                "iptables": sync, "nftables": sync, "ipvs": {"syncPeriod": "30s", "minSyncPeriod": "1s"},
                "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
                "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
            })
            .to_string(),
        )?;
        let log = fs::File::create(at("log"))?;
        let mut command = Command::new(program);
        command.args(["kube-proxy", "-v=2", "--config"]).arg(at("config"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        netns.spawn(command)
    }

    /// Until it has synchronized both families, by its own metrics: in IPVS mode virtual servers answer long before the
    /// rules stand.
    fn wait_until_synchronized(&mut self, node: Node, netns: &Netns) -> Result<()> {
        let deadline = Instant::now() + SYNCHRONIZED;
        while netns.run(synchronizations).unwrap_or_default() < Family::ALL.len() {
            if let Some(Running::Upstream(child)) = self.running.get_mut(&node)
                && let Some(status) = child.try_wait()?
            {
                bail!("kube-proxy of {} ended ({status}):\n{}", node.name(), self.log(node));
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not serve; its log:\n{}",
                node.name(),
                self.log(node)
            );
            thread::sleep(Duration::from_millis(300));
        }
        // What came while it synchronized for the first time is in the next one.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn log(&self, node: Node) -> String {
        match self.running.get(&node) {
            Some(Running::Ours(daemon)) => daemon.said().join("\n"),
            _ => fs::read_to_string(self.folder.join(format!("{}.log", node.name()))).unwrap_or_default(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Upstream(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Families that kube-proxy has synchronized.
fn synchronizations() -> Result<usize> {
    let mut stream = TcpStream::connect(("127.0.0.1", METRICS_PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let counts = text
        .lines()
        .filter(|line| line.starts_with("kubeproxy_sync_proxy_rules_duration_seconds_count"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    Ok(counts.filter(|count| *count >= 1.0).count())
}

fn node_port_addresses(setting: &Setting) -> Vec<&'static str> {
    match setting.node_port_addresses {
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Cidr => NODE_NETWORK.to_vec(),
        NodePortAddresses::Primary => vec!["primary"],
    }
}

const API_PORT: u16 = 8001;
const METRICS_PORT: u16 = 10249;
/// Its IPVS mode executes a program for each element of an ipset.
const SYNCHRONIZED: Duration = Duration::from_secs(900);

/// The fake API server on a thread, in the router's namespace.
struct Api {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Api {
    fn start(netns: &Netns, objects: Vec<Value>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let netns = netns.clone();
        let thread = thread::spawn(move || {
            let said = ready.clone();
            let ran = netns.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let api = FakeApi::start_at((router(Family::V4), API_PORT).into()).await?;
                    for object in objects {
                        api.put(collection(&object), object);
                    }
                    let _ = ready.send(Ok(()));
                    let _ = stopped.await;
                    Ok(())
                })
            });
            if let Err(error) = ran {
                let _ = said.send(Err(error));
            }
        });
        started.recv().context("the API server ended")??;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn collection(object: &Value) -> &'static str {
    match object.get("kind").and_then(Value::as_str) {
        Some("Service") => "/api/v1/services",
        Some("EndpointSlice") => "/apis/discovery.k8s.io/v1/endpointslices",
        _ => "/api/v1/nodes",
    }
}
