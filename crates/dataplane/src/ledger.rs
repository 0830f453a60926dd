//! What we want and what the kernel has, for every object of ours; and which of them differ.
//!
//! Looked at only where something was staged: the work of a change does not depend on the number of services.
//! Compact: a real server costs about 70 bytes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashSet};
use ipvs::{Command, Flags, Protocol, RealServer, RealServerConfig, SchedulerName, VirtualServer, VirtualServerConfig};
use nftables::Family;
use service_model::{ObjectName, Scheduler};

use crate::adoption::{Adoption, Drift};
use crate::agenda::Agenda;
use crate::compile::{Compiled, Objects, Priority, scheduler_name};
use crate::drain::{Drained, Drains};
use crate::element::{ElementKey, ElementValue, Place, SetName, family_of};
use crate::kernel::{PresentServer, Snapshot};
use crate::plan::{EndFlows, Key, Op, Phase, Placed, PolicyCommand};
use crate::policy_ledger::PolicyLedger;
use crate::refusals::{Refusals, Refused};
use crate::rules::Rules;
use crate::server_entry::ServerEntry;
use crate::slot::Difference;
use crate::vip_ledger::VipLedger;

mod share;
mod survey;

/// How long a real server of UDP stays after it is gone: an answer may be under way, which is lost with it
/// (`expire_nodest_conn`). Its clients, who may never pause, stay with it as long (L8).
pub const UDP_GRACE: Duration = Duration::from_millis(500);

/// Wanted and present objects.
#[derive(Debug, Default)]
pub struct Ledger {
    servers: HashMap<VirtualServer, ServerEntry>,
    vips: VipLedger,
    policies: PolicyLedger,
    drains: Drains,
    /// How long a real server drains where its service does not say; zero = without end.
    drain_timeout: Duration,
    /// The virtual servers of each service.
    services: HashMap<ObjectName, Vec<VirtualServer>>,
    /// Objects whose two sides may differ since the last share was taken, without the addresses to be added.
    staged: HashSet<Key>,
    /// Objects whose turn has not come yet.
    agenda: Agenda,
    /// Flows that are looked for when the walk before has been paid for, and when that is.
    resting: HashSet<Key>,
    rest_until: Option<Instant>,
    /// Objects that wait for a retry, their own or of what they need.
    parked: HashSet<Key>,
    refused: Refusals,
    /// Objects that the kernel held otherwise than was thought when they were written last.
    surprising: HashSet<Key>,
    /// Schedulers that the kernel turned out to lack; asked for again after the next adoption (T22).
    no_schedulers: HashSet<SchedulerName>,
    /// Virtual servers that have `rr` in place of one of these.
    without_theirs: HashMap<VirtualServer, SchedulerName>,
    /// Objects that were written since a snapshot was asked for.
    written: Option<HashSet<Key>>,
    /// Virtual servers with `rr` that were not told yet.
    fallen_back: Vec<(VirtualServer, SchedulerName)>,
}

/// The scheduler that every kernel with IPVS has where modules are complete, and kube-proxy's default.
fn round_robin() -> SchedulerName {
    scheduler_name(Scheduler::RoundRobin)
}

/// The flows of a virtual server of UDP.
fn flows_of(server: &VirtualServer) -> Option<Key> {
    Place::of(server)
        .filter(|place| place.protocol == Protocol::Udp)
        .map(Key::Flows)
}

/// Flows of insiders are named by where they were sent first; they go on or end with those of where they arrive.
fn stage_redirected_flows(staged: &mut HashSet<Key>, from: Place, to: SocketAddr) {
    let target = Place {
        address: to.ip(),
        port: to.port(),
        protocol: from.protocol,
    };
    let mut redirects = SetName::REDIRECTS.into_iter();
    let redirect = |map| staged.contains(&Key::Element(ElementKey::Place(map, from)));
    let moved = staged.contains(&Key::Flows(target)) || redirects.any(redirect);
    if from.protocol == Protocol::Udp && moved {
        staged.insert(Key::Flows(from));
    }
}

fn without_scheduler(config: VirtualServerConfig) -> VirtualServerConfig {
    VirtualServerConfig {
        scheduler: round_robin(),
        flags: Flags::default(),
        ..config
    }
}

impl Ledger {
    /// An empty ledger. `with_addresses`: VIPs are addresses on `kube-ipvs0`, too, besides their routes (L4).
    /// `drain_timeout`: of services that do not say it, zero = without end (L5).
    pub fn new(with_addresses: bool, drain_timeout: Duration) -> Self {
        Self {
            vips: VipLedger::new(with_addresses),
            drain_timeout,
            ..Self::default()
        }
    }

