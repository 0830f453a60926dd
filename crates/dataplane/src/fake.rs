//! A kernel in memory: tables with references checked, the errno that the real one gives, and faults on demand.
//!
//! The conformance tests run the same ops against this and the real kernel, which keeps it honest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use foldhash::HashMap;
use ipnet::Ipv4Net;
use ipvs::{Command, RealServer, RealServerConfig, SchedulerName, VipCommand, VirtualServer, VirtualServerConfig};
use nftables::Family;
use service_model::Scheduler;

use crate::compile::scheduler_name;
use crate::element::{ElementKey, ElementValue, Place};
use crate::kernel::{Kernel, KernelBroken, OpError, PresentServer, PresentTable, Snapshot};
use crate::plan::{Op, PolicyCommand};

type Table = BTreeMap<VirtualServer, (VirtualServerConfig, BTreeMap<RealServer, RealServerConfig>)>;

/// Rules and elements of a policy table.
#[derive(Clone, Debug)]
struct PolicyTable {
    rules: Vec<(String, Vec<u8>)>,
    elements: BTreeMap<ElementKey, ElementValue>,
}

/// The fake kernel.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    table: Table,
    routes: BTreeSet<IpAddr>,
    addresses: BTreeSet<IpAddr>,
    /// By family: rules and elements.
    policies: BTreeMap<Family, PolicyTable>,
    /// UDP flows: where clients send, and who answers.
    pub flows: BTreeSet<(Place, SocketAddr)>,
    /// Connections of real servers; none where nothing is said.
    pub connections: BTreeMap<(VirtualServer, RealServer), u32>,
    /// Every op that reached it, with what was answered.
    pub log: Vec<(Op, Result<(), i32>)>,
    /// Calls of `execute` with at least one op.
    pub batches: usize,
    /// Faults to come: the op with this number (counted from 0 over the kernel's life) gets this errno.
    pub faults: BTreeMap<usize, i32>,
    /// Ops with this number or a higher one are not executed, and the way to the kernel is broken: the process was
    /// killed, or the socket was.
    pub stop_at: Option<usize>,
    /// Schedulers whose modules it lacks: ENOENT (T22).
    pub missing_schedulers: BTreeSet<SchedulerName>,
}

impl FakeKernel {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tables alone, for comparison.
    pub fn tables(&self) -> Snapshot {
        Snapshot {
            virtual_servers: self.table.keys().filter_map(|server| self.present(server)).collect(),
            routes: self.routes.iter().copied().collect(),
            addresses: self.addresses.iter().copied().collect(),
            tables: self.policies.iter().map(present_table).collect(),
            former_node_ports: Vec::new(),
        }
    }

    /// Somebody deletes a policy table.
    pub fn drop_table(&mut self, family: Family) {
        self.policies.remove(&family);
    }

    /// One op as the kernel does it.
    ///
    /// # Errors
    /// With the errno of the real kernel.
    pub fn apply(&mut self, op: &Op) -> Result<(), i32> {
        match *op {
            Op::Policy(ref command) => self.apply_policy(command),
            Op::Ipvs(command) => self.apply_ipvs(command),
            Op::Flows(ref flows) => {
                self.flows
                    .retain(|(place, answers)| *place != flows.place || flows.keep.contains(answers));
                Ok(())
            }
            Op::Vip(VipCommand::AddRoute(ip)) => self.routes.insert(ip).then_some(()).ok_or(libc::EEXIST),
            Op::Vip(VipCommand::DelRoute(ip)) => self.routes.remove(&ip).then_some(()).ok_or(libc::ESRCH),
            Op::Vip(VipCommand::AddAddress(ip)) => self.addresses.insert(ip).then_some(()).ok_or(libc::EEXIST),
            Op::Vip(VipCommand::DelAddress(ip)) => self.addresses.remove(&ip).then_some(()).ok_or(libc::EADDRNOTAVAIL),
        }
    }

    fn apply_policy(&mut self, command: &PolicyCommand) -> Result<(), i32> {
        if let PolicyCommand::Install(rules) = command {
            let table = PolicyTable {
                rules: rules.fingerprints(),
                elements: BTreeMap::new(),
            };
            self.policies.insert(rules.family, table);
            return Ok(());
        }
        let (key, value) = match *command {
            PolicyCommand::Install(_) => return Ok(()),
            PolicyCommand::Add(key, value) => (key, Some(value)),
            PolicyCommand::Replace(key, value) => {
                self.apply_policy(&PolicyCommand::Delete(key))?;
                (key, Some(value))
            }
            PolicyCommand::Revoke(key) | PolicyCommand::Delete(key) => (key, None),
        };
        let elements = &mut self.policies.get_mut(&key.family()).ok_or(libc::ENOENT)?.elements;
        let Some(value) = value else {
            return elements.remove(&key).map(drop).ok_or(libc::ENOENT);
        };
        // The kernel looks for the ends of the new one alone (net/netfilter/nft_set_pipapo.c, `nft_pipapo_insert`): one
        // that lies within is not seen.
        let overlaps = match key {
            ElementKey::Source(place, new) => {
                let least = ElementKey::Source(place, Ipv4Net::default().into());
                let of_place = elements.range(least..).map_while(|(other, _)| match other {
                    ElementKey::Source(at, range) if *at == place => Some(range),
                    _ => None,
                });
                let mut others = of_place.filter(|range| **range != new);
                others.any(|range| range.contains(&new.network()) || range.contains(&new.broadcast()))
            }
            _ => false,
        };
        // Who adds an element again does not change its time (before Linux 6.12; later ones do).
        if let (Some(ElementValue::For(_)), ElementValue::For(_)) = (elements.get(&key), value) {
            return Ok(());
        }
        if elements.get(&key).is_some_and(|there| *there != value) || overlaps {
            return Err(libc::EEXIST);
        }
        elements.insert(key, value);
        Ok(())
    }

