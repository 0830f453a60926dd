//! The engine against the fake kernel: replays, faults, stops after any op, adoption.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ipvs::{Command, VipCommand};
use proptest::prelude::*;
use service_model::{
    AddressKind, Frontend, FrontendKey, Masquerade, ObjectName, Program, Protocol, Refusal, Scheduler, SourceRanges,
    Target, TrafficPolicy,
};

use crate::engine::{DataPlane, Settings};
use crate::fake::FakeKernel;
use crate::kernel::{Kernel, Snapshot};
use crate::plan::Phase;
use crate::plan::{Op, PolicyCommand};

mod audit;
mod drain;
mod flows;
mod issues;
mod share;
mod survey;

/// One frontend of a service: which VIP, which endpoints.
#[derive(Clone, Debug)]
struct Face {
    vip: u8,
    port: u16,
    endpoints: Vec<u8>,
    affinity: Option<u32>,
    scheduler: Scheduler,
    insiders: bool,
    ranges: Vec<IpNet>,
}

/// What each service wants.
type World = BTreeMap<u8, Vec<Face>>;

fn service(number: u8) -> ObjectName {
    ObjectName::new("default", &format!("s{number}"))
}

/// VIPs 0–3 belong to one service each; VIP 9 is shared, each service with a port of its own.
fn program(number: u8, faces: &[Face]) -> Program {
    let mut frontends: BTreeMap<FrontendKey, Frontend> = BTreeMap::new();
    for face in faces {
        let (last, port) = if face.vip == 9 {
            (9, 1000 + u16::from(number))
        } else {
            (number * 10 + face.vip, face.port)
        };
        let key = FrontendKey {
            address: ip(10, last),
            port,
            protocol: if face.vip == 2 { Protocol::Udp } else { Protocol::Tcp },
        };
        let target = |n: &u8| Target {
            address: SocketAddr::new(ip(20, *n), 8080),
            local: n.is_multiple_of(2),
        };
        let frontend = Frontend {
            key,
            // The node's own address.
            kind: if face.vip == 3 {
                AddressKind::NodePort
            } else {
                AddressKind::ClusterIp
            },
            port_name: "".into(),
            node_address: face.vip == 3,
            scheduler: face.scheduler,
            affinity: face.affinity,
            endpoints: face.endpoints.iter().map(target).collect(),
            policy: TrafficPolicy::Cluster,
            insider_endpoints: Vec::new(),
            insiders: face.insiders.then(|| SocketAddr::new(ip(10, 200), u16::from(face.vip))),
            refusal: Refusal::Reject,
            masquerade: if face.vip % 2 == 0 {
                Masquerade::Outsiders
            } else {
                Masquerade::Always
            },
            source_ranges: (!face.ranges.is_empty()).then(|| SourceRanges {
                ranges: face.ranges.clone(),
                admits_node: face.insiders,
            }),
        };
        frontends.insert(key, frontend);
    }
    Program {
        frontends: frontends.into_values().collect(),
        ..Program::default()
    }
}

fn ip(net: u8, last: u8) -> IpAddr {
    Ipv4Addr::new(10, net, 0, last).into()
}

fn plane_with(kernel: FakeKernel, world: &World) -> DataPlane<FakeKernel> {
    let mut plane = DataPlane::new(kernel, Settings::default());
    for (number, faces) in world {
        plane.want(&service(*number), &program(*number, faces));
    }
    plane
}

/// Commits until nothing is left to do, letting every retry come due.
fn settle(plane: &mut DataPlane<FakeKernel>) {
    let mut now = Instant::now();
    for _ in 0..40 {
        now += Duration::from_secs(120);
        if plane.commit(now).is_err() {
            plane.adopt().expect("the fake kernel can be read");
        }
        if rests(plane, now) {
            return;
        }
    }
    panic!("never at rest: {:?}", plane.plan(now));
}

