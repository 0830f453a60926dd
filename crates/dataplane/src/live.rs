//! The running kernel behind the seam: IPVS and rtnetlink, in this thread's network namespace.

use std::error::Error as _;
use std::net::IpAddr;

use ipvs::{Command, Counters, Ipvs, RealServerConfig, VipCommand, Vips, VirtualServer};
use rustc_hash::FxHashMap;

use crate::kernel::{Kernel, KernelBroken, OpError, PresentServer, Snapshot};
use crate::plan::Op;

/// Sockets to the running kernel. Must be used in the thread, or at least in the network namespace, that opened it.
#[derive(Debug)]
pub struct LiveKernel {
    ipvs: Ipvs,
    vips: Vips,
}

/// What went over the sockets of a [`LiveKernel`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveCounters {
    /// IPVS.
    pub ipvs: Counters,
    /// rtnetlink.
    pub route: Counters,
}

impl LiveKernel {
    /// Over sockets that are open already.
    pub fn new(ipvs: Ipvs, vips: Vips) -> Self {
        Self { ipvs, vips }
    }

    /// What went over its sockets so far.
    pub fn counters(&self) -> LiveCounters {
        LiveCounters {
            ipvs: self.ipvs.counters(),
            route: self.vips.counters(),
        }
    }
}

impl Kernel for LiveKernel {
    fn read(&mut self) -> Result<Snapshot, KernelBroken> {
        // Real servers from the text table, which is the only list of all of them; the rest of a virtual server
        // (flags, timeout in seconds) by one netlink dump.
        let table = ipvs::proc_table::read().map_err(broken("read /proc/net/ip_vs"))?;
        let mut real_servers: FxHashMap<_, _> = table
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
        let virtual_servers = virtual_servers
            .into_iter()
            .map(|state| PresentServer {
                server: state.server,
                config: state.config,
                real_servers: real_servers.remove(&state.server).unwrap_or_default(),
            })
            .collect();
        let routes = self.vips.routes().map_err(broken("list routes"))?;
        let addresses = self.vips.addresses().map_err(broken("list addresses of kube-ipvs0"))?;
        // The kernel gives a device an IPv6 link-local address of its own; it is nobody's VIP (k/k#70113).
        let is_own = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let addresses = addresses.into_iter().filter(|ip| !is_own(ip)).collect();
        Ok(Snapshot {
            virtual_servers,
            routes,
            addresses,
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
        let real_servers = self.ipvs.real_servers(server).map_err(broken("list real servers"))?;
        let real_servers = real_servers
            .into_iter()
            .map(|real| (real.server, real.config))
            .collect();
        Ok(Some(PresentServer {
            server: state.server,
            config: state.config,
            real_servers,
        }))
    }

    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        let mut answers = Vec::with_capacity(ops.len());
        // Ops of one kind that stand together go in one batch.
        for run in ops.chunk_by(|a, b| matches!((a, b), (Op::Ipvs(_), Op::Ipvs(_)) | (Op::Vip(_), Op::Vip(_)))) {
            let commands: Vec<Command> = run
                .iter()
                .filter_map(|op| if let Op::Ipvs(c) = op { Some(*c) } else { None })
                .collect();
            if commands.is_empty() {
                let commands: Vec<VipCommand> = run
                    .iter()
                    .filter_map(|op| if let Op::Vip(c) = op { Some(*c) } else { None })
                    .collect();
                answers.extend(
                    self.vips
                        .execute(&commands)
                        .map_err(broken("send routes and addresses"))?
                        .into_iter()
                        .map(refused),
                );
            } else {
                answers.extend(
                    self.ipvs
                        .execute(&commands)
                        .map_err(broken("send IPVS commands"))?
                        .into_iter()
                        .map(refused),
                );
            }
        }
        Ok(answers)
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
