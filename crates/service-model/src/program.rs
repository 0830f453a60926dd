//! A service and its endpoints → its frontends and rejections. Pure.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::claim::Claims;
use crate::config::Config;
use crate::endpoint_cache::{Slice, ZoneSets, candidates};
use crate::event::Kind;
use crate::face::{Face, Faces, Nodes, external_local, faces, family_of, insiders_port, is_programmable};
use crate::frontend::{
    AddressKind, Frontend, FrontendKey, HealthCheck, Masquerade, Program, Refusal, Rejection, SourceRanges,
};
use crate::object::{Family, Service, ServicePort, ServiceType, TrafficPolicy};
use crate::policy::{Candidate, Categories, categorize};
use crate::rotation::rotate;
use crate::scheduler::Scheduler;

/// What a program depends on besides the service and its slices.
pub(crate) struct View<'a> {
    pub(crate) config: &'a Config,
    pub(crate) zones: &'a ZoneSets,
    pub(crate) nodes: &'a Nodes,
    pub(crate) claims: &'a Claims,
}

impl View<'_> {
    fn candidates(&self, slices: &[Slice], family: Family, port: &ServicePort) -> Vec<Candidate> {
        candidates(slices, family, &port.name, port.protocol, &self.nodes.zone, self.zones)
    }
}

pub(crate) fn program(service: &Service, slices: &[Slice], view: &View<'_>) -> Program {
    let reject = |field: &str, reason: String| Rejection {
        kind: Kind::Service,
        object: service.name.clone(),
        field: field.into(),
        reason: reason.into(),
    };
    let invalid = service
        .invalid
        .iter()
        .map(|invalid| reject(&invalid.field, invalid.reason.to_string()));
    if !is_programmable(service) {
        // Without a cluster IP it is headless, but not where there is one that cannot be read.
        let unread = |rejection: &Rejection| !service.other_proxy && rejection.field.starts_with("spec.clusterIP");
        return Program {
            rejections: invalid.filter(unread).collect(),
            ..Program::default()
        };
    }
    let mut program = Program {
        drain_timeout: service.drain_timeout,
        rejections: invalid.collect(),
        ..Program::default()
    };
    program.rejections.extend(slices.iter().flat_map(Slice::rejections));
    let own = own_scheduler(service, view.config).unwrap_or_else(|reason| {
        program.rejections.push(reject(SCHEDULER_FIELD, reason));
        None
    });
    let scheduler = own.unwrap_or(view.config.scheduler);
    program.own_scheduler = own.filter(|_| view.config.capture.binds());

    let Faces {
        faces,
        refused,
        elsewhere,
        ..
    } = faces(service, view.config, view.nodes);
    program.elsewhere = elsewhere;
    program
        .rejections
        .extend(refused.into_iter().map(|(field, reason)| reject(&field, reason)));
    let mut lost = FxHashSet::default();
    let mut categories = FxHashMap::default();
    for face in faces {
        let claim_alone = face.kind == AddressKind::NodePort && !face.key.address.is_unspecified();
        if claim_alone && !view.config.capture.binds() {
            continue;
        }
        let holder = view.claims.holder(&face.key);
        if let Some(holder) = holder.filter(|holder| holder.service != service.name) {
            // One rejection for a field, not one for each address it stands for.
            if lost.insert((face.field.clone(), face.key.port, face.key.protocol)) {
                let reason = format!("{} is taken by service {}", face.key, holder.service);
                program.rejections.push(reject(&face.field, reason));
            }
            continue;
        }
        let family = family_of(face.key.address);
        if let Some(port) = service.ports.get(face.port) {
            let found = categories
                .entry((face.port, family))
                .or_insert_with(|| categorize(&view.candidates(slices, family, port)));
            if face.kind == AddressKind::Insiders && found.cluster.is_empty() {
                continue;
            }
            program
                .frontends
                .push(frontend(service, &face, &port.name, scheduler, found, view));
        }
    }
    program.health_check = health_check(service, slices, view);
    program
}

const SCHEDULER_FIELD: &str = "metadata.annotations[kube-ipvs.io/scheduler]";

fn own_scheduler(service: &Service, config: &Config) -> Result<Option<Scheduler>, String> {
    let name = service.scheduler.as_ref();
    name.map(|name| name.parse())
        .transpose()
        .map_err(|error| format!("{error}; {} is used", config.scheduler))
}

