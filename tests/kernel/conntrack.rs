//! The crate `conntrack` against a real kernel: flows of real datagrams, seen in /proc/net/nf_conntrack.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use conntrack::{Conntrack, Deleted, Family, Filter, Flow};
use testbed::netns::isolate;
use testbed::tool;

/// Addresses of a family, all of this host.
struct World {
    family: Family,
    client: IpAddr,
    vip: IpAddr,
    other_vip: IpAddr,
    endpoints: [IpAddr; 2],
}

fn world(family: Family) -> World {
    let ip = |v4: &str, v6: &str| match family {
        Family::V4 => v4.parse().unwrap(),
        Family::V6 => v6.parse().unwrap(),
    };
    World {
        family,
        client: ip("10.0.0.1", "fd00::1"),
        vip: ip("10.96.0.10", "fd00:96::10"),
        other_vip: ip("10.96.0.11", "fd00:96::11"),
        endpoints: [ip("10.1.0.1", "fd00:1::1"), ip("10.1.0.2", "fd00:1::2")],
    }
}

impl World {
    /// A namespace with the addresses, in which source ports below 5000 reach the first endpoint of a VIP's port 53 or 54,
    /// those above the second.
    fn new(family: Family) -> Self {
        isolate().unwrap();
        let world = world(family);
        for address in [
            world.client,
            world.vip,
            world.other_vip,
            world.endpoints[0],
            world.endpoints[1],
        ] {
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            tool::sh(&format!("ip address add {address} dev lo{nodad}")).unwrap();
        }
        // No flow may run out while a test looks at it.
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{timeout}"), "3600").unwrap();
        }
        world.answer_by(5000);
        world
    }

    /// The rules, with another border between the endpoints.
    fn answer_by(&self, border: u16) {
        let ip = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let World {
            vip,
            other_vip,
            endpoints: [first, second],
            ..
        } = self;
        let to = |endpoint: &IpAddr| SocketAddr::new(*endpoint, 5353);
        let script = format!(
            "table {ip} test\n\
             delete table {ip} test\n\
             table {ip} test {{\n\
             chain zones {{\ntype filter hook output priority -300\n\
             udp sport 7000 ct zone set 7\nudp sport 7001 ct original zone set 8\nudp sport 7002 ct reply zone set 9\n}}\n\
             chain out {{\ntype nat hook output priority -100\n\
             {ip} daddr {{ {vip}, {other_vip} }} udp dport {{ 53, 54 }} udp sport < {border} dnat to {first}\n\
             {ip} daddr {{ {vip}, {other_vip} }} udp dport {{ 53, 54 }} dnat to {second}\n}}\n}}\n",
            first = to(first),
            second = to(second),
        );
        tool::feed(&["nft", "-f", "-"], &script).unwrap();
    }

    /// A flow from this port of the client.
    fn send(&self, from: u16, to: IpAddr, port: u16) {
        let socket = UdpSocket::bind((self.client, from)).unwrap();
        socket.send_to(b"hello", (to, port)).unwrap();
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.vip, 53)
    }
}

/// Port and destination of the first packet, and who answers, of the flows of a protocol.
fn seen(protocol: &str) -> BTreeSet<(u16, SocketAddr, IpAddr)> {
    // Of this thread's namespace: /proc/net is that of the process's first one.
    let table = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    table
        .lines()
        .filter(|line| line.split_whitespace().nth(2) == Some(protocol))
        .map(|line| {
            let field = |name: &str, place: usize| {
                let mut all = line.split_whitespace().filter_map(|field| field.strip_prefix(name));
                all.nth(place).unwrap_or_else(|| panic!("{name} in {line}"))
            };
            (
                field("sport=", 0).parse().unwrap(),
                SocketAddr::new(field("dst=", 0).parse().unwrap(), field("dport=", 0).parse().unwrap()),
                field("src=", 1).parse().unwrap(),
            )
        })
        .collect()
}

fn source_ports(flows: &BTreeSet<(u16, SocketAddr, IpAddr)>) -> Vec<u16> {
    flows.iter().map(|(port, ..)| *port).collect()
}

