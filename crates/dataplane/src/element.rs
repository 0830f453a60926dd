//! What the policy tables know of services: one element of a set or map per fact, constant rules look them up
//! (`rules`). Elements as values, and their form in nf_tables.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use ipvs::{Protocol, VirtualServer};
use nftables::set::ElementData;
use nftables::{DataType, Family, Set, SetData, Value, Verdict};

/// What a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Place {
    /// The virtual server there.
    pub fn virtual_server(self) -> VirtualServer {
        VirtualServer::Address {
            address: self.address,
            port: self.port,
            protocol: self.protocol,
        }
    }

    /// Address and port.
    pub fn socket(self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Where a virtual server is; `None` = it is one of a mark.
    pub fn of(server: &VirtualServer) -> Option<Self> {
        match *server {
            VirtualServer::Address {
                address,
                port,
                protocol,
            } => Some(Self {
                address,
                port,
                protocol,
            }),
            VirtualServer::Mark { .. } => None,
        }
    }
}

/// The sets and maps of a table. Their names are the kernel's, seen by `nft list ruleset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetName {
    /// Places of virtual servers that are ours (L10).
    Services,
    /// Addresses that we bound.
    Vips,
    /// Places at which new connections are refused or dropped (T1, T4, T5).
    Verdicts,
    /// Places at which everybody is masqueraded (T9, T10, T14).
    Masquerade,
    /// Places at which clients that are no pods are masqueraded (T11).
    ClusterIps,
    /// Endpoints of this node with themselves as source (T13).
    Hairpin,
    /// Load balancers' addresses and external IPs → cluster IP and port, for insiders (T2).
    Redirects,
    /// NodePorts → cluster IP and port, for insiders: these are fewer there (T2).
    NodePortRedirects,
    /// Places that redirects alone lead to (T2).
    Insiders,
    /// Places with source ranges (T15).
    Restricted,
    /// Places whose source ranges leave the node itself out (T15).
    RestrictedNode,
    /// Places with their source ranges (T15).
    Sources,
    /// Health-check node ports: reachable at VIPs, too.
    HealthPorts,
    /// Places with real servers that drain, with their deadlines (L5): a ledger in the kernel, which no rule looks up. And
    /// with those of UDP that go just now (L8).
    Draining,
}

/// Identity of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementKey {
    /// Of a set of places; see [`SetName`] for which are.
    Place(SetName, Place),
    /// Of `vips`.
    Vip(IpAddr),
    /// Of `hairpin`: the endpoint, which is source as well.
    Hairpin(Place),
    /// Of `sources`.
    Source(Place, IpNet),
    /// Of `health-ports`.
    HealthPort(Family, u16),
    /// Of `draining`: a real server of the place.
    Draining(Place, SocketAddr),
}

/// What an element leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementValue {
    /// Nothing: it is there.
    There,
    /// The packet is gone.
    Drop,
    /// The connection is refused.
    Refuse,
    /// Another destination.
    To(SocketAddr),
    /// Nothing, and it goes by itself after this time; `None` = it stays.
    For(Option<Duration>),
    /// Something that we never write.
    Unknown,
}

/// Chain that refuses.
pub(crate) const REFUSE: &str = "refuse";

impl SetName {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Services,
        Self::Vips,
        Self::Verdicts,
        Self::Masquerade,
        Self::ClusterIps,
        Self::Hairpin,
        Self::Redirects,
        Self::NodePortRedirects,
        Self::Insiders,
        Self::Restricted,
        Self::RestrictedNode,
        Self::Sources,
        Self::HealthPorts,
        Self::Draining,
    ];

    /// Those that lead insiders elsewhere. A place is in one of them at most.
    pub(crate) const REDIRECTS: [Self; 2] = [Self::Redirects, Self::NodePortRedirects];

    /// Its name in the kernel.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Vips => "vips",
            Self::Verdicts => "verdicts",
            // `masquerade` is a word of nft's language, which could not be read back.
            Self::Masquerade => "masqueraded",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::Redirects => "redirects",
            Self::NodePortRedirects => "node-port-redirects",
            Self::Insiders => "insiders",
            Self::Restricted => "restricted",
            Self::RestrictedNode => "restricted-node",
            Self::Sources => "sources",
            Self::HealthPorts => "health-ports",
            Self::Draining => "draining",
        }
    }

    /// Its definition in a table of a family.
    pub fn definition(self, family: Family) -> Set {
        let address = match family {
            Family::Ip => DataType::Ipv4Addr,
            Family::Ip6 => DataType::Ipv6Addr,
        };
        let (proto, port) = (DataType::InetProto, DataType::InetService);
        let key = match self {
            Self::Vips => vec![address],
            Self::Hairpin | Self::Sources => vec![address, proto, port, address],
            Self::HealthPorts => vec![port],
            Self::Draining => vec![address, proto, port, address, port],
            _ => vec![address, proto, port],
        };
        let data = match self {
            Self::Verdicts => SetData::Verdict,
            Self::Redirects | Self::NodePortRedirects => SetData::Values(vec![address, port]),
            _ => SetData::None,
        };
        Set {
            name: self.as_str().to_owned(),
            key,
            data,
            intervals: self == Self::Sources,
            timeouts: self == Self::Draining,
        }
    }
}

