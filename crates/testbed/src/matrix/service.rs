//! The Services that are asked: what each says, its addresses, and the manifests that say it to a proxy. Pure.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::setting::Setting;
use super::site::{Family, HEALTH_CHECK_PORTS, HOST_NETWORK_PORT, Node, NodeAddress, balancer, pod_address, pod_name};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As in names of cells.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// An internal or external traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// All endpoints.
    Cluster,
    /// Those of the node alone.
    Local,
}

impl Policy {
    fn field(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod of a node, by number.
    Pod(Node, u8),
    /// The node's own address: a pod with hostNetwork.
    Host(Node),
}

impl Place {
    /// Its node.
    pub fn node(self) -> Node {
        match self {
            Self::Pod(node, _) | Self::Host(node) => node,
        }
    }

    /// What it answers.
    pub fn name(self) -> String {
        match self {
            Self::Pod(node, number) => pod_name(node, number),
            Self::Host(node) => format!("hostnet-{}", node.letter()),
        }
    }

    /// Its address.
    pub fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Pod(node, number) => pod_address(family, node, number),
            Self::Host(node) => node.address(family, NodeAddress::Internal),
        }
    }
}

/// State of an endpoint, as the conditions of an EndpointSlice tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Ready and serving.
    Ready,
    /// Terminating and still serving.
    Terminating,
    /// Neither ready nor serving.
    NotReady,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub place: Place,
    /// Its conditions.
    pub state: State,
    /// Hinted for the zone of its own node.
    pub hinted: bool,
}

/// An address of a service that is not derived from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vip {
    /// The service's own.
    Own,
    /// That of another service, by number.
    Of(u16),
    /// The cluster IP of another service, by number.
    ClusterIpOf(u16),
    /// An address of a node.
    Node(Node, NodeAddress),
    /// The load balancer that serves by itself: the ingress has `ipMode: Proxy`.
    Proxy,
}

/// A Service. All have a port of each protocol.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its addresses and ports are derived from it; the smaller is the older.
    pub number: u16,
    /// `internalTrafficPolicy`.
    pub internal: Policy,
    /// `externalTrafficPolicy`.
    pub external: Policy,
    /// Word for the endpoints in names of cells.
    pub placement: &'static str,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// `loadBalancerSourceRanges`.
    pub ranges: Vec<&'static str>,
    /// `sessionAffinity: ClientIP`.
    pub affinity: bool,
    /// The load balancer's address.
    pub load_balancer: Vip,
    /// The external IP.
    pub external_ip: Vip,
    /// The port of all addresses but NodePorts.
    pub port: u16,
    /// Labels beside those that all have.
    pub labels: Vec<&'static str>,
    /// Annotations, key and value.
    pub annotations: Vec<(&'static str, &'static str)>,
}

