//! What restricts never opens: a value that cannot be read admits no connection that any value in its place, or none,
//! would keep out. From manifests to what is written, in both modes; nothing but the text of rules is looked at.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use dataplane::compile::compile;
use dataplane::element::{ElementKey, Place, SetName};
use dataplane::iptables::{Settings, Tables};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};
use service_model::{Capture, Cluster, Config, Event, Family, ObjectName, Program};

/// A field's value: one that can be read, or one that cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pick {
    Read(usize),
    Unread(usize),
}

/// Values of a field. The first of `read` is what the API takes where there is none.
struct Pool {
    read: &'static [&'static str],
    unread: &'static [&'static str],
}

const RANGE: Pool = Pool {
    read: &[
        "198.18.0.0/16",
        "2001:db8:18::/48",
        "::ffff:198.19.0.0/112",
        " 198.018.0.7/32 ",
        "0.0.0.0/0",
        "::/0",
        "192.0.2.0/24",
    ],
    unread: &[
        "198.18.0.7",
        "",
        "any",
        "198.18.0.0/33",
        "::ffff:198.18.0.0/16",
        "198.18.0.0/16,10.0.0.0/8",
    ],
};
const POLICY: Pool = Pool {
    read: &["Cluster", "Local"],
    unread: &["local", "PreferLocal"],
};
const MODE: Pool = Pool {
    read: &["VIP", "Proxy"],
    unread: &["vip", "Tunnel"],
};
/// ExternalName is left out: it is another thing than a restriction.
const TYPE: Pool = Pool {
    read: &["ClusterIP", "NodePort", "LoadBalancer"],
    unread: &["Loadbalancer"],
};

impl Pool {
    fn text(&self, pick: Pick) -> &'static str {
        match pick {
            Pick::Read(number) => self.read[number % self.read.len()],
            Pick::Unread(number) => self.unread[number % self.unread.len()],
        }
    }
}

/// A service with every kind of address of both families.
#[derive(Clone, Debug)]
struct Restrictions {
    ranges: Vec<Pick>,
    external: Pick,
    internal: Pick,
    mode: Pick,
    service_type: Pick,
    /// The load balancer's addresses are this node's, and its port has the number of the NodePort.
    on_node: bool,
    /// On which nodes its endpoints are.
    nodes: Vec<&'static str>,
}

impl Restrictions {
    fn unread(&self) -> usize {
        let fields = [self.external, self.internal, self.mode, self.service_type];
        let all = self.ranges.iter().chain(&fields);
        all.filter(|pick| matches!(pick, Pick::Unread(_))).count()
    }

    /// Each value that cannot be read turns into one that can.
    fn replaced(&self, by: usize) -> Self {
        let read = |pick: Pick| match pick {
            Pick::Unread(number) => Pick::Read(by.wrapping_add(number)),
            read @ Pick::Read(_) => read,
        };
        Self {
            ranges: self.ranges.iter().map(|range| read(*range)).collect(),
            external: read(self.external),
            internal: read(self.internal),
            mode: read(self.mode),
            service_type: read(self.service_type),
            on_node: self.on_node,
            nodes: self.nodes.clone(),
        }
    }

    /// What can be read, without the rest.
    fn readable_rest(&self) -> Self {
        let or_default = |pick: Pick| match pick {
            Pick::Unread(_) => Pick::Read(0),
            read @ Pick::Read(_) => read,
        };
        let is_read = |pick: &Pick| matches!(pick, Pick::Read(_));
        Self {
            ranges: self.ranges.iter().copied().filter(is_read).collect(),
            external: or_default(self.external),
            internal: or_default(self.internal),
            mode: or_default(self.mode),
            service_type: or_default(self.service_type),
            on_node: self.on_node,
            nodes: self.nodes.clone(),
        }
    }