/// Does what is done beside commits. True where nothing is left to be done, now or later.
fn rests(plane: &mut DataPlane<FakeKernel>, now: Instant) -> bool {
    while plane.ledger().next_background(now).is_some_and(|at| at <= now) {
        plane.commit_addresses(now).expect("nothing stops here");
    }
    plane.look_at_drains(now).expect("the fake kernel can be read");
    let ledger = plane.ledger();
    let waits = ledger.next_retry().or(ledger.next_background(now));
    waits.is_none() && ledger.draining() == 0 && plane.plan(now).is_empty()
}

/// The state that an undisturbed start on an empty node reaches.
fn fresh(world: &World) -> Snapshot {
    let mut plane = plane_with(FakeKernel::new(), world);
    plane.adopt().expect("the fake kernel can be read");
    settle(&mut plane);
    normal(plane.kernel().tables())
}

/// Without what depends on the way to a state: a table without elements.
fn normal(mut tables: Snapshot) -> Snapshot {
    tables.tables.retain(|table| !table.elements.is_empty());
    tables
}

/// Disjoint ones, that overlap from one world to the next.
fn ranges() -> impl Strategy<Value = Vec<IpNet>> {
    let text = prop_oneof![
        3 => Just(""),
        1 => Just("0.0.0.0/0"),
        1 => Just("10.0.0.0/8 192.0.2.0/24"),
        1 => Just("10.0.0.0/9 192.0.0.0/16"),
        1 => Just("10.0.0.0/8"),
    ];
    text.prop_map(|text| {
        text.split_whitespace()
            .map(|range| range.parse().expect("a range"))
            .collect()
    })
}

fn face() -> impl Strategy<Value = Face> {
    let scheduler = prop_oneof![Just(Scheduler::RoundRobin), Just(Scheduler::Maglev)];
    let vip = prop_oneof![0..4u8, Just(9)];
    let endpoints = proptest::sample::subsequence((1..8u8).collect::<Vec<_>>(), 0..6);
    (
        vip,
        prop_oneof![Just(80u16), Just(53)],
        endpoints,
        proptest::option::of(1..3u32),
        scheduler,
        any::<bool>(),
        ranges(),
    )
        .prop_map(|(vip, port, endpoints, affinity, scheduler, insiders, ranges)| Face {
            vip,
            port,
            endpoints,
            affinity,
            scheduler,
            insiders,
            ranges,
        })
}

fn world() -> impl Strategy<Value = World> {
    proptest::collection::btree_map(0..4u8, proptest::collection::vec(face(), 1..4), 0..4)
}

