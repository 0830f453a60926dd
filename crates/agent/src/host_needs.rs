//! What the host needs for itself (T41), as the kernel tells: gateways, subnets, ports on which it listens. Read, never
//! written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ipvs::listening::{ephemeral_ports, listening};
use ipvs::{Gateway, HostNetwork, Listening, Subnet};
use service_model::{ProtectedPorts, Protocol};
use tracing::warn;

/// A port counts for so long after its last socket was closed: a server that is started anew, as the API server may be,
/// must find it free.
const HELD: Duration = Duration::from_secs(300);

/// What the host needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostNeeds {
    /// With what each is.
    pub(crate) addresses: BTreeMap<IpAddr, Box<str>>,
    pub(crate) ports: Vec<ProtectedPorts>,
}

/// Reads it, again and again.
pub(crate) struct HostReader {
    network: HostNetwork,
    ports: Ports,
    last: HostNeeds,
    /// Something could not be read, and that was said.
    fails: bool,
}

impl HostReader {
    /// In this thread's network namespace; the ports are those of the process's.
    ///
    /// # Errors
    /// Where a socket cannot be opened.
    pub(crate) fn open() -> Result<Self, ipvs::Error> {
        Ok(Self {
            network: HostNetwork::open()?,
            ports: Ports::default(),
            last: HostNeeds::default(),
            fails: false,
        })
    }

    /// What cannot be read is as it was.
    pub(crate) fn read(&mut self) -> HostNeeds {
        let network = &mut self.network;
        let addresses = network
            .gateways()
            .and_then(|gateways| Ok(addresses(&gateways, &network.subnets()?)));
        let sockets = listening();
        let failed = addresses.as_ref().err().or(sockets.as_ref().err());
        if let Some(error) = failed
            && !self.fails
        {
            let error = dataplane::kernel::chain(error);
            warn!(error, "what the host needs for itself cannot be read, the last is kept");
        }
        self.fails = failed.is_some();
        if let Ok(addresses) = addresses {
            self.last.addresses = addresses;
        }
        if let Ok(sockets) = sockets {
            self.ports.saw(sockets, &ephemeral_ports(), Instant::now());
            self.last.ports = self.ports.counted();
        }
        self.last.clone()
    }
}

/// A gateway is more than an address of a subnet.
fn addresses(gateways: &BTreeMap<IpAddr, Gateway>, subnets: &[Subnet]) -> BTreeMap<IpAddr, Box<str>> {
    let mut all: BTreeMap<IpAddr, Box<str>> = BTreeMap::new();
    for (address, gateway) in gateways {
        let what = match gateway {
            Gateway::Default => "the default gateway",
            Gateway::OfSome => "a gateway",
        };
        all.insert(*address, what.into());
    }
    for subnet in subnets {
        let of = format!("{}/{}", subnet.network, subnet.prefix);
        let ends = [(subnet.network, "network"), (subnet.broadcast(), "broadcast")];
        for (address, which) in ends {
            let what = || format!("the {which} address of {of}").into();
            all.entry(address.into()).or_insert_with(what);
        }
    }
    all
}

/// Ports, over the time.
#[derive(Default)]
struct Ports {
    /// When a port was last seen.
    seen: BTreeMap<Listening, Instant>,
    /// Those of UDP that the kernel may have given to a client, by the last reading; `None` = there was none.
    ephemeral: Option<BTreeSet<Listening>>,
    /// Such ones that count.
    lasting: BTreeSet<Listening>,
}

impl Ports {
    /// Takes a reading. A client that sends by UDP without connecting looks like a server, and is gone with its answer: a
    /// port of those that the kernel gives away counts where two readings in a row have it. The first one takes all.
    fn saw(&mut self, sockets: Vec<Listening>, ephemeral: &RangeInclusive<u16>, now: Instant) {
        let given =
            |socket: &Listening| socket.protocol == ipvs::Protocol::Udp && ephemeral.contains(&socket.at.port());
        let (clients, servers): (BTreeSet<_>, Vec<_>) = {
            let (clients, servers): (Vec<_>, Vec<_>) = sockets.into_iter().partition(given);
            (clients.into_iter().collect(), servers)
        };
        self.lasting = match &self.ephemeral {
            Some(before) => clients.intersection(before).copied().collect(),
            None => clients.clone(),
        };
        self.ephemeral = Some(clients);
        self.seen.extend(servers.into_iter().map(|socket| (socket, now)));
        self.seen.retain(|_, at| now.saturating_duration_since(*at) < HELD);
    }

