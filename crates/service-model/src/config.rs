//! What the model is told once.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::object::Family;
use crate::scheduler::Scheduler;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as in `nodeName` of endpoints.
    pub node_name: Box<str>,
    /// The families that the node has. What a service and its endpoints have of another one is passed over in silence.
    pub families: &'static [Family],
    /// Scheduler of services that name none.
    pub scheduler: Scheduler,
    /// On which of the node's addresses NodePorts answer (T16).
    pub node_port_addresses: NodePortAddresses,
    /// This node's primary address of its family, whatever the Node object says (`bindAddress`).
    pub node_ip: Option<IpAddr>,
    /// Gate `AllowServiceExternalIPs` (T32).
    pub allow_external_ips: bool,
    /// `iptables.masqueradeAll`: every client of a cluster IP is masqueraded (T14).
    pub masquerade_all: bool,
    /// What traffic comes from pods of this node (T2, T11).
    pub detect_local: DetectLocal,
    /// How the data plane gets hold of what is sent to a service.
    pub capture: Capture,
    /// What a service may cost (T39).
    pub limits: Limits,
    /// Schedulers that an annotation may name (T40), besides the node's own; empty = every one.
    pub allowed_schedulers: Vec<Scheduler>,
    /// Where external IPs may be (T41); empty = anywhere.
    pub external_ip_ranges: Vec<IpNet>,
    /// Where load-balancer addresses may be (T41); empty = anywhere.
    pub load_balancer_ip_ranges: Vec<IpNet>,
}

/// How much a service may ask for (T39).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Real servers: the endpoints of each place, at least one a place, and what its scheduler needs
    /// ([`Scheduler::weight`]).
    pub real_servers: usize,
    /// Source ranges, those of a family counted at each of the service's places that they restrict.
    pub source_ranges: usize,
}

impl Default for Limits {
    /// 131,072 real servers: 5,000 endpoints, the most that Kubernetes is tested with, at two ports of a dozen addresses. 65,536
    /// source ranges: what the ipset of kube-proxy's IPVS mode holds of all services.
    fn default() -> Self {
        Self {
            real_servers: 131_072,
            source_ranges: 65_536,
        }
    }
}

impl Config {
    /// kube-proxy's defaults for a node of this name, which has both families, in the IPVS mode.
    pub fn of_node(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            families: Family::BOTH,
            scheduler: Scheduler::default(),
            node_port_addresses: NodePortAddresses::All,
            node_ip: None,
            allow_external_ips: true,
            masquerade_all: false,
            detect_local: DetectLocal::default(),
            capture: Capture::Bind,
            limits: Limits::default(),
            allowed_schedulers: Vec::new(),
            external_ip_ranges: Vec::new(),
            load_balancer_ip_ranges: Vec::new(),
        }
    }
}

/// How the data plane gets hold of what is sent to a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// Addresses are bound to this node, and every address of a NodePort is a place of its own: the IPVS mode.
    #[default]
    Bind,
    /// What passes this node is redirected and nothing is bound, so an address of another node may be redirected too
    /// (T18). A NodePort is one frontend of each family, at the unspecified address: the iptables mode.
    Redirect {
        /// NodePorts answer on 127.0.0.1 (`iptables.localhostNodePorts`, T17).
        localhost_node_ports: bool,
    },
}

impl Capture {
    pub(crate) fn binds(self) -> bool {
        self == Self::Bind
    }
}

/// `detectLocalMode` with what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// `ClusterCIDR`: sources within these, one of each family at most; none of a family = not detected there.
    ClusterCidr(Vec<IpNet>),
    /// `NodeCIDR`: sources within this node's `spec.podCIDRs`.
    NodeCidr,
    /// `BridgeInterface`: what comes in by this interface.
    BridgeInterface(Box<str>),
    /// `InterfaceNamePrefix`: what comes in by an interface whose name begins so.
    InterfaceNamePrefix(Box<str>),
}

impl Default for DetectLocal {
    /// kube-proxy's: `ClusterCIDR`, without one.
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

/// `nodePortAddresses` (T16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node's interfaces (`[]`).
    All,
    /// Those that an entry of the list selects.
    Among {
        /// The node's primary address of each family (`primary`): [`Config::node_ip`], else the first of the Node object's
        /// addresses. A family without one is not opened by that, where kube-proxy opens all of it.
        primary: bool,
        /// Addresses within one of these, loopback (`localhost`) and everything (`all`) included. A family that has no
        /// CIDR here matches all, unless `primary` is set.
        cidrs: Vec<IpNet>,
    },
}