#[test]
fn flows_that_are_pointed_at_end_and_no_others() {
    for family in [Family::V4, Family::V6] {
        let world = World::new(family);
        for port in [4000, 4001, 5000, 5001] {
            world.send(port, world.vip, 53);
            world.send(port + 10, world.vip, 54);
            world.send(port + 20, world.other_vip, 53);
        }
        let listener = TcpListener::bind((world.vip, 53)).unwrap();
        let _connection = TcpStream::connect((world.vip, 53)).unwrap();
        let tcp = seen("tcp");
        assert!(!tcp.is_empty());
        let before = seen("udp");
        assert_eq!(before.len(), 12);

        // Asked about those to one place, and told the truth about them.
        let mut conntrack = Conntrack::open().unwrap();
        let mut asked = BTreeSet::new();
        let ask = |flow: &Flow| {
            assert_eq!(flow.original.source.ip(), world.client);
            assert_eq!(flow.original.protocol, 17);
            assert_eq!(flow.reply_source.port(), 5353);
            asked.insert((
                flow.original.source.port(),
                flow.original.destination,
                flow.reply_source.ip(),
            ));
            false
        };
        let done = conntrack.delete_where(&Filter::udp_to(world.vip()), ask).unwrap();
        let of_place = |place: SocketAddr| before.iter().filter(|flow| flow.1 == place).copied().collect();
        assert_eq!(asked, of_place(world.vip()));
        // The kernel filters by address and port; of IPv6 by the port only, and rightly so.
        let listed = match family {
            Family::V4 => 4,
            Family::V6 => 8,
        };
        assert_eq!(
            done,
            Deleted {
                listed,
                ..Deleted::default()
            }
        );
        assert_eq!(seen("udp"), before);
        assert_eq!(conntrack.counters().messages, 1);

        // An endpoint of the place is gone.
        let second = world.endpoints[1];
        let done = conntrack
            .delete_where(&Filter::udp_to(world.vip()), |flow| flow.reply_source.ip() == second)
            .unwrap();
        assert_eq!((done.listed, done.deleted, done.gone), (listed, 2, 0));
        let expect: BTreeSet<_> = before
            .iter()
            .filter(|(_, place, answers)| *place != world.vip() || *answers != second)
            .copied()
            .collect();
        assert_eq!(expect.len(), 10);
        assert_eq!(seen("udp"), expect);

        // All of the family, in one pass: an endpoint of all places is gone.
        let first = world.endpoints[0];
        let done = conntrack
            .delete_where(&Filter::udp(family), |flow| flow.reply_source.ip() == first)
            .unwrap();
        assert_eq!((done.listed, done.deleted, done.gone), (10, 6, 0));
        assert_eq!(source_ports(&seen("udp")), [5010, 5011, 5020, 5021]);
        // By where they come from.
        let of_port = conntrack
            .delete_where(&Filter::udp_from_port(family, 5010), |_| false)
            .unwrap();
        assert_eq!((of_port.listed, of_port.deleted), (1, 0));
        // The other family has none.
        let other = match family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        let done = conntrack.delete_where(&Filter::udp(other), |_| true).unwrap();
        assert_eq!(done, Deleted::default());
        assert_eq!(seen("udp").len(), 4);
        assert_eq!(seen("tcp"), tcp);
        drop(listener);
    }
}

/// A deleted flow starts anew by the rules of now; that is what deleting is for.
#[test]
fn a_flow_begins_anew_by_the_rules_of_now() {
    let world = World::new(Family::V4);
    world.send(4000, world.vip, 53);
    world.answer_by(4000);
    world.send(4000, world.vip, 53);
    let [first, second] = world.endpoints;
    assert_eq!(seen("udp"), [(4000, world.vip(), first)].into());
    let mut conntrack = Conntrack::open().unwrap();
    conntrack.delete_where(&Filter::udp_to(world.vip()), |_| true).unwrap();
    assert_eq!(seen("udp"), BTreeSet::new());
    world.send(4000, world.vip, 53);
    assert_eq!(seen("udp"), [(4000, world.vip(), second)].into());
}

