//! Where things are: three nodes, their pods, clients outside, and the addresses of all. Pure; the oracle and the world
//! both read it, so it holds addresses and no opinion about traffic.
//!
//! Everything that leaves or reaches a node by a VIP passes that node on its way back too: the network of the clients
//! of a node is routed through it. So an answer that is lost is the proxy's fault, not the network's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As in names of cells.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// As in an EndpointSlice's addressType.
    pub fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.into(),
        }
    }
}

/// A node. Endpoints are on the first two; their pods' links may be routed or on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// Routed pods; endpoints.
    A,
    /// Pods on a bridge; endpoints.
    B,
    /// Routed pods; never an endpoint.
    C,
}

/// A kind of address that a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeAddress {
    /// Of the network of nodes; the Node object's InternalIP.
    Internal,
    /// On the link to the node's own outside client.
    Edge,
    /// The gateway of its pods.
    Gateway,
    /// A second one on the interface of `Internal`, that no Node object names. Node A has one.
    Second,
    /// 127.0.0.1 or ::1.
    Loopback,
}

impl NodeAddress {
    /// Those that other hosts can reach.
    pub const REACHABLE: [Self; 4] = [Self::Internal, Self::Edge, Self::Gateway, Self::Second];

    /// As in names of cells.
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Edge => "edge",
            Self::Gateway => "gateway",
            Self::Second => "second",
            Self::Loopback => "loopback",
        }
    }
}

impl Node {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// As in names of cells.
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
        }
    }

    /// Name of the Node object.
    pub fn name(self) -> String {
        format!("node-{}", self.letter())
    }

    /// What its own daemon answers.
    pub fn host(self) -> String {
        format!("host-{}", self.letter())
    }

    /// Its number in addresses.
    pub fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::C => 3,
        }
    }

    /// Its topology zone: A and C are in one.
    pub fn zone(self) -> &'static str {
        match self {
            Self::A | Self::C => "zone-1",
            Self::B => "zone-2",
        }
    }

    /// The range of its pods.
    pub fn pod_cidr(self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.244.{}.0/24", self.number()),
            Family::V6 => format!("fd00:10:244:{}::/64", self.number()),
        }
    }

    /// One of its addresses.
    pub fn address(self, family: Family, which: NodeAddress) -> IpAddr {
        let n = self.number();
        let wide = u16::from(n);
        match which {
            NodeAddress::Internal => family.pick(
                Ipv4Addr::new(192, 0, 2, n),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, wide),
            ),
            NodeAddress::Edge => outside_network(family, n, 1),
            NodeAddress::Gateway => pod_network(family, n, 1),
            NodeAddress::Second => family.pick(
                Ipv4Addr::new(192, 0, 2, 200 + n),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200 + wide),
            ),
            NodeAddress::Loopback => family.pick(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        }
    }

    /// All addresses of its interfaces, loopback left out.
    pub fn addresses(self, family: Family) -> Vec<IpAddr> {
        let mut all: Vec<_> = NodeAddress::REACHABLE
            .into_iter()
            .filter(|which| *which != NodeAddress::Second || self == Self::A)
            .map(|which| self.address(family, which))
            .collect();
        if self == Self::A {
            all.push(far_gateway(family));
        }
        all
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// A pod that is no endpoint.
    Pod(Node),
    /// The first endpoint pod of the node.
    Endpoint(Node),
    /// A process of the node, or a pod with hostNetwork.
    Host(Node),
    /// A client of no cluster, which routes through the node.
    Outside(Node),
    /// A pod of a node without a proxy of its own, which routes through node A.
    Far,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Pod(Node::A),
        Self::Pod(Node::B),
        Self::Pod(Node::C),
        Self::Endpoint(Node::A),
        Self::Endpoint(Node::B),
        Self::Host(Node::A),
        Self::Host(Node::B),
        Self::Host(Node::C),
        Self::Outside(Node::A),
        Self::Outside(Node::B),
        Self::Outside(Node::C),
        Self::Far,
    ];

    /// As in names of cells.
    pub fn name(self) -> String {
        match self {
            Self::Pod(node) => format!("pod-{}", node.letter()),
            Self::Endpoint(node) => pod_name(node, 1),
            Self::Host(node) => node.host(),
            Self::Outside(node) => format!("outside-{}", node.letter()),
            Self::Far => "far-pod".to_owned(),
        }
    }

    /// The node that its packets reach first, which is the one it runs on where it runs on one.
    pub fn node(self) -> Node {
        match self {
            Self::Pod(node) | Self::Endpoint(node) | Self::Host(node) | Self::Outside(node) => node,
            Self::Far => Node::A,
        }
    }

    /// Its addresses: one, or all of a node's.
    pub fn addresses(self, family: Family) -> Vec<IpAddr> {
        match self {
            Self::Pod(node) => vec![pod_network(family, node.number(), 21)],
            Self::Endpoint(node) => vec![pod_address(family, node, 1)],
            Self::Host(node) => node.addresses(family),
            Self::Outside(node) => vec![outside_network(family, node.number(), 2)],
            Self::Far => vec![pod_network(family, 9, 9)],
        }
    }
}

