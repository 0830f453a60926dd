//! Which flows a caller is asked about.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::flow::Flow;
use crate::uapi::{IPPROTO_UDP, NFPROTO_IPV4, NFPROTO_IPV6};

/// Family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `NFPROTO_*`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => NFPROTO_IPV4,
            Self::V6 => NFPROTO_IPV6,
        }
    }
}

/// Flows of UDP of one family: all, those to one original destination, or those from one original source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    pub(crate) family: Family,
    pub(crate) protocol: u8,
    pub(crate) destination: Option<SocketAddr>,
    pub(crate) source_port: Option<u16>,
}

impl Filter {
    /// All flows of UDP of a family.
    pub fn udp(family: Family) -> Self {
        Self {
            family,
            protocol: IPPROTO_UDP,
            destination: None,
            source_port: None,
        }
    }

    /// Flows of UDP of a family whose first packet was sent from this port.
    pub fn udp_from_port(family: Family, port: u16) -> Self {
        Self {
            source_port: Some(port),
            ..Self::udp(family)
        }
    }

    /// Flows of UDP whose first packet was sent to this address and port.
    pub fn udp_to(destination: SocketAddr) -> Self {
        Self {
            destination: Some(destination),
            ..Self::udp(Family::of(destination.ip()))
        }
    }

    /// The flow is one of them.
    pub fn matches(&self, flow: &Flow) -> bool {
        let place = |address: SocketAddr| (address.ip(), address.port());
        Family::of(flow.original.destination.ip()) == self.family
            && flow.original.protocol == self.protocol
            && self
                .destination
                .is_none_or(|destination| place(destination) == place(flow.original.destination))
            && self.source_port.is_none_or(|port| port == flow.original.source.port())
    }
}

impl fmt::Display for Filter {
    /// `UDP flows to 10.96.0.10:53`, `UDP flows of IPv6 from port 53`, `UDP flows of IPv6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.destination, self.family) {
            (Some(destination), _) => write!(f, "UDP flows to {destination}"),
            (None, Family::V4) => f.write_str("UDP flows of IPv4"),
            (None, Family::V6) => f.write_str("UDP flows of IPv6"),
        }?;
        self.source_port.map_or(Ok(()), |port| write!(f, " from port {port}"))
    }
}
