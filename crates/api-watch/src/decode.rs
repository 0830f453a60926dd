//! API objects as text → objects of the model. Transcription only: defaults of the API are filled in, a field that
//! cannot be read is named in `invalid`; what fields mean is decided in `service-model`.
//!
//! The structs borrow from the text where they can, carry the fields in use, and live for one object.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, Event, ExternalIp, Family, InvalidField, IpMode, Kind,
    LoadBalancerIngress, Node, ObjectName, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

/// An object, ready for the model.
pub(crate) struct Decoded {
    pub(crate) name: ObjectName,
    pub(crate) resource_version: String,
    pub(crate) event: Event,
}

/// Name and version alone: what a deletion or a bad object is good for.
pub(crate) struct Identity {
    pub(crate) name: ObjectName,
    pub(crate) resource_version: String,
    /// Annotation `k8s.io/initial-events-end: "true"` of a bookmark.
    pub(crate) initial_events_end: bool,
}

/// Decodes an object of a kind.
///
/// # Errors
/// Where the text has another shape than the kind's. A value out of its range is no error, but `invalid`.
pub(crate) fn object<'a, D: Deserializer<'a>>(kind: Kind, from: D) -> Result<Decoded, D::Error> {
    Ok(match kind {
        Kind::Service => {
            let doc = ServiceDoc::deserialize(from)?;
            let name = doc.metadata.name(kind);
            let resource_version = doc.metadata.version();
            let event = Event::Service(Change::Applied(service(name.clone(), doc)));
            Decoded {
                name,
                resource_version,
                event,
            }
        }
        Kind::EndpointSlice => {
            let doc = SliceDoc::deserialize(from)?;
            let name = doc.metadata.name(kind);
            let resource_version = doc.metadata.version();
            let event = Event::EndpointSlice(Change::Applied(slice(name.clone(), doc)));
            Decoded {
                name,
                resource_version,
                event,
            }
        }
        Kind::Node => {
            let doc = NodeDoc::deserialize(from)?;
            let name = doc.metadata.name(kind);
            let resource_version = doc.metadata.version();
            let event = Event::Node(Change::Applied(node(name.clone(), doc)));
            Decoded {
                name,
                resource_version,
                event,
            }
        }
    })
}

/// Decodes only who an object is.
///
/// # Errors
/// Where it has no metadata.
pub(crate) fn identity<'a, D: Deserializer<'a>>(kind: Kind, from: D) -> Result<Identity, D::Error> {
    #[derive(Deserialize)]
    struct Doc<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
    }
    let Doc { metadata } = Doc::deserialize(from)?;
    Ok(Identity {
        name: metadata.name(kind),
        resource_version: metadata.version(),
        initial_events_end: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.initial_events_end.as_ref())
            .is_some_and(|text| text.0 == "true"),
    })
}

/// The deletion of an object of a kind.
pub(crate) fn deletion(kind: Kind, name: ObjectName) -> Event {
    match kind {
        Kind::Service => Event::Service(Change::Deleted(name)),
        Kind::EndpointSlice => Event::EndpointSlice(Change::Deleted(name)),
        Kind::Node => Event::Node(Change::Deleted(name)),
    }
}

/// A string that borrows from the text where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Option<Text<'a>>,
    #[serde(borrow)]
    resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    creation_timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    deletion_timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    labels: Option<Labels<'a>>,
    #[serde(borrow)]
    annotations: Option<Annotations<'a>>,
}

#[derive(Default, Deserialize)]
struct Labels<'a> {
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    other_proxy: Option<IgnoredAny>,
    #[serde(rename = "service.kubernetes.io/headless")]
    headless: Option<IgnoredAny>,
    #[serde(borrow, rename = "kubernetes.io/service-name")]
    service: Option<Text<'a>>,
    #[serde(borrow, rename = "topology.kubernetes.io/zone")]
    zone: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