    fn apply_ipvs(&mut self, command: Command) -> Result<(), i32> {
        match command {
            Command::NewService(server, config) => {
                if self.table.contains_key(&server) {
                    return Err(libc::EEXIST);
                }
                self.known_scheduler(&config)?;
                self.table.insert(server, (config, BTreeMap::new()));
            }
            Command::SetService(server, config) => {
                if !self.table.contains_key(&server) {
                    return Err(libc::ESRCH);
                }
                self.known_scheduler(&config)?;
                self.table.entry(server).and_modify(|(present, _)| *present = config);
            }
            Command::DelService(server) => drop(self.table.remove(&server).ok_or(libc::ESRCH)?),
            Command::NewDest(server, real, config) => {
                let (_, reals) = self.table.get_mut(&server).ok_or(libc::ESRCH)?;
                if reals.contains_key(&real) {
                    return Err(libc::EEXIST);
                }
                reals.insert(real, config);
            }
            Command::SetDest(server, real, config) => {
                let (_, reals) = self.table.get_mut(&server).ok_or(libc::ESRCH)?;
                *reals.get_mut(&real).ok_or(libc::ENOENT)? = config;
            }
            Command::DelDest(server, real) => {
                let (_, reals) = self.table.get_mut(&server).ok_or(libc::ESRCH)?;
                reals.remove(&real).ok_or(libc::ENOENT)?;
            }
        }
        Ok(())
    }

    fn known_scheduler(&self, config: &VirtualServerConfig) -> Result<(), i32> {
        let known = Scheduler::ALL
            .iter()
            .any(|scheduler| scheduler_name(*scheduler) == config.scheduler);
        let there = known && !self.missing_schedulers.contains(&config.scheduler);
        there.then_some(()).ok_or(libc::ENOENT)
    }

    fn present(&self, server: &VirtualServer) -> Option<PresentServer> {
        let (config, reals) = self.table.get(server)?;
        let real_servers = reals.iter().map(|(real, config)| (*real, *config)).collect();
        Some(PresentServer {
            server: *server,
            config: *config,
            real_servers,
        })
    }
}

impl Kernel for FakeKernel {
    fn read(&mut self) -> Result<Snapshot, KernelBroken> {
        Ok(self.tables())
    }

    fn read_virtual_server(&mut self, server: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken> {
        Ok(self.present(server))
    }

    fn connections(&mut self, server: &VirtualServer) -> Result<HashMap<RealServer, u32>, KernelBroken> {
        let reals = self.table.get(server).map(|(_, reals)| reals.keys().copied());
        let count = |real| {
            (
                real,
                self.connections.get(&(*server, real)).copied().unwrap_or_default(),
            )
        };
        Ok(reals.into_iter().flatten().map(count).collect())
    }

    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        self.batches += usize::from(!ops.is_empty());
        let mut answers = Vec::with_capacity(ops.len());
        for (at, op) in ops.iter().enumerate() {
            let number = self.log.len();
            // A transaction happens as a whole, or not at all.
            let last = if matches!(op, Op::Policy(_)) {
                let rest = ops.get(at..).unwrap_or_default();
                number + rest.iter().take_while(|op| matches!(op, Op::Policy(_))).count() - 1
            } else {
                number
            };
            if self.stop_at.is_some_and(|stop| last >= stop) {
                return Err(KernelBroken {
                    operation: "send ops",
                    source: "stopped by the test".into(),
                });
            }
            let answer = match self.faults.remove(&number) {
                Some(errno) => Err(errno),
                None => self.apply(op),
            };
            self.log.push((op.clone(), answer));
            answers.push(answer.map_err(|errno| OpError {
                errno,
                reason: format!("{op}: errno {errno}").into(),
            }));
        }
        Ok(answers)
    }
}

fn present_table((family, table): (&Family, &PolicyTable)) -> PresentTable {
    PresentTable {
        family: *family,
        rules: table.rules.clone(),
        elements: table.elements.iter().map(|(key, value)| (*key, *value)).collect(),
    }
}
