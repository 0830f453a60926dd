//! Events made of bytes: few names, addresses and ports, so that they meet, and lists that a byte makes long, so that
//! costs that grow faster than their input show.

use std::collections::BTreeMap;
use std::net::IpAddr;

use arbitrary::{Result, Unstructured};
use ipnet::IpNet;
use service_model::{
    Change, Cluster, Endpoint, EndpointPort, EndpointSlice, Event, ExternalIp, Family, IpMode, LoadBalancerIngress,
    Node, ObjectName, Program, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

use crate::node;

/// What exists: all that events told, by name.
#[derive(Debug, Default)]
pub struct Objects {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    nodes: BTreeMap<ObjectName, Node>,
    addresses: Vec<IpAddr>,
    others_complete: bool,
}

impl Objects {
    /// Takes an event in.
    pub fn take(&mut self, event: &Event) {
        fn put<T: Clone>(map: &mut BTreeMap<ObjectName, T>, change: &Change<T>, name: impl Fn(&T) -> &ObjectName) {
            match change {
                Change::Applied(object) => drop(map.insert(name(object).clone(), object.clone())),
                Change::Deleted(name) => drop(map.remove(name)),
            }
        }
        match event {
            Event::Service(change) => put(&mut self.services, change, |service| &service.name),
            Event::EndpointSlice(change) => put(&mut self.slices, change, |slice| &slice.name),
            Event::Node(change) => put(&mut self.nodes, change, |node| &node.name),
            Event::NodeAddresses(addresses) => self.addresses.clone_from(addresses),
            Event::OtherNodesComplete => self.others_complete = true,
            Event::OtherNodesForgotten => {
                self.others_complete = false;
                self.nodes.retain(|name, _| name.name() == node::NAME);
            }
            Event::Unreadable(_) | Event::Complete(_) => {}
        }
    }

    /// A cluster that was told these objects and nothing else.
    pub fn fresh(&self, mut cluster: Cluster) -> Cluster {
        let slices = self.slices.values().cloned().map(Change::Applied);
        let nodes = self.nodes.values().cloned().map(Change::Applied);
        let services = self.services.values().cloned().map(Change::Applied);
        cluster.extend(slices.map(Event::EndpointSlice));
        cluster.extend(nodes.map(Event::Node));
        cluster.extend(services.map(Event::Service));
        cluster.apply(Event::NodeAddresses(self.addresses.clone()));
        cluster.extend(self.others_complete.then_some(Event::OtherNodesComplete));
        cluster
    }

    /// How much there is of one service: its lists, its places, and what each slice gives its ports. What comes out of
    /// it is not more, but for what each place repeats.
    pub fn size(&self, name: &ObjectName) -> u64 {
        let of_slices = self
            .slices
            .values()
            .filter(|slice| slice.name.namespace() == name.namespace() && *slice.service == *name.name());
        let slices: usize = of_slices
            .map(|slice| 1 + slice.ports.len() * (1 + slice.endpoints.len()))
            .sum();
        let Some(service) = self.services.get(name) else {
            return number(slices);
        };
        let addresses = service.cluster_ips.len()
            + service.external_ips.len()
            + service.load_balancer_ingress.len()
            + self.addresses.len();
        // Beyond the limit places are counted, not made.
        let places =
            (addresses * service.ports.len()).min(node::config(service_model::Capture::Bind).limits.real_servers);
        number(1 + slices + addresses + service.ports.len() + places + service.source_ranges.len())
    }

    /// How much there is of all services.
    pub fn whole_size(&self) -> u64 {
        self.services.keys().map(|name| self.size(name)).sum()
    }

    /// Every service that was ever told of and is there.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }
}

/// How much a program is.
pub fn size_of(program: &Program) -> u64 {
    let frontends = program.frontends.iter().map(|frontend| {
        let ranges = frontend.source_ranges.as_ref().map_or(0, |ranges| ranges.ranges.len());
        1 + frontend.endpoints.len() + frontend.insider_endpoints.len() + ranges
    });
    number(frontends.sum::<usize>() + program.rejections.len())
}

fn number(size: usize) -> u64 {
    size.try_into().unwrap_or(u64::MAX)
}

/// The next event.
///
/// # Errors
/// Where the bytes are at their end.
pub fn event(u: &mut Unstructured<'_>) -> Result<Event> {
    Ok(match u.int_in_range(0..=15)? {
        0..=4 => {
            let name = service_name(u)?;
            Event::Service(change(u, name, service)?)
        }
        5..=9 => {
            let service = service_name(u)?;
            let name = ObjectName::new(
                service.namespace(),
                &format!("{}-{}", service.name(), u.int_in_range(0..=2)?),
            );
            Event::EndpointSlice(change(u, name, |u, name| slice(u, name, service.name()))?)
        }
        10 | 11 => {
            let number = u.int_in_range(1..=3)?;
            let name = ObjectName::cluster_scoped(&format!("node-{number}"));
            // This node's object never goes: it is not followed then.
            if number == 1 {
                Event::Node(Change::Applied(node_object(u, name)?))
            } else {
                Event::Node(change(u, name, node_object)?)
            }
        }
        12 => {
            let mut addresses = list(u, |u, at| address(u, at))?;
            addresses.sort_unstable();
            addresses.dedup();
            Event::NodeAddresses(addresses)
        }
        13 => Event::OtherNodesForgotten,
        _ => Event::OtherNodesComplete,
    })
}

fn change<'a, T>(
    u: &mut Unstructured<'a>,
    name: ObjectName,
    object: impl FnOnce(&mut Unstructured<'a>, ObjectName) -> Result<T>,
) -> Result<Change<T>> {
    Ok(if u.ratio(1, 6)? {
        Change::Deleted(name)
    } else {
        Change::Applied(object(u, name)?)
    })
}

fn service_name(u: &mut Unstructured<'_>) -> Result<ObjectName> {
    Ok(ObjectName::new("d", &format!("s{}", u.int_in_range(0..=3)?)))
}

/// A list of a few, or of many that one seed makes: `make` is told its place in the list.
fn list<'a, T>(u: &mut Unstructured<'a>, make: impl Fn(&mut Unstructured<'a>, u16) -> Result<T>) -> Result<Vec<T>> {
    let length = match u.int_in_range(0..=9)? {
        9 => u.int_in_range(0..=200)?,
        few => few % 4,
    };
    if length <= 3 {
        return (0..length).map(|at| make(u, at)).collect();
    }
    // All of it of the same bytes: a short input, a long list.
    let bytes = u.bytes(8.min(u.len()))?;
    (0..length).map(|at| make(&mut Unstructured::new(bytes), at)).collect()
}

/// Of a pool in which lists have the same and different ones.
fn address(u: &mut Unstructured<'_>, at: u16) -> Result<IpAddr> {
    let [_, low] = at.to_be_bytes();
    Ok(match u.int_in_range(0..=7)? {
        0 => [10, 0, 0, u.int_in_range(1..=3)?].into(),
        1 => [192, 0, 2, u.int_in_range(1..=3)?].into(),
        2 => [0xfd00, 0, 0, 0, 0, 0, 0, u.int_in_range(1..=3)?].into(),
        3 => u.arbitrary::<[u8; 4]>()?.into(),
        4 => u.arbitrary::<[u8; 16]>()?.into(),
        5 => [0xfd01, 0, 0, 0, 0, 0, 0, at].into(),
        _ => [198, 51, 100, low].into(),
    })
}

fn protocol(u: &mut Unstructured<'_>) -> Result<Protocol> {
    u.choose(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
        .copied()
}

fn port_name(u: &mut Unstructured<'_>, at: u16) -> Result<Box<str>> {
    Ok(match u.int_in_range(0..=2)? {
        0 => "".into(),
        1 => "u".into(),
        _ => format!("p{at}").into(),
    })
}

fn service(u: &mut Unstructured<'_>, name: ObjectName) -> Result<Service> {
    let policy = |u: &mut Unstructured<'_>| u.choose(&[TrafficPolicy::Cluster, TrafficPolicy::Local]).copied();
    let service_type = *u.choose(&[
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ])?;
    let cluster_ips = (0..u.int_in_range(0..=2)?)
        .map(|at| address(u, at))
        .collect::<Result<_>>()?;
    Ok(Service {
        service_type,
        created: u.int_in_range(0..=2)?,
        other_proxy: u.ratio(1, 16)?,
        scheduler: u
            .arbitrary::<bool>()?
            .then(|| u.choose(&["rr", "mh", "sh", "lc", "none"]).copied())
            .transpose()?
            .map(Into::into),
        cluster_ips,
        ports: list(u, |u, at| {
            Ok(ServicePort {
                position: at.into(),
                name: port_name(u, at)?,
                protocol: protocol(u)?,
                port: 80 + *u.choose(&[0, 0, at])?,
                node_port: *u.choose(&[0, 80, 30_000 + at])?,
            })
        })?
        .into(),
        external_ips: list(u, |u, at| {
            Ok(ExternalIp {
                position: at.into(),
                ip: address(u, at)?,
            })
        })?,
        load_balancer_ingress: list(u, |u, at| {
            Ok(LoadBalancerIngress {
                position: at.into(),
                ip: address(u, at)?,
                mode: *u.choose(&[IpMode::Vip, IpMode::Vip, IpMode::Proxy])?,
            })
        })?,
        source_ranges: list(u, |u, at| {
            let ip = address(u, at)?;
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let range = IpNet::new(ip, u.int_in_range(0..=most)?)
                .ok()
                .map(|range| range.trunc());
            Ok(range.filter(|_| !u.ratio(1, 16).unwrap_or_default()))
        })?,
        affinity: *u.choose(&[None, Some(10_800), Some(1)])?,
        external_traffic_policy: policy(u)?,
        internal_traffic_policy: policy(u)?,
        health_check_node_port: *u.choose(&[0, 31_000])?,
        ..Service::new(name)
    })
}

fn slice(u: &mut Unstructured<'_>, name: ObjectName, service: &str) -> Result<EndpointSlice> {
    Ok(EndpointSlice {
        name,
        service: service.into(),
        headless_label: u.ratio(1, 16)?,
        family: *u.choose(&[Some(Family::V4), Some(Family::V4), Some(Family::V6), None])?,
        ports: list(u, |u, at| {
            Ok(EndpointPort {
                name: port_name(u, at)?,
                protocol: protocol(u)?,
                port: 8080 + *u.choose(&[0, 1, at])?,
            })
        })?
        .into(),
        endpoints: list(u, |u, at| {
            let zones = ["a", "b"];
            let hints = u.int_in_range(0..=2)?;
            let state = u.int_in_range(0..=5)?;
            Ok(Endpoint {
                address: address(u, at)?,
                node_name: u.choose(&[None, Some(node::NAME), Some("node-2")])?.map(Into::into),
                ready: state < 3,
                serving: state < 4,
                terminating: state == 3 || state == 4,
                zone_hints: zones.iter().take(hints).map(|zone| (*zone).into()).collect(),
                node_hints: u.ratio(1, 4)?.then(|| node::NAME.into()).into_iter().collect(),
            })
        })?,
        last_change: None,
        invalid: Vec::new(),
    })
}

fn node_object(u: &mut Unstructured<'_>, name: ObjectName) -> Result<Node> {
    Ok(Node {
        name,
        zone: u.choose(&["", "a", "b"]).copied()?.into(),
        addresses: list(u, |u, at| address(u, at))?,
        pod_cidrs: Vec::new(),
        deleting: u.ratio(1, 8)?,
        invalid: Vec::new(),
        taints: Vec::new(),
    })
}
