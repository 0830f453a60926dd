//! The running kernel behind the seam: IPVS, rtnetlink and nf_tables, in this thread's network namespace.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};

use conntrack::{Conntrack, Filter, Flow, Passes};
use foldhash::{HashMap, HashSet};
use ipvs::{Command, Counters, Ipvs, RealServer, RealServerConfig, RealServerState, VipCommand, Vips, VirtualServer};
use nftables::{Family, Nftables};
use tracing::warn;

use crate::element::{ElementKey, ElementValue, SetName};
use crate::kernel::{Kernel, KernelBroken, OpError, PresentServer, PresentTable, Snapshot, chain};
use crate::node_port_set::{self, FormerNodePort};
use crate::plan::{EndFlows, Op, PolicyCommand};
use crate::rules;

/// Sockets to the running kernel. Must be used in the thread, or at least in the network namespace, that opened it.
#[derive(Debug)]
pub struct LiveKernel {
    ipvs: Ipvs,
    vips: Vips,
    nftables: Nftables,
    conntrack: Conntrack,
    /// A kube-proxy's ipsets were looked for, and are not there.
    no_former: bool,
}

/// What went over the sockets of a [`LiveKernel`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveCounters {
    /// IPVS.
    pub ipvs: Counters,
    /// rtnetlink.
    pub route: Counters,
    /// nf_tables.
    pub nftables: Counters,
    /// The connection tracker.
    pub conntrack: Counters,
}

/// Ops of one transaction. A transaction is one `sendmsg`, of some 100 bytes an op.
const TRANSACTION: usize = 100_000;

impl LiveKernel {
    /// Opens its sockets in this thread's network namespace; it makes no device.
    ///
    /// # Errors
    /// Where one cannot be opened; [`ipvs::Error::is_unsupported`] where the kernel has no IPVS.
    pub fn open() -> Result<Self, KernelBroken> {
        Ok(Self {
            ipvs: Ipvs::open().map_err(broken("open IPVS"))?,
            vips: Vips::open().map_err(broken("open routes and addresses"))?,
            nftables: Nftables::open().map_err(broken("open nf_tables"))?,
            conntrack: Conntrack::open().map_err(broken("open the connection tracker"))?,
            no_former: false,
        })
    }

    /// Port of the socket that writes the policy tables: what it does is no change by others.
    pub fn tables_port(&self) -> u32 {
        self.nftables.port()
    }

    /// For what is set up once.
    pub fn ipvs(&mut self) -> &mut Ipvs {
        &mut self.ipvs
    }

    /// For what is set up once.
    pub fn vips(&mut self) -> &mut Vips {
        &mut self.vips
    }

    /// What went over its sockets so far.
    pub fn counters(&self) -> LiveCounters {
        LiveCounters {
            ipvs: self.ipvs.counters(),
            route: self.vips.counters(),
            nftables: self.nftables.counters(),
            conntrack: self.conntrack.counters(),
        }
    }

    /// Read as long as there are any. Not worth a failure: without it, what is not wanted of them stays.
    fn former_node_ports(&mut self) -> Vec<FormerNodePort> {
        if self.no_former {
            return Vec::new();
        }
        let found = node_port_set::former_node_ports().unwrap_or_else(|error| {
            warn!(%error, "kube-proxy's ipsets cannot be read, NodePorts that only it had may stay");
            Vec::new()
        });
        self.no_former = found.is_empty();
        found
    }

    fn table(&mut self, family: Family) -> Result<Option<PresentTable>, KernelBroken> {
        let rules = self
            .nftables
            .rules(&rules::table(family))
            .map_err(broken("list rules"))?;
        if rules.is_empty() {
            return Ok(None);
        }
        // A chain's rules are in order; chains come as they were made.
        let mut rules = rules;
        rules.sort_by(|a, b| a.0.cmp(&b.0));
        let mut elements = Vec::new();
        for set in SetName::ALL {
            elements.extend(self.elements(family, set)?);
        }
        Ok(Some(PresentTable {
            family,
            rules,
            elements,
        }))
    }

    /// The elements of a set that we could have written; none where it is not there.
    fn elements(&mut self, family: Family, set: SetName) -> Result<Vec<(ElementKey, ElementValue)>, KernelBroken> {
        match self.nftables.elements(&rules::table(family), &set.definition(family)) {
            Ok(found) => Ok(found
                .iter()
                .filter_map(|element| ElementKey::read(set, family, element))
                .collect()),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(broken("list elements")(error)),
        }
    }

