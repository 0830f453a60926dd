//! Ordered changes of the kernel, printable before they happen.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipvs::{Command, RealServer, VipCommand, VirtualServer};
use nftables::Family;

use crate::compile::Priority;
use crate::element::{ElementKey, ElementValue, Place};
use crate::rules::{Rules, table};

/// One change of one object in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A rule set, or an element of one.
    Policy(PolicyCommand),
    /// A virtual or real server.
    Ipvs(Command),
    /// A VIP's route or address.
    Vip(VipCommand),
    /// UDP flows of a place in the connection tracker.
    Flows(EndFlows),
}

/// Ends the UDP flows of a place that none of its endpoints answers: begun when it had others, or before it was there
/// (L8). None there = fine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndFlows {
    /// Where clients send.
    pub place: Place,
    /// Endpoints whose flows go on, sorted.
    pub keep: Arc<[SocketAddr]>,
}

/// One change of the policy tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyCommand {
    /// Makes a table with its rules, whatever was there. Its elements are gone then.
    Install(Arc<Rules>),
    /// Adds an element. There with the same value: fine; with another one, or overlapping: EEXIST. No table: ENOENT.
    Add(ElementKey, ElementValue),
    /// Gives an element another value. Missing: ENOENT.
    Replace(ElementKey, ElementValue),
    /// Removes an element in one transaction with what stands in for it. Missing: ENOENT.
    Revoke(ElementKey),
    /// Removes an element. Missing: ENOENT.
    Delete(ElementKey),
}

/// Identity of an object in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A policy table with its rules.
    Rules(Family),
    /// An element of a policy table.
    Element(ElementKey),
    /// A virtual server.
    VirtualServer(VirtualServer),
    /// A real server of a virtual server.
    RealServer(VirtualServer, RealServer),
    /// The local route of a VIP.
    Route(IpAddr),
    /// A VIP's address on `kube-ipvs0`.
    Address(IpAddr),
    /// The UDP flows of a place.
    Flows(Place),
}

/// The step of a commit that an op belongs to; ARCHITECTURE.md has the table with the reasons.
/// The numbers are the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Rules, and elements added: a VIP must not answer before they stand.
    Policies = 1,
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
    /// Elements out: nothing looks at them any more.
    PoliciesOut = 8,
    /// Flows of UDP endpoints that are gone: while the real server stands they would come back.
    Flows = 9,
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
            Self::Policy(PolicyCommand::Delete(_)) => Phase::PoliciesOut,
            Self::Policy(_) => Phase::Policies,
            Self::Ipvs(Command::NewService(..) | Command::SetService(..)) => Phase::VirtualServers,
            Self::Ipvs(Command::SetDest(_, _, config)) if config.weight == 0 => Phase::RealServersOut,
            Self::Ipvs(Command::NewDest(..) | Command::SetDest(..)) => Phase::RealServers,
            Self::Ipvs(Command::DelDest(..)) => Phase::RealServersOut,
            Self::Ipvs(Command::DelService(_)) => Phase::VirtualServersOut,
            Self::Vip(VipCommand::AddRoute(_)) => Phase::Routes,
            Self::Vip(VipCommand::AddAddress(_)) => Phase::Addresses,
            Self::Vip(VipCommand::DelRoute(_) | VipCommand::DelAddress(_)) => Phase::VipsOut,
            Self::Flows(_) => Phase::Flows,
        }
    }

    /// What it is, as in labels: `new_virtual_server`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Policy(PolicyCommand::Install(_)) => "install_table",
            Self::Policy(PolicyCommand::Add(..)) => "add_element",
            Self::Policy(PolicyCommand::Replace(..)) => "replace_element",
            Self::Policy(PolicyCommand::Revoke(_) | PolicyCommand::Delete(_)) => "delete_element",
            Self::Ipvs(Command::NewService(..)) => "new_virtual_server",
            Self::Ipvs(Command::SetService(..)) => "set_virtual_server",
            Self::Ipvs(Command::DelService(_)) => "delete_virtual_server",
            Self::Ipvs(Command::NewDest(..)) => "new_real_server",
            Self::Ipvs(Command::SetDest(..)) => "set_real_server",
            Self::Ipvs(Command::DelDest(..)) => "delete_real_server",
            Self::Vip(VipCommand::AddRoute(_)) => "add_route",
            Self::Vip(VipCommand::DelRoute(_)) => "delete_route",
            Self::Vip(VipCommand::AddAddress(_)) => "add_address",
            Self::Vip(VipCommand::DelAddress(_)) => "delete_address",
            Self::Flows(_) => "end_flows",
        }
    }

    /// The object that it changes.
    pub fn key(&self) -> Key {
        match *self {
            Self::Policy(PolicyCommand::Install(ref rules)) => Key::Rules(rules.family),
            Self::Policy(
                PolicyCommand::Add(key, _)
                | PolicyCommand::Replace(key, _)
                | PolicyCommand::Revoke(key)
                | PolicyCommand::Delete(key),
            ) => Key::Element(key),
            Self::Ipvs(
                Command::NewService(server, _) | Command::SetService(server, _) | Command::DelService(server),
            ) => Key::VirtualServer(server),
            Self::Ipvs(Command::NewDest(server, real, _) | Command::SetDest(server, real, _))
            | Self::Ipvs(Command::DelDest(server, real)) => Key::RealServer(server, real),
            Self::Vip(VipCommand::AddRoute(ip) | VipCommand::DelRoute(ip)) => Key::Route(ip),
            Self::Vip(VipCommand::AddAddress(ip) | VipCommand::DelAddress(ip)) => Key::Address(ip),
            Self::Flows(ref flows) => Key::Flows(flows.place),
        }
    }
}

