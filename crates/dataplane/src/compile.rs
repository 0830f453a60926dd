//! Frontends → kernel objects: virtual servers, and elements of the policy tables. Pure.

use std::net::IpAddr;
use std::time::Duration;

use ipvs::{
    Flags, Persistence, Protocol, RealServer, RealServerConfig, SchedulerName, VirtualServer, VirtualServerConfig,
};
use nftables::Family;
use service_model::{AddressKind, Frontend, Masquerade, ObjectName, Program, Refusal, Scheduler, Target};

use crate::element::{ElementKey, ElementValue, Place, SetName};

/// Weight of an endpoint that takes new connections. Upstream's value: the same for all.
const WEIGHT: u16 = 1;

/// A virtual server with its real servers and the VIP that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Identity.
    pub server: VirtualServer,
    /// What is set on it.
    pub config: VirtualServerConfig,
    /// The address to bind; `None` where it is already one of the node's (T7, NodePorts).
    pub vip: Option<IpAddr>,
    /// Real servers, in the order of insertion (T23).
    pub real_servers: Vec<(RealServer, RealServerConfig)>,
}

/// In which order services are programmed where many are at once (L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// `default/kubernetes`: what every other agent on the node needs to reach the API server.
    ApiServer,
    /// A service of `kube-system` with port 53. In other namespaces the port gives no priority (audit F9).
    Dns,
    /// Every other.
    Ordinary,
}

/// The priority of a service.
pub fn priority(service: &ObjectName, program: &Program) -> Priority {
    if service.as_str() == "default/kubernetes" {
        Priority::ApiServer
    } else if service.namespace() == "kube-system" && program.frontends.iter().any(|frontend| frontend.key.port == 53) {
        Priority::Dns
    } else {
        Priority::Ordinary
    }
}

/// Everything that a service is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Virtual servers, no key twice.
    pub servers: Vec<Compiled>,
    /// Elements of the policy tables, sorted, no key twice.
    pub elements: Vec<(ElementKey, ElementValue)>,
    /// How long its TCP real servers drain at most, where the service says so itself; zero = without end.
    pub drain_timeout: Option<Duration>,
}

/// A service's objects.
pub fn compile(program: &Program) -> Objects {
    let mut objects = Objects {
        drain_timeout: program.drain_timeout,
        ..Objects::default()
    };
    for frontend in &program.frontends {
        objects.servers.push(virtual_server(frontend));
        policy(frontend, &mut objects.elements);
    }
    if let Some(check) = program.health_check {
        let port = |family| (ElementKey::HealthPort(family, check.port), ElementValue::There);
        objects.elements.extend([Family::Ip, Family::Ip6].map(port));
    }
    objects.elements.sort_unstable_by_key(|(key, _)| *key);
    objects.elements.dedup_by_key(|(key, _)| *key);
    objects
}

fn place(frontend: &Frontend) -> Place {
    Place {
        address: frontend.key.address,
        port: frontend.key.port,
        protocol: protocol(frontend.key.protocol),
    }
}

/// What the policy tables know of a frontend.
fn policy(frontend: &Frontend, elements: &mut Vec<(ElementKey, ElementValue)>) {
    let at = place(frontend);
    let mut there = |key| elements.push((key, ElementValue::There));
    there(ElementKey::Place(SetName::Services, at));
    if !frontend.node_address {
        there(ElementKey::Vip(at.address));
    }
    if frontend.kind == AddressKind::Insiders {
        there(ElementKey::Place(SetName::Insiders, at));
    }
    match frontend.masquerade {
        Masquerade::Never => {}
        Masquerade::Outsiders => there(ElementKey::Place(SetName::ClusterIps, at)),
        Masquerade::Always => there(ElementKey::Place(SetName::Masquerade, at)),
    }
    frontend
        .endpoints
        .iter()
        .filter_map(|target| hairpin(target, at.protocol))
        .for_each(&mut there);
    if let Some(allowed) = &frontend.source_ranges {
        there(ElementKey::Place(SetName::Restricted, at));
        if !allowed.admits_node {
            there(ElementKey::Place(SetName::RestrictedNode, at));
        }
        allowed
            .ranges
            .iter()
            .for_each(|range| there(ElementKey::Source(at, *range)));
    }
    if let Some(to) = frontend.insiders {
        let map = match frontend.kind {
            AddressKind::NodePort => SetName::NodePortRedirects,
            _ => SetName::Redirects,
        };
        elements.push((ElementKey::Place(map, at), ElementValue::To(to)));
    }
    if frontend.endpoints.is_empty() {
        let verdict = match frontend.refusal {
            Refusal::Drop => ElementValue::Drop,
            Refusal::Reject => ElementValue::Refuse,
        };
        elements.push((ElementKey::Place(SetName::Verdicts, at), verdict));
    }
}

