//! A commit may take a share: what is wanted may change between two of them, and the end is the same.

use std::collections::BTreeSet;

use ipvs::VirtualServer;

use super::*;
use crate::element::{ElementKey, SetName};

/// Commits shares until nothing is left to do, letting every retry come due.
fn settle_in_shares(plane: &mut DataPlane<FakeKernel>, ops: usize) {
    let mut now = Instant::now();
    for _ in 0..1000 {
        now += Duration::from_secs(120);
        let mut shares = 0;
        while plane.commit_share(now, ops).expect("nothing stops here").more {
            shares += 1;
            assert!(shares < 10_000, "shares without end");
        }
        if rests(plane, now) {
            return;
        }
    }
    panic!("never at rest: {:?}", plane.plan(now));
}

/// The virtual servers of a world with the endpoints of each, those that have none included.
fn servers(world: &World) -> Vec<(VirtualServer, Vec<SocketAddr>)> {
    let mut plane = plane_with(FakeKernel::new(), world);
    plane.adopt().expect("the fake kernel can be read");
    settle(&mut plane);
    let tables = plane.kernel().tables();
    let sorted = |server: &crate::kernel::PresentServer| {
        let mut reals: Vec<_> = server.real_servers.iter().map(|(real, _)| real.address).collect();
        reals.sort_unstable();
        (server.server, reals)
    };
    tables.virtual_servers.iter().map(sorted).collect()
}

/// Every object by itself.
fn objects(tables: &Snapshot) -> BTreeSet<String> {
    let servers = tables.virtual_servers.iter().flat_map(|server| {
        let reals = server
            .real_servers
            .iter()
            .map(|real| format!("{} {real:?}", server.server));
        reals
            .chain([format!("{} {:?}", server.server, server.config)])
            .collect::<Vec<_>>()
    });
    let vips = tables.routes.iter().map(|ip| format!("route {ip}"));
    let addresses = tables.addresses.iter().map(|ip| format!("address {ip}"));
    let elements = tables.tables.iter().flat_map(|table| &table.elements);
    let elements = elements.map(|(key, value)| format!("{key} {value:?}"));
    servers.chain(vips).chain(addresses).chain(elements).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Shares of any size, between which other things are wanted, some of them refused at first.
    #[test]
    fn f09_shares_end_as_one_commit(
        worlds in proptest::collection::vec((world(), 0..4usize), 1..6),
        ops in 1..8usize,
        faults in proptest::collection::btree_map(0..60usize, prop_oneof![Just(libc::EPERM), Just(libc::ENOMEM)], 0..6),
    ) {
        let mut kernel = FakeKernel::new();
        kernel.faults = faults;
        let mut plane = plane_with(kernel, &World::new());
        plane.adopt().unwrap();
        let mut before = World::new();
        for (next, shares) in &worlds {
            turn(&mut plane, &before, next);
            for _ in 0..*shares {
                plane.commit_share(Instant::now(), ops).unwrap();
            }
            before = next.clone();
        }
        settle_in_shares(&mut plane, ops);
        let (found, expected) = (objects(&plane.kernel().tables()), objects(&fresh(&before)));
        let differ: Vec<_> = found.symmetric_difference(&expected).collect();
        prop_assert!(differ.is_empty(), "{differ:#?}");
    }

    /// After each share: a VIP that has gone live answers at all its places, with all their endpoints; and what is in the
    /// old and in the new picture was not touched.
    #[test]
    fn f09_every_share_keeps_the_order_of_a_commit(from in world(), to in world(), ops in 1..6usize) {
        let mut plane = plane_with(FakeKernel::new(), &from);
        plane.adopt().unwrap();
        settle(&mut plane);
        let (live, old, new) = (plane.kernel().tables().routes, servers(&from), servers(&to));
        turn(&mut plane, &from, &to);
        let now = Instant::now();
        loop {
            let more = plane.commit_share(now, ops).unwrap().more;
            let tables = plane.kernel().tables();
            for ip in &tables.routes {
                prop_assert!(tables.virtual_servers.iter().any(|it| it.server.address() == Some(*ip)), "{} leads nowhere", ip);
                let complete = new.iter().filter(|(server, _)| server.address() == Some(*ip) && !live.contains(ip));
                for (server, reals) in complete {
                    let found = tables.virtual_servers.iter().find(|it| it.server == *server);
                    let there = |real: &SocketAddr| found.is_some_and(|it| it.real_servers.iter().any(|(r, _)| r.address == *real));
                    prop_assert!(found.is_some() && reals.iter().all(there), "{} is live without {}", ip, server);
                }
            }
            for (server, _) in old.iter().filter(|(server, _)| new.iter().any(|(other, _)| other == server)) {
                prop_assert!(tables.virtual_servers.iter().any(|it| it.server == *server), "{} went", server);
            }
            if !more {
                break;
            }
        }
    }
}

