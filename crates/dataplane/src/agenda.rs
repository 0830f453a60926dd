//! What is to be written, in turns: a commit takes a share of it, and who has little to do does not wait for who has much.
//!
//! The unit is one virtual server with all that belongs to it: its policies, its real servers, its flows. So a share keeps
//! the order of a commit's steps for each of them. Each service has a turn, one virtual server at a time; what belongs to
//! no service any more has the turn of its address, behind what is wanted there. What makes a VIP live waits until none of
//! its virtual servers does: its route, and its element of `vips`, which refuses what no virtual server has.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use foldhash::HashMap;
use ipnet::IpNet;
use ipvs::VirtualServer;
use service_model::ObjectName;

use crate::compile::Priority;
use crate::element::{ElementKey, Place};
use crate::plan::Key;

/// Keys that wait for their turn. A key may be added again while it waits; it is taken once.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// What belongs to no virtual server: goes with the next share.
    first: Vec<Key>,
    servers: HashMap<VirtualServer, Waiting>,
    /// Counted up by [`Agenda::mark`].
    generation: u64,
    /// Virtual servers that waited at the last mark, and still do.
    marked: usize,
    /// The virtual servers of each turn.
    turns: HashMap<Turn, VecDeque<VirtualServer>>,
    /// Whose turn it is, by priority (L3).
    order: BTreeMap<Priority, VecDeque<Turn>>,
    /// Virtual servers that wait, by address.
    waiting: HashMap<IpAddr, usize>,
    /// What makes a VIP live, by address.
    lives: HashMap<IpAddr, Vec<Key>>,
    /// Those of `lives` none of whose virtual servers may wait now.
    ready: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct Waiting {
    keys: Vec<Key>,
    /// The generation in which it began to wait.
    since: u64,
}

/// What shares are fair to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    /// The service that wants it.
    Service(ObjectName),
    /// No service wants it: its address, where it has one.
    Address(Option<IpAddr>),
}