    /// Takes in what the kernel holds (L2), and tells what of it is not as it was thought to be. What is not ours is left
    /// out: a virtual server is ours where its address is in our table's set of them, or is bound by us, on `kube-ipvs0`
    /// or by a route of ours (L10). One that turns out to be wanted is ours as well; then [`Ledger::learn_server`] brings
    /// it in. What was written since the snapshot was asked for ([`Ledger::watch_writes`]) counts more than it.
    pub fn adopt(&mut self, snapshot: &Snapshot) -> Drift {
        self.surprising.clear();
        let written = self.written.take().unwrap_or_default();
        let mut adoption = Adoption::new(written);
        self.vips.adopt(snapshot, &mut self.staged, &mut adoption);
        self.policies.adopt(&snapshot.tables, &mut self.staged, &mut adoption);
        self.adopt_servers(snapshot, &mut adoption);
        self.find_drains(snapshot);
        let servers = self.servers.keys().copied().collect::<Vec<_>>();
        servers.iter().for_each(|server| self.stage_server(server));
        let redirects = self.policies.redirects();
        redirects.for_each(|(from, to)| stage_redirected_flows(&mut self.staged, from, to));
        adoption.drift
    }

    /// Asks for every scheduler again (T22): somebody may have loaded a module.
    pub fn forget_missing_schedulers(&mut self) {
        self.no_schedulers.clear();
        self.without_theirs.clear();
    }

    /// From now on what is written is noted, until the next [`Ledger::adopt`]: its snapshot may be from before.
    pub fn watch_writes(&mut self) {
        self.written = Some(HashSet::default());
    }

    fn adopt_servers(&mut self, snapshot: &Snapshot, adoption: &mut Adoption) {
        let owned = snapshot.owned();
        let mut present: HashMap<_, _> = snapshot.virtual_servers.iter().map(|it| (it.server, it)).collect();
        for (server, entry) in &mut self.servers {
            entry.adopt(*server, present.remove(server), adoption);
        }
        for (server, found) in present {
            let bound = server.address().is_some_and(|ip| self.vips.holds(ip));
            if (bound || owned.contains(&server)) && adoption.tells(&Key::VirtualServer(server)) {
                let entry = self.servers.entry(server).or_default();
                entry.adopt(server, Some(found), adoption);
            }
        }
    }

    /// Which real servers drained when this began (L5). One of weight 0 without a deadline has passed it, unless there is
    /// no table that could tell, as after another proxy: it drains from now on.
    fn find_drains(&mut self, snapshot: &Snapshot) {
        let quiescent = |(server, real): &Drained| {
            let has = self.servers.get(server).and_then(|entry| entry.real(*real)?.slot.has);
            has.is_some_and(|config| config.weight == 0)
        };
        for table in &snapshot.tables {
            for (key, value) in &table.elements {
                if let (ElementKey::Draining(place, real), ElementValue::For(left)) = (key, value) {
                    let drained = (place.virtual_server(), RealServer { address: *real });
                    if quiescent(&drained) {
                        self.drains.found(drained, Some(*left));
                    }
                }
            }
            for present in &snapshot.virtual_servers {
                let address = present.server.address();
                if address.is_some_and(|address| family_of(address) == table.family) {
                    let all = present.real_servers.iter().map(|(real, _)| (present.server, *real));
                    all.filter(quiescent)
                        .for_each(|drained| self.drains.found(drained, None));
                }
            }
        }
    }

    /// Takes in what the kernel holds of one virtual server; `None` = nothing.
    pub fn learn_server(&mut self, server: &VirtualServer, present: Option<&PresentServer>) {
        let entry = self.servers.entry(*server).or_default();
        entry.slot.has = present.map(|present| present.config);
        entry.real_servers.iter_mut().for_each(|real| real.slot.has = None);
        let reals = present.map_or(&[][..], |present| &present.real_servers);
        entry.make_room(reals.iter().map(|(real, _)| *real));
        for (real, config) in reals {
            entry.real_mut(*real).slot.has = Some(*config);
        }
        self.stage_server(server);
    }

    /// What one service wants from now on, all of it; empty = nothing. Repeating it stages nothing.
    pub fn want(&mut self, service: &ObjectName, priority: Priority, objects: &Objects) {
        self.policies.want(service, &objects.elements, &mut self.staged);
        let before = self.services.remove(service).unwrap_or_default();
        let now: Vec<_> = objects.servers.iter().map(|object| object.server).collect();
        let kept: HashSet<_> = now.iter().copied().collect();
        for object in &objects.servers {
            self.want_server(service, priority, object, objects.drain_timeout);
        }
        for server in before.iter().filter(|server| !kept.contains(server)) {
            self.release(service, server);
        }
        if !now.is_empty() {
            self.services.insert(service.clone(), now);
        }
        for (key, value) in &objects.elements {
            if let (ElementKey::Place(_, from), ElementValue::To(to)) = (key, value) {
                stage_redirected_flows(&mut self.staged, *from, *to);
            }
        }
    }

