//! A world with many pods, services on them as manifests, and what a client of a place must be answered.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::daemon::Daemon;
use testbed::load::{Answer, Place, Pods, Protocol, Server, Servers, pods};
use testbed::netns::Netns;
use testbed::world::{NODE, World};

use crate::mode::Mode;

/// Where pods of both nodes are: with it, others than pods are masqueraded (T11).
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// Addresses of the node on which NodePorts are asked, of each family.
pub(crate) const NODE_ADDRESSES: [&str; 2] = ["198.18.0.1", "2001:db8:1::1"];

/// A service with TCP port 80 and UDP port 53, of both families.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Names of its pods begin so, too.
    pub(crate) name: String,
    /// Its cluster IPs end with it.
    pub(crate) number: u8,
    /// Of both protocols; 0 = none.
    pub(crate) node_port: u16,
    pub(crate) pods: Vec<Pod>,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) number: u8,
    pub(crate) terminating: bool,
}

/// Namespaces, servers, manifests.
pub(crate) struct Scene {
    pub(crate) mode: Mode,
    pub(crate) world: World,
    pub(crate) pods: Pods,
    pub(crate) servers: Servers,
    pub(crate) manifests: TempDir,
    running: Vec<Server>,
}

impl Service {
    pub(crate) fn new(name: &str, number: u8, node_port: u16, pods: &[u8]) -> Self {
        let pod = |number: &u8| Pod {
            number: *number,
            terminating: false,
        };
        Self {
            name: name.to_owned(),
            number,
            node_port,
            pods: pods.iter().map(pod).collect(),
        }
    }

    /// The Service and its EndpointSlices.
    pub(crate) fn manifest(&self) -> Value {
        let port = |name: &str, protocol: &str, port: u16| {
            let mut port = json!({"name": name, "protocol": protocol, "port": port});
            if self.node_port != 0 {
                port["nodePort"] = self.node_port.into();
            }
            port
        };
        let kind = if self.node_port == 0 { "ClusterIP" } else { "NodePort" };
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name, "namespace": "d"},
            "spec": {
                "type": kind, "clusterIPs": self.cluster_ips(),
                "ports": [port("http", "TCP", 80), port("dns", "UDP", 53)],
            },
        });
        let endpoint = |pod: &Pod, family: usize| {
            json!({
                "addresses": [pods::addresses(pod.number).get(family)], "nodeName": pods::node(pod.number),
                "conditions": {"ready": !pod.terminating, "serving": true, "terminating": pod.terminating},
            })
        };
        let slice = |family: usize, name: &str| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": name,
                "metadata": {
                    "name": format!("{}-{}", self.name, name.to_lowercase()), "namespace": "d",
                    "labels": {"kubernetes.io/service-name": self.name},
                },
                "ports": [
                    {"name": "http", "protocol": "TCP", "port": 8080},
                    {"name": "dns", "protocol": "UDP", "port": 5353},
                ],
                "endpoints": self.pods.iter().map(|pod| endpoint(pod, family)).collect::<Vec<_>>(),
            })
        };
        list(&[service, slice(0, "IPv4"), slice(1, "IPv6")])
    }

    /// Of each family.
    pub(crate) fn cluster_ips(&self) -> [IpAddr; 2] {
        let v6 = [0xfd00, 0x10, 0x96, 0, 0, 0, 1, self.number.into()];
        [[10, 96, 1, self.number].into(), v6.into()]
    }

    /// Where it is asked at its cluster IPs.
    pub(crate) fn cluster_places(&self) -> Vec<Place> {
        let ips = self.cluster_ips().into_iter();
        ips.flat_map(|ip| [tcp(ip, 80), udp(ip, 53)]).collect()
    }

    /// Where it is asked at addresses of the node.
    pub(crate) fn node_places(&self, addresses: &[IpAddr]) -> Vec<Place> {
        let port = self.node_port;
        let addresses = addresses.iter().filter(|_| port != 0);
        addresses.flat_map(|ip| [tcp(*ip, port), udp(*ip, port)]).collect()
    }

    /// What a new client is answered; empty where nobody is ready.
    pub(crate) fn answers(&self) -> BTreeSet<Answer> {
        let ready = self.pods.iter().filter(|pod| !pod.terminating);
        ready.map(|pod| Answer::Server(self.server_name(pod.number))).collect()
    }

    pub(crate) fn server_name(&self, pod: u8) -> String {
        format!("{}-{pod}", self.name)
    }
}

