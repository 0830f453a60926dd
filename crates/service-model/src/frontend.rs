//! What leaves the model: at which addresses a service answers, how, and what could not be programmed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::event::Kind;
use crate::name::ObjectName;
use crate::object::{Protocol, TrafficPolicy};
use crate::scheduler::Scheduler;

/// Identity of a frontend: what a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// Address; for a NodePort an address of this node.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Why a service answers at an address. The order is the precedence in a conflict (T19).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// An address of this node, at `nodePort`; the unspecified one stands for all of them
    /// ([`Capture::Redirect`](crate::Capture::Redirect)).
    NodePort,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// A port of the cluster IP that the service does not have: insiders are sent there where the cluster IP has a Local
    /// policy of its own (T2). Nobody else may ask it (T6).
    Insiders,
}

/// What happens to a new connection for which there is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Refused at once (T5): the service has no usable endpoint anywhere.
    Reject,
    /// Dropped silently (T1, T4): a Local policy, and the endpoints are elsewhere.
    Drop,
}

/// One endpoint of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// The endpoint is on this node.
    pub local: bool,
}

/// One address, port and protocol at which a service answers, with its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What a client connects to.
    pub key: FrontendKey,
    /// Why we answer there.
    pub kind: AddressKind,
    /// Name of the service port; empty for a single unnamed one.
    pub port_name: Box<str>,
    /// The address is already one of this node's interfaces': it must not be bound a second time (T7).
    pub node_address: bool,
    /// Scheduler (T21).
    pub scheduler: Scheduler,
    /// Session affinity by client IP, timeout in seconds (T20).
    pub affinity: Option<u32>,
    /// The traffic policy that holds here.
    pub policy: TrafficPolicy,
    /// The endpoints for this frontend's own clients: those that its traffic policy allows.
    /// In the order of insertion, which differs from node to node (T23). No address twice.
    pub endpoints: Vec<Target>,
    /// Where insiders ([`LocalTraffic`](crate::LocalTraffic), and the node itself) are sent, since a Local policy of the
    /// outside does not hold for them (T2): an address and port of ours with every endpoint of the cluster. `None` = they are served as
    /// everybody.
    pub insiders: Option<SocketAddr>,
    /// The endpoints for insiders, where they are not sent elsewhere but served here
    /// ([`Capture::Redirect`](crate::Capture::Redirect)): every one of the cluster. Empty = they are served as everybody.
    pub insider_endpoints: Vec<Target>,
    /// What happens when `endpoints` is empty.
    pub refusal: Refusal,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
    /// Who may connect at all; `None` = everybody. LoadBalancer addresses only (T15), this family's ranges only.
    pub source_ranges: Option<SourceRanges>,
}

/// The addresses of one family on which NodePorts answer (T16), where that is not told address by address
/// ([`Capture::Redirect`](crate::Capture::Redirect)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortPlaces {
    /// Every address of this node.
    EveryLocal {
        /// Loopback addresses too (T17).
        loopback: bool,
    },
    /// These.
    At(Vec<IpAddr>),
}

/// Whose source address a frontend replaces, besides the node's own (T12) and that of a pod that reaches itself (T13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Masquerade {
    /// Nobody's: `externalTrafficPolicy: Local` keeps client addresses.
    Never,
    /// That of clients which are not pods (T11): a cluster IP.
    Outsiders,
    /// Everybody's: `externalTrafficPolicy: Cluster` (T9), or `masqueradeAll` (T14).
    Always,
}

/// `spec.loadBalancerSourceRanges` (T15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRanges {
    /// The ranges, disjoint and sorted. Empty = nobody may connect: none of them could be read.
    pub ranges: Vec<IpNet>,
    /// One of this node's addresses is in a range: the node itself may connect.
    pub admits_node: bool,
}

/// Health-check node port of a service (`spec.healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port to answer on.
    pub port: u16,
    /// Distinct addresses of local ready endpoints, over all ports of the service: what is told who asks by IPv4. `None` =
    /// the service has no cluster IP of this family, and nobody listens.
    pub v4: Option<usize>,
    /// The same of IPv6.
    pub v6: Option<usize>,
}

/// An object or field that cannot be programmed, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejection {
    /// Kind of the object.
    pub kind: Kind,
    /// Name of the object.
    pub object: ObjectName,
    /// Path of the field, such as `spec.externalIPs[0]`; empty = the whole object.
    pub field: Box<str>,
    /// Why, lower case, no full stop.
    pub reason: Box<str>,
}

/// Everything the model says about one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The frontends, in a fixed order; keys are unique over all services.
    pub frontends: Vec<Frontend>,
    /// What could not be programmed: ten at most, and one that says how many more there are.
    pub rejections: Vec<Rejection>,
    /// Rejections that there are besides, and are not in the list.
    pub more_rejections: usize,
    /// How long its TCP endpoints may keep connections when they are gone, where it says so; zero = as long as they
    /// live.
    pub drain_timeout: Option<Duration>,
    /// The scheduler that its annotation names, where the data plane has schedulers.
    pub own_scheduler: Option<Scheduler>,
    /// Health-check node port.
    pub health_check: Option<HealthCheck>,
    /// Load-balancer addresses that are other nodes' own, where these answer (T18).
    pub elsewhere: usize,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl fmt::Display for FrontendKey {
    /// `10.96.0.10:53/UDP`, `[fd00::a]:53/UDP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        })
    }
}

impl fmt::Display for Rejection {
    /// `Service default/web: spec.ports[0].port: 70000 is not between 1 and 65535`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.kind, self.object)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}