impl Service {
    /// One with all addresses, policies Cluster, port 80.
    pub fn new(number: u16, name: &str, placement: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            number,
            internal: Policy::Cluster,
            external: Policy::Cluster,
            placement,
            endpoints: endpoints(placement),
            ranges: Vec::new(),
            affinity: false,
            load_balancer: Vip::Own,
            external_ip: Vip::Own,
            port: 80,
            labels: Vec::new(),
            annotations: Vec::new(),
        }
    }

    /// Word for the policies in names of cells.
    pub fn policy(&self) -> &'static str {
        match (self.internal, self.external) {
            (Policy::Cluster, Policy::Cluster) => "cluster",
            (Policy::Cluster, Policy::Local) => "etp-local",
            (Policy::Local, Policy::Cluster) => "itp-local",
            (Policy::Local, Policy::Local) => "both-local",
        }
    }

    /// Its cluster IP.
    pub fn cluster_ip(&self, family: Family) -> IpAddr {
        cluster_ip(family, self.number)
    }

    /// Its load balancer's address.
    pub fn load_balancer_ip(&self, family: Family) -> IpAddr {
        vip(family, self.load_balancer, self.number, (203, 0x1b))
    }

    /// Its external IP.
    pub fn external_ip(&self, family: Family) -> IpAddr {
        vip(family, self.external_ip, self.number, (198, 0xe))
    }

    /// Its node port, the same for all protocols.
    pub fn node_port(&self) -> u16 {
        30000 + self.number
    }

    /// Its health-check node port, if it has one: where a balancer asks whether this node has endpoints.
    pub fn health_check_node_port(&self) -> u16 {
        HEALTH_CHECK_PORTS.start + self.number
    }

    /// The port at an endpoint: in a pod no other service has it, so a packet tells which service it is of.
    pub fn target_port(&self, place: Place) -> u16 {
        match place {
            Place::Pod(..) => 20000 + self.number,
            Place::Host(_) => HOST_NETWORK_PORT,
        }
    }

    /// The Service and its EndpointSlices.
    pub fn manifests(&self) -> Vec<Value> {
        let mut labels = json!({});
        for label in &self.labels {
            field(&mut labels, label, "other".into());
        }
        let mut annotations = json!({});
        for (key, value) in &self.annotations {
            field(&mut annotations, key, (*value).into());
        }
        let ips: Vec<_> = Family::ALL.iter().map(|family| self.cluster_ip(*family)).collect();
        let external: Vec<_> = Family::ALL.iter().map(|family| self.external_ip(*family)).collect();
        let ingress: Vec<_> = Family::ALL
            .iter()
            .map(|family| {
                let mode = if self.load_balancer == Vip::Proxy {
                    "Proxy"
                } else {
                    "VIP"
                };
                json!({"ip": self.load_balancer_ip(*family), "ipMode": mode})
            })
            .collect();
        let ports: Vec<_> = Protocol::ALL
            .iter()
            .map(|protocol| {
                json!({
                    "name": protocol.name(), "protocol": protocol.name().to_uppercase(), "port": self.port,
                    "targetPort": protocol.name(), "nodePort": self.node_port(),
                })
            })
            .collect();
        let minute = self.number % 60;
        let hour = self.number / 60;
        let mut spec = json!({
            "type": "LoadBalancer", "clusterIP": ips.first(), "clusterIPs": ips,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": external, "ports": ports, "allocateLoadBalancerNodePorts": true,
            "internalTrafficPolicy": self.internal.field(), "externalTrafficPolicy": self.external.field(),
            "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
        });
        if self.external == Policy::Local {
            field(&mut spec, "healthCheckNodePort", self.health_check_node_port().into());
        }
        if self.affinity {
            field(
                &mut spec,
                "sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": 600}}),
            );
        }
        if !self.ranges.is_empty() {
            field(&mut spec, "loadBalancerSourceRanges", json!(self.ranges));
        }
        let mut all = vec![json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": self.name, "namespace": "matrix", "uid": format!("00000000-0000-0000-0000-{:012}", self.number),
                "creationTimestamp": format!("2026-01-01T{hour:02}:{minute:02}:00Z"),
                "labels": labels, "annotations": annotations,
            },
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        })];
        for family in Family::ALL {
            for (kind, host) in [("pods", false), ("hosts", true)] {
                let of: Vec<_> = self
                    .endpoints
                    .iter()
                    .filter(|endpoint| matches!(endpoint.place, Place::Host(_)) == host)
                    .collect();
                if !of.is_empty() {
                    all.push(self.slice(family, kind, &of));
                }
            }
        }
        all
    }

    fn slice(&self, family: Family, kind: &str, endpoints: &[&Endpoint]) -> Value {
        let port = endpoints.first().map(|endpoint| self.target_port(endpoint.place));
        let ports: Vec<_> = Protocol::ALL
            .iter()
            .map(|protocol| json!({"name": protocol.name(), "protocol": protocol.name().to_uppercase(), "port": port}))
            .collect();
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| endpoint.json(family)).collect();
        let mut labels = json!({"kubernetes.io/service-name": self.name});
        for label in &self.labels {
            field(&mut labels, label, "other".into());
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}-{kind}", self.name, family.name()), "namespace": "matrix", "labels": labels,
            },
            "addressType": family.address_type(), "ports": ports, "endpoints": endpoints,
        })
    }
}

