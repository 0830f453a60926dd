//! Ordered changes of the kernel, printable before they happen.

use std::fmt;
use std::net::IpAddr;

use ipvs::{Command, RealServer, VipCommand, VirtualServer};

use crate::compile::Priority;

/// One change of one object in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A virtual or real server.
    Ipvs(Command),
    /// A VIP's route or address.
    Vip(VipCommand),
}

/// Identity of an object in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A virtual server.
    VirtualServer(VirtualServer),
    /// A real server of a virtual server.
    RealServer(VirtualServer, RealServer),
    /// The local route of a VIP.
    Route(IpAddr),
    /// A VIP's address on `kube-ipvs0`.
    Address(IpAddr),
}

/// The step of a commit that an op belongs to; ARCHITECTURE.md has the table with the reasons.
/// The numbers are the table's, so the steps of the policy tables (1, 8) and of conntrack (9) have their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Add or change virtual servers.
    VirtualServers = 2,
    /// Add real servers, raise weights.
    RealServers = 3,
    /// Local routes of new VIPs: now they are live.
    Routes = 4,
    /// Weights to 0, real servers out.
    RealServersOut = 5,
    /// Routes and addresses of gone VIPs.
    VipsOut = 6,
    /// Virtual servers out.
    VirtualServersOut = 7,
    /// Addresses on `kube-ipvs0`; nothing waits for them.
    Addresses = 10,
}

impl Phase {
    /// Phases up to this one only add; they are ordered by priority first (L3).
    fn adds(self) -> bool {
        self <= Self::Routes
    }
}

impl Op {
    /// The step it belongs to.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Ipvs(Command::NewService(..) | Command::SetService(..)) => Phase::VirtualServers,
            Self::Ipvs(Command::SetDest(_, _, config)) if config.weight == 0 => Phase::RealServersOut,
            Self::Ipvs(Command::NewDest(..) | Command::SetDest(..)) => Phase::RealServers,
            Self::Ipvs(Command::DelDest(..)) => Phase::RealServersOut,
            Self::Ipvs(Command::DelService(_)) => Phase::VirtualServersOut,
            Self::Vip(VipCommand::AddRoute(_)) => Phase::Routes,
            Self::Vip(VipCommand::AddAddress(_)) => Phase::Addresses,
            Self::Vip(VipCommand::DelRoute(_) | VipCommand::DelAddress(_)) => Phase::VipsOut,
        }
    }

    /// The object that it changes.
    pub fn key(&self) -> Key {
        match *self {
            Self::Ipvs(
                Command::NewService(server, _) | Command::SetService(server, _) | Command::DelService(server),
            ) => Key::VirtualServer(server),
            Self::Ipvs(Command::NewDest(server, real, _) | Command::SetDest(server, real, _))
            | Self::Ipvs(Command::DelDest(server, real)) => Key::RealServer(server, real),
            Self::Vip(VipCommand::AddRoute(ip) | VipCommand::DelRoute(ip)) => Key::Route(ip),
            Self::Vip(VipCommand::AddAddress(ip) | VipCommand::DelAddress(ip)) => Key::Address(ip),
        }
    }
}

impl Key {
    /// The virtual server that it is or belongs to.
    pub fn virtual_server(&self) -> Option<&VirtualServer> {
        match self {
            Self::VirtualServer(server) | Self::RealServer(server, _) => Some(server),
            Self::Route(_) | Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VirtualServers => "virtual servers",
            Self::RealServers => "real servers",
            Self::Routes => "routes",
            Self::RealServersOut => "real servers out",
            Self::VipsOut => "vips out",
            Self::VirtualServersOut => "virtual servers out",
            Self::Addresses => "addresses",
        })
    }
}

impl fmt::Display for Op {
    /// The line that the standard tool takes: `ipvsadm -R`, `ip -batch -`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipvs(command) => command.fmt(f),
            Self::Vip(command) => command.fmt(f),
        }
    }
}

impl fmt::Display for Key {
    /// `virtual server 10.96.0.1:443/TCP`, `real server 10.0.0.1:6443 of 10.96.0.1:443/TCP`, `route 10.96.0.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtualServer(server) => write!(f, "virtual server {server}"),
            Self::RealServer(server, real) => write!(f, "real server {real} of {server}"),
            Self::Route(ip) => write!(f, "route {ip}"),
            Self::Address(ip) => write!(f, "address {ip}"),
        }
    }
}

/// What is to be done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    ops: Vec<Op>,
}

/// An op with what decides its place.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Priority of its service.
    pub priority: Priority,
    /// Place among the real servers of one virtual server (T23).
    pub rank: u32,
    /// The op.
    pub op: Op,
}

impl Plan {
    /// Puts ops in order: what adds goes by priority, then phase; what removes comes after all of that, by phase.
    /// Within a phase by object, so that the same changes always give the same plan.
    pub fn new(mut placed: Vec<Placed>) -> Self {
        placed.sort_by_cached_key(|placed| {
            let phase = placed.op.phase();
            let priority = phase.adds().then_some(placed.priority);
            let (server, real) = match placed.op.key() {
                Key::RealServer(server, real) => (Key::VirtualServer(server), Some(real)),
                key => (key, None),
            };
            (priority.is_none(), priority, phase, server, placed.rank, real)
        });
        Self {
            ops: placed.into_iter().map(|placed| placed.op).collect(),
        }
    }

    /// The ops, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Puts another plan behind this one.
    pub fn append(&mut self, later: Self) {
        self.ops.extend(later.ops);
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Adjacent ops that can be sent together: those before a VIP goes live, its route, and so on.
    /// Within a step the kernel keeps the order; between steps the answers decide what is still sent.
    pub fn steps(&self) -> impl Iterator<Item = &[Op]> {
        self.ops.chunk_by(|a, b| {
            let phases = (a.phase(), b.phase());
            // A virtual server and its real servers are one table's business, and the kernel keeps the order.
            phases.0 == phases.1 || phases == (Phase::VirtualServers, Phase::RealServers)
        })
    }
}

impl fmt::Display for Plan {
    /// One op a line; empty for an empty plan.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for op in &self.ops {
            writeln!(f, "{op}")?;
        }
        Ok(())
    }
}