/// Name of an endpoint pod, which it answers with.
pub fn pod_name(node: Node, number: u8) -> String {
    format!("{}{number}", node.letter())
}

/// Address of an endpoint pod.
pub fn pod_address(family: Family, node: Node, number: u8) -> IpAddr {
    pod_network(family, node.number(), 10 + number)
}

/// An address in the range of a node's pods; 9 is the node without a proxy.
fn pod_network(family: Family, node: u8, host: u8) -> IpAddr {
    family.pick(
        Ipv4Addr::new(10, 244, node, host),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, decimal(host)),
    )
}

fn outside_network(family: Family, node: u8, host: u8) -> IpAddr {
    family.pick(
        Ipv4Addr::new(198, 18, node, host),
        Ipv6Addr::new(0x2001, 0xdb8, 0x18, node.into(), 0, 0, 0, host.into()),
    )
}

/// Writes a number so that it reads the same in hexadecimal.
fn decimal(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 256 + number / 10 % 10 * 16 + number % 10
}

/// Node A's address on the link to the far pod.
pub fn far_gateway(family: Family) -> IpAddr {
    pod_network(family, 9, 1)
}

/// The router of the nodes' network, which has the API server and the external load balancer.
pub fn router(family: Family) -> IpAddr {
    family.pick(
        Ipv4Addr::new(192, 0, 2, 254),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe),
    )
}

/// What the router's servers answer.
pub const ROUTER: &str = "router";

/// An address on the router for the load balancer that serves by itself (`ipMode: Proxy`).
pub fn balancer(family: Family) -> IpAddr {
    family.pick(
        Ipv4Addr::new(203, 0, 113, 250),
        Ipv6Addr::new(0x2001, 0xdb8, 0x1b, 0, 0, 0, 0, 0x250),
    )
}

/// Ranges of the pods of the whole cluster.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// The network of the nodes, both families.
pub const NODE_NETWORK: [&str; 2] = ["192.0.2.0/24", "2001:db8::/112"];
/// The bridge of a node whose pods are on one.
pub const BRIDGE: &str = "cni0";
/// Names of the node's ends of routed pods' links begin with it.
pub const LINK_PREFIX: &str = "pod";
/// Port of the servers in pods, to which their target ports lead.
pub const POD_PORT: u16 = 8080;
/// Target port of endpoints with hostNetwork.
pub const HOST_NETWORK_PORT: u16 = 9376;
/// A daemon of every node listens here on all addresses, as sshd does.
pub const DAEMON_PORT: u16 = 2222;
/// Health-check node ports of services, by number; those of the first services are served.
pub const HEALTH_CHECK_PORTS: std::ops::Range<u16> = 31000..31064;
/// The hostPort of a pod on node A: every address of the node leads there, unless a service has it.
pub const HOST_PORT_NUMBER: u16 = 9443;