struct Annotations<'a> {
    #[serde(borrow, rename = "kube-ipvs.io/scheduler")]
    scheduler: Option<Text<'a>>,
    #[serde(borrow, rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    last_change: Option<Text<'a>>,
    #[serde(borrow, rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<Text<'a>>,
}

impl Metadata<'_> {
    fn name(&self, kind: Kind) -> ObjectName {
        match kind {
            Kind::Node => ObjectName::cluster_scoped(&self.name),
            // A manifest may leave it out; an object of the API never does.
            Kind::Service | Kind::EndpointSlice => {
                ObjectName::new(text(&self.namespace).unwrap_or("default"), &self.name)
            }
        }
    }

    fn version(&self) -> String {
        text(&self.resource_version).unwrap_or_default().to_owned()
    }
}

fn text<'a>(text: &'a Option<Text<'_>>) -> Option<&'a str> {
    text.as_ref().map(|text| &*text.0)
}

#[derive(Deserialize)]
struct ServiceDoc<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Option<ServiceSpec<'a>>,
    #[serde(borrow)]
    status: Option<ServiceStatus<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec<'a> {
    #[serde(borrow, rename = "type")]
    service_type: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIP")]
    cluster_ip: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIPs")]
    cluster_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    ports: Option<Vec<PortDoc<'a>>>,
    #[serde(borrow, rename = "externalIPs")]
    external_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    load_balancer_source_ranges: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    session_affinity: Option<Text<'a>>,
    session_affinity_config: Option<AffinityConfig>,
    #[serde(borrow)]
    external_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    internal_traffic_policy: Option<Text<'a>>,
    health_check_node_port: Option<i64>,
}

/// A port of a Service or of an EndpointSlice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortDoc<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    protocol: Option<Text<'a>>,
    port: Option<i64>,
    node_port: Option<i64>,
}

#[derive(Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    timeout_seconds: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus<'a> {
    #[serde(borrow)]
    load_balancer: Option<LoadBalancerStatus<'a>>,
}

#[derive(Deserialize)]
struct LoadBalancerStatus<'a> {
    #[serde(borrow)]
    ingress: Option<Vec<IngressDoc<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IngressDoc<'a> {
    #[serde(borrow)]
    ip: Option<Text<'a>>,
    #[serde(borrow)]
    ip_mode: Option<Text<'a>>,
}

/// API default of `sessionAffinityConfig.clientIP.timeoutSeconds`, and its greatest value.
const AFFINITY_DEFAULT: i64 = 10_800;
const AFFINITY_MAX: i64 = 86_400;

