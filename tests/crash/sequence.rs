//! The changes in the midst of which the process is stopped, as data.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use service_model::{Change, Config, DetectLocal, Event, ObjectName};
use testbed::load::{Answer, Place};
use testbed::world::NODE;

use crate::mode::Mode;
use crate::scene::{self, CLUSTER_CIDR, NODE_ADDRESSES, Service, put};

/// A change from one state of the cluster to another.
pub(crate) struct Sequence {
    pub(crate) name: &'static str,
    /// `None`: a kernel without anything of ours, and no process yet.
    pub(crate) before: Option<State>,
    pub(crate) after: State,
    /// Other people's virtual servers are there, with clients.
    pub(crate) others: bool,
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) services: Vec<Service>,
    pub(crate) node_addresses: Vec<IpAddr>,
}

/// Addresses that the node has in some states only.
pub(crate) const OTHER_ADDRESSES: [[&str; 2]; 2] = [["192.0.2.10", "2001:db8::10"], ["198.18.0.3", "2001:db8:1::3"]];

/// In every state but an empty one, and never changed: clients run there all the time.
pub(crate) fn stable() -> Service {
    Service::new("stable", 1, 30001, &[0, 1])
}

fn web(node_port: u16, pods: &[u8]) -> Service {
    Service::new("web", 2, node_port, pods)
}

fn one(pod: u8) -> Service {
    Service::new("one", 3, 0, &[pod])
}

/// Pods of each service, in all states.
pub(crate) fn pods() -> [(Service, Vec<u8>); 3] {
    [
        (stable(), vec![0, 1]),
        (web(0, &[]), vec![10, 11, 12]),
        (one(20), vec![20, 21]),
    ]
}

pub(crate) fn sequences() -> Vec<Sequence> {
    let state = |services: &[Service]| State {
        services: services.to_vec(),
        node_addresses: addresses(&[NODE_ADDRESSES, OTHER_ADDRESSES[0]]),
    };
    let sequence = |name, before: &[Service], after: &[Service]| Sequence {
        name,
        before: Some(state(before)),
        after: state(after),
        others: false,
    };
    let usual = [stable(), web(30002, &[10, 11]), one(20)];
    let mut moved = sequence("node address change", &usual, &usual);
    moved.after.node_addresses = addresses(&[NODE_ADDRESSES, OTHER_ADDRESSES[1]]);
    vec![
        Sequence {
            name: "cold start",
            before: None,
            after: state(&[web(30002, &[10, 11]), one(20)]),
            others: false,
        },
        Sequence {
            name: "cold start beside others",
            before: None,
            after: state(&[web(30002, &[10, 11])]),
            others: true,
        },
        sequence("rollout", &usual, &[stable(), web(30002, &[11, 12]), one(21)]),
        sequence("service delete", &usual, &[stable(), one(20)]),
        sequence("service add", &[stable(), one(20)], &usual),
        sequence("node port change", &usual, &[stable(), web(30003, &[10, 11]), one(20)]),
        moved,
        sequence("last endpoint gone", &usual, &[stable(), web(30002, &[]), one(20)]),
    ]
}

fn addresses(pairs: &[[&str; 2]]) -> Vec<IpAddr> {
    let texts = pairs.iter().flatten();
    texts.filter_map(|text| text.parse().ok()).collect()
}

impl Sequence {
    /// Where traffic is redirected, virtual servers of others are nothing to it, and NodePorts answer wherever the node
    /// does.
    pub(crate) fn concerns(&self, mode: Mode) -> bool {
        let moves = |before: &State| before.node_addresses != self.after.node_addresses;
        mode == Mode::Ipvs || !self.others && !self.before.as_ref().is_some_and(moves)
    }
}

impl State {
    /// What a start on this state hears.
    pub(crate) fn events(&self) -> Result<Vec<Event>> {
        let folder = tempfile::tempdir()?;
        put(folder.path(), "nodes", &scene::nodes())?;
        for service in &self.services {
            put(folder.path(), &service.name, &service.manifest())?;
        }
        let mut events = api_watch::Directory::read(folder.path())?.batch();
        events.push(Event::NodeAddresses(self.node_addresses.clone()));
        Ok(events)
    }

    /// What a process that knows another state hears.
    pub(crate) fn events_after(&self, before: &Self) -> Result<Vec<Event>> {
        let mut events = self.events()?;
        let gone = |service: &&Service| !self.services.iter().any(|other| other.name == service.name);
        for service in before.services.iter().filter(gone) {
            let name = |suffix| ObjectName::new("d", &format!("{}{suffix}", service.name));
            events.push(Event::EndpointSlice(Change::Deleted(name("-ipv4"))));
            events.push(Event::EndpointSlice(Change::Deleted(name("-ipv6"))));
            events.push(Event::Service(Change::Deleted(name(""))));
        }
        Ok(events)
    }

    /// Every place of its services but the stable one, which others look at.
    pub(crate) fn places(&self) -> Vec<Place> {
        let of = |service: &Service| {
            let mut places = service.cluster_places();
            places.extend(service.node_places(&self.node_addresses));
            places
        };
        let changing = self.services.iter().filter(|service| service.name != stable().name);
        changing.flat_map(of).collect()
    }

    /// What a new client of a place is answered; empty where no endpoint does.
    pub(crate) fn answers(&self, place: Place) -> BTreeSet<Answer> {
        let has = |service: &&Service| {
            service.cluster_places().contains(&place) || service.node_places(&self.node_addresses).contains(&place)
        };
        self.services.iter().find(has).map(Service::answers).unwrap_or_default()
    }
}

/// As `--hostname-override` and `--cluster-cidr` set it.
pub(crate) fn config(mode: Mode) -> Result<Config> {
    let cidrs = CLUSTER_CIDR.split(',').map(str::parse).collect::<Result<_, _>>()?;
    Ok(Config {
        detect_local: DetectLocal::ClusterCidr(cidrs),
        capture: mode.capture(),
        ..Config::of_node(NODE)
    })
}