impl Endpoint {
    fn json(&self, family: Family) -> Value {
        let node = self.place.node();
        let (ready, serving, terminating) = match self.state {
            State::Ready => (true, true, false),
            State::Terminating => (false, true, true),
            State::NotReady => (false, false, false),
        };
        let mut json = json!({
            "addresses": [self.place.address(family)], "nodeName": node.name(), "zone": node.zone(),
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if self.hinted {
            field(&mut json, "hints", json!({"forZones": [{"name": node.zone()}]}));
        }
        json
    }
}

fn field(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

fn cluster_ip(family: Family, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([10, 96, 1 + high, low]),
        Family::V6 => IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 1, number]),
    }
}

fn vip(family: Family, vip: Vip, number: u16, (v4, v6): (u8, u16)) -> IpAddr {
    let own = |number: u16| {
        let [_, low] = number.to_be_bytes();
        match family {
            Family::V4 if v4 == 203 => IpAddr::from([203, 0, 113, low]),
            Family::V4 => IpAddr::from([198, 51, 100, low]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, v6, 0, 0, 0, 0, number]),
        }
    };
    match vip {
        Vip::Own => own(number),
        Vip::Of(other) => own(other),
        Vip::ClusterIpOf(other) => cluster_ip(family, other),
        Vip::Node(node, which) => node.address(family, which),
        Vip::Proxy => balancer(family),
    }
}

/// Words for sets of endpoints, as in names of cells.
pub const PLACEMENTS: [&str; 11] = [
    "a",
    "b",
    "ab",
    "none",
    "terminating",
    "a-terminating",
    "one-terminating",
    "not-ready",
    "hostnet-a",
    "hostnet-ab",
    "pod-and-hostnet",
];

/// The endpoints that a word means.
pub fn endpoints(placement: &str) -> Vec<Endpoint> {
    let make = |place, state| Endpoint {
        place,
        state,
        hinted: placement == "hinted",
    };
    let pod = |node, number| Place::Pod(node, number);
    let (a1, a2, b1, b2) = (pod(Node::A, 1), pod(Node::A, 2), pod(Node::B, 1), pod(Node::B, 2));
    let all = |places: &[Place], state| places.iter().map(|place| make(*place, state)).collect::<Vec<_>>();
    match placement {
        "a" => all(&[a1, a2], State::Ready),
        "b" => all(&[b1, b2], State::Ready),
        "ab" | "hinted" => [all(&[a1, b1], State::Ready), vec![make(a2, State::NotReady)]].concat(),
        "terminating" => all(&[a1, b1], State::Terminating),
        "a-terminating" => [all(&[a1, a2], State::Terminating), all(&[b1, b2], State::Ready)].concat(),
        "one-terminating" => all(&[a1], State::Terminating),
        "not-ready" => all(&[a1, b2], State::NotReady),
        "hostnet-a" => all(&[Place::Host(Node::A)], State::Ready),
        "hostnet-ab" => all(&[Place::Host(Node::A), Place::Host(Node::B)], State::Ready),
        "pod-and-hostnet" => all(&[a1, Place::Host(Node::B)], State::Ready),
        _ => Vec::new(),
    }
}

/// The Node objects of a world.
pub fn nodes(setting: &Setting) -> Vec<Value> {
    Node::ALL
        .iter()
        .map(|node| {
            let cidrs: Vec<_> = Family::ALL.iter().map(|family| node.pod_cidr(*family)).collect();
            let addresses: Vec<_> = Family::ALL
                .iter()
                .map(|family| json!({"type": "InternalIP", "address": node.address(*family, NodeAddress::Internal)}))
                .collect();
            let spec = if setting.pod_cidrs {
                json!({"podCIDR": cidrs.first(), "podCIDRs": cidrs})
            } else {
                json!({})
            };
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": node.name(), "labels": {
                    "kubernetes.io/hostname": node.name(), "topology.kubernetes.io/zone": node.zone(),
                }},
                "spec": spec,
                "status": {"addresses": addresses},
            })
        })
        .collect()
}
