//! A question that a cell asks, and what can come of it. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::service::{Protocol, Service};
use super::setting::Setting;
use super::site::{Client, DAEMON_PORT, Family, HOST_PORT_NUMBER, Node, NodeAddress};

/// How the proxy programs the kernel; a few promises differ (decisions.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// IPVS.
    Ipvs,
    /// The fallback.
    Iptables,
}

impl Mode {
    /// `--proxy-mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Iptables => "iptables",
        }
    }
}

/// An address of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// The cluster IP.
    ClusterIp,
    /// The load balancer's.
    LoadBalancer,
    /// The external IP.
    External,
    /// An address of a node.
    Node(Node, NodeAddress),
}

impl Address {
    /// As in names of cells.
    pub fn name(self) -> String {
        match self {
            Self::ClusterIp => "cluster-ip".to_owned(),
            Self::LoadBalancer => "lb-vip".to_owned(),
            Self::External => "external-ip".to_owned(),
            Self::Node(node, NodeAddress::Loopback) => format!("nodeport-loopback-{}", node.letter()),
            Self::Node(node, which) => format!("nodeport-{}-{}", node.letter(), which.name()),
        }
    }
}

/// What is asked for at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// The service.
    Service,
    /// A port that no service has there; daemons of the nodes listen on it on all addresses.
    UndefinedPort,
    /// The last port, where no service is and nobody listens.
    LastPort,
    /// The hostPort of a pod on node A, where no service has it.
    HostPort,
    /// The service's health-check node port; daemons of the nodes listen on it on all addresses.
    HealthCheck,
    /// The node port, at an address that is no node's.
    NodePort,
    /// An ICMP echo.
    Echo,
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The world.
    pub setting: &'a Setting,
    /// Mode of the proxy.
    pub mode: Mode,
    /// Of all services, for claims on one address.
    pub services: &'a [Service],
    /// The one that is asked.
    pub service: &'a Service,
    /// Who asks.
    pub client: Client,
    /// Where.
    pub address: Address,
    /// For what.
    pub ask: Ask,
    /// Family.
    pub family: Family,
    /// Protocol; of no meaning for an echo.
    pub protocol: Protocol,
}

impl Question<'_> {
    /// The address in numbers.
    pub fn ip(&self) -> IpAddr {
        match self.address {
            Address::ClusterIp => self.service.cluster_ip(self.family),
            Address::LoadBalancer => self.service.load_balancer_ip(self.family),
            Address::External => self.service.external_ip(self.family),
            Address::Node(node, which) => node.address(self.family, which),
        }
    }

    /// Where the packet goes.
    pub fn destination(&self) -> SocketAddr {
        let port = match (self.ask, self.address) {
            (Ask::Service, Address::Node(..)) | (Ask::NodePort, _) => self.service.node_port(),
            (Ask::Service, _) => self.service.port,
            (Ask::UndefinedPort, _) => DAEMON_PORT,
            (Ask::LastPort, _) => u16::MAX,
            (Ask::HostPort, _) => HOST_PORT_NUMBER,
            (Ask::HealthCheck, _) => self.service.health_check_node_port(),
            (Ask::Echo, _) => 0,
        };
        (self.ip(), port).into()
    }
}

/// Which source address the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The client's own.
    Client,
    /// One of this node's: masqueraded there.
    Node(Node),
    /// Client and server are on this node: one of its addresses, loopback and the asked one included.
    Within(Node),
}

/// Whether all who may answer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spread {
    /// Each of them, sooner or later.
    All,
    /// One of them, always the same.
    One,
}

/// What is promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// These servers answer, each seeing the client at that source.
    Answer(BTreeMap<String, Source>, Spread),
    /// An echo reply.
    Echo,
    /// Refused at once: TCP reset or an ICMP error for the port, before anything is sent again.
    Refused,
    /// Nothing, and nothing arrives at an endpoint.
    Silence,
    /// No answer of any kind from anybody: it is no traffic of ours.
    NoAnswer,
}

impl Expectation {
    /// In a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Answer(..) => "answer",
            Self::Echo => "echo",
            Self::Refused => "refused",
            Self::Silence => "silence",
            Self::NoAnswer => "no answer",
        }
    }

    /// One server, one source.
    pub fn answer(name: &str, source: Source) -> Self {
        Self::Answer(BTreeMap::from([(name.to_owned(), source)]), Spread::All)
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(by, spread) => {
                let each: Vec<_> = by
                    .iter()
                    .map(|(name, source)| match source {
                        Source::Client => format!("{name} (seeing the client's address)"),
                        Source::Node(node) => format!("{name} (seeing {})", node.name()),
                        Source::Within(node) => format!("{name} (seeing an address within {})", node.name()),
                    })
                    .collect();
                let how = match spread {
                    Spread::All if by.len() > 1 => "each of ",
                    Spread::All => "",
                    Spread::One => "always the same of ",
                };
                write!(f, "{how}{}", each.join(", "))
            }
            Self::Echo => f.write_str("an echo reply"),
            Self::Refused => f.write_str("refused at once"),
            Self::Silence => f.write_str("silence"),
            Self::NoAnswer => f.write_str("no answer"),
        }
    }
}

/// What is promised, and by which decisions.
#[derive(Clone, Debug)]
pub struct Promise {
    /// What.
    pub expectation: Expectation,
    /// Numbers in docs/decisions.md.
    pub decisions: Vec<&'static str>,
}