    fn counted(&self) -> Vec<ProtectedPorts> {
        let all: BTreeSet<_> = self.seen.keys().chain(&self.lasting).collect();
        all.into_iter().filter_map(port).collect()
    }
}

fn port(socket: &Listening) -> Option<ProtectedPorts> {
    let protocol = match socket.protocol {
        ipvs::Protocol::Tcp => Protocol::Tcp,
        ipvs::Protocol::Udp => Protocol::Udp,
        ipvs::Protocol::Sctp => return None,
    };
    Some(ProtectedPorts {
        protocol,
        at: range(socket.at.ip()),
        numbers: socket.at.port()..=socket.at.port(),
        whose: "a port on which the host listens".into(),
    })
}

/// The addresses for which a socket of this one listens; `None` = all.
fn range(bound: IpAddr) -> Option<IpNet> {
    match bound {
        IpAddr::V6(ip) if ip.is_unspecified() => None,
        IpAddr::V4(ip) if ip.is_unspecified() => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0).ok(),
        one => Some(one.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(protocol: ipvs::Protocol, at: &str) -> Listening {
        let at = at.parse().unwrap();
        Listening { protocol, at }
    }

    fn told(ports: &Ports) -> Vec<String> {
        let tell = |ports: &ProtectedPorts| {
            let at = ports.at.map_or_else(|| "all".to_owned(), |at| at.to_string());
            format!("{} {}/{}", at, ports.numbers.start(), ports.protocol)
        };
        ports.counted().iter().map(tell).collect()
    }

    #[test]
    fn f06_a_port_is_the_hosts_where_it_is_bound_and_for_a_while() {
        let (start, mut ports) = (Instant::now(), Ports::default());
        let tcp = |at| socket(ipvs::Protocol::Tcp, at);
        let all = vec![tcp("0.0.0.0:80"), tcp("192.0.2.10:22"), tcp("[::]:40000")];
        ports.saw(all, &(32_768..=60_999), start);
        let expect = ["0.0.0.0/0 80/TCP", "192.0.2.10/32 22/TCP", "all 40000/TCP"];
        assert_eq!(told(&ports), expect);
        ports.saw(vec![tcp("0.0.0.0:80")], &(32_768..=60_999), start + HELD / 2);
        assert_eq!(told(&ports), expect, "what is started anew keeps its port");
        ports.saw(Vec::new(), &(32_768..=60_999), start + HELD);
        assert_eq!(told(&ports), ["0.0.0.0/0 80/TCP"]);
        ports.saw(Vec::new(), &(32_768..=60_999), start + HELD * 2);
        assert!(told(&ports).is_empty());
    }

    #[test]
    fn f06_a_client_that_sends_by_udp_has_no_port() {
        let (now, mut ports) = (Instant::now(), Ports::default());
        let mut saw = |all: &[&str]| {
            let all = all.iter().map(|at| socket(ipvs::Protocol::Udp, at));
            ports.saw(all.collect(), &(32_768..=60_999), now);
            told(&ports)
        };
        // WireGuard's port is one of these, and was there before us.
        assert_eq!(saw(&["0.0.0.0:51820"]), ["0.0.0.0/0 51820/UDP"]);
        let client = saw(&["0.0.0.0:4789", "0.0.0.0:40001", "0.0.0.0:51820"]);
        assert_eq!(client, ["0.0.0.0/0 4789/UDP", "0.0.0.0/0 51820/UDP"]);
        // It is no client: it stays.
        let stays = saw(&["0.0.0.0:40001"]);
        assert_eq!(stays, ["0.0.0.0/0 4789/UDP", "0.0.0.0/0 40001/UDP"]);
        assert_eq!(saw(&[]), ["0.0.0.0/0 4789/UDP"]);
    }

    #[test]
    fn f06_gateways_and_the_ends_of_subnets_are_named() {
        let gateways = BTreeMap::from([
            ([192, 0, 2, 1].into(), Gateway::Default),
            ([192, 0, 2, 0].into(), Gateway::OfSome),
        ]);
        let subnet = Subnet {
            network: [192, 0, 2, 0].into(),
            prefix: 24,
        };
        let all = addresses(&gateways, &[subnet]);
        let all: Vec<_> = all
            .iter()
            .map(|(address, what)| format!("{address} is {what}"))
            .collect();
        let expect = [
            "192.0.2.0 is a gateway",
            "192.0.2.1 is the default gateway",
            "192.0.2.255 is the broadcast address of 192.0.2.0/24",
        ];
        assert_eq!(all, expect);
    }
}
