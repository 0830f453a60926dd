//! The cluster as this node sees it: every service, its endpoints, this node; event in, touched services out.
//!
//! The work of an event depends on what it touches, not on how much there is: everything is found by hash.

use std::collections::hash_map;
use std::net::IpAddr;

use foldhash::{HashMap, HashSet};

use crate::arrival::{Arrivals, Pending};
use crate::backlog::Backlog;
use crate::claim::{Claim, Claims};
use crate::config::{Config, NodePortAddresses};
use crate::endpoint_cache::Slice;
use crate::event::{Change, Event, Kind};
use crate::face::{external_addresses, faces, family_of};
use crate::frontend::{AddressKind, FrontendKey, NodePortPlaces, Program, Rejection};
use crate::local_traffic::LocalTraffic;
use crate::name::ObjectName;
use crate::nodes::Nodes;
use crate::object::{EndpointSlice, Family, Node, Service};
use crate::program::{View, program};
use crate::protected::Protected;
use crate::unreadable::UnreadableObjects;

/// Key of the taint of a node that the cluster autoscaler is about to remove (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// All services, all endpoints, this node.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    services: HashMap<ObjectName, Entry>,
    /// The service of each slice.
    slices: HashMap<ObjectName, ObjectName>,
    nodes: Nodes,
    /// The addresses of each other node, to know what goes with it.
    node_addresses: HashMap<ObjectName, Vec<IpAddr>>,
    claims: Claims,
    /// Services with a load-balancer or external IP, by that address (T7, T18): those that want to answer there.
    external: HashMap<IpAddr, HashSet<ObjectName>>,
    with_node_ports: HashSet<ObjectName>,
    /// Services with source ranges, which admit the node or not by its addresses (T15).
    with_ranges: HashSet<ObjectName>,
    touched: HashSet<ObjectName>,
    complete: HashSet<Kind>,
    unreadable: UnreadableObjects,
    arrivals: Arrivals,
}

/// What is known of one service: it, its slices, or both.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Service>>,
    /// In the order of their names.
    slices: Vec<Slice>,
    /// The places it claims.
    claimed: Claimed,
}

/// What a service claims.
#[derive(Debug, Default)]
struct Claimed {
    places: Box<[(FrontendKey, AddressKind)]>,
    created: i64,
}