impl Key {
    /// The virtual server that it is, belongs to, or is a policy of.
    pub fn virtual_server(&self) -> Option<VirtualServer> {
        match self {
            Self::VirtualServer(server) | Self::RealServer(server, _) => Some(*server),
            Self::Element(key) => key.place().map(Place::virtual_server),
            Self::Flows(place) => Some(place.virtual_server()),
            Self::Rules(_) | Self::Route(_) | Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policies => "policies",
            Self::VirtualServers => "virtual servers",
            Self::RealServers => "real servers",
            Self::Routes => "routes",
            Self::RealServersOut => "real servers out",
            Self::VipsOut => "vips out",
            Self::VirtualServersOut => "virtual servers out",
            Self::PoliciesOut => "policies out",
            Self::Flows => "flows",
            Self::Addresses => "addresses",
        })
    }
}

impl fmt::Display for Op {
    /// What the standard tool takes: `ipvsadm -R`, `ip -batch -`, `nft -f -`, `conntrack`. One line, but for a table with its rules.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(command) => command.fmt(f),
            Self::Ipvs(command) => command.fmt(f),
            Self::Vip(command) => command.fmt(f),
            Self::Flows(flows) => flows.fmt(f),
        }
    }
}

impl fmt::Display for EndFlows {
    /// `conntrack` has no word for the exceptions: they follow as a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { address, port, .. } = self.place;
        write!(f, "conntrack -D -p udp --orig-dst {address} --orig-port-dst {port}")?;
        if let Some((first, rest)) = self.keep.split_first() {
            write!(f, " # but not those answered by {first}")?;
            rest.iter().try_for_each(|other| write!(f, ", {other}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |verb: &str, key: &ElementKey, value: ElementValue| {
            let (set, element) = (key.set().as_str(), key.element(value));
            format!("{verb} element {} {set} {{ {element} }}", table(key.family()))
        };
        match self {
            Self::Install(rules) => f.write_str(rules.script().trim_end()),
            Self::Add(key, value) => f.write_str(&line("add", key, *value)),
            Self::Replace(key, value) => {
                let delete = line("delete", key, ElementValue::There);
                write!(f, "{delete}; {}", line("add", key, *value))
            }
            Self::Revoke(key) | Self::Delete(key) => f.write_str(&line("delete", key, ElementValue::There)),
        }
    }
}

impl fmt::Display for Key {
    /// `virtual server 10.96.0.1:443/TCP`, `real server 10.0.0.1:6443 of 10.96.0.1:443/TCP`, `route 10.96.0.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(family) => write!(f, "table {}", table(*family)),
            Self::Element(key) => key.fmt(f),
            Self::VirtualServer(server) => write!(f, "virtual server {server}"),
            Self::RealServer(server, real) => write!(f, "real server {real} of {server}"),
            Self::Route(ip) => write!(f, "route {ip}"),
            Self::Address(ip) => write!(f, "address {ip}"),
            Self::Flows(place) => write!(f, "flows {place}"),
        }
    }
}

/// What is to be done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    ops: Vec<Op>,
}

/// An op with what decides its place.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Priority of its service.
    pub priority: Priority,
    /// Place among the real servers of one virtual server (T23).
    pub rank: u32,
    /// The op.
    pub op: Op,
}

impl Plan {
    /// Puts ops in order: rules and elements first, all of them, since they are one transaction; what else adds goes by
    /// priority, then phase; what removes comes after all of that, by phase.
    /// Within a phase by object, so that the same changes always give the same plan.
    pub fn new(mut placed: Vec<Placed>) -> Self {
        placed.sort_by_cached_key(|placed| {
            let phase = placed.op.phase();
            // Within the transaction: what is revoked makes room for what is added.
            let adds = !matches!(
                placed.op,
                Op::Policy(PolicyCommand::Revoke(_) | PolicyCommand::Install(_))
            );
            let group = match phase {
                Phase::Policies => 0,
                phase if phase.adds() => 1,
                _ => 2,
            };
            let priority = (group == 1).then_some(placed.priority);
            let (server, real) = match placed.op.key() {
                Key::RealServer(server, real) => (Key::VirtualServer(server), Some(real)),
                key => (key, None),
            };
            (group, priority, phase, adds, server, placed.rank, real)
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