fn frontend(
    service: &Service,
    face: &Face,
    port_name: &str,
    scheduler: Scheduler,
    categories: &Categories,
    view: &View<'_>,
) -> Frontend {
    let (external, local) = match face.kind {
        AddressKind::ClusterIp => (false, service.internal_traffic_policy == TrafficPolicy::Local),
        AddressKind::Insiders => (false, false),
        AddressKind::NodePort | AddressKind::LoadBalancer | AddressKind::ExternalIp => (true, external_local(service)),
    };
    let mut endpoints = if local { &categories.local } else { &categories.cluster }.clone();
    rotate(&mut endpoints, &view.config.node_name, &face.key);
    Frontend {
        // Without endpoints everybody is refused at the address that he asked.
        insiders: redirect(service, face, view)
            .filter(|_| view.config.capture.binds() && external && local && !categories.cluster.is_empty()),
        insider_endpoints: if external && local && !view.config.capture.binds() {
            categories.cluster.clone()
        } else {
            Vec::new()
        },
        policy: if local {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        },
        // T1, T4: a Local policy drops where the endpoints are elsewhere; T5: it is refused where there are none.
        refusal: if local && categories.any {
            Refusal::Drop
        } else {
            Refusal::Reject
        },
        endpoints,
        kind: face.kind,
        port_name: port_name.into(),
        node_address: external && view.nodes.has_interface(face.key.address),
        scheduler,
        affinity: service.affinity,
        masquerade: match (external, local) {
            (true, true) => Masquerade::Never,
            (true, false) => Masquerade::Always,
            // Who is sent there has been looked at where he asked.
            (false, _) if face.kind == AddressKind::Insiders => Masquerade::Never,
            (false, _) if view.config.masquerade_all => Masquerade::Always,
            (false, _) => Masquerade::Outsiders,
        },
        source_ranges: source_ranges(service, face.kind, face.key.address, view.nodes),
        key: face.key,
    }
}

/// Where every endpoint of the cluster answers on the service's cluster IP (T2), where that is the service's own.
fn redirect(service: &Service, face: &Face, view: &View<'_>) -> Option<SocketAddr> {
    let family = family_of(face.key.address);
    let address = *service.cluster_ips.iter().find(|ip| family_of(**ip) == family)?;
    let (port, kind) = match service.internal_traffic_policy {
        TrafficPolicy::Cluster => (service.ports.get(face.port)?.port, AddressKind::ClusterIp),
        TrafficPolicy::Local => (insiders_port(service, face.port)?, AddressKind::Insiders),
    };
    let key = FrontendKey {
        address,
        port,
        protocol: face.key.protocol,
    };
    let holder = view.claims.holder(&key)?;
    (holder.service == service.name && holder.kind == kind).then_some(SocketAddr::new(address, port))
}

/// T15: load-balancer addresses only. A family that no range is of is open, as in kube-proxy's modes (k/k#109575); one that
/// cannot be read could be of either.
fn source_ranges(service: &Service, kind: AddressKind, address: IpAddr, nodes: &Nodes) -> Option<SourceRanges> {
    let is_ours = |range: &IpNet| range.addr().is_ipv4() == address.is_ipv4();
    let mut ours = service
        .source_ranges
        .iter()
        .filter(|range| range.as_ref().is_none_or(is_ours))
        .peekable();
    if kind != AddressKind::LoadBalancer || ours.peek().is_none() {
        return None;
    }
    let ranges: Vec<_> = ours.flatten().copied().collect();
    // The kernel refuses overlapping elements; neighbors become one on the way.
    let ranges = IpNet::aggregate(&ranges);
    let admits_node = nodes
        .interfaces
        .iter()
        .flatten()
        .any(|own| ranges.iter().any(|range| range.contains(own)));
    Some(SourceRanges { ranges, admits_node })
}

/// What takes no traffic is not counted: an address needs a port that the service has, and the copy of it that counts
/// must be ready.
fn health_check(service: &Service, slices: &[Slice], view: &View<'_>) -> Option<HealthCheck> {
    let wanted = service.service_type == ServiceType::LoadBalancer
        && external_local(service)
        && service.health_check_node_port != 0;
    let count = |family| {
        let has = |ip: &IpAddr| family_of(*ip) == family;
        service.cluster_ips.iter().any(has).then(|| {
            let of_port = |port: &ServicePort| view.candidates(slices, family, port);
            let all = service.ports.iter().flat_map(of_port);
            let local = all.filter(|candidate| candidate.ready && candidate.local);
            local
                .map(|candidate| candidate.address.ip())
                .collect::<FxHashSet<_>>()
                .len()
        })
    };
    wanted.then(|| HealthCheck {
        port: service.health_check_node_port,
        v4: count(Family::V4),
        v6: count(Family::V6),
    })
}