fn service(name: ObjectName, doc: ServiceDoc<'_>) -> Service {
    let mut service = Service::new(name);
    let invalid = &mut service.invalid;
    service.created = text(&doc.metadata.creation_timestamp)
        .and_then(|time| time.parse::<Timestamp>().ok())
        .map_or(0, Timestamp::as_second);
    if let Some(labels) = &doc.metadata.labels {
        service.other_proxy = labels.other_proxy.is_some();
        service.headless_label = labels.headless.is_some();
    }
    service.scheduler = doc
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| text(&all.scheduler))
        .map(Into::into);

    let spec = doc.spec.unwrap_or_default();
    service.service_type = match text(&spec.service_type).unwrap_or_default() {
        "" | "ClusterIP" => ServiceType::ClusterIp,
        "NodePort" => ServiceType::NodePort,
        "LoadBalancer" => ServiceType::LoadBalancer,
        "ExternalName" => ServiceType::ExternalName,
        other => {
            refuse(invalid, "spec.type", format!("unknown type {other:?}"));
            ServiceType::ClusterIp
        }
    };
    service.cluster_ips = cluster_ips(&spec, invalid);
    for (position, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{position}]");
        let node_port = number_in(invalid, &format!("{field}.nodePort"), port.node_port, 0);
        if let (Some(protocol), Some(number), Some(node_port)) = (
            protocol(invalid, &field, port),
            port_number(invalid, &field, port.port),
            node_port,
        ) {
            let name = text(&port.name).unwrap_or_default().into();
            service.ports.push(ServicePort {
                position,
                name,
                protocol,
                port: number,
                node_port,
            });
        }
    }
    service.external_ips = spec
        .external_ips
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(position, ip)| {
            let ip = address(invalid, &format!("spec.externalIPs[{position}]"), &ip.0)?;
            Some(ExternalIp { position, ip })
        })
        .collect();
    service.source_ranges = source_ranges(&spec, invalid);
    if text(&spec.session_affinity) == Some("ClientIP") {
        let seconds = spec
            .session_affinity_config
            .and_then(|config| config.client_ip)
            .and_then(|client_ip| client_ip.timeout_seconds)
            .unwrap_or(AFFINITY_DEFAULT);
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let usable = u32::try_from(seconds)
            .ok()
            .filter(|_| (1..=AFFINITY_MAX).contains(&seconds));
        service.affinity = usable.or_else(|| {
            refuse(
                invalid,
                field,
                format!("{seconds} is not between 1 and {AFFINITY_MAX}; {AFFINITY_DEFAULT} is used"),
            );
            u32::try_from(AFFINITY_DEFAULT).ok()
        });
    }
    let external = text(&spec.external_traffic_policy);
    service.external_traffic_policy = traffic_policy(invalid, "spec.externalTrafficPolicy", external);
    let internal = text(&spec.internal_traffic_policy);
    service.internal_traffic_policy = traffic_policy(invalid, "spec.internalTrafficPolicy", internal);
    let health = number_in(invalid, "spec.healthCheckNodePort", spec.health_check_node_port, 0);
    service.health_check_node_port = health.unwrap_or_default();

    let ingress = doc
        .status
        .and_then(|status| status.load_balancer)
        .and_then(|status| status.ingress);
    for (position, ingress) in ingress.iter().flatten().enumerate() {
        let field = format!("status.loadBalancer.ingress[{position}]");
        let mode = match text(&ingress.ip_mode).unwrap_or("VIP") {
            "VIP" => Some(IpMode::Vip),
            "Proxy" => Some(IpMode::Proxy),
            other => {
                refuse(invalid, &format!("{field}.ipMode"), format!("unknown mode {other:?}"));
                None
            }
        };
        // One with a host name alone has nothing for a node to do.
        let given = text(&ingress.ip).filter(|ip| !ip.is_empty());
        let ip = given.and_then(|ip| address(invalid, &format!("{field}.ip"), ip));
        if let (Some(ip), Some(mode)) = (ip, mode) {
            service
                .load_balancer_ingress
                .push(LoadBalancerIngress { position, ip, mode });
        }
    }
    service
}

fn cluster_ips(spec: &ServiceSpec<'_>, invalid: &mut Vec<InvalidField>) -> smallvec::SmallVec<[IpAddr; 2]> {
    let list: Vec<_> = spec.cluster_ips.iter().flatten().map(|ip| &*ip.0).collect();
    let single = text(&spec.cluster_ip).unwrap_or_default();
    let (given, field): (&[&str], _) = if list.is_empty() {
        (&[single], "spec.clusterIP")
    } else {
        (&list, "spec.clusterIPs")
    };
    given
        .iter()
        .filter(|ip| !ip.is_empty() && **ip != "None")
        .filter_map(|ip| address(invalid, field, ip))
        .collect()
}

fn source_ranges(spec: &ServiceSpec<'_>, invalid: &mut Vec<InvalidField>) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (number, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        // The API allows blanks around them.
        match cidr(range.0.trim()) {
            Some(range) => ranges.push(range),
            None => {
                let field = format!("spec.loadBalancerSourceRanges[{number}]");
                refuse(invalid, &field, format!("{:?} is not a CIDR", range.0));
            }
        }
    }
    ranges
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceDoc<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    address_type: Option<Text<'a>>,
    #[serde(borrow)]
    ports: Option<Vec<PortDoc<'a>>>,
    #[serde(borrow)]
    endpoints: Option<Vec<EndpointDoc<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointDoc<'a> {
    #[serde(borrow)]
    addresses: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    node_name: Option<Text<'a>>,
    conditions: Option<Conditions>,
    #[serde(borrow)]
    hints: Option<Hints<'a>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints<'a> {
    #[serde(borrow)]
    for_zones: Option<Vec<Hint<'a>>>,
    #[serde(borrow)]
    for_nodes: Option<Vec<Hint<'a>>>,
}

