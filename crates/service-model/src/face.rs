//! The places at which a service wants to answer: every address it has, by kind; before conflicts and endpoints.

use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

use crate::config::Config;
use crate::frontend::{AddressKind, FrontendKey};
use crate::nodes::Nodes;
use crate::object::{Family, IpMode, LoadBalancerIngress, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};
use crate::protected::never_external;
use crate::step::step;

/// A place at which a service wants to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Face {
    pub(crate) key: FrontendKey,
    pub(crate) kind: AddressKind,
    /// Number of the port in [`Service::ports`].
    pub(crate) port: usize,
    /// Its number in the object's list.
    pub(crate) position: usize,
    /// The field it comes from.
    pub(crate) field: Arc<str>,
}

/// The places at which a service wants to answer.
#[derive(Debug, Default)]
pub(crate) struct Faces {
    /// No key twice: the stronger kind stands.
    pub(crate) faces: Vec<Face>,
    /// What could not be one: field and reason.
    pub(crate) refused: Vec<(String, String)>,
    /// Load-balancer addresses that are other nodes' own (T18).
    pub(crate) elsewhere: usize,
    /// Where each key is in `faces`.
    seen: HashMap<FrontendKey, usize>,
    /// Addresses that have the ports of the service. One that is named again adds nothing.
    addresses: HashSet<IpAddr>,
    insiders_ports: Vec<Option<u16>>,
    /// The places that the service asks for, insiders' apart. Over the limit (T39) there are none but cluster IPs'.
    pub(crate) wanted_places: usize,
}

/// A service that nothing is programmed for, whatever its ports (T24).
pub(crate) fn is_programmable(service: &Service) -> bool {
    !service.other_proxy && service.service_type != ServiceType::ExternalName && !service.cluster_ips.is_empty()
}

/// Clients from outside get endpoints of this node alone. Whatever the type says: one that nobody knows opens nothing.
pub(crate) fn external_local(service: &Service) -> bool {
    service.external_traffic_policy == TrafficPolicy::Local
}

/// The load-balancer and external addresses at which a service wants to answer.
pub(crate) fn external_addresses(service: &Service, config: &Config) -> impl Iterator<Item = IpAddr> {
    let balanced = service.service_type == ServiceType::LoadBalancer;
    let ingress = service
        .load_balancer_ingress
        .iter()
        .filter(move |ingress| balanced && ingress.mode == IpMode::Vip)
        .map(|ingress| ingress.ip);
    let allowed = config.allow_external_ips;
    let external = service.external_ips.iter().filter(move |_| allowed);
    let programmable = is_programmable(service);
    ingress
        .chain(external.map(|external| external.ip))
        .filter(move |_| programmable)
}

pub(crate) fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The faces of a service. A family without a cluster IP has none at all.
pub(crate) fn faces(service: &Service, config: &Config, nodes: &Nodes) -> Faces {
    let mut list = Faces::default();
    if !is_programmable(service) {
        return list;
    }
    // Its cluster IPs stay its own, even where it is too large to be served.
    list.add_cluster_ips(service);
    let families = families(service);
    list.wanted_places = wanted_places(service, &families, config, nodes);
    if list.wanted_places > config.limits.real_servers {
        return list;
    }
    for family in &families {
        list.add_node_ports(service, *family, config, nodes);
    }
    if service.service_type == ServiceType::LoadBalancer {
        for ingress in &service.load_balancer_ingress {
            step();
            let field = ingress_field(ingress);
            if ingress.mode == IpMode::Vip && families.contains(&family_of(ingress.ip)) {
                list.add_external(service, ingress.ip, AddressKind::LoadBalancer, field, config, nodes);
            }
        }
        if !service.source_ranges.is_empty() {
            list.prefer_restricted(service, nodes);
        }
    }
    if config.allow_external_ips {
        for external in &service.external_ips {
            step();
            if families.contains(&family_of(external.ip)) {
                let field = format!("spec.externalIPs[{}]", external.position);
                match forbidden(external.ip) {
                    Some(why) => list.refuse(field, format!("{} {why}", external.ip)),
                    None => list.add_external(service, external.ip, AddressKind::ExternalIp, field, config, nodes),
                }
            }
        }
    }
    let is_asked_from_outside = list.faces.iter().any(|face| face.kind != AddressKind::ClusterIp);
    let both_local = external_local(service) && service.internal_traffic_policy == TrafficPolicy::Local;
    if config.capture.binds() && both_local && is_asked_from_outside {
        list.insiders_ports = insiders_ports(service);
        list.add_insiders();
    }
    list
}

