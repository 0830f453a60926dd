//! What we want and what the kernel has, for every object of ours; and which of them differ.
//!
//! Looked at only where something was staged: the work of a change does not depend on the number of services.
//! Compact: a real server costs about 70 bytes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipvs::{
    Command, Flags, RealServer, RealServerConfig, SchedulerName, VipCommand, VirtualServer, VirtualServerConfig,
};
use nftables::Family;
use rustc_hash::{FxHashMap, FxHashSet};
use service_model::{ObjectName, Scheduler};

use crate::compile::{Compiled, Objects, Priority, scheduler_name};
use crate::element::ElementKey;
use crate::kernel::{PresentServer, Snapshot};
use crate::plan::{Key, Op, Placed, Plan};
use crate::policy_ledger::PolicyLedger;
use crate::rules::Rules;
use crate::slot::{Difference, Slot};

/// First wait after a refused op.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two tries of one op.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Wanted and present objects.
#[derive(Debug, Default)]
pub struct Ledger {
    servers: FxHashMap<VirtualServer, Entry>,
    vips: FxHashMap<IpAddr, Vip>,
    policies: PolicyLedger,
    /// The virtual servers of each service.
    services: FxHashMap<ObjectName, Vec<VirtualServer>>,
    /// Objects whose two sides may differ, without the addresses to be added.
    staged: FxHashSet<Key>,
    /// VIPs whose address is to be added to `kube-ipvs0`, in the background. Apart, so that a commit does not walk them.
    background: FxHashSet<IpAddr>,
    /// Objects that the kernel refused, and when they are tried again.
    refused: FxHashMap<Key, Refused>,
    /// Addresses on `kube-ipvs0` are wanted at all (L4).
    with_addresses: bool,
    /// Schedulers that the kernel turned out to lack; asked for again after the next adoption (T22).
    no_schedulers: FxHashSet<SchedulerName>,
    /// Virtual servers that have `rr` in place of one of these.
    without_theirs: FxHashMap<VirtualServer, SchedulerName>,
    /// Those of them that were not told yet.
    fallen_back: Vec<(VirtualServer, SchedulerName)>,
}

#[derive(Debug)]
struct Entry {
    slot: Slot<VirtualServerConfig>,
    /// The service that wants it.
    owner: Option<ObjectName>,
    vip: Option<IpAddr>,
    priority: Priority,
    /// Sorted by address.
    real_servers: Vec<Real>,
}

#[derive(Debug)]
struct Real {
    server: RealServer,
    slot: Slot<RealServerConfig>,
    rank: u32,
}

#[derive(Debug)]
struct Vip {
    /// Wanted virtual servers at this address.
    users: u32,
    priority: Priority,
    route: Slot<()>,
    address: Slot<()>,
}

/// An op that the kernel refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// How often in a row.
    pub times: u32,
    /// When it is tried again.
    pub retry_at: Instant,
    /// What the kernel said.
    pub reason: Box<str>,
}

/// The scheduler that every kernel with IPVS has where modules are complete, and kube-proxy's default.
fn round_robin() -> SchedulerName {
    scheduler_name(Scheduler::RoundRobin)
}

fn without_scheduler(config: VirtualServerConfig) -> VirtualServerConfig {
    VirtualServerConfig {
        scheduler: round_robin(),
        flags: Flags::default(),
        ..config
    }
}

impl Default for Vip {
    fn default() -> Self {
        Self {
            users: 0,
            priority: Priority::Ordinary,
            route: Slot::default(),
            address: Slot::default(),
        }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            slot: Slot::default(),
            owner: None,
            vip: None,
            priority: Priority::Ordinary,
            real_servers: Vec::new(),
        }
    }
}

impl Entry {
    fn real(&self, server: RealServer) -> Option<&Real> {
        self.real_servers
            .binary_search_by_key(&server, |real| real.server)
            .ok()
            .and_then(|i| self.real_servers.get(i))
    }

    /// The real server's slot, made where it is missing.
    fn real_mut(&mut self, server: RealServer) -> &mut Real {
        let at = match self.real_servers.binary_search_by_key(&server, |real| real.server) {
            Ok(at) => at,
            Err(at) => {
                self.real_servers.insert(
                    at,
                    Real {
                        server,
                        slot: Slot::default(),
                        rank: 0,
                    },
                );
                at
            }
        };
        self.real_servers
            .get_mut(at)
            .expect("the place was found or just filled")
    }
}

