//! The API objects as they enter the model: the fields a Service proxy uses, typed, and no others.
//!
//! They are transcriptions. Whoever fills them (the crate `api-watch`) parses text into types and puts
//! the API's documented default where a field is absent; what the fields *mean* is decided in this crate.
//! A field whose text cannot be parsed is named in `invalid`, and left out where nothing is opened by that.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::name::ObjectName;

/// Transport protocol of a port. Others are rejected where they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the API's default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of a node with both.
    pub const BOTH: &'static [Self] = &[Self::V4, Self::V6];
    /// Of a node without IPv6.
    pub const V4_ALONE: &'static [Self] = &[Self::V4];
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ServiceType {
    /// The API's default.
    #[default]
    ClusterIp,
    /// A port on every node as well.
    NodePort,
    /// A load balancer's addresses as well.
    LoadBalancer,
    /// A DNS alias; never programmed (T24).
    ExternalName,
}

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Any endpoint; the API's default.
    #[default]
    Cluster,
    /// Only endpoints of this node.
    Local,
}

/// `status.loadBalancer.ingress[].ipMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum IpMode {
    /// Packets arrive with the VIP as destination; the API's default.
    #[default]
    Vip,
    /// The load balancer delivers to the node or pod itself: nothing is programmed (T24).
    Proxy,
}

/// A field of an object that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// Path in the object, such as `spec.ports[1].port`.
    pub field: Box<str>,
    /// What is wrong with it, lower case, with the value seen.
    pub reason: Box<str>,
}

/// A Service (core/v1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 where absent (a manifest).
    pub created: i64,
    /// Label `service.kubernetes.io/service-proxy-name` present, whatever its value: another proxy's (T24).
    pub other_proxy: bool,
    /// Annotation `kube-ipvs.io/scheduler`, as written (T21).
    pub scheduler: Option<Box<str>>,
    /// Annotation `kube-ipvs.io/drain-timeout` (L5): how long a TCP endpoint that is gone may keep its connections; zero
    /// = as long as they live, `None` = what the node's setting says.
    pub drain_timeout: Option<Duration>,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs`, else `spec.clusterIP` alone. Empty where there is none or it is `None` (headless).
    pub cluster_ips: SmallVec<[IpAddr; 2]>,
    /// `spec.ports`.
    pub ports: SmallVec<[ServicePort; 1]>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<ExternalIp>,
    /// `status.loadBalancer.ingress[]` that carry an IP.
    pub load_balancer_ingress: Vec<LoadBalancerIngress>,
    /// `spec.loadBalancerSourceRanges`, host bits cleared. `None` = one that cannot be read: it admits nobody, and still
    /// restricts (T15).
    pub source_ranges: Vec<Option<IpNet>>,
    /// `spec.sessionAffinity: ClientIP` with its timeout in seconds (API default 10800); `None` without affinity.
    pub affinity: Option<u32>,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`; 0 where there is none.
    pub health_check_node_port: u16,
    /// Fields that could not be read.
    pub invalid: Vec<InvalidField>,
}

impl Service {
    /// A ClusterIP service without addresses and ports, every other field at the API's default.
    pub fn new(name: ObjectName) -> Self {
        Self {
            name,
            created: 0,
            other_proxy: false,
            scheduler: None,
            drain_timeout: None,
            service_type: ServiceType::default(),
            cluster_ips: SmallVec::new(),
            ports: SmallVec::new(),
            external_ips: Vec::new(),
            load_balancer_ingress: Vec::new(),
            source_ranges: Vec::new(),
            affinity: None,
            external_traffic_policy: TrafficPolicy::default(),
            internal_traffic_policy: TrafficPolicy::default(),
            health_check_node_port: 0,
            invalid: Vec::new(),
        }
    }
}

/// An element of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its number in the object's list, from 0.
    pub position: usize,
    /// `name`; empty for a single unnamed port.
    pub name: Box<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, 1–65535.
    pub port: u16,
    /// `nodePort`; 0 where none is allocated.
    pub node_port: u16,
}

/// An element of `spec.externalIPs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalIp {
    /// Its number in the object's list, from 0.
    pub position: usize,
    /// The address.
    pub ip: IpAddr,
}

/// An element of `status.loadBalancer.ingress` with an IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBalancerIngress {
    /// Its number in the object's list, from 0.
    pub position: usize,
    /// `ip`.
    pub ip: IpAddr,
    /// `ipMode`.
    pub mode: IpMode,
}

/// An EndpointSlice (discovery.k8s.io/v1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`; empty where missing (the slice is then ignored).
    pub service: Box<str>,
    /// Label `service.kubernetes.io/headless` present, whatever its value (T24). The label `service-proxy-name` of a
    /// slice means nothing: that of its Service decides.
    pub headless_label: bool,
    /// `addressType`; `None` for FQDN (the slice is then ignored).
    pub family: Option<Family>,
    /// `ports` that have a number.
    pub ports: SmallVec<[EndpointPort; 1]>,
    /// `endpoints`, in the object's order.
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time` in nanoseconds since 1970.
    pub last_change: Option<i64>,
    /// Fields that could not be read.
    pub invalid: Vec<InvalidField>,
}

/// An element of `ports` of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`; empty where unnamed.
    pub name: Box<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, 1–65535.
    pub port: u16,
}

/// An element of `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the others are not used (API: "consumers must handle the first").
    pub address: IpAddr,
    /// `nodeName`.
    pub node_name: Option<Box<str>>,
    /// `conditions.ready`, nil = true.
    pub ready: bool,
    /// `conditions.serving`, nil = true.
    pub serving: bool,
    /// `conditions.terminating`, nil = false.
    pub terminating: bool,
    /// `hints.forZones[].name`.
    pub zone_hints: SmallVec<[Box<str>; 1]>,
    /// `hints.forNodes[].name`.
    pub node_hints: SmallVec<[Box<str>; 1]>,
}

/// A Node (core/v1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's name; its `name()` compares with `Config::node_name`.
    pub name: ObjectName,
    /// Label `topology.kubernetes.io/zone`; empty where missing.
    pub zone: Box<str>,
    /// `status.addresses` of the types InternalIP, then ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `metadata.deletionTimestamp` present.
    pub deleting: bool,
    /// `spec.taints[].key`.
    pub taints: Vec<Box<str>>,
    /// Addresses and ranges that cannot be read, and are in no list above.
    pub invalid: Vec<InvalidField>,
}