/// The places that a service asks for, whether it can have them or not, without making a list of them.
fn wanted_places(service: &Service, families: &[Family], config: &Config, nodes: &Nodes) -> usize {
    let external = external_addresses(service, config).filter(|ip| families.contains(&family_of(*ip)));
    let addresses: HashSet<_> = external.chain(service.cluster_ips.iter().copied()).collect();
    let node_ports = service.ports.iter().filter(|port| port.node_port != 0).count();
    let of_node: usize = families
        .iter()
        .map(|family| nodes.node_port_addresses(config, *family).len().max(1))
        .sum();
    service.ports.len() * addresses.len() + node_ports * of_node
}

/// The cluster IP of a family: the first one.
pub(crate) fn cluster_ip(service: &Service, family: Family) -> Option<IpAddr> {
    let mut ips = service.cluster_ips.iter();
    ips.find(|ip| family_of(**ip) == family).copied()
}

/// The families of the cluster IPs, in their order.
fn families(service: &Service) -> SmallVec<[Family; 2]> {
    let mut families = SmallVec::new();
    for family in service.cluster_ips.iter().map(|ip| family_of(*ip)) {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    families
}

fn ingress_field(ingress: &LoadBalancerIngress) -> String {
    format!("status.loadBalancer.ingress[{}].ip", ingress.position)
}

/// For each port of the service a number that the service does not have in this port's protocol, from the last one down;
/// no number twice. `None` where there are no more.
fn insiders_ports(service: &Service) -> Vec<Option<u16>> {
    let taken: HashSet<_> = service.ports.iter().map(|port| (port.protocol, port.port)).collect();
    let free = |protocol| -> Vec<u16> {
        let numbers = (1..=u16::MAX).rev().inspect(|_| step());
        let free = numbers.filter(|number| !taken.contains(&(protocol, *number)));
        free.take(service.ports.len()).collect()
    };
    let (tcp, udp, sctp) = (free(Protocol::Tcp), free(Protocol::Udp), free(Protocol::Sctp));
    let of_port = |(at, port): (usize, &ServicePort)| {
        let numbers = match port.protocol {
            Protocol::Tcp => &tcp,
            Protocol::Udp => &udp,
            Protocol::Sctp => &sctp,
        };
        numbers.get(at).copied()
    };
    service.ports.iter().enumerate().map(of_port).collect()
}

/// The setting whose ranges an address is not in (T41); `None` = it is allowed.
fn outside(ip: IpAddr, kind: AddressKind, config: &Config) -> Option<&'static str> {
    let (ranges, setting) = match kind {
        AddressKind::LoadBalancer => (&config.load_balancer_ip_ranges, "loadBalancerIPRanges"),
        _ => (&config.external_ip_ranges, "externalIPRanges"),
    };
    let allowed = ranges.is_empty() || ranges.iter().any(|range| range.contains(&ip));
    (!allowed).then_some(setting)
}