    fn events(&self) -> Vec<Event> {
        let ranges: Vec<_> = self.ranges.iter().map(|range| RANGE.text(*range)).collect();
        let mode = MODE.text(self.mode);
        let (port, balanced) = if self.on_node {
            (30080, ["192.0.2.10", "2001:db8::10"])
        } else {
            (80, ["203.0.113.1", "2001:db8:f::1"])
        };
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "d"},
            "spec": {
                "type": TYPE.text(self.service_type), "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
                "ports": [{"port": port, "nodePort": 30080}], "externalIPs": ["198.51.100.1", "2001:db8:e::1"],
                "externalTrafficPolicy": POLICY.text(self.external),
                "internalTrafficPolicy": POLICY.text(self.internal),
                "loadBalancerSourceRanges": ranges,
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": balanced[0], "ipMode": mode}, {"ip": balanced[1], "ipMode": mode},
            ]}},
        })];
        for (family, prefix) in [("IPv4", "10.244.0."), ("IPv6", "fd00:10:244::")] {
            let endpoints: Vec<Value> = (1..)
                .zip(&self.nodes)
                .map(|(last, node)| json!({"addresses": [format!("{prefix}{last}")], "nodeName": node}))
                .collect();
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": family.to_lowercase(), "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
                "addressType": family, "ports": [{"port": 8080}], "endpoints": endpoints,
            }));
        }
        let folder = tempfile::tempdir().unwrap();
        for (number, object) in objects.iter().enumerate() {
            fs::write(folder.path().join(format!("{number}.json")), object.to_string()).unwrap();
        }
        api_watch::Directory::read(folder.path()).unwrap().batch()
    }

    fn cluster(&self, capture: Capture) -> (Cluster, Program) {
        let mut cluster = Cluster::new(Config {
            capture,
            ..Config::of_node("here")
        });
        cluster.extend(self.events());
        cluster.apply(Event::NodeAddresses(vec![at("192.0.2.10"), at("2001:db8::10")]));
        let program = cluster.program(&ObjectName::new("d", "s"));
        (cluster, program)
    }
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Who asks, and where: neither is a pod or this node.
type Connection = (IpAddr, SocketAddr);

fn connections() -> impl Iterator<Item = Connection> {
    const CLIENTS: [&str; 7] = [
        "198.18.0.7",
        "198.18.9.9",
        "198.19.0.1",
        "192.0.2.99",
        "100.64.0.1",
        "2001:db8:18::7",
        "2001:db8:99::7",
    ];
    const PLACES: [&str; 8] = [
        "10.96.0.1:80",
        "[fd00:10:96::1]:80",
        "192.0.2.10:30080",
        "[2001:db8::10]:30080",
        "203.0.113.1:80",
        "[2001:db8:f::1]:80",
        "198.51.100.1:80",
        "[2001:db8:e::1]:80",
    ];
    let all = CLIENTS
        .into_iter()
        .flat_map(|client| PLACES.map(|place| (at(client), place.parse::<SocketAddr>().unwrap())));
    all.filter(|(client, place)| client.is_ipv4() == place.is_ipv4())
}

/// In IPVS mode: those that a real server gets.
fn by_ipvs(of: &Restrictions) -> BTreeSet<Connection> {
    let (_, program) = of.cluster(Capture::Bind);
    let objects = compile(&program);
    let admits = |(client, place): &Connection| {
        let served = objects
            .servers
            .iter()
            .find(|one| Place::of(&one.server).map(Place::socket) == Some(*place));
        let has = |key: &dyn Fn(Place) -> ElementKey| {
            let at = served.and_then(|one| Place::of(&one.server));
            at.is_some_and(|at| objects.elements.iter().any(|(element, _)| *element == key(at)))
        };
        let in_range = objects.elements.iter().any(|(element, _)| {
            matches!(element, ElementKey::Source(at, range) if at.socket() == *place && range.contains(client))
        });
        served.is_some_and(|one| !one.real_servers.is_empty())
            && !has(&|at| ElementKey::Place(SetName::Verdicts, at))
            && (in_range || !has(&|at| ElementKey::Place(SetName::Restricted, at)))
    };
    connections().filter(admits).collect()
}

/// In the iptables mode: those that a rule sends on to an endpoint.
fn by_iptables(of: &Restrictions) -> BTreeSet<Connection> {
    let (cluster, program) = of.cluster(Capture::Redirect {
        localhost_node_ports: true,
    });
    let mut tables = Tables::new(Settings::default());
    for family in [Family::V4, Family::V6] {
        tables.want_local_traffic(family, cluster.local_traffic(family));
        tables.want_node_ports(family, cluster.node_port_places(family));
    }
    tables.want(&ObjectName::new("d", "s"), &program);
    let [v4, v6] = [Family::V4, Family::V6].map(|family| tables.plan(family).unwrap().text);
    let admits = |(client, place): &Connection| {
        let text = if client.is_ipv4() { &v4 } else { &v6 };
        let nat = text.split_once("*nat\n").unwrap().1;
        ends_at_endpoint(nat, "KUBE-SERVICES", *client, *place) == Some(true)
    };
    connections().filter(admits).collect()
}