    /// The rules of a family, which stand as soon as one of its elements does. Repeating it stages nothing.
    pub fn want_rules(&mut self, rules: Rules) {
        self.policies.want_rules(rules, &mut self.staged);
    }

    fn want_server(
        &mut self,
        service: &ObjectName,
        priority: Priority,
        object: &Compiled,
        drain_timeout: Option<Duration>,
    ) {
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
        entry.drain_timeout = drain_timeout;
        let mut flows = false;
        if entry.slot.wanted != Some(config) {
            flows |= entry.slot.wanted.is_none();
            entry.slot.wanted = Some(config);
            self.staged.insert(Key::VirtualServer(object.server));
        }
        let again = entry.slot.has.is_some() && flows;
        flows |= entry.want_reals(object.server, &object.real_servers, &mut self.staged);
        if again {
            // It was about to go, and its real servers with it: those that are not wanted now go alone.
            entry.stage(object.server, &mut self.staged);
        }
        if flows {
            self.staged.extend(flows_of(&object.server));
        }
        let before = std::mem::replace(&mut entry.vip, object.vip);
        for ip in before.into_iter().filter(|_| before != object.vip) {
            self.vips.remove_user(ip, &mut self.staged);
        }
        if let Some(ip) = object.vip {
            self.vips.raise_priority(ip, priority);
            if before != object.vip {
                self.vips.add_user(ip, &mut self.staged);
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
        entry.release();
        let vip = entry.vip.take();
        self.stage_server(server);
        if let Some(ip) = vip {
            self.vips.remove_user(ip, &mut self.staged);
        }
    }

    fn stage_server(&mut self, server: &VirtualServer) {
        if let Some(entry) = self.servers.get(server)
            && entry.stage(*server, &mut self.staged)
        {
            self.staged.extend(flows_of(server));
        }
    }

    /// The op that brings an object to its wanted value; `None` where nothing is to be done, or where it is done by
    /// another one: a virtual server takes its real servers with it.
    fn op(&self, key: &Key, now: Instant) -> Option<Placed> {
        match *key {
            Key::Rules(_) | Key::Element(_) => Some(Placed {
                priority: Priority::Ordinary,
                rank: 0,
                op: Op::Policy(match self.policies.command(key)? {
                    PolicyCommand::Add(ElementKey::Draining(place, real), _) => {
                        let key = (place.virtual_server(), RealServer { address: real });
                        let left = ElementValue::For(self.drains.left(&key, now));
                        PolicyCommand::Add(ElementKey::Draining(place, real), left)
                    }
                    command => command,
                }),
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
                    Difference::Delete if self.drains.waits(&(server, real)) => {
                        let config = found.slot.has.filter(|config| config.weight > 0)?;
                        Command::SetDest(server, real, RealServerConfig { weight: 0, ..config })
                    }
                    Difference::Delete => Command::DelDest(server, real),
                };
                Some(Placed {
                    priority: entry.priority,
                    rank: found.rank,
                    op: Op::Ipvs(command),
                })
            }
            Key::Flows(place) => Some(Placed {
                priority: Priority::Ordinary,
                rank: 0,
                op: Op::Flows(self.end_flows(place)),
            }),
            Key::Route(_) | Key::Address(_) => self.vips.op(key),
        }
    }

    /// L8: who answers at a place, or where it sends insiders.
    fn end_flows(&self, place: Place) -> EndFlows {
        let redirect = self.policies.redirect(place).map(|to| Place {
            address: to.ip(),
            port: to.port(),
            ..place
        });
        let places = [Some(place), redirect].into_iter().flatten();
        let mut keep: Vec<_> = places
            .filter_map(|place| Some(place.virtual_server()).zip(self.servers.get(&place.virtual_server())))
            .flat_map(|(server, entry)| entry.real_servers.iter().map(move |real| (server, real)))
            // Answers of those that leave may be under way.
            .filter(|(server, real)| real.slot.wanted.is_some() || self.drains.waits(&(*server, real.server)))
            .map(|(_, real)| real.server.address)
            .collect();
        keep.sort_unstable();
        keep.dedup();
        EndFlows {
            place,
            keep: keep.into(),
        }
    }

    /// Which of the staged real servers drain: those that the kernel has and nobody wants, while their virtual server is
    /// wanted. Not those of SCTP (L7).
    fn keep_drains(&mut self, now: Instant) {
        let mut marked = Vec::new();
        for key in &self.staged {
            let Key::RealServer(server, real) = key else { continue };
            let Some(place) = Place::of(server).filter(|place| place.protocol != Protocol::Sctp) else {
                continue;
            };
            let entry = self.servers.get(server);
            let found = entry.and_then(|entry| Some((entry, entry.real(*real)?)));
            let drained = (*server, *real);
            let element = ElementKey::Draining(place, real.address);
            match found {
                Some((entry, found))
                    if entry.slot.wanted.is_some() && found.slot.wanted.is_none() && found.slot.has.is_some() =>
                {
                    let timeout = match place.protocol {
                        Protocol::Udp => UDP_GRACE,
                        _ => entry.drain_timeout.unwrap_or(self.drain_timeout),
                    };
                    self.drains
                        .begin(drained, Some(timeout).filter(|timeout| !timeout.is_zero()), now);
                    let waits = self.drains.waits(&drained);
                    // The deadline of one that waits; of UDP, that its flows are to end.
                    let mark = waits == (place.protocol != Protocol::Udp);
                    marked.extend(mark.then_some((element, true)));
                }
                _ if self.drains.end(&drained) => marked.push((element, false)),
                _ => {}
            }
        }
        for (element, wanted) in marked {
            self.policies.want_alone(element, wanted, &mut self.staged);
        }
    }

    /// When the real servers that drain are to be looked at; `None` = none does.
    pub fn next_look(&self) -> Option<Instant> {
        self.drains.next_look()
    }

    /// Virtual servers whose connections are to be counted.
    pub fn begin_look(&mut self, now: Instant) -> Vec<VirtualServer> {
        self.drains.begin_look(now)
    }

    /// Takes in how many connections the real servers of a virtual server have: those that drain and have none, or whose
    /// time is over, go with the next commit. True where there is one.
    pub fn look(&mut self, server: &VirtualServer, connections: &HashMap<RealServer, u32>, now: Instant) -> bool {
        let over = self.drains.look(server, connections, now);
        self.staged
            .extend(over.iter().map(|real| Key::RealServer(*server, *real)));
        if let (Some(flows), false) = (flows_of(server), over.is_empty()) {
            self.staged.insert(flows);
            let redirects = self.policies.redirects();
            redirects.for_each(|(from, to)| stage_redirected_flows(&mut self.staged, from, to));
        }
        !over.is_empty()
    }

    /// Real servers that drain.
    pub fn draining(&self) -> usize {
        self.drains.len()
    }

    /// The object is not as it was thought to be. False where it was so before, and has not been written since.
    pub fn surprise(&mut self, key: Key) -> bool {
        self.surprising.insert(key)
    }

    /// The op was executed: the kernel now has its value.
    pub fn done(&mut self, op: &Op) {
        self.surprising.remove(&op.key());
        let late = self.refused.remove(&op.key());
        if let Some(written) = &mut self.written {
            written.insert(op.key());
            // A virtual server takes its real servers with it.
            if let Op::Ipvs(Command::DelService(server)) = op {
                let reals = self
                    .servers
                    .get(server)
                    .into_iter()
                    .flat_map(|entry| &entry.real_servers);
                written.extend(reals.map(|real| Key::RealServer(*server, real.server)));
            }
        }
        match *op {
            Op::Flows(_) => {
                self.staged.remove(&op.key());
                return;
            }
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
            Op::Vip(command) => self.vips.done(command),
        }
        self.staged.insert(op.key());
        if let (Op::Ipvs(command), true) = (op, late) {
            // Its flows were ended before it was gone.
            self.staged.extend(flows_of(command.virtual_server()));
        }
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
        let in_background = op.phase() == Phase::Addresses;
        self.refused.add(op.key(), in_background, reason, now);
    }

    /// What the kernel refused and was not yet made good.
    pub fn refused(&self) -> impl Iterator<Item = (&Key, &Refused)> {
        self.refused.iter()
    }

    /// No flows are looked for before then.
    pub fn rest_flows(&mut self, until: Instant) {
        self.rest_until = Some(until);
    }

    /// When the next op is due that was refused, or that rests.
    pub fn next_retry(&self) -> Option<Instant> {
        let rest = self.rest_until.filter(|_| !self.resting.is_empty());
        rest.into_iter().chain(self.refused.next()).min()
    }

    /// The service that wants this virtual server.
    pub fn owner(&self, server: &VirtualServer) -> Option<&ObjectName> {
        self.servers.get(server)?.owner.as_ref()
    }

    /// The kernel is thought to have this route or address.
    pub fn has_vip(&self, key: &Key) -> bool {
        self.vips.has(key)
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
}
