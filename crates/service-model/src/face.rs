//! The places at which a service wants to answer: every address it has, by kind; before conflicts and endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::config::{Capture, Config, NodePortAddresses};
use crate::frontend::{AddressKind, FrontendKey, NodePortPlaces};
use crate::name::ObjectName;
use crate::object::{Family, IpMode, LoadBalancerIngress, Service, ServiceType, TrafficPolicy};

/// This node, and the addresses of the others.
#[derive(Debug)]
pub(crate) struct Nodes {
    /// Of this node's object: load balancers may send it traffic. So it may where nothing is known of it.
    pub(crate) eligible: bool,
    /// Addresses of this node's interfaces; `None` until they were told.
    pub(crate) interfaces: Option<Vec<IpAddr>>,
    /// Of this node's object: label `topology.kubernetes.io/zone`.
    pub(crate) zone: Box<str>,
    /// Of this node's object: its addresses, by precedence.
    pub(crate) own: Vec<IpAddr>,
    /// Of this node's object: `spec.podCIDRs`.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// Addresses of other nodes (T18), each with the nodes that have it, in the order of their names.
    pub(crate) others: FxHashMap<IpAddr, SmallVec<[ObjectName; 1]>>,
    /// The addresses of all other nodes are known. Until then none but this node's own is safe to bind.
    pub(crate) others_complete: bool,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            eligible: true,
            interfaces: None,
            zone: Box::default(),
            own: Vec::new(),
            pod_cidrs: Vec::new(),
            others: FxHashMap::default(),
            others_complete: false,
        }
    }
}

impl Nodes {
    pub(crate) fn has_interface(&self, address: IpAddr) -> bool {
        self.interfaces.iter().flatten().any(|interface| *interface == address)
    }

    /// One of each family: the one that is set, else the first of the Node object.
    pub(crate) fn primary(&self, config: &Config) -> impl Iterator<Item = IpAddr> {
        let all = || config.node_ip.into_iter().chain(self.own.iter().copied());
        let first = |v4: bool| all().find(|address| address.is_ipv4() == v4);
        first(true).into_iter().chain(first(false))
    }

    /// What `nodePortAddresses` selects in a family; `None` = everything.
    fn node_port_ranges(&self, config: &Config, family: Family) -> Option<Vec<IpNet>> {
        let NodePortAddresses::Among { primary, cidrs } = &config.node_port_addresses else {
            return None;
        };
        let mut ranges: Vec<_> = cidrs
            .iter()
            .copied()
            .filter(|cidr| family_of(cidr.addr()) == family)
            .collect();
        let is_open = ranges.is_empty() && !primary || ranges.iter().any(|cidr| cidr.prefix_len() == 0);
        if *primary {
            let ours = self.primary(config).filter(|address| family_of(*address) == family);
            ranges.extend(ours.map(IpNet::from));
        }
        (!is_open).then_some(ranges)
    }

    /// The addresses of one family on which NodePorts answer (T16).
    fn node_port_addresses(&self, config: &Config, family: Family) -> Vec<IpAddr> {
        let ranges = self.node_port_ranges(config, family);
        let selected = |address: &IpAddr| match &ranges {
            None => true,
            Some(ranges) => ranges.iter().any(|range| range.contains(address)),
        };
        let usable = |address: &IpAddr| {
            family_of(*address) == family
                && !address.is_loopback()
                && !matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local())
        };
        self.interfaces
            .iter()
            .flatten()
            .copied()
            .filter(|address| usable(address) && selected(address))
            .collect()
    }

    /// The same as a rule that is not told each address (T16, T17).
    pub(crate) fn node_port_places(&self, config: &Config, family: Family) -> NodePortPlaces {
        const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let localhost = Capture::Redirect {
            localhost_node_ports: true,
        };
        let loopback = family == Family::V4 && config.capture == localhost;
        let Some(ranges) = self.node_port_ranges(config, family) else {
            return NodePortPlaces::EveryLocal { loopback };
        };
        let mut addresses = self.node_port_addresses(config, family);
        if loopback && ranges.iter().any(|range| range.contains(&LOCALHOST)) {
            addresses.push(LOCALHOST);
        }
        NodePortPlaces::At(addresses)
    }
}

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
    pub(crate) field: String,
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
    seen: FxHashSet<FrontendKey>,
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
    let families: Vec<_> = service.cluster_ips.iter().map(|ip| family_of(*ip)).collect();
    for (number, ip) in service.cluster_ips.iter().enumerate() {
        if families.iter().position(|family| *family == family_of(*ip)) != Some(number) {
            list.refuse(
                format!("spec.clusterIPs[{number}]"),
                format!("{ip} is a second address of its family"),
            );
        } else if let Some(why) = unservable(*ip) {
            list.refuse(format!("spec.clusterIPs[{number}]"), format!("{ip} {why}"));
        } else {
            list.add_ports(
                service,
                *ip,
                AddressKind::ClusterIp,
                &format!("spec.clusterIPs[{number}]"),
            );
        }
    }
    for family in &families {
        let mut addresses = nodes.node_port_addresses(config, *family);
        if !config.capture.binds() {
            addresses.push(match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            });
        }
        for (number, port) in service.ports.iter().enumerate().filter(|(_, port)| port.node_port != 0) {
            for address in &addresses {
                let key = FrontendKey {
                    address: *address,
                    port: port.node_port,
                    protocol: port.protocol,
                };
                list.add(Face {
                    key,
                    kind: AddressKind::NodePort,
                    port: number,
                    position: port.position,
                    field: format!("spec.ports[{}].nodePort", port.position),
                });
            }
        }
    }
    if service.service_type == ServiceType::LoadBalancer {
        for ingress in &service.load_balancer_ingress {
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
        list.add_insiders(service);
    }
    list
}