/// A packet from outside that comes to a chain ends at an endpoint (`true`), or untouched; `None` = it comes back. What is
/// left to chance is taken.
fn ends_at_endpoint(nat: &str, chain: &str, client: IpAddr, place: SocketAddr) -> Option<bool> {
    for rule in nat
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("-A {chain} ")))
    {
        let words: Vec<_> = rule.split(' ').collect();
        let mut matches = true;
        for (number, pair) in words.windows(2).enumerate() {
            let is = number == 0 || words[number - 1] != "!";
            let within = |text: &str, ip: IpAddr| match text.parse::<IpNet>() {
                Ok(net) => net.contains(&ip),
                Err(_) => text.parse() == Ok(ip),
            };
            let node = [at("192.0.2.10"), at("2001:db8::10")].contains(&place.ip());
            matches &= match pair[0] {
                "-s" => within(pair[1], client) == is,
                "-d" => within(pair[1], place.ip()) == is,
                "--dport" => (pair[1] == place.port().to_string()) == is,
                "--src-type" => !is,
                "--dst-type" => node == is,
                _ => true,
            };
        }
        let target = words
            .iter()
            .position(|word| *word == "-j")
            .map(|number| words[number + 1]);
        match target.filter(|_| matches) {
            Some("DNAT") => return Some(true),
            Some("ACCEPT") => return Some(false),
            Some("RETURN") => return None,
            Some(next) => {
                let end = ends_at_endpoint(nat, next, client, place);
                if end.is_some() {
                    return end;
                }
            }
            None => {}
        }
    }
    None
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![(0..8_usize).prop_map(Pick::Read), (0..8_usize).prop_map(Pick::Unread)]
}

fn any_restrictions() -> impl Strategy<Value = Restrictions> {
    let nodes = prop::sample::select(vec![vec!["here"], vec!["there"], vec!["here", "there"], vec![]]);
    let service_type = prop_oneof![4 => Just(Pick::Read(2)), 1 => pick()];
    (
        prop::collection::vec(pick(), 0..4),
        (pick(), pick()),
        pick(),
        service_type,
        prop::bool::weighted(0.2),
        nodes,
    )
        .prop_map(
            |(ranges, (external, internal), mode, service_type, on_node, nodes)| Restrictions {
                ranges,
                external,
                internal,
                // Where the load balancer is not served, its place is a NodePort's alone, for which ranges do not hold.
                mode: if on_node { Pick::Read(0) } else { mode },
                service_type: if on_node { Pick::Read(2) } else { service_type },
                on_node,
                nodes,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn what_cannot_be_read_opens_nothing(garbled in any_restrictions(), by in 0..8_usize) {
        let (_, program) = garbled.cluster(Capture::Bind);
        prop_assert!(program.rejections.len() >= garbled.unread(), "{:?}", program.rejections);
        for admitted in [by_ipvs, by_iptables] {
            let found = admitted(&garbled);
            for readable in [garbled.replaced(by), garbled.readable_rest()] {
                let allowed = admitted(&readable);
                let opened: Vec<_> = found.difference(&allowed).collect();
                prop_assert!(opened.is_empty(), "{opened:?}, with {readable:?}");
            }
        }
    }

    /// Both modes admit the same.
    #[test]
    fn both_modes_admit_the_same(restrictions in any_restrictions()) {
        prop_assert_eq!(by_ipvs(&restrictions), by_iptables(&restrictions));
    }
}

/// The property above would hold where nobody is ever let in.
#[test]
fn what_can_be_read_admits_and_keeps_out() {
    let check = |on_node: bool, ranges: &[usize], expect: usize| {
        let all = Restrictions {
            ranges: ranges.iter().map(|number| Pick::Read(*number)).collect(),
            external: Pick::Read(0),
            internal: Pick::Read(0),
            mode: Pick::Read(0),
            service_type: Pick::Read(2),
            on_node,
            nodes: vec!["there"],
        };
        let found = [by_ipvs(&all).len(), by_iptables(&all).len()];
        assert_eq!(found, [expect; 2], "{on_node} {ranges:?}");
    };
    // Five clients of IPv4 and two of IPv6, four places each.
    check(false, &[], 28);
    // Three of the five are outside at one place; of IPv6 there is no range.
    check(false, &[0], 25);
    check(false, &[0, 1], 24);
    check(false, &[4, 5], 28);
    // One place of each family.
    check(true, &[], 7);
    check(true, &[0], 4);
}