impl Scene {
    /// Without services.
    pub(crate) fn new(mode: Mode) -> Result<Self> {
        let world = World::without_pods()?;
        world.node.sh(mode.preparation())?;
        // A refusal of UDP is an ICMP error, of which a kernel sends one a second to each client.
        world
            .node
            .sh("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0")?;
        let pods = Pods::new(&world)?;
        let scene = Self {
            mode,
            world,
            pods,
            servers: Servers::new()?,
            manifests: tempfile::tempdir()?,
            running: Vec::new(),
        };
        put(scene.manifests.path(), "nodes", &nodes())?;
        Ok(scene)
    }

    /// Starts a server of a service; the caller keeps it.
    pub(crate) fn start_server(&self, service: &Service, pod: u8) -> Result<Server> {
        let addresses = pods::addresses(pod).into_iter();
        let places: Vec<_> = addresses.flat_map(|ip| [tcp(ip, 8080), udp(ip, 5353)]).collect();
        self.servers
            .start(self.pods.netns(pod), &service.server_name(pod), &places)
    }

    /// Starts servers that live as long as the scene.
    pub(crate) fn start_servers(&mut self, service: &Service, pods: &[u8]) -> Result<()> {
        for pod in pods {
            let server = self.start_server(service, *pod)?;
            self.running.push(server);
        }
        Ok(())
    }

    /// Writes the manifest of a service.
    pub(crate) fn put(&self, service: &Service) -> Result<()> {
        put(self.manifests.path(), &service.name, &service.manifest())
    }

    /// Takes the objects of a manifest away; an empty file stays.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        put(self.manifests.path(), name, &list(&[]))
    }

    /// Starts kube-ipvs on the node.
    pub(crate) fn start_daemon(&self) -> Result<Daemon> {
        let manifests = self.manifests.path().to_string_lossy();
        let cidr = format!("--cluster-cidr={CLUSTER_CIDR}");
        Daemon::start(
            &self.world.node,
            &[
                "--manifests",
                &manifests,
                "--hostname-override",
                NODE,
                &cidr,
                self.mode.flag(),
            ],
        )
    }

    /// Who asks at a place: a pod of the node at cluster IPs, somebody outside at node ports.
    pub(crate) fn asker(&self, place: Place) -> &Netns {
        if matches!(place.at.port(), 80 | 53) {
            &self.world.client_pod
        } else {
            &self.world.client
        }
    }
}

/// Writes a manifest in one step, so that no half of it is read.
pub(crate) fn put(folder: &Path, name: &str, object: &Value) -> Result<()> {
    let draft = folder.join(format!("{name}.draft"));
    fs::write(&draft, object.to_string())?;
    fs::rename(draft, folder.join(format!("{name}.json"))).context("write a manifest")
}

/// The node under test and the other one.
pub(crate) fn nodes() -> Value {
    let node = |name: &str, cidrs: [&str; 2], addresses: [&str; 2]| {
        let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses},
        })
    };
    let own = node(
        NODE,
        ["10.244.1.0/24", "fd00:10:244:1::/64"],
        ["192.0.2.10", "2001:db8::10"],
    );
    let cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"];
    let other = node(pods::OTHER_NODE, cidrs, ["192.0.2.20", "2001:db8::20"]);
    list(&[own, other])
}

fn list(items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "items": items})
}

fn tcp(ip: IpAddr, port: u16) -> Place {
    Place {
        at: SocketAddr::new(ip, port),
        protocol: Protocol::Tcp,
    }
}

fn udp(ip: IpAddr, port: u16) -> Place {
    Place {
        at: SocketAddr::new(ip, port),
        protocol: Protocol::Udp,
    }
}