/// Addresses at which no connection comes to an endpoint, nor at one of them as an endpoint, whatever is written (measured,
/// Linux 7.2). The API lets them pass as cluster IPs and in a load balancer's status.
pub(crate) fn unservable(address: IpAddr) -> Option<&'static str> {
    // Loopback: IPVS stops what comes from such an address and leaves the node (net/netfilter/ipvs/ip_vs_xmit.c,
    // crosses_local_route_boundary), and it is the host's own daemons' in any mode.
    let broadcast = matches!(address, IpAddr::V4(ip) if ip.is_broadcast());
    // Looked for on the interface that it came in by alone (net/ipv6/route.c, rt6_need_strict).
    let of_a_link = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
    [
        (address.is_unspecified(), "is the unspecified address"),
        (address.is_loopback(), "is a loopback address"),
        (address.is_multicast(), "is a multicast address"),
        (broadcast, "is the broadcast address"),
        (
            of_a_link,
            "is a link-local address of IPv6, which is reached on one link alone",
        ),
    ]
    .into_iter()
    .find_map(|(is, why)| is.then_some(why))
}

/// Addresses that the API forbids as an endpoint's and as an external IP (`ValidateEndpointIP`), besides those that nothing
/// can be done with.
pub(crate) fn forbidden(address: IpAddr) -> Option<&'static str> {
    let link_local = matches!(address, IpAddr::V4(ip) if ip.is_link_local());
    unservable(address).or(link_local.then_some("is a link-local address"))
}

impl Faces {
    /// The number that stands for a port where insiders are sent (T2); `None` where they are not.
    pub(crate) fn insiders_port(&self, port: usize) -> Option<u16> {
        self.insiders_ports.get(port).copied().flatten()
    }

    fn add_cluster_ips(&mut self, service: &Service) {
        let mut has = [false; 2];
        for (number, ip) in service.cluster_ips.iter().enumerate() {
            step();
            let field = format!("spec.clusterIPs[{number}]");
            let [v4, v6] = &mut has;
            let is_second = std::mem::replace(if ip.is_ipv4() { v4 } else { v6 }, true);
            if is_second {
                self.refuse(field, format!("{ip} is a second address of its family"));
            } else if let Some(why) = unservable(*ip) {
                self.refuse(field, format!("{ip} {why}"));
            } else {
                self.add_ports(service, *ip, AddressKind::ClusterIp, field);
            }
        }
    }

