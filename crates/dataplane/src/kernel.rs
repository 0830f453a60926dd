//! The seam to the kernel: ops in, one answer per op out; and a reader.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;

use conntrack::Passes;
use foldhash::{HashMap, HashSet};
use ipvs::{Forward, RealServer, RealServerConfig, VirtualServer, VirtualServerConfig};
use nftables::Family;

use crate::element::{ElementKey, ElementValue, SetName};
use crate::node_port_set::FormerNodePort;
use crate::plan::Op;

/// A kernel that can be read and changed: the live one, the fake one, or one that only prints.
pub trait Kernel {
    /// Everything that could be ours, as it is now.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn read(&mut self) -> Result<Snapshot, KernelBroken>;

    /// One virtual server with its real servers; `None` where there is none.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn read_virtual_server(&mut self, server: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken>;

    /// Connections of each real server of a virtual server, those that end included, persistence templates not; empty
    /// where there is no such virtual server.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn connections(&mut self, server: &VirtualServer) -> Result<HashMap<RealServer, u32>, KernelBroken>;

    /// Executes ops in order, each on its own, and tells for each how it went. Empty in, empty out. Ops of the policy
    /// tables that stand together are one transaction: those that are not refused happen at one moment.
    ///
    /// # Errors
    /// Where the way to the kernel broke: which ops were executed is then unknown, and only a new read tells.
    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken>;

    /// Looks for flows to be ended so far, of IPv4 and IPv6; none where nothing is looked at.
    fn passes(&self) -> [Passes; 2] {
        [Passes::default(); 2]
    }
}

/// What the kernel holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All virtual servers, ours and foreign.
    pub virtual_servers: Vec<PresentServer>,
    /// Destinations of our local routes.
    pub routes: Vec<IpAddr>,
    /// Addresses on `kube-ipvs0`.
    pub addresses: Vec<IpAddr>,
    /// The policy tables that are there.
    pub tables: Vec<PresentTable>,
    /// NodePorts of a kube-proxy whose ipsets are still there.
    pub former_node_ports: Vec<FormerNodePort>,
}

/// A policy table in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentTable {
    /// Its family.
    pub family: Family,
    /// Chain and fingerprint of its rules, by chain.
    pub rules: Vec<(String, Vec<u8>)>,
    /// Its elements.
    pub elements: Vec<(ElementKey, ElementValue)>,
}

impl Snapshot {
    /// The virtual servers that the policy tables say are ours, and those of a former kube-proxy's NodePorts (L10).
    pub fn owned(&self) -> HashSet<VirtualServer> {
        let former = self.former_node_ports.iter().collect::<HashSet<_>>();
        let taken_over = self.virtual_servers.iter().filter(|present| present.is_one_of(&former));
        let elements = self.tables.iter().flat_map(|table| &table.elements);
        elements
            .filter_map(|(key, _)| match *key {
                ElementKey::Place(SetName::Services, place) => Some(place.virtual_server()),
                _ => None,
            })
            .chain(taken_over.map(|present| present.server))
            .collect()
    }

    /// The virtual servers that are ours by what the kernel alone tells: [`owned`](Self::owned), and those at addresses
    /// that we bind (L10).
    pub fn ours(&self) -> Vec<VirtualServer> {
        let owned = self.owned();
        let bound: HashSet<_> = self.routes.iter().chain(&self.addresses).collect();
        let ours = |server: &VirtualServer| {
            owned.contains(server) || server.address().is_some_and(|address| bound.contains(&address))
        };
        let servers = self.virtual_servers.iter().map(|present| present.server);
        servers.filter(ours).collect()
    }
}

impl PresentServer {
    /// At one of these NodePorts, and as kube-proxy makes them: it masquerades to every real server.
    fn is_one_of(&self, former: &HashSet<&FormerNodePort>) -> bool {
        let VirtualServer::Address { port, protocol, .. } = self.server else {
            return false;
        };
        let family = self.server.family();
        let mut forwards = self.real_servers.iter().map(|(_, config)| config.forward);
        former.contains(&FormerNodePort { family, protocol, port })
            && forwards.all(|forward| forward == Forward::Masquerade)
    }
}

/// A virtual server in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentServer {
    /// Identity.
    pub server: VirtualServer,
    /// What is set on it.
    pub config: VirtualServerConfig,
    /// Its real servers.
    pub real_servers: Vec<(RealServer, RealServerConfig)>,
}

/// The kernel refused one op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpError {
    /// `errno`, as in errno.h.
    pub errno: i32,
    /// The whole reason, with the kernel's own sentence where it gave one.
    pub reason: Box<str>,
}

/// The way to the kernel broke (a socket error, an unreadable answer).
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct KernelBroken {
    /// What was being done.
    pub operation: &'static str,
    /// Why it broke.
    pub source: Box<dyn Error + Send + Sync>,
}

/// An error with its causes, as one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for OpError {}

#[cfg(test)]
mod tests {
    use ipvs::{Family, Flags, Protocol, SchedulerName};

    use super::*;

    fn present(text: &str, protocol: Protocol, forward: Forward) -> PresentServer {
        let place: std::net::SocketAddr = text.parse().unwrap();
        let real = RealServer {
            address: "10.244.1.11:8080".parse().unwrap(),
        };
        let config = RealServerConfig {
            forward,
            ..RealServerConfig::masquerade(1)
        };
        PresentServer {
            server: VirtualServer::Address {
                address: place.ip(),
                port: place.port(),
                protocol,
            },
            config: VirtualServerConfig {
                scheduler: SchedulerName::new("rr").unwrap(),
                flags: Flags::default(),
                persistence: None,
            },
            real_servers: vec![(real, config)],
        }
    }

    #[test]
    fn l10_who_owns_a_virtual_server() {
        let servers = [
            present("192.0.2.10:30080", Protocol::Tcp, Forward::Masquerade),
            present("192.0.2.10:30080", Protocol::Udp, Forward::Masquerade),
            present("[2001:db8::10]:30080", Protocol::Tcp, Forward::Masquerade),
            present("192.0.2.11:30080", Protocol::Tcp, Forward::Route),
            present("192.0.2.10:443", Protocol::Tcp, Forward::Masquerade),
            present("10.96.0.1:443", Protocol::Tcp, Forward::Masquerade),
            present("10.96.0.2:443", Protocol::Tcp, Forward::Route),
        ];
        let snapshot = Snapshot {
            virtual_servers: servers.to_vec(),
            routes: vec!["10.96.0.1".parse().unwrap()],
            addresses: vec!["10.96.0.2".parse().unwrap()],
            former_node_ports: vec![FormerNodePort {
                family: Family::V4,
                protocol: Protocol::Tcp,
                port: 30_080,
            }],
            ..Snapshot::default()
        };
        let names = |servers: Vec<VirtualServer>| servers.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(snapshot.owned().into_iter().collect()), ["192.0.2.10:30080/TCP"]);
        let ours = ["192.0.2.10:30080/TCP", "10.96.0.1:443/TCP", "10.96.0.2:443/TCP"];
        assert_eq!(names(snapshot.ours()), ours);
    }
}
