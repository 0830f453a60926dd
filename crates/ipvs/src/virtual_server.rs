//! Virtual servers and real servers as values: identity apart from configuration apart from counters.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::scheduler::SchedulerName;
use crate::uapi;

/// Transport protocol of a virtual server (`IPPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Address family of a virtual server that is found by firewall mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Identity of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VirtualServer {
    /// Found by destination address, port and protocol.
    Address {
        /// Destination address.
        address: IpAddr,
        /// Destination port; 0 = every port (persistent services only).
        port: u16,
        /// Protocol.
        protocol: Protocol,
    },
    /// Found by firewall mark.
    Mark {
        /// The packet's whole mark, not 0.
        mark: u32,
        /// Family of the packets.
        family: Family,
    },
}

/// What we set on a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualServerConfig {
    /// Scheduler.
    pub scheduler: SchedulerName,
    /// Flags without `PERSISTENT` (which follows from `persistence`) and without `HASHED` (which is the kernel's own).
    pub flags: Flags,
    /// Persistence by client address.
    pub persistence: Option<Persistence>,
}

/// Persistence: connections of one client (network) go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// Seconds after the last connection for which the client stays with its real server.
    pub timeout: u32,
    /// How many leading bits of the client's address make the client: 32 and 128 for single clients.
    pub prefix_len: u8,
}

/// `IP_VS_SVC_F_*` that a user of the virtual server sets (linux/ip_vs.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u32);

/// Identity of a real server within its virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealServer {
    /// Address and port. (Scope and flow label of an IPv6 address are 0.)
    pub address: SocketAddr,
}

/// What we set on a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealServerConfig {
    /// How packets reach it.
    pub forward: Forward,
    /// 0 = no new connections; at most 65535 (linux/ip_vs.h: `IP_VS_DEST_CONF`, an int that schedulers multiply).
    pub weight: u16,
    /// New connections stop at this many; 0 = no limit.
    pub upper_threshold: u32,
    /// and start again below this many; 0 = three quarters of the upper one.
    pub lower_threshold: u32,
}

/// Forwarding method (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forward {
    /// Destination NAT, what `ipvsadm` calls masquerading; the only one a Service proxy uses.
    #[default]
    Masquerade,
    /// To a local process.
    Local,
    /// IP-in-IP.
    Tunnel,
    /// Direct routing.
    Route,
    /// Bypass.
    Bypass,
}

impl Flags {
    /// One-packet scheduling: every UDP datagram is scheduled anew.
    pub const ONE_PACKET: Self = Self(uapi::IP_VS_SVC_F_ONEPACKET);
    /// `sh-fallback`: scheduler `sh` goes to another server where the chosen one is not available.
    pub const SH_FALLBACK: Self = Self(uapi::IP_VS_SVC_F_SCHED1);
    /// `sh-port`: scheduler `sh` hashes the port, too.
    pub const SH_PORT: Self = Self(uapi::IP_VS_SVC_F_SCHED2);
    /// `mh-fallback`: as `sh-fallback`.
    pub const MH_FALLBACK: Self = Self(uapi::IP_VS_SVC_F_SCHED1);
    /// `mh-port`: as `sh-port`.
    pub const MH_PORT: Self = Self(uapi::IP_VS_SVC_F_SCHED2);

    /// Both sets of flags.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All flags of the other set are in this one.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl RealServerConfig {
    /// Masquerading with this weight and no thresholds.
    pub fn masquerade(weight: u16) -> Self {
        Self {
            forward: Forward::Masquerade,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }
}

impl VirtualServer {
    /// The family of its packets.
    pub fn family(&self) -> Family {
        match self {
            Self::Address {
                address: IpAddr::V4(_), ..
            }
            | Self::Mark { family: Family::V4, .. } => Family::V4,
            Self::Address {
                address: IpAddr::V6(_), ..
            }
            | Self::Mark { family: Family::V6, .. } => Family::V6,
        }
    }

    /// The address, where it is found by one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address { address, .. } => Some(*address),
            Self::Mark { .. } => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl fmt::Display for VirtualServer {
    /// `10.96.0.1:443/TCP`, `[fd00::1]:53/UDP`, `FWM 77`, `FWM 78 IPv6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                address,
                port,
                protocol,
            } => {
                write!(f, "{}/{protocol}", SocketAddr::new(*address, *port))
            }
            Self::Mark {
                mark,
                family: Family::V4,
            } => write!(f, "FWM {mark}"),
            Self::Mark {
                mark,
                family: Family::V6,
            } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
