//! What a service must not take from this node (T41): addresses that the node needs, ports that the host answers on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::object::Protocol;

/// Port of the kubelet's API.
const KUBELET: u16 = 10_250;

/// What the node needs for itself. It replaces what was told before, as a whole, at any time
/// ([`Cluster::set_protected`](crate::Cluster::set_protected)); whoever gathers it needs not compare.
///
/// Nothing of it concerns cluster IPs and NodePorts: their ranges are the cluster's own choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// Addresses that no external or load-balancer IP may be, each with what it is, to be read after "is": "the default
    /// gateway", "the address of the API server", "the broadcast address of 192.0.2.0/24". Peers of the connections to the
    /// API server, what its name resolves to, gateways of the main table, network and broadcast addresses of the node's
    /// IPv4 subnets. An address of this node itself may be among them: it is not bound (T7), and so does no harm; its ports
    /// are what matters. They hold where addresses are bound ([`Capture::Bind`](crate::Capture::Bind)): a redirect takes the
    /// named port alone.
    pub addresses: BTreeMap<IpAddr, Box<str>>,
    /// Ports on which the host answers at the addresses of this node, each with who does, to be read after "is": "the
    /// health check of kube-ipvs", "a port on which the host listens". In both modes. May overlap; the first one is named.
    pub ports: Vec<ProtectedPorts>,
}

/// Ports of the node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProtectedPorts {
    /// Their protocol.
    pub protocol: Protocol,
    /// Among which of these addresses; `None` = at all of them. A range of all addresses of a family leaves out the
    /// load-balancer IPs that are on an interface of this node and no addresses of its Node.
    pub at: Option<IpNet>,
    /// From the first to the last.
    pub numbers: RangeInclusive<u16>,
    /// Whose they are.
    pub whose: Box<str>,
}

impl Default for Protected {
    /// The kubelet's port.
    fn default() -> Self {
        Self {
            addresses: BTreeMap::new(),
            ports: vec![ProtectedPorts {
                protocol: Protocol::Tcp,
                at: None,
                numbers: KUBELET..=KUBELET,
                whose: "the kubelet's port".into(),
            }],
        }
    }
}

impl Protected {
    /// What an address is, which must not be bound; `None` = it may be.
    pub(crate) fn address(&self, address: IpAddr) -> Option<&str> {
        self.addresses.get(&address).map(|what| &**what)
    }

    /// Whose a port of an address of the node is; `None` = nobody's. Where the address is only lent to the node, those do
    /// not count who listen wherever they can, as sshd does: they do not mean it.
    pub(crate) fn port(&self, address: IpAddr, is_lent: bool, protocol: Protocol, number: u16) -> Option<&str> {
        let of = |ports: &&ProtectedPorts| {
            let means = |range: IpNet| range.contains(&address) && !(is_lent && range.prefix_len() == 0);
            ports.protocol == protocol && ports.numbers.contains(&number) && ports.at.is_none_or(means)
        };
        self.ports.iter().find(of).map(|ports| &*ports.whose)
    }

    /// The addresses of which this one says otherwise than another.
    pub(crate) fn changed<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a IpAddr> {
        let differ = |these: &'a Self, those: &'a Self| {
            let keys = these.addresses.keys();
            keys.filter(move |address| these.addresses.get(address) != those.addresses.get(address))
        };
        differ(self, other).chain(differ(other, self))
    }
}

/// Why no external or load-balancer IP can be this address, in any cluster. Cluster IPs and endpoints may be of class E, which
/// some clouds give to pods and services.
pub(crate) fn never_external(address: IpAddr) -> Option<&'static str> {
    let IpAddr::V4(v4) = address else { return None };
    match v4.octets() {
        [0, ..] => Some("is in 0.0.0.0/8, which means this network"),
        [240..=255, ..] => Some("is in 240.0.0.0/4, which is reserved"),
        _ => None,
    }
}