impl ElementKey {
    /// The set that it is in.
    pub fn set(&self) -> SetName {
        match self {
            Self::Place(set, _) => *set,
            Self::Vip(_) => SetName::Vips,
            Self::Hairpin(_) => SetName::Hairpin,
            Self::Source(..) => SetName::Sources,
            Self::HealthPort(..) => SetName::HealthPorts,
            Self::Draining(..) => SetName::Draining,
        }
    }

    /// The table that it is in.
    pub fn family(&self) -> Family {
        let address = match self {
            Self::HealthPort(family, _) => return *family,
            Self::Place(_, place) | Self::Hairpin(place) | Self::Source(place, _) | Self::Draining(place, _) => {
                place.address
            }
            Self::Vip(address) => *address,
        };
        family_of(address)
    }

    /// The place that it is about, where it is about one.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Place(_, place) | Self::Source(place, _) | Self::Draining(place, _) => Some(*place),
            Self::Vip(_) | Self::Hairpin(_) | Self::HealthPort(..) => None,
        }
    }

    /// Its form in nf_tables, with a value.
    pub fn element(&self, value: ElementValue) -> nftables::Element {
        let place = |place: &Place| {
            let number = value_of(place.protocol);
            vec![Value::Ip(place.address), number, Value::Port(place.port)]
        };
        let (key, end) = match self {
            Self::Place(_, at) => (place(at), None),
            Self::Vip(address) => (vec![Value::Ip(*address)], None),
            Self::Hairpin(at) => ([place(at), vec![Value::Ip(at.address)]].concat(), None),
            Self::Source(at, range) => (
                [place(at), vec![Value::Ip(range.network())]].concat(),
                Some([place(at), vec![Value::Ip(range.broadcast())]].concat()),
            ),
            Self::HealthPort(_, port) => (vec![Value::Port(*port)], None),
            Self::Draining(at, real) => {
                let real = vec![Value::Ip(real.ip()), Value::Port(real.port())];
                ([place(at), real].concat(), None)
            }
        };
        let data = match value {
            ElementValue::There | ElementValue::For(_) | ElementValue::Unknown => ElementData::None,
            ElementValue::Drop => ElementData::Verdict(Verdict::Drop),
            ElementValue::Refuse => ElementData::Verdict(Verdict::Goto(REFUSE.to_owned())),
            ElementValue::To(to) => ElementData::Values(vec![Value::Ip(to.ip()), Value::Port(to.port())]),
        };
        nftables::Element {
            key,
            end,
            data,
            timeout: match value {
                ElementValue::For(time) => time,
                _ => None,
            },
        }
    }

    /// An element of a set as the kernel told it; `None` for one that we would never write.
    pub fn read(set: SetName, family: Family, element: &nftables::Element) -> Option<(Self, ElementValue)> {
        let place = |address: IpAddr, number: u8, port: u16| {
            Some(Place {
                address,
                port,
                protocol: protocol_of(number)?,
            })
        };
        let key = match (set, element.key.as_slice()) {
            (SetName::Vips, [Value::Ip(address)]) => Self::Vip(*address),
            (SetName::Hairpin, [Value::Ip(to), Value::Proto(number), Value::Port(port), Value::Ip(from)])
                if to == from =>
            {
                Self::Hairpin(place(*to, *number, *port)?)
            }
            (SetName::Sources, [Value::Ip(to), Value::Proto(number), Value::Port(port), Value::Ip(first)]) => {
                let last = match element.end.as_deref() {
                    None => *first,
                    Some([_, _, _, Value::Ip(last)]) => *last,
                    Some(_) => return None,
                };
                Self::Source(place(*to, *number, *port)?, range(*first, last)?)
            }
            (SetName::HealthPorts, [Value::Port(port)]) => Self::HealthPort(family, *port),
            (
                SetName::Draining,
                [
                    Value::Ip(to),
                    Value::Proto(number),
                    Value::Port(port),
                    Value::Ip(real),
                    Value::Port(real_port),
                ],
            ) => Self::Draining(place(*to, *number, *port)?, SocketAddr::new(*real, *real_port)),
            (_, [Value::Ip(address), Value::Proto(number), Value::Port(port)]) => {
                Self::Place(set, place(*address, *number, *port)?)
            }
            _ => return None,
        };
        let value = match &element.data {
            ElementData::None if set == SetName::Draining => ElementValue::For(element.timeout),
            ElementData::None => ElementValue::There,
            ElementData::Verdict(Verdict::Drop) => ElementValue::Drop,
            ElementData::Verdict(Verdict::Goto(chain)) if chain == REFUSE => ElementValue::Refuse,
            ElementData::Values(values) => match values.as_slice() {
                [Value::Ip(to), Value::Port(port)] => ElementValue::To(SocketAddr::new(*to, *port)),
                _ => ElementValue::Unknown,
            },
            ElementData::Verdict(_) => ElementValue::Unknown,
        };
        Some((key, value))
    }
}