/// Takes the plane from one world to the next.
fn turn(plane: &mut DataPlane<FakeKernel>, from: &World, to: &World) {
    for number in from.keys().filter(|number| !to.contains_key(number)) {
        plane.want(&service(*number), &Program::default());
    }
    for (number, faces) in to {
        plane.want(&service(*number), &program(*number, faces));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Invariant 3: a plan replayed gives the wanted state, planning again gives nothing; whatever came before.
    #[test]
    fn any_history_ends_as_a_fresh_start(worlds in proptest::collection::vec(world(), 1..6)) {
        let mut plane = plane_with(FakeKernel::new(), &World::new());
        plane.adopt().unwrap();
        let mut before = World::new();
        for next in &worlds {
            turn(&mut plane, &before, next);
            settle(&mut plane);
            prop_assert!(plane.plan(Instant::now()).is_empty());
            prop_assert_eq!(normal(plane.kernel().tables()), fresh(next));
            before = next.clone();
        }
    }

    /// A printed plan is the whole truth: its ops alone, replayed on the state before, give the state after.
    #[test]
    fn a_plan_replayed_gives_the_wanted_state(from in world(), to in world()) {
        let mut plane = plane_with(FakeKernel::new(), &from);
        plane.adopt().unwrap();
        settle(&mut plane);
        let mut replay = plane.kernel().clone();
        turn(&mut plane, &from, &to);
        let now = Instant::now();
        for op in plane.plan(now).ops() {
            prop_assert_eq!(replay.apply(op), Ok(()), "{}", op);
        }
        plane.commit(now).unwrap();
        while plane.has_addresses_to_add(now) {
            plane.commit_addresses(now).unwrap();
        }
        prop_assert_eq!(plane.kernel().tables(), replay.tables());
    }

    /// L11: any op may be refused; everything else goes on and the end is the same.
    #[test]
    fn refused_ops_are_made_good(
        from in world(), to in world(),
        faults in proptest::collection::btree_map(0..60usize, prop_oneof![Just(libc::EPERM), Just(libc::ENOMEM)], 0..12),
    ) {
        let mut kernel = FakeKernel::new();
        kernel.faults = faults;
        let mut plane = plane_with(kernel, &from);
        plane.adopt().unwrap();
        settle(&mut plane);
        turn(&mut plane, &from, &to);
        settle(&mut plane);
        prop_assert_eq!(normal(plane.kernel().tables()), fresh(&to));
    }

    /// Somebody deletes or changes what we programmed; a new look at the kernel brings it back.
    #[test]
    fn drift_is_repaired_after_adoption(at in world(), drop in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut plane = plane_with(FakeKernel::new(), &at);
        plane.adopt().unwrap();
        settle(&mut plane);
        let wanted = plane.kernel().tables();
        for index in drop {
            if wanted.virtual_servers.is_empty() { break }
            let present = index.get(&wanted.virtual_servers);
            let _ = plane.kernel_mut().apply(&match present.real_servers.first() {
                Some((real, _)) => Op::Ipvs(Command::DelDest(present.server, *real)),
                None => Op::Ipvs(Command::DelService(present.server)),
            });
            if let Some(ip) = present.server.address() {
                let _ = plane.kernel_mut().apply(&Op::Vip(VipCommand::DelRoute(ip)));
            }
        }
        plane.adopt().unwrap();
        settle(&mut plane);
        prop_assert_eq!(plane.kernel().tables(), wanted);
    }

    /// Invariant 6: stopped before any op, no VIP is reachable without a virtual server, and the next start ends as an
    /// undisturbed run.
    #[test]
    fn stopped_anywhere_the_next_start_ends_the_same(from in world(), to in world()) {
        let mut before = plane_with(FakeKernel::new(), &from);
        before.adopt().unwrap();
        settle(&mut before);
        let (start, written) = (before.kernel().clone(), before.kernel().log.len());
        let mut whole = plane_with(start.clone(), &from);
        whole.adopt().unwrap();
        turn(&mut whole, &from, &to);
        settle(&mut whole);
        for stop in written..=whole.kernel().log.len() {
            let mut kernel = start.clone();
            kernel.stop_at = Some(stop);
            let mut killed = plane_with(kernel, &from);
            killed.adopt().unwrap();
            turn(&mut killed, &from, &to);
            let _ = killed.commit(Instant::now()).and_then(|_| killed.commit_addresses(Instant::now()));
            let mut left = killed.kernel().clone();
            left.stop_at = None;
            let tables = left.tables();
            for ip in &tables.routes {
                prop_assert!(tables.virtual_servers.iter().any(|p| p.server.address() == Some(*ip)), "{} is half done", ip);
            }
            let mut next = plane_with(left, &to);
            next.adopt().unwrap();
            settle(&mut next);
            prop_assert_eq!(normal(next.kernel().tables()), fresh(&to));
        }
    }
}

fn world_of(faces: Vec<Face>) -> World {
    World::from([(1, faces)])
}

fn web(endpoints: &[u8]) -> Face {
    Face {
        vip: 0,
        port: 80,
        endpoints: endpoints.to_vec(),
        affinity: None,
        scheduler: Scheduler::RoundRobin,
        insiders: false,
        ranges: Vec::new(),
    }
}

/// The text of everything that reached the kernel since `from`; of the policy tables the first words alone.
fn log(plane: &DataPlane<FakeKernel>, from: usize) -> Vec<String> {
    plane.kernel().log[from..]
        .iter()
        .map(|(op, _)| match op {
            Op::Policy(PolicyCommand::Install(rules)) => format!("install {}", rules.family),
            op => op.to_string(),
        })
        .collect()
}

#[test]
fn one_endpoint_more_is_one_op() {
    let mut plane = plane_with(FakeKernel::new(), &world_of(vec![web(&[1, 2])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    let (ops, batches) = (plane.kernel().log.len(), plane.kernel().batches);
    plane.want(&service(1), &program(1, &[web(&[1, 2, 3])]));
    plane.commit(Instant::now()).unwrap();
    assert_eq!(log(&plane, ops), ["-a -t 10.10.0.10:80 -r 10.20.0.3:8080 -m -w 1"]);
    assert_eq!(plane.kernel().batches, batches + 1);
    plane.commit(Instant::now()).unwrap();
    assert_eq!(plane.kernel().batches, batches + 1, "nothing staged, nothing sent");
}

#[test]
fn a_restart_on_an_unchanged_kernel_writes_nothing() {
    let world = world_of(vec![
        web(&[1, 2]),
        Face { vip: 9, ..web(&[3]) },
        Face { vip: 3, ..web(&[4]) },
    ]);
    let mut plane = plane_with(FakeKernel::new(), &world);
    plane.adopt().unwrap();
    settle(&mut plane);
    let mut kernel = plane.kernel().clone();
    kernel.log.clear();
    let mut again = plane_with(kernel, &world);
    again.adopt().unwrap();
    settle(&mut again);
    assert_eq!(log(&again, 0), Vec::<String>::new());
}

/// L3: virtual servers and their real servers before the route, and the API server's service before all others.
#[test]
fn order_of_a_cold_start() {
    let mut plane = DataPlane::new(FakeKernel::new(), Settings::default());
    let named = |namespace: &str, name: &str| ObjectName::new(namespace, name);
    plane.want(&named("default", "a"), &program(1, &[web(&[1])]));
    plane.want(
        &named("kube-system", "dns"),
        &program(2, &[Face { port: 53, ..web(&[5]) }]),
    );
    plane.want(&named("default", "kubernetes"), &program(3, &[web(&[3])]));
    plane.adopt().unwrap();
    plane.commit(Instant::now()).unwrap();
    let (policies, addresses): (Vec<_>, Vec<_>) = log(&plane, 0)
        .into_iter()
        .partition(|line| line.starts_with("install") || line.contains(" element "));
    // The rules first of all, and one transaction.
    assert_eq!(policies.len(), 1 + 3 * 3, "{policies:#?}");
    assert_eq!(policies[0], "install ip");
    assert!(
        plane.kernel().log[..10]
            .iter()
            .all(|(op, _)| op.phase() == Phase::Policies)
    );
    assert_eq!(
        addresses
            .iter()
            .map(|line| line.split_whitespace().take(1).collect())
            .collect::<Vec<String>>(),
        ["-A", "-a", "route", "-A", "-a", "route", "-A", "-a", "route"],
        "{addresses:#?}"
    );
    let vips: Vec<_> = ["10.10.0.30", "10.10.0.20", "10.10.0.10"]
        .iter()
        .flat_map(|vip| [vip; 3])
        .collect();
    for (line, vip) in addresses.iter().zip(vips) {
        assert!(line.contains(vip), "{line} is not about {vip}");
    }
}

/// L6 in its simplest form: an endpoint that is wanted again is never deleted and added again.
#[test]
fn a_service_deleted_and_created_in_one_commit_costs_nothing() {
    let world = world_of(vec![web(&[1, 2])]);
    let mut plane = plane_with(FakeKernel::new(), &world);
    plane.adopt().unwrap();
    settle(&mut plane);
    let ops = plane.kernel().log.len();
    plane.want(&service(1), &Program::default());
    plane.want(&service(1), &program(1, &[web(&[1, 2])]));
    plane.commit(Instant::now()).unwrap();
    assert_eq!(log(&plane, ops), Vec::<String>::new());
}

/// T19: the VIP and port of one service go over to another one without a gap.
#[test]
fn a_place_handed_over_to_another_service_stays() {
    let mut plane = DataPlane::new(FakeKernel::new(), Settings::default());
    let (old, new) = (ObjectName::new("default", "old"), ObjectName::new("default", "new"));
    plane.want(&old, &program(1, &[web(&[1])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    let ops = plane.kernel().log.len();
    plane.want(&new, &program(1, &[web(&[2])]));
    plane.want(&old, &Program::default());
    settle(&mut plane);
    let lines = log(&plane, ops);
    assert_eq!(
        lines,
        [
            "add element ip kube-ipvs hairpin { 10.20.0.2 . tcp . 8080 . 10.20.0.2 }",
            "add element ip kube-ipvs draining { 10.10.0.10 . tcp . 80 . 10.20.0.1 . 8080 timeout 900000ms }",
            "-a -t 10.10.0.10:80 -r 10.20.0.2:8080 -m -w 1",
            "-e -t 10.10.0.10:80 -r 10.20.0.1:8080 -m -w 0",
            "-d -t 10.10.0.10:80 -r 10.20.0.1:8080",
            "delete element ip kube-ipvs draining { 10.10.0.10 . tcp . 80 . 10.20.0.1 . 8080 }"
        ]
    );
    plane.want(&new, &Program::default());
    settle(&mut plane);
    assert_eq!(normal(plane.kernel().tables()), Snapshot::default());
}

/// L11: what is refused waits, longer each time; the rest stands; a VIP without any virtual server does not go live.
#[test]
fn a_refused_virtual_server_holds_back_its_own_route_only() {
    let mut kernel = FakeKernel::new();
    // The first op behind the rules and their elements.
    kernel.faults.insert(8, libc::ENOMEM);
    let mut plane = plane_with(kernel, &World::from([(1, vec![web(&[1])]), (2, vec![web(&[2])])]));
    plane.adopt().unwrap();
    let now = Instant::now();
    let report = plane.commit(now).unwrap();
    assert_eq!(report.refused.len(), 1);
    let tables = plane.kernel().tables();
    assert_eq!(tables.routes, [ip(10, 20)]);
    assert!(plane.commit(now).unwrap().is_empty(), "not before its time");
    let retry = plane.ledger().next_retry().expect("it is tried again");
    plane.commit(retry).unwrap();
    assert_eq!(plane.kernel().tables().routes, [ip(10, 10), ip(10, 20)]);
    assert!(plane.ledger().next_retry().is_none());
}

/// A virtual server that is not bound by us and that nobody wants is not ours: neither changed nor deleted (L10).
#[test]
fn foreign_virtual_servers_stay() {
    let mut foreign = plane_with(FakeKernel::new(), &world_of(vec![Face { vip: 3, ..web(&[1]) }]));
    foreign.adopt().unwrap();
    settle(&mut foreign);
    let mut kernel = foreign.kernel().clone();
    // Nothing tells that they are ours: no element, no route.
    kernel.drop_table(nftables::Family::Ip);
    kernel.log.clear();
    let before = kernel.tables();
    let mut plane = plane_with(kernel, &World::from([(2, vec![web(&[2])])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    turn(&mut plane, &World::from([(2, vec![])]), &World::new());
    settle(&mut plane);
    assert_eq!(plane.kernel().tables().virtual_servers, before.virtual_servers);
    assert!(log(&plane, 0).iter().all(|line| !line.contains("10.10.0.13")));
}

/// The broken way to the kernel: the same plane reads the kernel again and ends right.
#[test]
fn after_a_broken_socket_the_kernel_is_read_again() {
    let world = World::from([(1, vec![web(&[1, 2]), Face { vip: 1, ..web(&[3]) }])]);
    let ops = {
        let mut plane = plane_with(FakeKernel::new(), &world);
        plane.adopt().unwrap();
        plane.commit(Instant::now()).unwrap();
        plane.kernel().log.len()
    };
    for stop in 0..=ops {
        let mut kernel = FakeKernel::new();
        kernel.stop_at = Some(stop);
        let mut plane = plane_with(kernel, &world);
        plane.adopt().unwrap();
        let stopped = plane.commit(Instant::now()).is_err();
        assert_eq!(stopped, stop < ops);
        plane.kernel_mut().stop_at = None;
        plane.adopt().unwrap();
        settle(&mut plane);
        assert_eq!(normal(plane.kernel().tables()), fresh(&world));
    }
}

#[test]
fn reading_the_fake_kernel_is_reading_its_tables() {
    let mut plane = plane_with(FakeKernel::new(), &world_of(vec![web(&[1])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    let tables = plane.kernel().tables();
    assert_eq!(plane.kernel_mut().read().unwrap(), tables);
}
