//! The real kube-proxy on one node, and the fake API server that it reads.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::site::Family;
use crate::fake_api::FakeApi;
use crate::netns::Netns;

/// What it is told, by its configuration file.
#[derive(Clone, Debug)]
pub struct KubeProxySettings {
    /// `hostnameOverride`.
    pub node: String,
    /// The API server.
    pub server: SocketAddr,
    /// `mode`.
    pub mode: &'static str,
    /// `detectLocalMode`.
    pub detect_local_mode: &'static str,
    /// `clusterCIDR`.
    pub cluster_cidr: String,
    /// `detectLocal.bridgeInterface`.
    pub bridge_interface: String,
    /// `detectLocal.interfaceNamePrefix`.
    pub interface_name_prefix: String,
    /// `masqueradeAll`, of each mode.
    pub masquerade_all: bool,
    /// `iptables.localhostNodePorts`.
    pub localhost_node_ports: bool,
    /// `nodePortAddresses`.
    pub node_port_addresses: Vec<String>,
    /// `featureGates`.
    pub feature_gates: BTreeMap<String, bool>,
}

impl KubeProxySettings {
    /// The IPVS mode in the [`World`](crate::world::World)'s cluster, all else by default.
    pub fn ipvs(node: &str, server: SocketAddr) -> Self {
        Self {
            node: node.to_owned(),
            server,
            mode: "ipvs",
            detect_local_mode: "ClusterCIDR",
            cluster_cidr: "10.244.0.0/16,fd00:10:244::/48".to_owned(),
            bridge_interface: String::new(),
            interface_name_prefix: String::new(),
            masquerade_all: false,
            localhost_node_ports: true,
            node_port_addresses: Vec::new(),
            feature_gates: BTreeMap::new(),
        }
    }
}

/// A running kube-proxy. It is killed when this is dropped; what it programmed stays.
pub struct KubeProxy {
    child: Child,
    netns: Netns,
    node: String,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts it in a namespace, with its files in a folder.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(program: &Path, netns: &Netns, told: &KubeProxySettings, folder: &Path) -> Result<Self> {
        let at = |what: &str| folder.join(format!("{}.{what}", told.node));
        fs::write(
            at("kubeconfig"),
            json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "matrix",
                "clusters": [{"name": "matrix", "cluster": {"server": format!("http://{}", told.server)}}],
                "users": [{"name": "matrix", "user": {}}],
                "contexts": [{"name": "matrix", "context": {"cluster": "matrix", "user": "matrix"}}],
            })
            .to_string(),
        )?;
        // kube-proxy's IPVS mode reads masqueradeAll from the iptables section.
        let sync = json!({"masqueradeAll": told.masquerade_all, "syncPeriod": "30s", "minSyncPeriod": "1s"});
        let mut iptables = sync.clone();
        if let Some(fields) = iptables.as_object_mut() {
            fields.insert("localhostNodePorts".to_owned(), told.localhost_node_ports.into());
        }
        fs::write(
            at("config"),
            json!({
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
                "hostnameOverride": told.node, "mode": told.mode,
                "clientConnection": {
                    "kubeconfig": at("kubeconfig"),
                    "contentType": "application/json", "acceptContentTypes": "application/json",
                },
                "clusterCIDR": told.cluster_cidr, "detectLocalMode": told.detect_local_mode,
                "detectLocal": {
                    "bridgeInterface": told.bridge_interface, "interfaceNamePrefix": told.interface_name_prefix,
                },
                "nodePortAddresses": told.node_port_addresses,
                "featureGates": told.feature_gates,
                "iptables": iptables, "nftables": sync, "ipvs": {"syncPeriod": "30s", "minSyncPeriod": "1s"},
                "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
                "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
            })
            .to_string(),
        )?;
        let log = fs::File::create(at("log"))?;
        let mut command = Command::new(program);
        command.args(["kube-proxy", "-v=2", "--config"]).arg(at("config"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self {
            child: netns.spawn(command)?,
            netns: netns.clone(),
            node: told.node.clone(),
            log: at("log"),
        })
    }

    /// Until it has synchronized both families, by its own metrics: in IPVS mode virtual servers answer long before the
    /// rules stand.
    ///
    /// # Errors
    /// It ends, or does not synchronize within minutes: with its log.
    pub fn wait_until_synchronized(&mut self) -> Result<()> {
        let deadline = Instant::now() + SYNCHRONIZED;
        let node = &self.node;
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        while self.netns.run(synchronizations).unwrap_or_default() < Family::ALL.len() {
            if let Some(status) = self.child.try_wait()? {
                bail!("kube-proxy of {node} ended ({status}):\n{}", log());
            }
            ensure!(Instant::now() < deadline, "{node} does not serve; its log:\n{}", log());
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

const METRICS_PORT: u16 = 10249;
/// Its IPVS mode executes a program for each element of an ipset.
const SYNCHRONIZED: Duration = Duration::from_secs(900);

/// The fake API server on a thread, in a namespace.
pub struct Api {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Api {
    /// Starts it with these objects.
    ///
    /// # Errors
    /// The address is taken.
    pub fn start(netns: &Netns, address: SocketAddr, objects: Vec<Value>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let netns = netns.clone();
        let thread = thread::spawn(move || {
            let said = ready.clone();
            let ran = netns.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let api = FakeApi::start_at(address).await?;
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
