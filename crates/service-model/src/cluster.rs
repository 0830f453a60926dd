//! The cluster as this node sees it: every service, its endpoints, this node; event in, touched services out.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::event::{Event, Kind};
use crate::frontend::Program;
use crate::name::ObjectName;
use crate::scheduler::Scheduler;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as in `nodeName` of endpoints.
    pub node_name: Box<str>,
    /// Scheduler of services that name none.
    pub scheduler: Scheduler,
    /// On which of the node's addresses NodePorts answer (T16).
    pub node_port_addresses: NodePortAddresses,
    /// Gate `AllowServiceExternalIPs` (T32).
    pub allow_external_ips: bool,
}

/// `nodePortAddresses` (T16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node's interfaces (`[]`).
    All,
    /// The node's primary address of each family (`["primary"]`): the first of the Node object's addresses.
    Primary,
    /// Addresses within one of these; a family that has no CIDR here matches all.
    Cidrs(Vec<IpNet>),
}

/// All services, all endpoints, this node.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
}

impl Cluster {
    /// An empty cluster.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Takes one event in, and remembers which services it touches.
    pub fn apply(&mut self, event: Event) {
        let _ = event;
    }

    /// The services whose [`Program`] may have changed since the last call, in the order of their names;
    /// empty where nothing did. A service that is gone is among them: its program is then empty.
    pub fn take_touched(&mut self) -> Vec<ObjectName> {
        Vec::new()
    }

    /// The program of one service. Empty for an unknown one.
    pub fn program(&self, service: &ObjectName) -> Program {
        let _ = (service, &self.config);
        Program::default()
    }

    /// [`Event::Complete`] has come for this kind.
    pub fn is_complete(&self, kind: Kind) -> bool {
        let _ = kind;
        false
    }

    /// This node's addresses are known ([`Event::NodeAddresses`] has come).
    pub fn has_node_addresses(&self) -> bool {
        false
    }

    /// The primary addresses of this node, one of each family at most (reference: the Node's InternalIP before ExternalIP).
    pub fn primary_addresses(&self) -> Vec<IpAddr> {
        Vec::new()
    }
}