impl Ledger {
    /// An empty ledger. `with_addresses`: VIPs are addresses on `kube-ipvs0`, too, besides their routes (L4).
    pub fn new(with_addresses: bool) -> Self {
        Self {
            with_addresses,
            ..Self::default()
        }
    }

    /// Takes in what the kernel holds (L2). What is not ours is left out: a virtual server is ours where its address
    /// is in our table's set of them, or is bound by us, on `kube-ipvs0` or by a route of ours (L10). One that turns out
    /// to be wanted is ours as well; then [`Ledger::learn_server`] brings it in.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        for entry in self.servers.values_mut() {
            entry.slot.has = None;
            entry.real_servers.iter_mut().for_each(|real| real.slot.has = None);
        }
        for vip in self.vips.values_mut() {
            (vip.route.has, vip.address.has) = (None, None);
        }
        self.policies.adopt(&snapshot.tables, &mut self.staged);
        for ip in &snapshot.routes {
            self.vips.entry(*ip).or_default().route.has = Some(());
        }
        for ip in &snapshot.addresses {
            self.vips.entry(*ip).or_default().address.has = Some(());
        }
        self.no_schedulers.clear();
        self.without_theirs.clear();
        let owned = snapshot.owned();
        for present in &snapshot.virtual_servers {
            let bound = present.server.address().is_some_and(|ip| self.vips.contains_key(&ip));
            if bound || owned.contains(&present.server) || self.servers.contains_key(&present.server) {
                self.learn_server(&present.server, Some(present));
            }
        }
        let servers = self.servers.keys().copied().collect::<Vec<_>>();
        servers.iter().for_each(|server| self.stage_server(server));
        for ip in self.vips.keys().copied().collect::<Vec<_>>() {
            self.stage_vip(ip);
        }
    }

    /// Takes in what the kernel holds of one virtual server; `None` = nothing.
    pub fn learn_server(&mut self, server: &VirtualServer, present: Option<&PresentServer>) {
        let entry = self.servers.entry(*server).or_default();
        entry.slot.has = present.map(|present| present.config);
        entry.real_servers.iter_mut().for_each(|real| real.slot.has = None);
        for (real, config) in present.iter().flat_map(|present| &present.real_servers) {
            entry.real_mut(*real).slot.has = Some(*config);
        }
        self.stage_server(server);
    }

    /// What one service wants from now on, all of it; empty = nothing. Repeating it stages nothing.
    pub fn want(&mut self, service: &ObjectName, priority: Priority, objects: &Objects) {
        self.policies.want(service, &objects.elements, &mut self.staged);
        let before = self.services.remove(service).unwrap_or_default();
        let now: Vec<_> = objects.servers.iter().map(|object| object.server).collect();
        for object in &objects.servers {
            self.want_server(service, priority, object);
        }
        for server in before.iter().filter(|server| !now.contains(server)) {
            self.release(service, server);
        }
        if !now.is_empty() {
            self.services.insert(service.clone(), now);
        }
    }

    /// The rules of a family, which stand as soon as one of its elements does. Repeating it stages nothing.
    pub fn want_rules(&mut self, rules: Rules) {
        self.policies.want_rules(rules, &mut self.staged);
    }

    fn want_server(&mut self, service: &ObjectName, priority: Priority, object: &Compiled) {
        let mut config = object.config;
        if self.no_schedulers.contains(&config.scheduler) {
            self.fall_back(object.server, config.scheduler);
            config = without_scheduler(config);
        } else {
            self.without_theirs.remove(&object.server);
        }
        let entry = self.servers.entry(object.server).or_default();
        entry.owner = Some(service.clone());
        entry.priority = priority;
        if entry.slot.wanted != Some(config) {
            entry.slot.wanted = Some(config);
            self.staged.insert(Key::VirtualServer(object.server));
        }
        // Sorted, so that each side is walked once whatever the number of endpoints.
        let mut wanted: Vec<_> = object
            .real_servers
            .iter()
            .zip(0..)
            .map(|((real, c), rank)| (*real, *c, rank))
            .collect();
        wanted.sort_unstable_by_key(|(real, ..)| *real);
        let staged = &mut self.staged;
        for real in &mut entry.real_servers {
            if wanted.binary_search_by_key(&real.server, |(real, ..)| *real).is_err() {
                real.slot.wanted = None;
                staged.insert(Key::RealServer(object.server, real.server));
            }
        }
        entry
            .real_servers
            .reserve_exact(wanted.len().saturating_sub(entry.real_servers.len()));
        for (server, config, rank) in wanted {
            let real = entry.real_mut(server);
            real.rank = rank;
            if real.slot.wanted != Some(config) {
                real.slot.wanted = Some(config);
                staged.insert(Key::RealServer(object.server, server));
            }
        }
        let before = std::mem::replace(&mut entry.vip, object.vip);
        if before != object.vip {
            before.into_iter().for_each(|ip| self.release_vip(ip));
        }
        if let Some(ip) = object.vip {
            let vip = self.vips.entry(ip).or_default();
            vip.priority = vip.priority.min(priority);
            if before != object.vip {
                vip.users += 1;
                self.stage_vip(ip);
            }
        }
    }

    /// The service no longer wants this virtual server; no effect where another one wants it meanwhile.
    fn release(&mut self, service: &ObjectName, server: &VirtualServer) {
        let Some(entry) = self
            .servers
            .get_mut(server)
            .filter(|entry| entry.owner.as_ref() == Some(service))
        else {
            return;
        };
        self.without_theirs.remove(server);
        entry.owner = None;
        entry.slot.wanted = None;
        entry.real_servers.iter_mut().for_each(|real| real.slot.wanted = None);
        let vip = entry.vip.take();
        self.stage_server(server);
        vip.into_iter().for_each(|ip| self.release_vip(ip));
    }

    fn release_vip(&mut self, ip: IpAddr) {
        if let Some(vip) = self.vips.get_mut(&ip) {
            vip.users = vip.users.saturating_sub(1);
            self.stage_vip(ip);
        }
    }

    fn stage_vip(&mut self, ip: IpAddr) {
        let vip = self.vips.entry(ip).or_default();
        let wanted = (vip.users > 0).then_some(());
        vip.route.wanted = wanted;
        vip.address.wanted = wanted.filter(|()| self.with_addresses);
        if vip.users == 0 {
            vip.priority = Priority::Ordinary;
        }
        let add_address = vip.address.wanted.is_some() && vip.address.has.is_none();
        self.staged.insert(Key::Route(ip));
        if add_address {
            self.background.insert(ip);
        } else {
            self.staged.insert(Key::Address(ip));
        }
    }

    fn stage_server(&mut self, server: &VirtualServer) {
        let Some(entry) = self.servers.get(server) else { return };
        if entry.slot.difference().is_some() {
            self.staged.insert(Key::VirtualServer(*server));
        }
        let reals = entry
            .real_servers
            .iter()
            .filter(|real| real.slot.difference().is_some());
        self.staged
            .extend(reals.map(|real| Key::RealServer(*server, real.server)));
    }

    /// The staged changes in order, without those that wait for their retry and without the addresses to be added to
    /// `kube-ipvs0`, which [`Ledger::plan_addresses`] gives.
    pub fn plan(&mut self, now: Instant) -> Plan {
        let mut placed = Vec::with_capacity(self.staged.len());
        let mut settled = Vec::new();
        for key in &self.staged {
            match self.op(key) {
                None => settled.push(*key),
                Some(Placed {
                    op: Op::Vip(VipCommand::AddAddress(_)),
                    ..
                }) => settled.push(*key),
                Some(found) if !self.waits(key, now) => placed.push(found),
                Some(_) => {}
            }
        }
        settled.iter().for_each(|key| self.settle(key));
        Plan::new(placed)
    }

    /// At most `limit` addresses to be added to `kube-ipvs0`.
    pub fn plan_addresses(&mut self, now: Instant, limit: usize) -> Plan {
        let settled: Vec<_> = self
            .background
            .iter()
            .filter(|ip| !self.adds_address(**ip))
            .copied()
            .collect();
        for ip in settled {
            self.background.remove(&ip);
        }
        let due = self
            .background
            .iter()
            .map(|ip| Key::Address(*ip))
            .filter(|key| !self.waits(key, now));
        Plan::new(due.filter_map(|key| self.op(&key)).take(limit).collect())
    }

    /// Addresses remain to be added to `kube-ipvs0`, and may be tried now.
    pub fn has_addresses_to_add(&self, now: Instant) -> bool {
        self.background.iter().any(|ip| !self.waits(&Key::Address(*ip), now))
    }

    fn adds_address(&self, ip: IpAddr) -> bool {
        self.vips
            .get(&ip)
            .is_some_and(|vip| matches!(vip.address.difference(), Some(Difference::Add(()))))
    }

    fn waits(&self, key: &Key, now: Instant) -> bool {
        let waits = |key: &Key| self.refused.get(key).is_some_and(|refused| refused.retry_at > now);
        // Nothing can be added where its table or its virtual server could not.
        waits(key)
            || match key {
                Key::RealServer(server, _) => waits(&Key::VirtualServer(*server)),
                Key::Element(element) => waits(&Key::Rules(element.family())),
                _ => false,
            }
    }

    /// The op that brings an object to its wanted value; `None` where nothing is to be done, or where it is done by
    /// another one: a virtual server takes its real servers with it.
    fn op(&self, key: &Key) -> Option<Placed> {
        match *key {
            Key::Rules(_) | Key::Element(_) => Some(Placed {
                priority: Priority::Ordinary,
                rank: 0,
                op: Op::Policy(self.policies.command(key)?),
            }),
            Key::VirtualServer(server) => {
                let entry = self.servers.get(&server)?;
                let command = match entry.slot.difference()? {
                    Difference::Add(config) => Command::NewService(server, config),
                    Difference::Set(config) => Command::SetService(server, config),
                    Difference::Delete => Command::DelService(server),
                };
                Some(Placed {
                    priority: entry.priority,
                    rank: 0,
                    op: Op::Ipvs(command),
                })
            }
            Key::RealServer(server, real) => {
                let entry = self.servers.get(&server)?;
                entry.slot.wanted?;
                let found = entry.real(real)?;
                let command = match found.slot.difference()? {
                    Difference::Add(config) => Command::NewDest(server, real, config),
                    Difference::Set(config) => Command::SetDest(server, real, config),
                    Difference::Delete => Command::DelDest(server, real),
                };
                Some(Placed {
                    priority: entry.priority,
                    rank: found.rank,
                    op: Op::Ipvs(command),
                })
            }
            Key::Route(ip) => self.vip_op(ip, |vip| vip.route, VipCommand::AddRoute, VipCommand::DelRoute),
            Key::Address(ip) => self.vip_op(ip, |vip| vip.address, VipCommand::AddAddress, VipCommand::DelAddress),
        }
    }

    fn vip_op(
        &self,
        ip: IpAddr,
        slot: fn(&Vip) -> Slot<()>,
        add: fn(IpAddr) -> VipCommand,
        delete: fn(IpAddr) -> VipCommand,
    ) -> Option<Placed> {
        let vip = self.vips.get(&ip)?;
        let command = match slot(vip).difference()? {
            Difference::Add(()) | Difference::Set(()) => add(ip),
            Difference::Delete => delete(ip),
        };
        Some(Placed {
            priority: vip.priority,
            rank: 0,
            op: Op::Vip(command),
        })
    }

    /// Forgets a staged key that needs no op: done, no longer wanted, or (a real server) gone with its virtual server.
    fn settle(&mut self, key: &Key) {
        self.staged.remove(key);
        self.refused.remove(key);
        self.forget_vacant(key);
    }

    fn forget_vacant(&mut self, key: &Key) {
        match *key {
            Key::Rules(_) => {}
            Key::Element(element) => self.policies.forget_vacant(&element),
            Key::VirtualServer(server) | Key::RealServer(server, _) => {
                let Some(entry) = self.servers.get_mut(&server) else {
                    return;
                };
                entry.real_servers.retain(|real| !real.slot.is_vacant());
                if entry.slot.is_vacant() && entry.real_servers.is_empty() {
                    self.servers.remove(&server);
                }
            }
            Key::Route(ip) | Key::Address(ip) => {
                if self
                    .vips
                    .get(&ip)
                    .is_some_and(|vip| vip.users == 0 && vip.route.is_vacant() && vip.address.is_vacant())
                {
                    self.vips.remove(&ip);
                }
            }
        }
    }

    /// The op was executed: the kernel now has its value.
    pub fn done(&mut self, op: &Op) {
        self.refused.remove(&op.key());
        match *op {
            Op::Policy(ref command) => self.policies.done(command),
            Op::Ipvs(Command::NewService(server, config) | Command::SetService(server, config)) => {
                self.servers.entry(server).or_default().slot.has = Some(config);
            }
            Op::Ipvs(Command::DelService(server)) => self.learn_server(&server, None),
            Op::Ipvs(Command::NewDest(server, real, config) | Command::SetDest(server, real, config)) => {
                self.servers.entry(server).or_default().real_mut(real).slot.has = Some(config);
            }
            Op::Ipvs(Command::DelDest(server, real)) => {
                self.servers.entry(server).or_default().real_mut(real).slot.has = None;
            }
            Op::Vip(VipCommand::AddRoute(ip)) => self.vips.entry(ip).or_default().route.has = Some(()),
            Op::Vip(VipCommand::DelRoute(ip)) => self.vips.entry(ip).or_default().route.has = None,
            Op::Vip(VipCommand::AddAddress(ip)) => self.vips.entry(ip).or_default().address.has = Some(()),
            Op::Vip(VipCommand::DelAddress(ip)) => self.vips.entry(ip).or_default().address.has = None,
        }
        self.staged.insert(op.key());
    }

    /// The kernel has no such scheduler: the virtual server is wanted with `rr` instead (T22).
    pub fn scheduler_missing(&mut self, server: VirtualServer) {
        let Some(config) = self
            .servers
            .get_mut(&server)
            .and_then(|entry| entry.slot.wanted.as_mut())
        else {
            return;
        };
        let lacking = config.scheduler;
        *config = without_scheduler(*config);
        self.no_schedulers.insert(lacking);
        self.fall_back(server, lacking);
        self.staged.insert(Key::VirtualServer(server));
    }

    /// Told once, however often the service is wanted again.
    fn fall_back(&mut self, server: VirtualServer, from: SchedulerName) {
        if self.without_theirs.insert(server, from) != Some(from) {
            self.fallen_back.push((server, from));
        }
    }

    /// Virtual servers that got `rr` in place of the scheduler named, since the last call.
    pub fn take_fallen_back(&mut self) -> Vec<(VirtualServer, SchedulerName)> {
        std::mem::take(&mut self.fallen_back)
    }

    /// The element is not as it was thought to be: there with an unknown value, or not there.
    pub fn element_differs(&mut self, key: ElementKey, there: bool) {
        self.policies.differs(key, there);
        self.staged.insert(Key::Element(key));
    }

    /// The table is not there, or not ours any more.
    pub fn table_missing(&mut self, family: Family) {
        self.policies.table_missing(family, &mut self.staged);
    }

    /// The real server that was to be changed is not there after all.
    pub fn real_server_missing(&mut self, server: VirtualServer, real: RealServer) {
        self.servers.entry(server).or_default().real_mut(real).slot.has = None;
        self.staged.insert(Key::RealServer(server, real));
    }

    /// The op was refused: it stays staged and is tried again after a wait that doubles each time (L11).
    pub fn refuse(&mut self, op: &Op, reason: &str, now: Instant) {
        let key = op.key();
        let times = self
            .refused
            .get(&key)
            .map_or(0, |refused| refused.times)
            .saturating_add(1);
        let wait = RETRY_MIN.saturating_mul(1 << (times - 1).min(6)).min(RETRY_MAX);
        self.refused.insert(
            key,
            Refused {
                times,
                retry_at: now + wait,
                reason: reason.into(),
            },
        );
    }

    /// What the kernel refused and was not yet made good.
    pub fn refused(&self) -> impl Iterator<Item = (&Key, &Refused)> {
        self.refused.iter()
    }

    /// When the next refused op is due.
    pub fn next_retry(&self) -> Option<Instant> {
        self.refused.values().map(|refused| refused.retry_at).min()
    }

    /// The service that wants this virtual server.
    pub fn owner(&self, server: &VirtualServer) -> Option<&ObjectName> {
        self.servers.get(server)?.owner.as_ref()
    }

    /// The kernel has this virtual server.
    pub fn has(&self, server: &VirtualServer) -> bool {
        self.servers.get(server).is_some_and(|entry| entry.slot.has.is_some())
    }

    /// The kernel has a virtual server at this address. Walks them all: asked only after a refusal.
    pub fn serves(&self, ip: IpAddr) -> bool {
        self.servers
            .iter()
            .any(|(server, entry)| server.address() == Some(ip) && entry.slot.has.is_some())
    }

    /// The scheduler of a virtual server is the one that is left where others are missing.
    pub fn is_last_scheduler(config: &VirtualServerConfig) -> bool {
        config.scheduler == round_robin()
    }

    /// Elements of the policy tables that we want.
    pub fn element_count(&self) -> usize {
        self.policies.count()
    }

    /// Objects that we want, by kind: virtual servers, real servers, VIPs.
    pub fn counts(&self) -> (usize, usize, usize) {
        let wanted = self.servers.values().filter(|entry| entry.slot.wanted.is_some());
        let real = wanted
            .clone()
            .flat_map(|entry| &entry.real_servers)
            .filter(|real| real.slot.wanted.is_some())
            .count();
        (
            wanted.count(),
            real,
            self.vips.values().filter(|vip| vip.users > 0).count(),
        )
    }
}