/// The family of the table for an address.
pub fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

/// The range from one address to another, where it is one prefix.
fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let differ = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => return None,
    };
    let net = IpNet::new(first, u8::try_from(differ).ok()?).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

fn value_of(protocol: Protocol) -> Value {
    Value::Proto(match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    })
}

fn protocol_of(number: u8) -> Option<Protocol> {
    Some(match number {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    })
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.socket(), self.protocol)
    }
}

impl fmt::Display for ElementKey {
    /// `element 10.96.0.1 . tcp . 443 of services`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = self.element(ElementValue::There);
        write!(f, "element {element} of {}", self.set().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: ElementKey, value: ElementValue, text: &str) {
        let element = key.element(value);
        assert_eq!(element.to_string(), text);
        assert_eq!(ElementKey::read(key.set(), key.family(), &element), Some((key, value)));
        let types: Vec<_> = element.key.iter().map(Value::data_type).collect();
        assert_eq!(types, key.set().definition(key.family()).key);
    }

    #[test]
    fn elements_are_read_as_they_are_written() {
        use ElementValue::*;
        let v4 = Place {
            address: [10, 96, 0, 1].into(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        let v6 = Place {
            address: "fd00::1".parse().unwrap(),
            protocol: Protocol::Sctp,
            ..v4
        };
        check(ElementKey::Place(SetName::Services, v4), There, "10.96.0.1 . tcp . 80");
        check(
            ElementKey::Place(SetName::Verdicts, v6),
            Drop,
            "fd00::1 . sctp . 80 : drop",
        );
        check(
            ElementKey::Place(SetName::Verdicts, v6),
            Refuse,
            "fd00::1 . sctp . 80 : goto refuse",
        );
        let to = "10.96.0.9:8080".parse().unwrap();
        check(
            ElementKey::Place(SetName::Redirects, v4),
            To(to),
            "10.96.0.1 . tcp . 80 : 10.96.0.9 . 8080",
        );
        let to = "[fd00::9]:8080".parse().unwrap();
        check(
            ElementKey::Place(SetName::NodePortRedirects, v6),
            To(to),
            "fd00::1 . sctp . 80 : fd00::9 . 8080",
        );
        check(ElementKey::Vip(v6.address), There, "fd00::1");
        check(ElementKey::Hairpin(v4), There, "10.96.0.1 . tcp . 80 . 10.96.0.1");
        check(ElementKey::HealthPort(Family::Ip, 30000), There, "30000");
        let drained = "[fd00::2]:8080".parse().unwrap();
        check(
            ElementKey::Draining(v6, drained),
            For(Some(Duration::from_secs(900))),
            "fd00::1 . sctp . 80 . fd00::2 . 8080 timeout 900000ms",
        );
        check(
            ElementKey::Draining(v6, drained),
            For(None),
            "fd00::1 . sctp . 80 . fd00::2 . 8080",
        );
        let source = |range: &str| ElementKey::Source(v4, range.parse().unwrap());
        check(
            source("10.0.0.0/8"),
            There,
            "10.96.0.1 . tcp . 80 . 10.0.0.0-10.255.255.255",
        );
        check(
            source("0.0.0.0/0"),
            There,
            "10.96.0.1 . tcp . 80 . 0.0.0.0-255.255.255.255",
        );
        let all = ElementKey::Source(v6, "::/0".parse().unwrap());
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        check(all, There, &format!("fd00::1 . sctp . 80 . ::-{last}"));
        // A single address has no end when it is read.
        let one = source("192.0.2.1/32");
        let mut element = one.element(There);
        element.end = None;
        assert_eq!(
            ElementKey::read(SetName::Sources, Family::Ip, &element),
            Some((one, There))
        );
    }
}