impl Agenda {
    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.servers.is_empty() && self.lives.is_empty()
    }

    /// Adds a key that belongs to no virtual server.
    pub(crate) fn add_first(&mut self, key: Key) {
        self.first.push(key);
    }

    /// Adds a key that makes a VIP live, behind its virtual servers.
    pub(crate) fn add_live(&mut self, ip: IpAddr, key: Key) {
        self.lives.entry(ip).or_default().push(key);
        self.ready.push(ip);
    }

    /// Adds a key of a virtual server; `turn` tells whose it is, where the server does not wait yet.
    pub(crate) fn add(&mut self, server: VirtualServer, key: Key, turn: impl FnOnce() -> (Priority, Turn)) {
        let waiting = self.servers.entry(server).or_default();
        if waiting.keys.is_empty() {
            waiting.since = self.generation;
            let (priority, turn) = turn();
            if let Some(ip) = server.address() {
                *self.waiting.entry(ip).or_default() += 1;
            }
            let servers = self.turns.entry(turn.clone()).or_default();
            if servers.is_empty() {
                self.order.entry(priority).or_default().push_back(turn);
            }
            servers.push_back(server);
        }
        waiting.keys.push(key);
    }

    /// What goes with the next share whatever its size.
    pub(crate) fn take_first(&mut self) -> Vec<Key> {
        let mut keys = std::mem::take(&mut self.first);
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The keys of the virtual server whose turn it is; `None` = none waits. All of them, but of its source ranges about
    /// `ranges` at most (T15). The rest has another turn. Until then some of its clients are shut out, and none is let in.
    pub(crate) fn next(&mut self, ranges: usize) -> Option<Vec<Key>> {
        let mut lane = self.order.first_entry()?;
        // One after the other: only turns of addresses are passed over, and what they wait for has a turn, too.
        let (turn, server) = loop {
            let turn = lane.get_mut().pop_front()?;
            let servers = self.turns.get_mut(&turn)?;
            let others = |ip: &IpAddr| self.waiting.get(ip).is_some_and(|waiting| *waiting > servers.len());
            if matches!(&turn, Turn::Address(Some(ip)) if others(ip)) {
                lane.get_mut().push_back(turn);
                continue;
            }
            let server = servers.pop_front()?;
            break (turn, server);
        };
        let Waiting { mut keys, since } = self.servers.remove(&server).unwrap_or_default();
        keys.sort_unstable();
        keys.dedup();
        let later = split_ranges(&mut keys, ranges);
        let whole = later.is_empty();
        if !whole {
            self.servers.insert(server, Waiting { keys: later, since });
            self.turns.entry(turn.clone()).or_default().push_back(server);
        }
        if self.turns.get(&turn).is_some_and(VecDeque::is_empty) {
            self.turns.remove(&turn);
        } else {
            lane.get_mut().push_back(turn);
        }
        if lane.get().is_empty() {
            lane.remove();
        }
        if whole {
            if let Some(ip) = server.address() {
                self.served(ip);
            }
            if since < self.generation {
                self.marked -= 1;
            }
        }
        Some(keys)
    }

    /// From now on [`Agenda::is_past_mark`] tells of what waits now.
    pub(crate) fn mark(&mut self) {
        self.generation += 1;
        self.marked = self.servers.len();
    }

    /// All that waited at the last mark has had its turn.
    pub(crate) fn is_past_mark(&self) -> bool {
        self.marked == 0
    }

    fn served(&mut self, ip: IpAddr) {
        if let Some(waiting) = self.waiting.get_mut(&ip) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(&ip);
                self.ready.push(ip);
            }
        }
    }

    /// What makes those VIPs live none of whose virtual servers waits.
    pub(crate) fn take_live(&mut self) -> Vec<Key> {
        let mut keys = Vec::new();
        for ip in std::mem::take(&mut self.ready) {
            if !self.waiting.contains_key(&ip) {
                keys.extend(self.lives.remove(&ip).unwrap_or_default());
            }
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// Takes all but about so many source ranges out of sorted keys. One that lies within another stays with it: the first
/// goes in the transaction that brings the second.
fn split_ranges(keys: &mut Vec<Key>, most: usize) -> Vec<Key> {
    let range = |key: &Key| match key {
        Key::Element(ElementKey::Source(place, range)) => Some((*place, *range)),
        _ => None,
    };
    let mut taken = 0;
    let mut around = None;
    let mut is_later = |key: &Key| {
        let Some((place, net)) = range(key) else {
            return false;
        };
        if around.is_some_and(|(at, wide): (Place, IpNet)| at == place && wide.contains(&net)) {
            return taken > most;
        }
        around = Some((place, net));
        taken += 1;
        taken > most
    };
    keys.extract_if(.., |key| is_later(key)).collect()
}

#[cfg(test)]
mod tests {
    use ipvs::Protocol;

    use super::*;

    fn server(net: u8, port: u16) -> VirtualServer {
        VirtualServer::Address {
            address: [10, 0, 0, net].into(),
            port,
            protocol: Protocol::Tcp,
        }
    }

    fn turn(name: &str) -> (Priority, Turn) {
        (Priority::Ordinary, Turn::Service(ObjectName::new("d", name)))
    }

    #[test]
    fn f09_services_take_turns_and_routes_come_last() {
        let mut agenda = Agenda::default();
        for port in 1..=100 {
            let key = Key::VirtualServer(server(1, port));
            agenda.add(server(1, port), key, || turn("huge"));
            agenda.add(server(1, port), key, || unreachable!("it waits"));
        }
        agenda.add(server(2, 1), Key::VirtualServer(server(2, 1)), || turn("small"));
        let dns = (Priority::Dns, Turn::Service(ObjectName::new("kube-system", "dns")));
        agenda.add(server(3, 53), Key::VirtualServer(server(3, 53)), || dns);
        for net in [1, 2, 4] {
            let ip = IpAddr::from([10, 0, 0, net]);
            agenda.add_live(ip, Key::Route(ip));
            agenda.add_live(ip, Key::Route(ip));
        }
        assert_eq!(agenda.take_live(), [Key::Route([10, 0, 0, 4].into())]);
        agenda.mark();
        agenda.add(server(5, 1), Key::VirtualServer(server(5, 1)), || turn("later"));
        let mut taken = Vec::new();
        while let Some(keys) = agenda.next(usize::MAX) {
            taken.extend(keys);
            assert_eq!(agenda.is_past_mark(), taken.len() >= 104);
            taken.extend(agenda.take_live());
        }
        let of = |net, port| Key::VirtualServer(server(net, port));
        let small = [of(2, 1), Key::Route([10, 0, 0, 2].into())];
        let begin = [of(3, 53), of(1, 1), small[0], small[1], of(5, 1), of(1, 2)];
        assert_eq!(taken.get(..6), Some(&begin[..]));
        assert_eq!(taken.len(), 105);
        assert_eq!(taken.last(), Some(&Key::Route([10, 0, 0, 1].into())));
        assert!(agenda.is_empty());
    }

    #[test]
    fn f09_source_ranges_have_several_turns_and_those_that_overlap_have_one() {
        let place = Place {
            address: [10, 0, 0, 1].into(),
            port: 1,
            protocol: Protocol::Tcp,
        };
        let source = |net: &str| Key::Element(ElementKey::Source(place, net.parse().unwrap()));
        let ranges = ["10.0.0.0/8", "10.0.0.0/16", "10.9.0.0/16", "11.0.0.0/8", "12.0.0.0/8"].map(source);
        let [own, other] = [server(1, 1), server(2, 1)];
        let mut agenda = Agenda::default();
        for key in ranges.into_iter().rev().chain([Key::VirtualServer(own)]) {
            agenda.add(own, key, || turn("restricted"));
        }
        agenda.add(other, Key::VirtualServer(other), || turn("small"));
        agenda.add_live([10, 0, 0, 1].into(), Key::Route([10, 0, 0, 1].into()));
        agenda.mark();
        let mut turns = Vec::new();
        while let Some(keys) = agenda.next(1) {
            turns.push(keys);
            let whole = agenda.is_empty() || turns.len() == 4;
            assert_eq!(agenda.take_live().len(), usize::from(whole), "{turns:?}");
            assert_eq!(agenda.is_past_mark(), whole);
        }
        let [a, b, c, d, e] = ranges;
        let expect = [
            vec![a, b, c, Key::VirtualServer(own)],
            vec![Key::VirtualServer(other)],
            vec![d],
            vec![e],
        ];
        assert_eq!(turns, expect);
    }
}