#[derive(Deserialize)]
struct Hint<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
}

fn slice(name: ObjectName, doc: SliceDoc<'_>) -> EndpointSlice {
    let mut invalid = Vec::new();
    let labels = doc.metadata.labels.unwrap_or_default();
    let family = match text(&doc.address_type).unwrap_or_default() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            refuse(&mut invalid, "addressType", format!("unknown address type {other:?}"));
            None
        }
    };
    let mut ports = smallvec::SmallVec::new();
    for (number, port) in doc
        .ports
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, port)| port.port.is_some())
    {
        let field = format!("ports[{number}]");
        if let (Some(protocol), Some(number)) = (
            protocol(&mut invalid, &field, port),
            port_number(&mut invalid, &field, port.port),
        ) {
            ports.push(EndpointPort {
                name: text(&port.name).unwrap_or_default().into(),
                protocol,
                port: number,
            });
        }
    }
    let mut endpoints = Vec::new();
    if family.is_some() {
        for (number, endpoint) in doc.endpoints.into_iter().flatten().enumerate() {
            let Some(first) = endpoint.addresses.as_ref().and_then(|all| all.first()) else {
                continue;
            };
            if let Some(address) = address(&mut invalid, &format!("endpoints[{number}].addresses[0]"), &first.0) {
                endpoints.push(self::endpoint(address, endpoint));
            }
        }
    }
    EndpointSlice {
        name,
        service: text(&labels.service).unwrap_or_default().into(),
        other_proxy: labels.other_proxy.is_some(),
        headless_label: labels.headless.is_some(),
        family,
        ports,
        endpoints,
        last_change: doc
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| text(&all.last_change))
            .and_then(|time| time.parse::<Timestamp>().ok())
            .and_then(|time| i64::try_from(time.as_nanosecond()).ok()),
        invalid,
    }
}

fn endpoint(address: IpAddr, doc: EndpointDoc<'_>) -> Endpoint {
    let conditions = doc.conditions.unwrap_or_default();
    let hints = doc.hints.unwrap_or_default();
    let names = |hints: &Option<Vec<Hint<'_>>>| hints.iter().flatten().map(|hint| (*hint.name).into()).collect();
    // API: a nil `ready` is "interpreted as true", a nil `serving` follows `ready`'s reading, a nil `terminating` is false.
    Endpoint {
        address,
        node_name: text(&doc.node_name).map(Into::into),
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        zone_hints: names(&hints.for_zones),
        node_hints: names(&hints.for_nodes),
    }
}

#[derive(Deserialize)]
struct NodeDoc<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Option<NodeSpec<'a>>,
    #[serde(borrow)]
    status: Option<NodeStatus<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pod_cidr: Option<Text<'a>>,
    #[serde(borrow, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    taints: Option<Vec<Taint<'a>>>,
}

#[derive(Deserialize)]
struct Taint<'a> {
    #[serde(borrow, default)]
    key: Cow<'a, str>,
}

#[derive(Deserialize)]
struct NodeStatus<'a> {
    #[serde(borrow)]
    addresses: Option<Vec<NodeAddress<'a>>>,
}

#[derive(Deserialize)]
struct NodeAddress<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    address: Cow<'a, str>,
}