impl Cluster {
    /// An empty cluster.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            services: HashMap::default(),
            slices: HashMap::default(),
            nodes: Nodes::default(),
            node_addresses: HashMap::default(),
            claims: Claims::default(),
            external: HashMap::default(),
            with_node_ports: HashSet::default(),
            with_ranges: HashSet::default(),
            touched: HashSet::default(),
            complete: HashSet::default(),
            unreadable: UnreadableObjects::default(),
            arrivals: Arrivals::default(),
        }
    }

    /// Takes one event in, and remembers which services it touches.
    pub fn apply(&mut self, event: Event) {
        if let Some((kind, name)) = event.object() {
            self.unreadable.set(kind, name, event.unread_fields());
        }
        match event {
            Event::Service(Change::Applied(service)) => self.set_service(service),
            Event::Service(Change::Deleted(name)) => self.delete_service(&name),
            Event::EndpointSlice(Change::Applied(slice)) => self.set_slice(slice),
            Event::EndpointSlice(Change::Deleted(name)) => self.delete_slice(&name),
            Event::Node(Change::Applied(node)) => self.set_node(node),
            Event::Node(Change::Deleted(name)) => self.delete_node(&name),
            Event::Unreadable(rejection) => self.unreadable.add(rejection),
            Event::NodeAddresses(addresses) => self.set_interfaces(addresses),
            Event::Complete(kind) => drop(self.complete.insert(kind)),
            Event::OtherNodesComplete => self.set_others_complete(true),
            Event::OtherNodesForgotten => self.forget_other_nodes(),
        }
    }

    /// What services must not take from this node (T41), instead of what was told before. It touches those that want
    /// something of what changed. Until the first call it is [`Protected::default`].
    pub fn set_protected(&mut self, protected: Protected) {
        let before = std::mem::replace(&mut self.nodes.protected, protected);
        let now = &self.nodes.protected;
        let mut users = self.users(now.changed(&before));
        if before.ports != now.ports {
            users.extend(self.users(self.nodes.interfaces().unwrap_or_default()));
        }
        self.claim_again(users);
    }

    /// The services whose [`Program`] may have changed since the last call, in the order of their names;
    /// empty where nothing did. A service that is gone is among them: its program is then empty.
    pub fn take_touched(&mut self) -> Vec<ObjectName> {
        let mut touched: Vec<_> = std::mem::take(&mut self.touched).into_iter().collect();
        touched.sort_unstable();
        touched
    }

    /// The objects that exist and cannot be read ([`Event::Unreadable`]), by kind and name, where they are others than at
    /// the last call; `None` where not.
    pub fn take_unreadable(&mut self) -> Option<Vec<Rejection>> {
        self.unreadable.take_change()
    }

    /// What came in so far.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// What waited to be programmed, and is from now on.
    pub fn take_pending(&mut self) -> Pending {
        std::mem::take(&mut self.arrivals.pending)
    }

    /// This node may be sent traffic by load balancers: its object does not go, and the cluster autoscaler does not
    /// remove it. Also as long as nothing is known of it.
    pub fn is_node_eligible(&self) -> bool {
        self.nodes.eligible
    }

    /// The program of one service. Empty for an unknown one.
    pub fn program(&self, service: &ObjectName) -> Program {
        let Some(Entry {
            service: Some(service),
            slices,
            ..
        }) = self.services.get(service)
        else {
            return Program::default();
        };
        let (config, nodes, claims) = (&self.config, &self.nodes, &self.claims);
        program(service, slices, &View { config, nodes, claims })
    }

    /// [`Event::Complete`] has come for this kind.
    pub fn is_complete(&self, kind: Kind) -> bool {
        self.complete.contains(&kind)
    }

    /// Some service wants to answer at an address that may be another node's (T18): [`Event::OtherNodesComplete`] is
    /// waited for, and such addresses are held back until it comes.
    pub fn wants_other_nodes(&self) -> bool {
        self.config.capture.binds() && !self.external.is_empty()
    }

    /// The addresses of all other nodes are known ([`Event::OtherNodesComplete`] has come).
    pub fn knows_other_nodes(&self) -> bool {
        self.nodes.others_complete
    }

    /// This node's addresses are known ([`Event::NodeAddresses`] has come).
    pub fn has_node_addresses(&self) -> bool {
        self.nodes.interfaces().is_some()
    }

    /// The addresses of this node's interfaces, as they were told; empty until then.
    pub fn node_addresses(&self) -> &[IpAddr] {
        self.nodes.interfaces().unwrap_or_default()
    }

    /// The primary addresses of this node, one of each family at most.
    pub fn primary_addresses(&self) -> Vec<IpAddr> {
        self.nodes.primary(&self.config).collect()
    }

    /// The name of this node.
    pub fn node_name(&self) -> &str {
        &self.config.node_name
    }

    /// Who is who among the clients of a family. Changes with this node's `spec.podCIDRs` at most.
    pub fn local_traffic(&self, family: Family) -> LocalTraffic {
        LocalTraffic::new(&self.config.detect_local, &self.nodes.pod_cidrs, family)
    }

    /// Where NodePorts of a family answer. Changes with this node's addresses at most.
    pub fn node_port_places(&self, family: Family) -> NodePortPlaces {
        self.nodes.node_port_places(&self.config, family)
    }

    fn set_service(&mut self, mut service: Service) {
        self.arrivals.services += 1;
        // Without a cluster IP of a family a service has nothing of it.
        service
            .cluster_ips
            .retain(|ip| self.config.families.contains(&family_of(*ip)));
        let name = service.name.clone();
        let entry = self.services.entry(name.clone()).or_default();
        if entry.service.as_deref() == Some(&service) {
            return;
        }
        let before = entry.service.replace(Box::new(service));
        self.index(&name, before.as_deref(), false);
        let now = self
            .services
            .get(&name)
            .and_then(|entry| entry.service.as_deref())
            .cloned();
        self.index(&name, now.as_ref(), true);
        self.claim(&name);
        self.arrivals.pending.services += 1;
        self.touched.insert(name);
    }

    fn delete_service(&mut self, name: &ObjectName) {
        self.arrivals.services += 1;
        let Some(before) = self.services.get_mut(name).and_then(|entry| entry.service.take()) else {
            return;
        };
        self.index(name, Some(&before), false);
        self.claim(name);
        self.forget_empty(name);
        self.arrivals.pending.services += 1;
        self.touched.insert(name.clone());
    }

    /// Adds a service to the look-up tables, or takes it out.
    fn index(&mut self, name: &ObjectName, service: Option<&Service>, add: bool) {
        let Some(service) = service else { return };
        for ip in external_addresses(service, &self.config) {
            let users = self.external.entry(ip).or_default();
            if add {
                users.insert(name.clone());
            } else {
                users.remove(name);
            }
            if users.is_empty() {
                self.external.remove(&ip);
            }
        }
        if add && service.ports.iter().any(|port| port.node_port != 0) {
            self.with_node_ports.insert(name.clone());
        } else {
            self.with_node_ports.remove(name);
        }
        if add && !service.source_ranges.is_empty() {
            self.with_ranges.insert(name.clone());
        } else {
            self.with_ranges.remove(name);
        }
    }

    /// Brings a service's claims in line with its faces; who stands otherwise at a place that changed is touched as well.
    fn claim(&mut self, name: &ObjectName) {
        let Some(entry) = self.services.get_mut(name) else {
            return;
        };
        let now = entry.service.as_ref().map_or_else(Claimed::default, |service| {
            let faces = faces(service, &self.config, &self.nodes).faces;
            Claimed {
                places: faces.iter().map(|face| (face.key, face.kind)).collect(),
                created: service.created,
            }
        });
        let kept: HashSet<_> = now.places.iter().copied().collect();
        let created = now.created;
        let before = std::mem::replace(&mut entry.claimed, now);
        let claim = |kind, created| Claim {
            kind,
            created,
            service: name.clone(),
        };
        for (key, kind) in &before.places {
            if before.created != created || !kept.contains(&(*key, *kind)) {
                self.touched
                    .extend(self.claims.remove(key, &claim(*kind, before.created)));
            }
        }
        for (key, kind) in &entry.claimed.places {
            self.touched.extend(self.claims.add(*key, claim(*kind, created)));
        }
    }

    fn forget_empty(&mut self, name: &ObjectName) {
        if self
            .services
            .get(name)
            .is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty())
        {
            self.services.remove(name);
        }
    }

    fn set_slice(&mut self, slice: EndpointSlice) {
        let name = slice.name.clone();
        if slice
            .family
            .is_some_and(|family| !self.config.families.contains(&family))
        {
            return self.delete_slice(&name);
        }
        let service = ObjectName::new(name.namespace(), &slice.service);
        let is_start = !(self.is_complete(Kind::Service) && self.is_complete(Kind::EndpointSlice));
        let trigger = slice.last_change.filter(|_| !is_start);
        let Some(slice) = Slice::fold(slice, &self.config.node_name) else {
            return self.delete_slice(&name);
        };
        self.arrivals.endpoint_slices += 1;
        let trigger = trigger.map(|time| (slice.family(), time));
        if self.slices.get(&name).is_some_and(|owner| *owner != service) {
            self.delete_slice(&name);
        }
        let entry = self.services.entry(service.clone()).or_default();
        match entry.slices.binary_search_by(|other| other.name().cmp(&name)) {
            Ok(at) if entry.slices.get(at) == Some(&slice) => return,
            Ok(at) => entry.slices.splice(at..=at, [slice]).for_each(drop),
            Err(at) => {
                // Most services have one slice, or few.
                if entry.slices.len() < 8 {
                    entry.slices.reserve_exact(1);
                }
                entry.slices.insert(at, slice);
                self.slices.insert(name, service.clone());
            }
        }
        self.arrivals.pending.slice_changed(&service, trigger);
        self.touched.insert(service);
    }

    fn delete_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.slices.remove(name) else {
            return;
        };
        if let Some(entry) = self.services.get_mut(&service)
            && let Ok(at) = entry.slices.binary_search_by(|slice| slice.name().cmp(name))
        {
            entry.slices.remove(at);
        }
        self.forget_empty(&service);
        self.arrivals.endpoint_slices += 1;
        self.arrivals.pending.slice_went(&service);
        self.touched.insert(service);
    }

    fn set_node(&mut self, node: Node) {
        if node.name.name() != &*self.config.node_name {
            return self.set_other_node(node.name, node.addresses);
        }
        self.nodes.eligible = !node.deleting && node.taints.iter().all(|key| &**key != TO_BE_DELETED);
        if self.nodes.zone != node.zone {
            self.nodes.zone = node.zone;
            let hinted = self
                .services
                .iter()
                .filter(|(_, entry)| entry.slices.iter().any(Slice::has_zone_hints));
            self.touched.extend(hinted.map(|(name, _)| name.clone()));
        }
        self.nodes.pod_cidrs = node.pod_cidrs;
        if self.nodes.own != node.addresses {
            let before = std::mem::replace(&mut self.nodes.own, node.addresses);
            // Whether an address is lent to the node (T41).
            let users = self.users(before.iter().chain(&self.nodes.own));
            self.claim_again(users);
            if matches!(
                self.config.node_port_addresses,
                NodePortAddresses::Among { primary: true, .. }
            ) {
                self.claim_again(self.with_node_ports.clone());
            }
        }
    }

    /// This node's object may go while the process runs on: what it told stays (zone, primary addresses).
    fn delete_node(&mut self, name: &ObjectName) {
        if name.name() == &*self.config.node_name {
            self.nodes.eligible = false;
        } else {
            self.set_other_node(name.clone(), Vec::new());
        }
    }

    fn set_other_node(&mut self, name: ObjectName, addresses: Vec<IpAddr>) {
        let before = self.node_addresses.remove(&name).unwrap_or_default();
        for address in &before {
            if let hash_map::Entry::Occupied(mut holders) = self.nodes.others.entry(*address) {
                holders.get_mut().retain(|holder| *holder != name);
                if holders.get().is_empty() {
                    holders.remove();
                }
            }
        }
        for address in &addresses {
            let holders = self.nodes.others.entry(*address).or_default();
            if let Err(at) = holders.binary_search(&name) {
                holders.insert(at, name.clone());
            }
        }
        let [was, is]: [HashSet<_>; 2] = [&before, &addresses].map(|all| all.iter().copied().collect());
        let users = self.users(was.symmetric_difference(&is));
        if !addresses.is_empty() {
            self.node_addresses.insert(name, addresses);
        }
        self.claim_again(users);
    }

    /// What was held back is let go, or the other way round.
    fn set_others_complete(&mut self, complete: bool) {
        if self.nodes.others_complete != complete {
            self.nodes.others_complete = complete;
            self.claim_again(self.external.values().flatten().cloned().collect());
        }
    }

    fn forget_other_nodes(&mut self) {
        self.nodes.others.clear();
        let this_node = &self.config.node_name;
        self.unreadable.forget(Kind::Node, |node| node.name() != &**this_node);
        let before = std::mem::take(&mut self.node_addresses);
        let users = self.users(before.values().flatten());
        self.claim_again(users);
        self.set_others_complete(false);
    }

    fn set_interfaces(&mut self, addresses: Vec<IpAddr>) {
        let changed = self.nodes.set_interfaces(addresses);
        if changed.is_empty() {
            return;
        }
        self.touched.extend(self.with_ranges.iter().cloned());
        let mut users = self.users(&changed);
        users.extend(self.with_node_ports.iter().cloned());
        self.claim_again(users);
    }

    /// The services with one of these as a load-balancer or external IP.
    fn users<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> HashSet<ObjectName> {
        let users = addresses.into_iter().filter_map(|address| self.external.get(address));
        users.flatten().cloned().collect()
    }

    fn claim_again(&mut self, services: HashSet<ObjectName>) {
        for name in services {
            self.claim(&name);
            self.touched.insert(name);
        }
    }
}

impl Cluster {
    /// Takes in all that waits, and leaves nothing. Events that were folded away count as arrived.
    pub fn catch_up(&mut self, backlog: &mut Backlog) {
        let (events, folded) = backlog.take();
        self.arrivals.services += folded.services;
        self.arrivals.endpoint_slices += folded.endpoint_slices;
        self.extend(events);
    }
}

/// Takes events in as [`Cluster::apply`] does, one after the other.
impl Extend<Event> for Cluster {
    fn extend<T: IntoIterator<Item = Event>>(&mut self, events: T) {
        events.into_iter().for_each(|event| self.apply(event));
    }
}

#[cfg(test)]
mod tests;
