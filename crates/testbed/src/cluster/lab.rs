//! A cluster whose nodes are kernels of their own, on one bridge with what needs no kernel with IPVS: control plane,
//! scheduler, name service and clients are processes of this machine, in the network namespace of this process, which
//! ought to have it for itself. Nothing of them takes a node's processor.
//!
//! ```text
//!  this namespace                                          guests
//!  etcd · kube-apiserver · controllers · scheduler · DNS   node-a: vec0 192.168.100.11 · cni0 10.244.0.0/24
//!  br0 192.168.100.10 ───── port0 ═ raw0 ───────────────── │       containerd · kubelet · Service proxy
//!                     └──── port1 ═ raw1 ───────────────── node-b …
//! ```
//!
//! Pods are routed, not bridged to the outside: a bridge over `vec0` would see its own frames come back. The cluster has
//! both families, a zone for each node until there are three, and its name service at a Service, behind the proxy that is
//! tested.

mod guest;

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::node::{self, NodeSettings, wait_for};
use crate::control_plane::ControlPlane;
use crate::http;
use crate::kernel::{Job, Provider};
use crate::netns::Netns;
use crate::tool;

use guest::GuestSettings;
pub use guest::run as run_guest;

/// Debian packages of this side, each with what shows that it is there.
pub const PACKAGES: &[(&str, &str)] = &[("ethtool", "ethtool")];
/// Ranges of all pods.
const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// Addresses of the control plane and of the name service.
const HERE: [&str; 2] = ["192.168.100.10", "fd00:192:168:100::10"];
/// Cluster IP of the name service.
const DNS: &str = "10.96.0.10";
/// Where each proxy tells that it serves.
const HEALTH: u16 = 10256;
const ZONES: usize = 3;
/// MiB of a node. Its file systems are in it; what it does not use costs nothing.
const MEMORY: u32 = 4096;

/// Programs of the cluster.
#[derive(Clone, Debug)]
pub struct Programs {
    /// As [`crate::control_plane::build`] makes it.
    pub control_plane: PathBuf,
    /// kubelet and kube-scheduler.
    pub node: PathBuf,
    /// CoreDNS.
    pub dns: PathBuf,
}

/// The Service proxy of every node: a program that takes kube-proxy's configuration file.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Program and first arguments. `--config` and the file come after them.
    pub command: Vec<String>,
    /// `mode`.
    pub mode: String,
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of nodes: one to nine.
    pub nodes: usize,
    /// Programs of the cluster.
    pub programs: Programs,
    /// The proxy under test.
    pub proxy: Proxy,
    /// Archives of images that each node gets.
    pub images: Vec<PathBuf>,
    /// Program and arguments that call [`run_guest`] with one more argument.
    pub guest: Vec<String>,
    /// State: keys, etcd, configurations.
    pub folder: PathBuf,
    /// Where logs go: those of a node are in a folder of its name.
    pub logs: PathBuf,
    /// After this the nodes are ended.
    pub limit: Duration,
}

