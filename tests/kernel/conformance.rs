//! The fake kernel of `dataplane` against the real one: the same ops get the same answers and leave the same tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use dataplane::fake::FakeKernel;
use dataplane::live::LiveKernel;
use dataplane::{Kernel, Op, Snapshot};
use ipvs::{
    Command, Flags, Ipvs, Persistence, Protocol, RealServer, RealServerConfig, SchedulerName, VipCommand, Vips,
    VirtualServer, VirtualServerConfig,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
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

/// Independent of the order in which a kernel lists.
fn sorted(snapshot: Snapshot) -> BTreeSet<String> {
    let servers = snapshot.virtual_servers.into_iter().map(|mut present| {
        present.real_servers.sort_by_key(|real| real.0);
        format!("{present:?}")
    });
    let routes = snapshot.routes.into_iter().map(|ip| format!("route {ip}"));
    let addresses = snapshot.addresses.into_iter().map(|ip| format!("address {ip}"));
    servers.chain(routes).chain(addresses).collect()
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
            let mut vips = Vips::open().unwrap();
            vips.ensure_device().unwrap();
            let mut real = LiveKernel::new(Ipvs::open().unwrap(), vips);
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
