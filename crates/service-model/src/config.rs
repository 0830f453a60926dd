//! What the model is told once.

use ipnet::IpNet;

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