    fn real_servers(&mut self, server: &VirtualServer) -> Result<Vec<(RealServer, RealServerConfig)>, KernelBroken> {
        let found = self.ipvs.real_servers(server).map_err(broken("list real servers"))?;
        Ok(found.into_iter().map(|real| (real.server, real.config)).collect())
    }

    /// A look or two at the connection tracker for each family, however many places there are (L8).
    fn end_flows(&mut self, all: &[&EndFlows]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        let mut answers = vec![Ok(()); all.len()];
        for family in [conntrack::Family::V4, conntrack::Family::V6] {
            let of_family = |flows: &&EndFlows| conntrack::Family::of(flows.place.address) == family;
            let keep: HashMap<SocketAddr, &[SocketAddr]> = all
                .iter()
                .copied()
                .filter(of_family)
                .map(|flows| (flows.place.socket(), &*flows.keep))
                .collect();
            let endpoints: HashSet<SocketAddr> = keep.values().copied().flatten().copied().collect();
            let stale = |flow: &Flow| {
                let keep = keep.get(&flow.original.destination);
                keep.is_some_and(|keep| keep.binary_search(&flow.reply_source).is_err())
            };
            // An answer that came when its flow was ended began a flow of its own, from which the next flow of its client
            // could not be told.
            let astray = |flow: &Flow| !flow.answered && !flow.translated && endpoints.contains(&flow.original.source);
            let looks = match keep.keys().next() {
                None => continue,
                Some(place) if keep.len() == 1 => {
                    let ports: BTreeSet<u16> = endpoints.iter().map(SocketAddr::port).collect();
                    let from = ports.into_iter().map(|port| Filter::udp_from_port(family, port));
                    from.chain([Filter::udp_to(*place)]).collect()
                }
                Some(_) => vec![Filter::udp(family)],
            };
            let mut end = |filter: &Filter| self.conntrack.delete_where(filter, |flow| stale(flow) || astray(flow));
            let Err(error) = looks.iter().try_for_each(|filter| end(filter).map(drop)) else {
                continue;
            };
            if error.errno().is_none() {
                return Err(broken("end flows")(error));
            }
            let refused = OpError {
                errno: error.errno().unwrap_or_default(),
                reason: chain(&error).into(),
            };
            for (answer, _) in answers.iter_mut().zip(all).filter(|(_, flows)| of_family(flows)) {
                *answer = Err(refused.clone());
            }
        }
        Ok(answers)
    }

    /// One transaction; what is refused is left out and the rest tried again.
    fn transaction(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        let mut answers = vec![Ok(()); ops.len()];
        let mut left: Vec<usize> = (0..ops.len()).collect();
        while !left.is_empty() {
            // Which op each command belongs to.
            let (mut commands, mut owners) = (Vec::new(), Vec::new());
            for at in &left {
                if let Some(Op::Policy(command)) = ops.get(*at) {
                    commands.extend(nft(command));
                    owners.resize(commands.len(), *at);
                }
            }
            let replies = self
                .nftables
                .transaction(&commands)
                .map_err(broken("send a transaction"))?;
            let before = left.len();
            for (owner, reply) in owners.iter().zip(replies) {
                if let (Err(error), Some(answer)) = (reply, answers.get_mut(*owner)) {
                    *answer = Err(OpError {
                        errno: error.errno,
                        reason: error.to_string().into(),
                    });
                    left.retain(|at| at != owner);
                }
            }
            if left.len() == before {
                break;
            }
        }
        Ok(answers)
    }
}

/// A command as nf_tables' own.
fn nft(command: &PolicyCommand) -> Vec<nftables::Command> {
    let place = |key: &ElementKey| (rules::table(key.family()), key.set().definition(key.family()));
    let add = |key: &ElementKey, value| {
        let (table, set) = place(key);
        nftables::Command::AddElements(table, set, vec![key.element(value)])
    };
    let delete = |key: &ElementKey| {
        let (table, set) = place(key);
        nftables::Command::DeleteElements(table, set, vec![key.element(ElementValue::There)])
    };
    match command {
        PolicyCommand::Install(rules) => rules.commands(),
        PolicyCommand::Add(key, value) => vec![add(key, *value)],
        PolicyCommand::Replace(key, value) => vec![delete(key), add(key, *value)],
        PolicyCommand::Revoke(key) | PolicyCommand::Delete(key) => vec![delete(key)],
    }
}