/// Who has little to do does not wait for who has much: each share has something of both.
#[test]
fn f09_a_small_service_does_not_wait_for_a_huge_one() {
    let huge: Vec<Face> = (1001..=1200)
        .map(|port| Face {
            port,
            ..web(&[1, 2, 3, 4, 5])
        })
        .collect();
    let mut plane = plane_with(FakeKernel::new(), &World::from([(1, vec![web(&[1])])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    plane.want(&service(0), &program(0, &huge));
    let now = Instant::now();
    assert!(plane.commit_share(now, 50).unwrap().more);
    plane.want(&service(1), &program(1, &[web(&[1, 2])]));
    assert!(plane.commit_share(now, 50).unwrap().more);
    let small = plane.kernel().tables();
    let small = small
        .virtual_servers
        .iter()
        .find(|it| it.server.address() == Some(ip(10, 10)));
    assert_eq!(small.map(|it| it.real_servers.len()), Some(2));
    settle_in_shares(&mut plane, 50);
    assert_eq!(plane.kernel().tables().virtual_servers.len(), 201);
}

/// Tens of thousands of source ranges cost the kernel a millisecond each (audit F9). Nobody else waits for all of them, and
/// who must not come in does not come in meanwhile.
#[test]
fn f09_nobody_waits_for_the_source_ranges_of_another() {
    let ranges = |net: u8| {
        let range = |number: u16| {
            let [high, low] = number.to_be_bytes();
            IpNet::new([net, high, low, 0].into(), 24).unwrap()
        };
        (0..2000).map(range).collect()
    };
    let restricted = |net| Face {
        ranges: ranges(net),
        ..web(&[1])
    };
    let mut plane = plane_with(FakeKernel::new(), &World::from([(1, vec![web(&[1])])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    let now = Instant::now();
    for (net, endpoints) in [(20, &[1, 2][..]), (30, &[1, 2, 3])] {
        plane.want(&service(0), &program(0, &[restricted(net)]));
        assert!(plane.commit_share(now, 50).unwrap().more);
        let tables = plane.kernel().tables();
        let elements = || {
            tables
                .tables
                .iter()
                .flat_map(|table| &table.elements)
                .map(|(key, _)| key)
        };
        let count = |wanted: &dyn Fn(&ElementKey) -> bool| elements().filter(|key| wanted(key)).count();
        assert_eq!(
            count(&|key| matches!(key, ElementKey::Place(SetName::Restricted, _))),
            1
        );
        let ranges = count(&|key| matches!(key, ElementKey::Source(..)));
        assert!((1..2000).contains(&ranges), "{ranges}");
        plane.want(&service(1), &program(1, &[web(endpoints)]));
        // A turn of the one, and the turn of the other.
        for _ in 0..2 {
            assert!(plane.commit_share(now, 50).unwrap().more);
        }
        let small = plane.kernel().tables().virtual_servers;
        let small = small.iter().find(|it| it.server.address() == Some(ip(10, 10)));
        assert_eq!(small.map(|it| it.real_servers.len()), Some(endpoints.len()));
        settle_in_shares(&mut plane, 50);
    }
}