    fn add_node_ports(&mut self, service: &Service, family: Family, config: &Config, nodes: &Nodes) {
        let mut addresses = nodes.node_port_addresses(config, family);
        if !config.capture.binds() {
            addresses.push(match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            });
        }
        for (number, port) in service.ports.iter().enumerate().filter(|(_, port)| port.node_port != 0) {
            let field: Arc<str> = format!("spec.ports[{}].nodePort", port.position).into();
            for address in &addresses {
                let key = FrontendKey {
                    address: *address,
                    port: port.node_port,
                    protocol: port.protocol,
                };
                self.add(Face {
                    key,
                    kind: AddressKind::NodePort,
                    port: number,
                    position: port.position,
                    field: field.clone(),
                });
            }
        }
    }

    fn add_external(
        &mut self,
        service: &Service,
        ip: IpAddr,
        kind: AddressKind,
        field: String,
        config: &Config,
        nodes: &Nodes,
    ) {
        if let Some(why) = unservable(ip).or_else(|| never_external(ip)) {
            self.refuse(field, format!("{ip} {why}"));
        } else if let Some(setting) = outside(ip, kind, config) {
            self.refuse(field, format!("{ip} is in no range of {setting}"));
        } else if !config.capture.binds() || nodes.has_interface(ip) {
            let is_lent = kind == AddressKind::LoadBalancer && nodes.is_lent(ip, config);
            self.add_ports_but(service, ip, kind, field, |port| {
                let whose = nodes.protected.port(ip, is_lent, port.protocol, port.port)?;
                nodes.has_interface(ip).then_some(whose)
            });
        } else if let Some(node) = nodes.others.get(&ip).and_then(|nodes| nodes.first()) {
            // T18: binding it would cut this node off from that one. Balancers that run on the nodes report all of these
            // in the status; who writes one into the spec is told.
            match kind {
                AddressKind::LoadBalancer => self.elsewhere += 1,
                _ => self.refuse(field, format!("{ip} is an address of node {node}")),
            }
        } else if let Some(what) = nodes.protected.address(ip) {
            self.refuse(field, format!("{ip} is {what}"));
        } else if nodes.others_complete {
            self.add_ports(service, ip, kind, field);
        }
    }

    fn add_ports(&mut self, service: &Service, address: IpAddr, kind: AddressKind, field: String) {
        self.add_ports_but(service, address, kind, field, |_| None);
    }

    /// All ports but the protected ones.
    fn add_ports_but<'a>(
        &mut self,
        service: &Service,
        address: IpAddr,
        kind: AddressKind,
        field: String,
        needed: impl Fn(&ServicePort) -> Option<&'a str>,
    ) {
        if !self.addresses.insert(address) {
            return;
        }
        let field: Arc<str> = field.into();
        for (number, port) in service.ports.iter().enumerate() {
            let key = FrontendKey {
                address,
                port: port.port,
                protocol: port.protocol,
            };
            if let Some(whose) = needed(port) {
                self.refuse(field.to_string(), format!("{key} is {whose}"));
                continue;
            }
            self.add(Face {
                key,
                kind,
                port: number,
                position: port.position,
                field: field.clone(),
            });
        }
    }

    /// T2: where insiders are sent. After all others, so that it takes nobody's place; one for each cluster IP and port.
    fn add_insiders(&mut self) {
        let is_cluster_ip = |face: &&Face| face.kind == AddressKind::ClusterIp;
        let cluster_ips: Vec<_> = self.faces.iter().filter(is_cluster_ip).cloned().collect();
        for face in cluster_ips {
            let Some(port) = self.insiders_port(face.port) else {
                continue;
            };
            self.add(Face {
                key: FrontendKey { port, ..face.key },
                kind: AddressKind::Insiders,
                field: format!("spec.ports[{}]", face.position).into(),
                ..face
            });
        }
    }

    /// Kinds are added strongest first, so what is there already stands. The same place by two ports is refused.
    fn add(&mut self, face: Face) {
        step();
        match self.seen.entry(face.key) {
            Entry::Vacant(free) => {
                free.insert(self.faces.len());
                self.faces.push(face);
            }
            Entry::Occupied(taken) => {
                let first = self.faces.get(*taken.get());
                if let Some(first) = first.filter(|first| first.port != face.port) {
                    let (field, port) = (format!("spec.ports[{}]", face.position), first.position);
                    let reason = format!("{} is taken by spec.ports[{port}] of this service", face.key);
                    self.refuse(field, reason);
                }
            }
        }
    }

    /// T15: where a load-balancer address is this node's, and the number of the port that of its NodePort, the place that has
    /// source ranges stands.
    fn prefer_restricted(&mut self, service: &Service, nodes: &Nodes) {
        let mut balanced: HashMap<IpAddr, &LoadBalancerIngress> = HashMap::default();
        for ingress in service
            .load_balancer_ingress
            .iter()
            .filter(|one| one.mode == IpMode::Vip)
        {
            step();
            balanced.entry(ingress.ip).or_insert(ingress);
        }
        for face in self.faces.iter_mut().filter(|face| face.kind == AddressKind::NodePort) {
            step();
            let port = service.ports.get(face.port).map(|port| port.port);
            let ingress = balanced.get(&face.key.address);
            if let Some(ingress) =
                ingress.filter(|_| port == Some(face.key.port) && nodes.has_interface(face.key.address))
            {
                face.kind = AddressKind::LoadBalancer;
                face.field = ingress_field(ingress).into();
            }
        }
    }

    fn refuse(&mut self, field: String, reason: String) {
        self.refused.push((field, reason));
    }
}