#[test]
fn flows_that_ended_meanwhile_are_counted_apart() {
    for family in [Family::V4, Family::V6] {
        let world = World::new(family);
        for port in [4000, 4001, 4002] {
            world.send(port, world.vip, 53);
        }
        let filter = Filter::udp_to(world.vip());
        let mut somebody = Some(Conntrack::open().unwrap());
        let mut conntrack = Conntrack::open().unwrap();
        // While we are asked about the first, all end.
        let done = conntrack
            .delete_where(&filter, |_| {
                if let Some(mut somebody) = somebody.take() {
                    assert_eq!(somebody.delete_where(&filter, |_| true).unwrap().deleted, 3);
                }
                true
            })
            .unwrap();
        assert_eq!((done.listed, done.deleted, done.gone), (3, 0, 3));
        assert_eq!(seen("udp"), BTreeSet::new());
    }
}

#[test]
fn flows_of_zones_are_named_with_their_zone() {
    let world = World::new(Family::V4);
    // The same tuple but for the port: both directions, the original, the reply, none.
    let ports = [7000, 7001, 7002, 7003];
    for port in ports {
        world.send(port, world.vip, 53);
    }
    assert_eq!(source_ports(&seen("udp")), ports);
    let mut conntrack = Conntrack::open().unwrap();
    for port in ports {
        let done = conntrack
            .delete_where(&Filter::udp_to(world.vip()), |flow| flow.original.source.port() == port)
            .unwrap();
        assert_eq!((done.deleted, done.gone), (1, 0), "{port}");
        assert!(!source_ports(&seen("udp")).contains(&port));
    }
    assert_eq!(seen("udp"), BTreeSet::new());
}

/// The table must hold so many; it is one for the whole machine.
fn make_room(flows: usize) {
    let path = "/proc/sys/net/netfilter/nf_conntrack_max";
    let most: usize = fs::read_to_string(path).unwrap().trim().parse().unwrap();
    if most < 2 * flows {
        fs::write(path, (2 * flows).to_string()).unwrap();
    }
}

#[test]
fn thousands_of_flows_end_in_one_pass() {
    const GO: u16 = 20_000;
    make_room(usize::from(GO));
    for family in [Family::V4, Family::V6] {
        let world = World::new(family);
        for port in 0..GO {
            world.send(10_000 + port, world.vip, 53);
        }
        for port in 0..100 {
            world.send(40_000 + port, world.other_vip, 54);
        }
        assert_eq!(seen("udp").len(), 20_100);
        let mut conntrack = Conntrack::open().unwrap();
        let mut pass = |filter: &Filter| {
            let before = conntrack.counters();
            let mut asked = 0;
            let done = conntrack
                .delete_where(filter, |_| {
                    asked += 1;
                    asked > 0
                })
                .unwrap();
            let after = conntrack.counters();
            (
                (done.listed, asked, done.deleted, done.gone),
                after.messages - before.messages,
                after.system_calls - before.system_calls,
            )
        };

        // The few among the many: the kernel tells of them only. One list in two datagrams or three, one batch.
        let other = SocketAddr::new(world.other_vip, 54);
        let (done, messages, calls) = pass(&Filter::udp_to(other));
        assert_eq!((done, messages), ((100, 100, 100, 0), 101));
        assert!(calls <= 8, "{calls}");

        // The many: a message for each, an acknowledgement for each thousand.
        let (done, messages, calls) = pass(&Filter::udp(family));
        assert_eq!((done, messages), ((20_000, 20_000, 20_000, 0), 20_001));
        assert!(calls <= 600, "{calls}");
        assert_eq!(seen("udp"), BTreeSet::new());

        // Nothing there: one question.
        let (done, messages, calls) = pass(&Filter::udp(family));
        assert_eq!((done, messages), ((0, 0, 0, 0), 1));
        assert!(calls <= 3, "{calls}");
    }
}