/// T13: an endpoint of this node may be its own client.
fn hairpin(target: &Target, protocol: Protocol) -> Option<ElementKey> {
    target.local.then_some(ElementKey::Hairpin(Place {
        address: target.address.ip(),
        port: target.address.port(),
        protocol,
    }))
}

fn virtual_server(frontend: &Frontend) -> Compiled {
    let at = place(frontend);
    let address = at.address;
    let real = |target: &Target| {
        let real = RealServer {
            address: target.address,
        };
        (real, RealServerConfig::masquerade(WEIGHT))
    };
    Compiled {
        server: at.virtual_server(),
        config: VirtualServerConfig {
            scheduler: scheduler_name(frontend.scheduler),
            flags: scheduler_flags(frontend.scheduler),
            persistence: frontend.affinity.map(|timeout| Persistence {
                timeout,
                prefix_len: if address.is_ipv4() { 32 } else { 128 },
            }),
        },
        vip: (!frontend.node_address).then_some(address),
        real_servers: frontend.endpoints.iter().map(real).collect(),
    }
}

fn protocol(protocol: service_model::Protocol) -> Protocol {
    match protocol {
        service_model::Protocol::Tcp => Protocol::Tcp,
        service_model::Protocol::Udp => Protocol::Udp,
        service_model::Protocol::Sctp => Protocol::Sctp,
    }
}

/// The kernel's name of a scheduler that a user chose.
pub fn scheduler_name(scheduler: Scheduler) -> SchedulerName {
    SchedulerName::new(scheduler.as_str()).expect("every name of the enumeration fits the kernel's field")
}

/// `mh` hashes the port too, as upstream's does, and falls back to the next server when the chosen one has
/// weight 0 (T21, k/k PR#138688). The others have no flags or need none.
fn scheduler_flags(scheduler: Scheduler) -> Flags {
    match scheduler {
        Scheduler::Maglev => Flags(Flags::MH_FALLBACK.0 | Flags::MH_PORT.0),
        _ => Flags::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn f09_dns_is_first_in_kube_system_alone() {
        let dns = Program {
            frontends: vec![Frontend {
                key: service_model::FrontendKey {
                    address: Ipv4Addr::new(10, 96, 0, 10).into(),
                    port: 53,
                    protocol: service_model::Protocol::Udp,
                },
                kind: AddressKind::ClusterIp,
                port_name: "dns".into(),
                node_address: false,
                scheduler: Scheduler::default(),
                affinity: None,
                policy: service_model::TrafficPolicy::Cluster,
                endpoints: Vec::new(),
                insiders: None,
                insider_endpoints: Vec::new(),
                refusal: Refusal::Reject,
                masquerade: Masquerade::Never,
                source_ranges: None,
            }],
            ..Program::default()
        };
        let of = |namespace, name| priority(&ObjectName::new(namespace, name), &dns);
        assert_eq!(of("kube-system", "kube-dns"), Priority::Dns);
        assert_eq!(of("shop", "kube-dns"), Priority::Ordinary);
        assert_eq!(of("default", "kubernetes"), Priority::ApiServer);
    }
}
