//! Services.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;
use service_model::{
    ExternalIp, InvalidField, IpMode, LoadBalancerIngress, ObjectName, Service, ServicePort, ServiceType, parse_cidr,
};

use super::field::{PortDoc, address, number_in, port_number, protocol, refuse, traffic_policy};
use super::metadata::{Metadata, Text, text};

#[derive(Deserialize)]
pub(super) struct ServiceDoc<'a> {
    #[serde(borrow)]
    pub(super) metadata: Metadata<'a>,
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

/// Transcribes a Service.
pub(super) fn service(name: ObjectName, doc: ServiceDoc<'_>) -> Service {
    let mut service = Service::new(name);
    let invalid = &mut service.invalid;
    service.created = text(&doc.metadata.creation_timestamp)
        .and_then(|time| time.parse::<Timestamp>().ok())
        .map_or(0, Timestamp::as_second);
    if let Some(labels) = &doc.metadata.labels {
        service.other_proxy = labels.other_proxy;
    }
    service.scheduler = doc
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| text(&all.scheduler))
        .map(Into::into);

    if let Some(time) = doc
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| text(&all.drain_timeout))
    {
        match service_model::parse_duration(time) {
            Ok(time) => service.drain_timeout = Some(time),
            Err(reason) => refuse(invalid, "metadata.annotations[kube-ipvs.io/drain-timeout]", reason),
        }
    }

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
    let affinity = text(&spec.session_affinity).unwrap_or_default();
    if !["", "None", "ClientIP"].contains(&affinity) {
        let reason = format!("unknown affinity {affinity:?}; None is used");
        refuse(invalid, "spec.sessionAffinity", reason);
    }
    if affinity == "ClientIP" {
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

/// One that cannot be read keeps its place in the list, so that it opens nothing (T15).
fn source_ranges(spec: &ServiceSpec<'_>, invalid: &mut Vec<InvalidField>) -> Vec<Option<IpNet>> {
    let all = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    all.map(|(number, range)| {
        // The API allows blanks around them.
        let found = parse_cidr(range.0.trim());
        if found.is_none() {
            let field = format!("spec.loadBalancerSourceRanges[{number}]");
            refuse(
                invalid,
                &field,
                format!("{:?} is not a CIDR; it admits nobody", range.0),
            );
        }
        found
    })
    .collect()
}
