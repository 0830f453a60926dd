//! What is staged becomes a plan, a share at a time.

use std::net::IpAddr;
use std::time::Instant;

use foldhash::HashSet;
use ipvs::{VipCommand, VirtualServer};

use super::Ledger;
use crate::agenda::Turn;
use crate::compile::Priority;
use crate::element::ElementKey;
use crate::plan::{Key, Op, Placed, Plan, PolicyCommand};

/// Source ranges of one turn: the kernel takes a millisecond for each where there are tens of thousands
/// (net/netfilter/nft_set_pipapo.c).
const RANGES: usize = 64;

impl Ledger {
    /// The staged changes in order, all of them, without those that wait for their retry and without the addresses to be
    /// added to `kube-ipvs0`, which [`Ledger::plan_addresses`] gives.
    pub fn plan(&mut self, now: Instant) -> Plan {
        self.plan_share(now, usize::MAX)
    }

    /// A share of the staged changes: about this many ops, whole virtual servers (but for hundreds of source
    /// ranges), each service in its turn. A table that is
    /// made anew has all its elements in its transaction, so the share is all there is.
    pub fn plan_share(&mut self, now: Instant, ops: usize) -> Plan {
        self.keep_drains(now);
        if self.refused.take_freed(now) {
            // What waits for something that was refused is tried with it.
            self.staged.extend(self.parked.drain());
        }
        if self.rest_until.is_some_and(|until| until <= now) {
            self.rest_until = None;
            self.staged.extend(self.resting.drain());
        }
        let mut staged: Vec<_> = self.staged.drain().collect();
        // The order of a set is another in each process; whose turn it is first is not.
        staged.sort_unstable();
        self.sort_into_agenda(&staged, now);
        let mut placed = Vec::new();
        let mut settled = Vec::new();
        let first = self.agenda.take_first();
        let whole = first.iter().any(|key| matches!(key, Key::Rules(_)));
        self.place(first, now, &mut placed, &mut settled);
        while whole || placed.len() < ops {
            let Some(keys) = self.agenda.next(RANGES) else {
                break;
            };
            self.place(keys, now, &mut placed, &mut settled);
        }
        let live = self.agenda.take_live();
        self.place(live, now, &mut placed, &mut settled);
        self.settle(&settled);
        // They stay staged until the kernel has answered, and nothing is left to be done.
        self.staged.extend(placed.iter().map(|placed| placed.op.key()));
        Plan::new(placed)
    }

    /// More is to be written than the share that was taken.
    pub fn has_more(&self) -> bool {
        !self.agenda.is_empty() || !self.parked.is_empty() && self.refused.freed()
    }

    /// All that was staged when this said so last has been tried since, whatever was staged meanwhile.
    pub fn is_caught_up(&mut self) -> bool {
        let caught_up = self.agenda.is_past_mark();
        if caught_up {
            self.agenda.mark();
        }
        caught_up
    }

    fn sort_into_agenda(&mut self, staged: &[Key], now: Instant) {
        let mut settled = Vec::new();
        for key in staged {
            let Some(Placed { op, .. }) = self.due(*key, now, &mut settled) else {
                continue;
            };
            match (op, key.virtual_server()) {
                (Op::Vip(VipCommand::AddAddress(_)), _) => settled.push(*key),
                (Op::Vip(VipCommand::AddRoute(ip)), _) => self.agenda.add_live(ip, *key),
                (Op::Policy(PolicyCommand::Add(ElementKey::Vip(ip), _)), _) => self.agenda.add_live(ip, *key),
                (_, Some(server)) => {
                    let entry = self.servers.get(&server);
                    let turn = || match entry.and_then(|entry| entry.owner.clone()) {
                        Some(owner) => (
                            entry.map_or(Priority::Ordinary, |entry| entry.priority),
                            Turn::Service(owner),
                        ),
                        None => (Priority::Ordinary, Turn::Address(server.address())),
                    };
                    self.agenda.add(server, *key, turn);
                }
                (_, None) => self.agenda.add_first(*key),
            }
        }
        self.settle(&settled);
    }

    /// The ops of keys whose turn it is, as far as they are still to be done.
    fn place(&mut self, keys: Vec<Key>, now: Instant, placed: &mut Vec<Placed>, settled: &mut Vec<Key>) {
        placed.extend(keys.into_iter().filter_map(|key| self.due(key, now, settled)));
    }

    /// The op of a key that may be tried now. One that needs no op is settled, one that must wait is set aside.
    fn due(&mut self, key: Key, now: Instant, settled: &mut Vec<Key>) -> Option<Placed> {
        let Some(found) = self.op(&key, now) else {
            settled.push(key);
            return None;
        };
        if self.waits(&key, now) {
            self.refused.postpone(&key, now);
            self.parked.insert(key);
            return None;
        }
        if matches!(found.op, Op::Flows(_)) && self.rest_until.is_some() {
            self.resting.insert(key);
            return None;
        }
        Some(found)
    }

    /// At most `limit` addresses to be added to `kube-ipvs0`.
    pub fn plan_addresses(&mut self, now: Instant, limit: usize) -> Plan {
        for key in self.vips.settle_background() {
            self.refused.remove(&key);
        }
        let due = self.vips.background().filter(|key| !self.waits(key, now));
        Plan::new(due.filter_map(|key| self.op(&key, now)).take(limit).collect())
    }

    /// Addresses remain to be added to `kube-ipvs0`, and may be tried now.
    pub fn has_addresses_to_add(&self, now: Instant) -> bool {
        self.vips.background().any(|key| !self.waits(&key, now))
    }

    /// When addresses are to be added to `kube-ipvs0`: now, or when one that was refused is due; `None` = none is.
    pub fn next_background(&self, now: Instant) -> Option<Instant> {
        match self.has_addresses_to_add(now) {
            true => Some(now),
            false => self.refused.next_in_background(),
        }
    }

    fn waits(&self, key: &Key, now: Instant) -> bool {
        let waits = |key: &Key| self.refused.waits(key, now);
        // Nothing can be added where its table or its virtual server could not.
        waits(key)
            || match key {
                Key::RealServer(server, _) => waits(&Key::VirtualServer(*server)),
                Key::Element(element) => waits(&Key::Rules(element.family())),
                Key::Route(ip) => self.lacks_servers(*ip, now),
                _ => false,
            }
    }

    /// The VIP is to go live, and the kernel has refused what would answer there.
    fn lacks_servers(&self, ip: IpAddr, now: Instant) -> bool {
        !self.vips.has(&Key::Route(ip)) && self.refused.server_waits_at(ip, now) && !self.serves(ip)
    }

    /// Forgets keys that need no op: done, no longer wanted, or (a real server) gone with its virtual server.
    pub(super) fn settle(&mut self, keys: &[Key]) {
        let mut servers: HashSet<VirtualServer> = HashSet::default();
        for key in keys {
            self.staged.remove(key);
            self.refused.remove(key);
            match *key {
                Key::Rules(_) | Key::Flows(_) => {}
                Key::Element(element) => self.policies.forget_vacant(&element),
                Key::VirtualServer(server) | Key::RealServer(server, _) => drop(servers.insert(server)),
                Key::Route(ip) | Key::Address(ip) => self.vips.forget_vacant(ip),
            }
        }
        // Once for each, however many of its real servers are settled.
        for server in servers {
            if let Some(entry) = self.servers.get_mut(&server) {
                entry.real_servers.retain(|real| !real.slot.is_vacant());
                if entry.slot.is_vacant() && entry.real_servers.is_empty() {
                    self.servers.remove(&server);
                }
            }
        }
    }
}
