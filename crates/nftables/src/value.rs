//! What sets hold and rules compare: addresses, protocols, ports, marks, alone and concatenated; verdicts.

use std::fmt;
use std::net::IpAddr;

use crate::uapi::{NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFPROTO_IPV6, NFT_CONTINUE, NFT_GOTO, NFT_JUMP, NFT_RETURN};

/// Family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `ip`.
    Ip,
    /// `ip6`.
    Ip6,
}

impl Family {
    /// `NFPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
        }
    }
}

/// Type of one field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`: number of a transport protocol.
    InetProto,
    /// `inet_service`: a port.
    InetService,
    /// `mark`: a packet's mark.
    Mark,
}

impl DataType {
    /// nft's number of the type (nftables, include/datatype.h); the kernel keeps it for nft.
    pub fn number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
        }
    }

    /// Bytes of a value.
    pub fn length(self) -> u32 {
        match self {
            Self::Ipv4Addr | Self::Mark => 4,
            Self::Ipv6Addr => 16,
            Self::InetProto => 1,
            Self::InetService => 2,
        }
    }

    /// Bytes that it takes in a register, or in a concatenation.
    pub fn padded(self) -> u32 {
        self.length().next_multiple_of(4)
    }
}

/// One field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// An address.
    Ip(IpAddr),
    /// A transport protocol (`IPPROTO_*`).
    Proto(u8),
    /// A port.
    Port(u16),
    /// A mark.
    Mark(u32),
}

impl Value {
    /// Its type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Ip(IpAddr::V4(_)) => DataType::Ipv4Addr,
            Self::Ip(IpAddr::V6(_)) => DataType::Ipv6Addr,
            Self::Proto(_) => DataType::InetProto,
            Self::Port(_) => DataType::InetService,
            Self::Mark(_) => DataType::Mark,
        }
    }

    /// Its bytes as the kernel compares them: network order, marks in the host's.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ip(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Self::Ip(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Self::Proto(number) => vec![*number],
            Self::Port(port) => port.to_be_bytes().to_vec(),
            Self::Mark(mark) => mark.to_ne_bytes().to_vec(),
        }
    }

    /// The value of a type in bytes; `None` where there are too few.
    pub fn read(data_type: DataType, bytes: &[u8]) -> Option<Self> {
        use netlink::attribute::array;
        Some(match data_type {
            DataType::Ipv4Addr => Self::Ip(IpAddr::from(array::<4>(bytes)?)),
            DataType::Ipv6Addr => Self::Ip(IpAddr::from(array::<16>(bytes)?)),
            DataType::InetProto => Self::Proto(*bytes.first()?),
            DataType::InetService => Self::Port(u16::from_be_bytes(array(bytes)?)),
            DataType::Mark => Self::Mark(u32::from_ne_bytes(array(bytes)?)),
        })
    }
}

/// The bytes of a key: one value as it is, several each padded to four bytes.
pub fn key_bytes(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        bytes.extend(value.bytes());
        if values.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// The values of a key of these types; `None` where the bytes are too few.
pub fn read_key(types: &[DataType], mut bytes: &[u8]) -> Option<Vec<Value>> {
    let mut values = Vec::with_capacity(types.len());
    for data_type in types {
        values.push(Value::read(*data_type, bytes)?);
        let length = usize::try_from(data_type.padded()).ok()?;
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Some(values)
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Goes on behind this hook's chain.
    Accept,
    /// Is gone.
    Drop,
    /// The next rule.
    Continue,
    /// Back behind the jump; in a base chain, its policy.
    Return,
    /// To a chain and back.
    Jump(String),
    /// To a chain.
    Goto(String),
}

impl Verdict {
    /// The kernel's number, and the chain.
    pub fn code(&self) -> (i32, Option<&str>) {
        match self {
            Self::Accept => (NF_ACCEPT, None),
            Self::Drop => (NF_DROP, None),
            Self::Continue => (NFT_CONTINUE, None),
            Self::Return => (NFT_RETURN, None),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (NFT_GOTO, Some(chain)),
        }
    }

    /// The verdict of a number and a chain; `None` for one that we never set.
    pub fn from_code(code: i32, chain: Option<&str>) -> Option<Self> {
        Some(match (code, chain) {
            (NF_ACCEPT, _) => Self::Accept,
            (NF_DROP, _) => Self::Drop,
            (NFT_CONTINUE, _) => Self::Continue,
            (NFT_RETURN, _) => Self::Return,
            (NFT_JUMP, Some(chain)) => Self::Jump(chain.to_owned()),
            (NFT_GOTO, Some(chain)) => Self::Goto(chain.to_owned()),
            _ => return None,
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Proto(6) => f.write_str("tcp"),
            Self::Proto(17) => f.write_str("udp"),
            Self::Proto(132) => f.write_str("sctp"),
            Self::Proto(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Mark(mark) => write!(f, "{mark:#010x}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// Several of something, with ` . ` between them, as nft concatenates.
pub(crate) fn concatenated<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ")
}