fn node(name: ObjectName, doc: NodeDoc<'_>) -> Node {
    let spec = doc.spec.unwrap_or_default();
    let listed = doc.status.and_then(|status| status.addresses).unwrap_or_default();
    let of_type = |kind: &'static str| {
        listed
            .iter()
            .filter(move |address| address.kind == kind)
            .filter_map(|address| ip(&address.address))
    };
    let cidrs: Vec<_> = spec.pod_cidrs.iter().flatten().map(|cidr| &*cidr.0).collect();
    let cidrs = if cidrs.is_empty() {
        text(&spec.pod_cidr).into_iter().collect()
    } else {
        cidrs
    };
    Node {
        name,
        zone: doc
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| text(&labels.zone))
            .unwrap_or_default()
            .into(),
        addresses: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
        pod_cidrs: cidrs.into_iter().filter_map(cidr).collect(),
        deleting: doc.metadata.deletion_timestamp.is_some(),
        taints: spec.taints.iter().flatten().map(|taint| (*taint.key).into()).collect(),
    }
}

fn refuse(invalid: &mut Vec<InvalidField>, field: &str, reason: String) {
    invalid.push(InvalidField {
        field: field.into(),
        reason: reason.into(),
    });
}

fn protocol(invalid: &mut Vec<InvalidField>, field: &str, port: &PortDoc<'_>) -> Option<Protocol> {
    match text(&port.protocol).unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            refuse(
                invalid,
                &format!("{field}.protocol"),
                format!("unknown protocol {other:?}"),
            );
            None
        }
    }
}

fn port_number(invalid: &mut Vec<InvalidField>, field: &str, port: Option<i64>) -> Option<u16> {
    let field = format!("{field}.port");
    if port.is_none() {
        refuse(invalid, &field, "is missing".to_owned());
        return None;
    }
    number_in(invalid, &field, port, 1)
}

/// A number between `least` and 65535; a missing one is 0.
fn number_in(invalid: &mut Vec<InvalidField>, field: &str, number: Option<i64>, least: u16) -> Option<u16> {
    let number = number.unwrap_or_default();
    let found = u16::try_from(number).ok().filter(|number| *number >= least);
    if found.is_none() {
        refuse(invalid, field, format!("{number} is not between {least} and 65535"));
    }
    found
}

fn traffic_policy(invalid: &mut Vec<InvalidField>, field: &str, given: Option<&str>) -> TrafficPolicy {
    match given.unwrap_or_default() {
        "" | "Cluster" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            refuse(invalid, field, format!("unknown policy {other:?}; Cluster is used"));
            TrafficPolicy::Cluster
        }
    }
}

fn address(invalid: &mut Vec<InvalidField>, field: &str, given: &str) -> Option<IpAddr> {
    let found = ip(given);
    if found.is_none() {
        refuse(invalid, field, format!("{given:?} is not an IP address"));
    }
    found
}

/// An address as old API servers accepted it: octets with leading zeros are decimal, and an IPv4-mapped IPv6 address is
/// the IPv4 one (API: "legacy" IP validation).
fn ip(given: &str) -> Option<IpAddr> {
    given
        .parse()
        .ok()
        .or_else(|| legacy_ipv4(given).map(IpAddr::V4))
        .map(|ip: IpAddr| ip.to_canonical())
}

fn legacy_ipv4(given: &str) -> Option<Ipv4Addr> {
    let mut octets = given.split('.').map(|octet| {
        let digits = octet.bytes().all(|byte| byte.is_ascii_digit());
        octet.parse::<u8>().ok().filter(|_| digits)
    });
    let found = [octets.next()??, octets.next()??, octets.next()??, octets.next()??];
    octets.next().is_none().then(|| found.into())
}

/// A CIDR, host bits cleared.
fn cidr(given: &str) -> Option<IpNet> {
    let (address, length) = given.split_once('/')?;
    let plain = length.bytes().all(|byte| byte.is_ascii_digit());
    let net = IpNet::new(ip(address)?, length.parse().ok().filter(|_| plain)?).ok()?;
    Some(net.trunc())
}

#[cfg(test)]
mod tests;