/// A running cluster. Guests and processes end with this process; who starts that one in a PID namespace of its own sees
/// all of it go, however it ends.
pub struct Lab {
    plane: ControlPlane,
    children: RefCell<Vec<(&'static str, Child)>>,
    ended: Receiver<String>,
    settings: Settings,
}

impl Lab {
    /// Starts it. All nodes are ready and all proxies serve when this returns.
    ///
    /// # Errors
    /// A program or a guest cannot be started or ends, or something is not ready within four minutes: with the end of its
    /// log.
    pub fn start(provider: &Provider, settings: Settings) -> Result<Self> {
        fs::create_dir_all(&settings.folder)?;
        fs::create_dir_all(&settings.logs)?;
        let nodes: Vec<_> = (0..settings.nodes).map(|index| member(index, &settings)).collect();
        bridge(&nodes)?;
        let (sender, ended) = mpsc::channel();
        let here = Netns::current()?;
        let plane = ControlPlane::start_for_nodes(&settings.programs.control_plane, &here, HERE[0], &settings.folder)?;
        let lab = Self {
            plane,
            children: RefCell::default(),
            ended,
            settings,
        };
        for (index, node) in nodes.iter().enumerate() {
            lab.plane.create("/api/v1/nodes", &node_object(index, node))?;
        }
        for (index, node) in nodes.iter().enumerate() {
            let job = lab.guest(index, node, &nodes)?;
            let (provider, sender, name) = (provider.clone(), sender.clone(), node.name.clone());
            thread::spawn(move || {
                let how = match provider.run(&job) {
                    Ok(status) => format!("status {status}"),
                    Err(error) => format!("{error:#}"),
                };
                let _ = sender.send(format!("the guest of {name} ended: {how}"));
            });
        }
        lab.scheduler()?;
        lab.name_service()?;
        let ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        lab.wait(&nodes, "the nodes", "kubelet", || {
            let states = lab.kubectl(&["get", "nodes", "-o", ready])?;
            Ok(states.split(' ').filter(|state| *state == "True").count() == nodes.len())
        })?;
        lab.wait(&nodes, "the proxies", "proxy", || {
            for node in &nodes {
                let address: SocketAddr = format!(
                    "{}:{HEALTH}",
                    node.addresses.first().context("a node without an address")?
                )
                .parse()?;
                if http::get(&here, address, "/healthz")?.status != 200 {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(lab)
    }

    /// Runs kubectl with every right, and returns what it prints.
    ///
    /// # Errors
    /// It ends with another status than zero: with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    /// The kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.plane.kubeconfig
    }

    /// All nodes still run, and scheduler and name service.
    ///
    /// # Errors
    /// Which one has ended.
    pub fn alive(&self) -> Result<()> {
        if let Ok(said) = self.ended.try_recv() {
            bail!("{said}; logs in {}", self.settings.logs.display());
        }
        for (name, child) in self.children.borrow_mut().iter_mut() {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended ({status}):\n{}", node::log_end(&self.settings.logs, name));
            }
        }
        Ok(())
    }

    /// Waits, while the guests run. `log` is the log of each node to tell from.
    fn wait(&self, nodes: &[NodeSettings], what: &str, log: &str, ready: impl Fn() -> Result<bool>) -> Result<()> {
        wait_for(what, || self.alive().map_or(Ok(true), |()| ready())).with_context(|| {
            let ends = nodes
                .iter()
                .map(|node| format!("-- {log} of {}\n{}\n", node.name, node::log_end(&node.logs, log)));
            ends.collect::<String>()
        })?;
        self.alive()
    }

    /// The guest's job, with its files written.
    fn guest(&self, index: usize, node: &NodeSettings, nodes: &[NodeSettings]) -> Result<Job> {
        let settings = &self.settings;
        let proxy = settings.folder.join(format!("{}-proxy.json", node.name));
        fs::write(
            &proxy,
            proxy_configuration(&settings.proxy.mode, node, &self.plane.kubeconfig),
        )?;
        let mut command = settings.proxy.command.clone();
        command.extend(["--config".to_owned(), proxy.display().to_string()]);
        let others = nodes.iter().filter(|other| other.name != node.name);
        let told = GuestSettings {
            node: node.clone(),
            gateways: HERE.map(str::to_owned).to_vec(),
            routes: others
                .flat_map(|other| other.pods.iter().cloned().zip(other.addresses.clone()))
                .collect(),
            images: settings.images.clone(),
            kubeconfig: self.plane.kubeconfig.clone(),
            proxy: command,
        };
        let path = settings.folder.join(format!("{}.json", node.name));
        fs::write(&path, serde_json::to_string(&told)?)?;
        let mut words = settings.guest.clone();
        words.push(path.display().to_string());
        let mut job = Job::new(words, settings.folder.clone());
        job.link = Some(format!("raw{index}"));
        job.memory = MEMORY;
        job.limit = settings.limit;
        Ok(job)
    }

    fn child(&self, name: &'static str, command: Command) -> Result<()> {
        let child = node::start(name, command, &self.settings.folder, &self.settings.logs)?;
        self.children.borrow_mut().push((name, child));
        Ok(())
    }

    fn scheduler(&self) -> Result<()> {
        let mut command = Command::new(&self.settings.programs.node);
        command
            .args(["kube-scheduler", "--leader-elect=false", "--kubeconfig"])
            .arg(&self.plane.kubeconfig);
        self.child("kube-scheduler", command)
    }

    /// CoreDNS here, and the Service that leads to it.
    fn name_service(&self) -> Result<()> {
        let corefile = self.settings.folder.join("Corefile");
        let kubeconfig = self.plane.kubeconfig.display();
        fs::write(
            &corefile,
            format!(
                ".:53 {{\n  bind {}\n  errors\n  kubernetes cluster.local in-addr.arpa ip6.arpa {{\n    kubeconfig {kubeconfig}\n    \
                 pods insecure\n  }}\n}}\n",
                HERE[0]
            ),
        )?;
        let mut command = Command::new(&self.settings.programs.dns);
        command.arg("-conf").arg(&corefile);
        self.child("dns", command)?;
        let ports = || [("dns", "UDP"), ("dns-tcp", "TCP")].into_iter();
        let service: Vec<Value> = ports()
            .map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": 53}))
            .collect();
        // The namespace comes soon after the API server.
        wait_for("the namespace kube-system", || {
            let object = json!({
                "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
                "spec": {"clusterIP": DNS, "ports": service},
            });
            self.plane.create("/api/v1/namespaces/kube-system/services", &object)?;
            Ok(true)
        })?;
        self.plane.create(
            "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
            &json!({
                "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
                "addressType": "IPv4",
                "ports": service,
                "endpoints": [{"addresses": [HERE[0]], "conditions": {"ready": true}}],
            }),
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (_, child) in self.children.borrow_mut().iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn member(index: usize, settings: &Settings) -> NodeSettings {
    let letter = char::from_u32(u32::from(b'a').saturating_add(u32::try_from(index).unwrap_or(0))).unwrap_or('z');
    let name = format!("node-{letter}");
    let host = index.saturating_add(11);
    NodeSettings {
        addresses: vec![format!("192.168.100.{host}"), format!("fd00:192:168:100::{host}")],
        pods: vec![format!("10.244.{index}.0/24"), format!("fd00:10:244:{index}::/64")],
        dns: Some(DNS.to_owned()),
        program: settings.programs.node.clone(),
        // On the guest's own tmpfs.
        folder: PathBuf::from("/run/node"),
        logs: settings.logs.join(&name),
        name,
    }
}

/// A bridge, and an interface for each guest. Offloads are off: large segments would be cut on their way to a guest.
fn bridge(nodes: &[NodeSettings]) -> Result<()> {
    let lines = |lines: &[String]| lines.iter().try_for_each(|line| tool::sh(line).map(drop));
    let offloads = |name: &str| format!("ethtool -K {name} tx off rx off tso off gso off gro off sg off");
    lines(&[
        "ip link add br0 type bridge".to_owned(),
        format!("ip addr add {}/24 dev br0", HERE[0]),
        format!("ip addr add {}/64 dev br0 nodad", HERE[1]),
        "ip link set br0 up".to_owned(),
        offloads("br0"),
    ])?;
    for (index, node) in nodes.iter().enumerate() {
        lines(&[
            format!("ip link add raw{index} type veth peer name port{index}"),
            // What arrives there is the guest's: this kernel must not answer for it.
            format!("sysctl -qw net.ipv6.conf.raw{index}.disable_ipv6=1 net.ipv4.conf.raw{index}.arp_ignore=8"),
            format!("ip link set port{index} master br0 up"),
            format!("ip link set raw{index} up"),
            offloads(&format!("raw{index}")),
            offloads(&format!("port{index}")),
        ])?;
        for (pods, address) in node.pods.iter().zip(&node.addresses) {
            lines(&[format!("ip route add {pods} via {address}")])?;
        }
    }
    Ok(())
}

/// The Node, as a cloud's controllers would have made it: the kubelet fills it.
fn node_object(index: usize, node: &NodeSettings) -> Value {
    json!({
        "metadata": {"name": node.name, "labels": {
            "kubernetes.io/hostname": node.name,
            "topology.kubernetes.io/zone": format!("zone-{}", index % ZONES),
        }},
        "spec": {"podCIDR": node.pods.first(), "podCIDRs": node.pods},
    })
}

/// KubeProxyConfiguration, as an installer writes it for any of the proxies.
fn proxy_configuration(mode: &str, node: &NodeSettings, kubeconfig: &Path) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": CLUSTER_CIDR,
        "hostnameOverride": node.name,
        "mode": mode,
    })
    .to_string()
}
