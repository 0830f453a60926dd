//! The fake kernel of `dataplane` against the real one: the same ops get the same answers and leave the same tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::element::{ElementKey, ElementValue, Place, SetName};
use dataplane::fake::FakeKernel;
use dataplane::live::LiveKernel;
use dataplane::rules::Rules;
use dataplane::{Kernel, Op, PolicyCommand, Snapshot};
use ipvs::{
    Command, Flags, Persistence, Protocol, RealServer, RealServerConfig, SchedulerName, VipCommand, VirtualServer,
    VirtualServerConfig,
};
use nftables::Family;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use service_model::LocalTraffic;
use testbed::netns::isolate;

fn ip(v6: bool, number: u8) -> IpAddr {
    if v6 {
        [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number) + 1].into()
    } else {
        [10, 96, 0, number + 1].into()
    }
}

fn server() -> impl Strategy<Value = VirtualServer> {
    (any::<bool>(), 0..3_u8, prop::bool::ANY).prop_map(|(v6, number, tcp)| VirtualServer::Address {
        address: ip(v6, number),
        port: 80,
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
    })
}

fn config() -> impl Strategy<Value = VirtualServerConfig> {
    (
        prop::sample::select(vec!["rr", "mh", "wlc", "unheard-of"]),
        any::<bool>(),
    )
        .prop_map(|(name, persistent)| VirtualServerConfig {
            scheduler: SchedulerName::new(name).unwrap(),
            flags: Flags::default(),
            persistence: persistent.then_some(Persistence {
                timeout: 100,
                prefix_len: 32,
            }),
        })
}

fn op() -> impl Strategy<Value = Op> {
    let real = |server: VirtualServer, number: u8| {
        let address = match server.address() {
            Some(IpAddr::V6(_)) => [0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number) + 1].into(),
            _ => IpAddr::from([10, 1, 0, number + 1]),
        };
        RealServer {
            address: SocketAddr::new(address, 8080),
        }
    };
    let weight = |weight: u16| RealServerConfig::masquerade(weight);
    // An IPv6 service's mask has another length.
    let fit = |server: VirtualServer, mut config: VirtualServerConfig| {
        if let (Some(IpAddr::V6(_)), Some(persistence)) = (server.address(), &mut config.persistence) {
            persistence.prefix_len = 128;
        }
        config
    };
    prop_oneof![
        4 => (server(), config()).prop_map(move |(s, c)| Op::Ipvs(Command::NewService(s, fit(s, c)))),
        1 => (server(), config()).prop_map(move |(s, c)| Op::Ipvs(Command::SetService(s, fit(s, c)))),
        1 => server().prop_map(|s| Op::Ipvs(Command::DelService(s))),
        4 => (server(), 0..3_u8, 0..3_u16).prop_map(move |(s, r, w)| Op::Ipvs(Command::NewDest(s, real(s, r), weight(w)))),
        1 => (server(), 0..3_u8, 0..3_u16).prop_map(move |(s, r, w)| Op::Ipvs(Command::SetDest(s, real(s, r), weight(w)))),
        1 => (server(), 0..3_u8).prop_map(move |(s, r)| Op::Ipvs(Command::DelDest(s, real(s, r)))),
        1 => (any::<bool>(), 0..3_u8).prop_map(|(v6, n)| Op::Vip(VipCommand::AddRoute(ip(v6, n)))),
        1 => (any::<bool>(), 0..3_u8).prop_map(|(v6, n)| Op::Vip(VipCommand::DelRoute(ip(v6, n)))),
        1 => (any::<bool>(), 0..3_u8).prop_map(|(v6, n)| Op::Vip(VipCommand::AddAddress(ip(v6, n)))),
        1 => (any::<bool>(), 0..3_u8).prop_map(|(v6, n)| Op::Vip(VipCommand::DelAddress(ip(v6, n)))),
    ]
}

