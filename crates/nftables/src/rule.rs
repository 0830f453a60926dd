//! Chains and rules: the statements in use, each with its `nft` text; their bytes are `message`'s business.

use std::fmt;

use ipnet::IpNet;

use crate::value::{DataType, Family, Verdict, concatenated};

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Where packets enter it; `None` = only by a jump. The policy is accept.
    pub hook: Option<(ChainKind, Hook, i32)>,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// `filter`.
    Filter,
    /// `nat`: sees the first packet of a connection only.
    Nat,
}

/// Hook of a base chain (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `prerouting`.
    Prerouting,
    /// `input`.
    Input,
    /// `forward`.
    Forward,
    /// `output`.
    Output,
    /// `postrouting`.
    Postrouting,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// In order; a statement that does not match ends the rule.
    pub statements: Vec<Statement>,
    /// What it is for; shown in listings. At most 127 bytes.
    pub comment: String,
}

/// An interface, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// With this name.
    Named(String),
    /// With a name that begins so.
    Prefix(String),
}

/// Whether something must be so, or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// It must.
    So,
    /// It must not.
    Not,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Source address, of the table's family.
    Saddr,
    /// Destination address.
    Daddr,
    /// Transport protocol.
    L4Proto,
    /// Source port.
    Sport,
    /// Destination port.
    Dport,
    /// Mark.
    Mark,
    /// Source address of the connection's replies.
    ReplySaddr,
    /// Source port of the connection's replies.
    ReplySport,
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The connection is new.
    CtNew,
    /// NAT gave the connection another destination.
    CtDnat,
    /// An earlier packet of the connection has left this host, or arrived.
    CtConfirmed,
    /// The source address is one of this host, or is not.
    SourceLocal(Is),
    /// The destination address is one of this host, or is not.
    DestinationLocal(Is),
    /// These fields are in a set.
    In(Vec<Field>, String),
    /// They are not.
    NotIn(Vec<Field>, String),
    /// The transport protocol is this.
    Proto(u8),
    /// The packet came in, or did not, by such an interface.
    From(Is, Interface),
    /// The source address is, or is not, within a range of the table's family.
    SaddrWithin(Is, IpNet),
    /// The mark, under a mask, is this.
    MarkIs {
        /// Bits that count.
        mask: u32,
        /// What they must be.
        value: u32,
    },
    /// Sets bits of the mark.
    MarkOr(u32),
    /// Keeps these bits of the mark alone.
    MarkAnd(u32),
    /// Goes where a verdict map says; on where it says nothing.
    VerdictMap(Vec<Field>, String),
    /// New destination address and port, by a map of an address and a port.
    DnatMap(Vec<Field>, String),
    /// The destination stays as it is, and NAT has decided (T30).
    DnatToItself,
    /// Source address of the interface that it leaves by, and a random port.
    Masquerade,
    /// TCP reset.
    RejectTcp,
    /// ICMP port unreachable.
    RejectPort,
    /// A verdict.
    Verdict(Verdict),
}

impl Field {
    /// Its type in a table of a family.
    pub fn data_type(self, family: Family) -> DataType {
        match (self, family) {
            (Self::Saddr | Self::Daddr | Self::ReplySaddr, Family::Ip) => DataType::Ipv4Addr,
            (Self::Saddr | Self::Daddr | Self::ReplySaddr, Family::Ip6) => DataType::Ipv6Addr,
            (Self::L4Proto, _) => DataType::InetProto,
            (Self::Sport | Self::Dport | Self::ReplySport, _) => DataType::InetService,
            (Self::Mark, _) => DataType::Mark,
        }
    }

    fn text(self, family: Family) -> String {
        match self {
            Self::Saddr => format!("{family} saddr"),
            Self::Daddr => format!("{family} daddr"),
            Self::L4Proto => "meta l4proto".to_owned(),
            Self::Sport => "th sport".to_owned(),
            Self::Dport => "th dport".to_owned(),
            Self::Mark => "meta mark".to_owned(),
            Self::ReplySaddr => format!("ct reply {family} saddr"),
            Self::ReplySport => "ct reply proto-src".to_owned(),
        }
    }
}

impl Rule {
    /// Its text behind `add rule FAMILY TABLE CHAIN`.
    pub fn text(&self, family: Family) -> String {
        let mut words: Vec<_> = self.statements.iter().map(|statement| statement.text(family)).collect();
        if !self.comment.is_empty() {
            words.push(format!("comment \"{}\"", self.comment));
        }
        words.join(" ")
    }
}

impl Statement {
    /// Its text.
    pub fn text(&self, family: Family) -> String {
        let fields =
            |fields: &[Field]| concatenated(&fields.iter().map(|field| field.text(family)).collect::<Vec<_>>());
        match self {
            Self::CtNew => "ct state new".to_owned(),
            Self::CtDnat => "ct status dnat".to_owned(),
            Self::CtConfirmed => "ct status confirmed".to_owned(),
            Self::SourceLocal(is) => format!("fib saddr type {}local", is.operator()),
            Self::DestinationLocal(is) => format!("fib daddr type {}local", is.operator()),
            Self::In(of, set) => format!("{} @{set}", fields(of)),
            Self::NotIn(of, set) => format!("{} != @{set}", fields(of)),
            Self::Proto(number) => format!("meta l4proto {}", crate::value::Value::Proto(*number)),
            Self::From(is, interface) => format!("iifname {}{interface}", is.operator()),
            Self::SaddrWithin(is, range) => format!("{family} saddr {}{}", is.operator(), range.trunc()),
            Self::MarkIs { mask, value } => format!("meta mark & {mask:#010x} == {value:#010x}"),
            Self::MarkOr(bits) => format!("meta mark set meta mark | {bits:#010x}"),
            Self::MarkAnd(bits) => format!("meta mark set meta mark & {bits:#010x}"),
            Self::VerdictMap(of, map) => format!("{} vmap @{map}", fields(of)),
            Self::DnatMap(of, map) => format!("dnat {family} to {} map @{map}", fields(of)),
            Self::DnatToItself => format!("dnat {family} to {family} daddr"),
            Self::Masquerade => "masquerade fully-random".to_owned(),
            Self::RejectTcp => "reject with tcp reset".to_owned(),
            Self::RejectPort => match family {
                Family::Ip => "reject with icmp type port-unreachable".to_owned(),
                Family::Ip6 => "reject with icmpv6 type port-unreachable".to_owned(),
            },
            Self::Verdict(verdict) => verdict.to_string(),
        }
    }
}

impl Is {
    fn operator(self) -> &'static str {
        match self {
            Self::So => "",
            Self::Not => "!= ",
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "\"{name}\""),
            Self::Prefix(prefix) => write!(f, "\"{prefix}*\""),
        }
    }
}

impl Hook {
    /// `NF_INET_*` (linux/netfilter.h).
    pub fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl fmt::Display for ChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Chain {
    /// Its definition in braces, as behind `add chain FAMILY TABLE NAME`; empty for one without a hook.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hook {
            Some((kind, hook, priority)) => {
                write!(f, " {{ type {kind} hook {hook} priority {priority}; policy accept; }}")
            }
            None => Ok(()),
        }
    }
}