impl Kernel for LiveKernel {
    fn read(&mut self) -> Result<Snapshot, KernelBroken> {
        // Real servers from the text table, which is the only list of all of them; the rest of a virtual server
        // (flags, timeout in seconds) by one netlink dump.
        let table = ipvs::proc_table::read().map_err(broken("read /proc/net/ip_vs"))?;
        let mut real_servers: HashMap<_, _> = table
            .into_iter()
            .map(|entry| {
                let reals = entry.real_servers.iter().map(|real| {
                    (
                        real.server,
                        RealServerConfig {
                            forward: real.forward,
                            ..RealServerConfig::masquerade(real.weight)
                        },
                    )
                });
                (entry.server, reals.collect())
            })
            .collect();
        let virtual_servers = self.ipvs.virtual_servers().map_err(broken("list virtual servers"))?;
        let mut servers = Vec::with_capacity(virtual_servers.len());
        for state in virtual_servers {
            let reals = match real_servers.remove(&state.server) {
                Some(reals) => reals,
                // A list that is read while the kernel moves its entries into a larger table may lack some (Linux 7.x).
                None => self.real_servers(&state.server)?,
            };
            servers.push(PresentServer {
                server: state.server,
                config: state.config,
                real_servers: reals,
            });
        }
        let routes = self.vips.routes().map_err(broken("list routes"))?;
        let addresses = self.vips.addresses().map_err(broken("list addresses of kube-ipvs0"))?;
        // The kernel gives a device an IPv6 link-local address of its own; it is nobody's VIP (k/k#70113).
        let is_own = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let addresses = addresses.into_iter().filter(|ip| !is_own(ip)).collect();
        let mut tables = Vec::new();
        for family in [Family::Ip, Family::Ip6] {
            tables.extend(self.table(family)?);
        }
        Ok(Snapshot {
            virtual_servers: servers,
            routes,
            addresses,
            tables,
            former_node_ports: self.former_node_ports(),
        })
    }

    fn read_virtual_server(&mut self, server: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken> {
        let Some(state) = self
            .ipvs
            .virtual_server(server)
            .map_err(broken("read a virtual server"))?
        else {
            return Ok(None);
        };
        Ok(Some(PresentServer {
            server: state.server,
            config: state.config,
            real_servers: self.real_servers(server)?,
        }))
    }

    fn connections(&mut self, server: &VirtualServer) -> Result<HashMap<RealServer, u32>, KernelBroken> {
        let found = self.ipvs.real_servers(server).map_err(broken("count connections"))?;
        let count = |real: RealServerState| (real.server, real.active.saturating_add(real.inactive));
        Ok(found.into_iter().map(count).collect())
    }

    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        let mut answers = Vec::with_capacity(ops.len());
        // Ops of one kind that stand together go in one batch.
        for run in ops.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
            match run.first() {
                None => {}
                Some(Op::Policy(_)) => {
                    for run in run.chunks(TRANSACTION) {
                        answers.extend(self.transaction(run)?);
                    }
                }
                Some(Op::Ipvs(_)) => {
                    let commands = run
                        .iter()
                        .filter_map(|op| if let Op::Ipvs(c) = op { Some(*c) } else { None });
                    let commands: Vec<Command> = commands.collect();
                    let replies = self.ipvs.execute(&commands).map_err(broken("send IPVS commands"))?;
                    answers.extend(replies.into_iter().map(refused));
                }
                Some(Op::Flows(_)) => {
                    let flows = run
                        .iter()
                        .filter_map(|op| if let Op::Flows(f) = op { Some(f) } else { None });
                    answers.extend(self.end_flows(&flows.collect::<Vec<_>>())?);
                }
                Some(Op::Vip(_)) => {
                    let commands = run
                        .iter()
                        .filter_map(|op| if let Op::Vip(c) = op { Some(*c) } else { None });
                    let commands: Vec<VipCommand> = commands.collect();
                    let replies = self
                        .vips
                        .execute(&commands)
                        .map_err(broken("send routes and addresses"))?;
                    answers.extend(replies.into_iter().map(refused));
                }
            }
        }
        Ok(answers)
    }

    fn passes(&self) -> [Passes; 2] {
        self.conntrack.passes()
    }
}

fn broken<E: std::error::Error + Send + Sync + 'static>(operation: &'static str) -> impl Fn(E) -> KernelBroken {
    move |error| KernelBroken {
        operation,
        source: Box::new(error),
    }
}

fn refused(answer: Result<(), ipvs::Error>) -> Result<(), OpError> {
    answer.map_err(|error| OpError {
        errno: error.errno().unwrap_or_default(),
        // The op itself is at hand wherever this is read.
        reason: error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string)
            .into(),
    })
}