fn ingress_field(ingress: &LoadBalancerIngress) -> String {
    format!("status.loadBalancer.ingress[{}].ip", ingress.position)
}

/// A port number that the service does not have in this port's protocol: from the last one down, one for each port.
pub(crate) fn insiders_port(service: &Service, port: usize) -> Option<u16> {
    let protocol = service.ports.get(port)?.protocol;
    let has = |number: u16| {
        service
            .ports
            .iter()
            .any(|port| port.port == number && port.protocol == protocol)
    };
    (1..=u16::MAX).rev().filter(|number| !has(*number)).nth(port)
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
    fn add_external(
        &mut self,
        service: &Service,
        ip: IpAddr,
        kind: AddressKind,
        field: String,
        config: &Config,
        nodes: &Nodes,
    ) {
        if let Some(why) = unservable(ip) {
            self.refuse(field, format!("{ip} {why}"));
        } else if !config.capture.binds() || nodes.has_interface(ip) {
            self.add_ports(service, ip, kind, &field);
        } else if let Some(node) = nodes.others.get(&ip).and_then(|nodes| nodes.first()) {
            // T18: binding it would cut this node off from that one. Balancers that run on the nodes report all of these
            // in the status; who writes one into the spec is told.
            match kind {
                AddressKind::LoadBalancer => self.elsewhere += 1,
                _ => self.refuse(field, format!("{ip} is an address of node {node}")),
            }
        } else if nodes.others_complete {
            self.add_ports(service, ip, kind, &field);
        }
    }

    fn add_ports(&mut self, service: &Service, address: IpAddr, kind: AddressKind, field: &str) {
        for (number, port) in service.ports.iter().enumerate() {
            let key = FrontendKey {
                address,
                port: port.port,
                protocol: port.protocol,
            };
            self.add(Face {
                key,
                kind,
                port: number,
                position: port.position,
                field: field.into(),
            });
        }
    }

    /// T2: where insiders are sent. After all others, so that it takes nobody's place; one for each cluster IP and port.
    fn add_insiders(&mut self, service: &Service) {
        let cluster_ips: Vec<_> = self
            .faces
            .iter()
            .filter(|face| face.kind == AddressKind::ClusterIp)
            .map(|face| (face.key, face.port, face.position))
            .collect();
        for (key, port, position) in cluster_ips {
            let Some(number) = insiders_port(service, port) else {
                continue;
            };
            self.add(Face {
                key: FrontendKey { port: number, ..key },
                kind: AddressKind::Insiders,
                port,
                position,
                field: format!("spec.ports[{position}]"),
            });
        }
    }

    /// Kinds are added strongest first, so what is there already stands. The same place by two ports is refused.
    fn add(&mut self, face: Face) {
        if self.seen.insert(face.key) {
            self.faces.push(face);
        } else if let Some(first) = self
            .faces
            .iter()
            .find(|first| first.key == face.key && first.port != face.port)
        {
            let (field, port) = (format!("spec.ports[{}]", face.position), first.position);
            let reason = format!("{} is taken by spec.ports[{port}] of this service", face.key);
            self.refuse(field, reason);
        }
    }

    /// T15: where a load-balancer address is this node's, and the number of the port that of its NodePort, the place that has
    /// source ranges stands.
    fn prefer_restricted(&mut self, service: &Service, nodes: &Nodes) {
        for face in &mut self.faces {
            let is_at = |ingress: &&LoadBalancerIngress| {
                let port = service.ports.get(face.port).map(|port| port.port);
                ingress.ip == face.key.address && ingress.mode == IpMode::Vip && port == Some(face.key.port)
            };
            let is_own = face.kind == AddressKind::NodePort && nodes.has_interface(face.key.address);
            if let Some(ingress) = service.load_balancer_ingress.iter().find(is_at).filter(|_| is_own) {
                face.kind = AddressKind::LoadBalancer;
                face.field = ingress_field(ingress);
            }
        }
    }

    fn refuse(&mut self, field: String, reason: String) {
        self.refused.push((field, reason));
    }
}
