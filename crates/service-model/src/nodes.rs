//! This node and the others, as far as services ask: whose an address is, and where NodePorts answer.

use std::net::{IpAddr, Ipv4Addr};

use foldhash::{HashMap, HashSet};
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::config::{Capture, Config, NodePortAddresses};
use crate::face::family_of;
use crate::frontend::NodePortPlaces;
use crate::name::ObjectName;
use crate::object::Family;
use crate::protected::Protected;

/// This node, and the addresses of the others.
#[derive(Debug)]
pub(crate) struct Nodes {
    /// Of this node's object: load balancers may send it traffic. So it may where nothing is known of it.
    pub(crate) eligible: bool,
    /// Addresses of this node's interfaces; `None` until they were told.
    interfaces: Option<Vec<IpAddr>>,
    /// The same, to be asked one by one.
    interface_set: HashSet<IpAddr>,
    /// Of this node's object: label `topology.kubernetes.io/zone`.
    pub(crate) zone: Box<str>,
    /// Of this node's object: its addresses, by precedence.
    pub(crate) own: Vec<IpAddr>,
    /// Of this node's object: `spec.podCIDRs`.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// What this node needs for itself (T41).
    pub(crate) protected: Protected,
    /// Addresses of other nodes (T18), each with the nodes that have it, in the order of their names.
    pub(crate) others: HashMap<IpAddr, SmallVec<[ObjectName; 1]>>,
    /// The addresses of all other nodes are known. Until then none but this node's own is safe to bind.
    pub(crate) others_complete: bool,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            eligible: true,
            interfaces: None,
            interface_set: HashSet::default(),
            zone: Box::default(),
            own: Vec::new(),
            pod_cidrs: Vec::new(),
            protected: Protected::default(),
            others: HashMap::default(),
            others_complete: false,
        }
    }
}

impl Nodes {
    /// Takes the addresses of the interfaces. Returns those that came and those that went.
    pub(crate) fn set_interfaces(&mut self, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let now = addresses.iter().copied().collect();
        let before = std::mem::replace(&mut self.interface_set, now);
        self.interfaces = Some(addresses);
        before.symmetric_difference(&self.interface_set).copied().collect()
    }

    /// Addresses of this node's interfaces, as they were told; `None` until then.
    pub(crate) fn interfaces(&self) -> Option<&[IpAddr]> {
        self.interfaces.as_deref()
    }

    pub(crate) fn has_interface(&self, address: IpAddr) -> bool {
        self.interface_set.contains(&address)
    }

    /// On an interface of this node, which its object does not know: a load balancer's address that kube-vip or keepalived
    /// put there. No address is lent as long as nothing is known of the object.
    pub(crate) fn is_lent(&self, address: IpAddr, config: &Config) -> bool {
        let known = config.node_ip.iter().chain(&self.own);
        !self.own.is_empty() && !known.into_iter().any(|own| *own == address)
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
    pub(crate) fn node_port_addresses(&self, config: &Config, family: Family) -> Vec<IpAddr> {
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