fn place(number: u8) -> Place {
    Place {
        address: ip(false, number),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

/// Elements that meet each other: the same key with another value, ranges that overlap.
fn element() -> impl Strategy<Value = (ElementKey, ElementValue)> {
    let verdict = |value| move |n: u8| (ElementKey::Place(SetName::Verdicts, place(n)), value);
    // Overlaps at an end only: one that lies within the new range is not seen by nf_tables, and which of two that hold
    // an address is then found is its own business (net/netfilter/nft_set_pipapo.c). We never write such.
    let range = prop::sample::select(vec!["10.0.0.0/8", "10.0.0.0/9", "192.0.2.1/32"]);
    prop_oneof![
        (0..3_u8).prop_map(|n| (ElementKey::Place(SetName::Services, place(n)), ElementValue::There)),
        (0..2_u8).prop_map(verdict(ElementValue::Drop)),
        (0..2_u8).prop_map(verdict(ElementValue::Refuse)),
        (0..2_u8, range).prop_map(|(n, range)| {
            (
                ElementKey::Source(place(n), range.parse().unwrap()),
                ElementValue::There,
            )
        }),
        (0..2_u8, 0..2_u8, any::<bool>()).prop_map(|(n, to, node_port)| {
            let to = SocketAddr::new(ip(false, to), 80);
            let map = if node_port {
                SetName::NodePortRedirects
            } else {
                SetName::Redirects
            };
            (ElementKey::Place(map, place(n)), ElementValue::To(to))
        }),
        (0..2_u8).prop_map(|n| (ElementKey::Hairpin(place(n)), ElementValue::There)),
        (0..2_u8).prop_map(|n| (ElementKey::HealthPort(Family::Ip, n.into()), ElementValue::There)),
        any::<bool>().prop_map(|v6| (ElementKey::Vip(ip(v6, 1)), ElementValue::There)),
    ]
}

/// To delete a range that is not there deletes one that covers its beginning (net/netfilter/nft_set_pipapo.c,
/// `nft_pipapo_deactivate`, Linux 7.2); the fake kernel does not.
fn no_range() -> impl Strategy<Value = (ElementKey, ElementValue)> {
    element().prop_filter("a range", |(key, _)| !matches!(key, ElementKey::Source(..)))
}

fn policy_op() -> impl Strategy<Value = Op> {
    let rules = |family| {
        Op::Policy(PolicyCommand::Install(Arc::new(Rules {
            family,
            masquerade_bit: 14,
            local: LocalTraffic::default(),
        })))
    };
    prop_oneof![
        1 => prop::sample::select(vec![Family::Ip, Family::Ip6]).prop_map(rules),
        8 => element().prop_map(|(key, value)| Op::Policy(PolicyCommand::Add(key, value))),
        2 => no_range().prop_map(|(key, value)| Op::Policy(PolicyCommand::Replace(key, value))),
        2 => no_range().prop_map(|(key, _)| Op::Policy(PolicyCommand::Delete(key))),
    ]
}

/// Independent of the order in which a kernel lists.
fn sorted(snapshot: Snapshot) -> BTreeSet<String> {
    let servers = snapshot.virtual_servers.into_iter().map(|mut present| {
        present.real_servers.sort_by_key(|real| real.0);
        format!("{present:?}")
    });
    let routes = snapshot.routes.into_iter().map(|ip| format!("route {ip}"));
    let addresses = snapshot.addresses.into_iter().map(|ip| format!("address {ip}"));
    let tables = snapshot.tables.into_iter().map(|mut table| {
        table.elements.sort_by_key(|(key, _)| *key);
        format!("{table:?}")
    });
    servers.chain(routes).chain(addresses).chain(tables).collect()
}

/// Each op as a transaction of its own, and all of them as one: what is refused is left out of it.
#[test]
fn the_fake_policy_tables_answer_as_the_real_ones() {
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&prop::collection::vec(policy_op(), 1..40), |ops| {
            isolate().unwrap();
            let open = || LiveKernel::open().unwrap();
            let (mut real, mut fake) = (open(), FakeKernel::new());
            for op in &ops {
                let answer = real.execute(std::slice::from_ref(op)).unwrap().remove(0);
                prop_assert_eq!(answer.map_err(|error| error.errno), fake.apply(op), "{}", op);
            }
            prop_assert_eq!(sorted(real.read().unwrap()), sorted(fake.tables()));
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_fake_kernel_answers_as_the_real_one() {
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&prop::collection::vec(op(), 1..60), |ops| {
            isolate().unwrap();
            let mut real = LiveKernel::open().unwrap();
            let mut fake = FakeKernel::new();
            let answers = real.execute(&ops).unwrap();
            for (op, answer) in ops.iter().zip(answers) {
                let real = answer.map_err(|error| error.errno);
                prop_assert_eq!(real, fake.apply(op), "{}", op);
            }
            prop_assert_eq!(sorted(real.read().unwrap()), sorted(fake.tables()));
            Ok(())
        })
        .unwrap();
}
