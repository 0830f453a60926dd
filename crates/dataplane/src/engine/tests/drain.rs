//! L5 and L6: real servers that are gone keep their connections, for a time.

use ipvs::{RealServer, VirtualServer};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn server() -> VirtualServer {
    VirtualServer::Address {
        address: ip(10, 10),
        port: 80,
        protocol: ipvs::Protocol::Tcp,
    }
}

fn real(last: u8) -> RealServer {
    RealServer {
        address: SocketAddr::new(ip(20, last), 8080),
    }
}

/// A plane with the endpoints, at rest, and somebody connected to the second.
fn serving(endpoints: &[u8]) -> DataPlane<FakeKernel> {
    let mut plane = plane_with(FakeKernel::new(), &world_of(vec![web(endpoints)]));
    plane.adopt().unwrap();
    settle(&mut plane);
    plane.kernel_mut().connections.insert((server(), real(2)), 1);
    plane
}

fn want(plane: &mut DataPlane<FakeKernel>, endpoints: &[u8]) {
    plane.want(&service(1), &program(1, &[web(endpoints)]));
}

/// Looks, commits, and tells what was written.
fn look(plane: &mut DataPlane<FakeKernel>, now: Instant) -> Vec<String> {
    let from = plane.kernel().log.len();
    if plane.look_at_drains(now).unwrap() {
        plane.commit(now).unwrap();
    }
    log(plane, from)
}

/// Commits, and tells what was written without the hairpin elements.
fn commit(plane: &mut DataPlane<FakeKernel>, now: Instant) -> Vec<String> {
    let from = plane.kernel().log.len();
    plane.commit(now).unwrap();
    let mut lines = log(plane, from);
    lines.retain(|line| !line.contains(" hairpin "));
    lines
}

const BEGUN: &str = "add element ip kube-ipvs draining { 10.10.0.10 . tcp . 80 . 10.20.0.2 . 8080 timeout 900000ms }";
const ENDED: &str = "delete element ip kube-ipvs draining { 10.10.0.10 . tcp . 80 . 10.20.0.2 . 8080 }";
const QUIET: &str = "-e -t 10.10.0.10:80 -r 10.20.0.2:8080 -m -w 0";
const GONE: &str = "-d -t 10.10.0.10:80 -r 10.20.0.2:8080";

/// k/k#81308: the deadline first, then no new connections, then, when the last one ended, it goes.
#[test]
fn drain_deadline_enforced() {
    let mut plane = serving(&[1, 2]);
    let now = Instant::now();
    want(&mut plane, &[1]);
    assert_eq!(commit(&mut plane, now), [BEGUN, QUIET]);
    assert_eq!(
        look(&mut plane, now + MINUTE),
        Vec::<String>::new(),
        "somebody is connected"
    );
    plane.kernel_mut().connections.clear();
    assert_eq!(look(&mut plane, now + 2 * MINUTE), [GONE, ENDED]);
    assert_eq!(plane.ledger().next_look(), None, "nothing is looked at any more");

    // The same with somebody who never ends.
    let mut plane = serving(&[1, 2]);
    want(&mut plane, &[1]);
    commit(&mut plane, now);
    assert_eq!(look(&mut plane, now + 14 * MINUTE), Vec::<String>::new());
    assert_eq!(look(&mut plane, now + 15 * MINUTE), [GONE, ENDED]);
}

/// The deadline is one of the times at which is looked.
#[test]
fn no_real_server_drains_past_its_deadline() {
    let mut plane = DataPlane::new(
        FakeKernel::new(),
        Settings {
            drain_timeout: Duration::from_secs(2),
            ..Settings::default()
        },
    );
    want(&mut plane, &[1, 2]);
    plane.adopt().unwrap();
    let now = Instant::now();
    plane.commit(now).unwrap();
    assert_eq!(plane.ledger().next_look(), None);
    want(&mut plane, &[1]);
    plane.commit(now).unwrap();
    assert_eq!(plane.ledger().next_look(), Some(now + Duration::from_secs(2)));
}

/// Zero is upstream's way: no deadline. A service's own word counts more.
#[test]
fn a_drain_without_end() {
    let mut plane = serving(&[1, 2]);
    let now = Instant::now();
    let endless = Program {
        drain_timeout: Some(Duration::ZERO),
        ..program(1, &[web(&[1])])
    };
    plane.want(&service(1), &endless);
    let element = "add element ip kube-ipvs draining { 10.10.0.10 . tcp . 80 . 10.20.0.2 . 8080 }";
    assert_eq!(commit(&mut plane, now), [element, QUIET]);
    assert_eq!(look(&mut plane, now + 10_000 * MINUTE), Vec::<String>::new());
    plane.kernel_mut().connections.clear();
    assert_eq!(look(&mut plane, now + 10_001 * MINUTE), [GONE, ENDED]);
}

/// k/k#117205 (L6): an endpoint that comes back gets its weight again, and is never deleted.
#[test]
fn endpoint_flap_keeps_connections() {
    let mut plane = serving(&[1, 2]);
    let now = Instant::now();
    want(&mut plane, &[1]);
    commit(&mut plane, now);
    want(&mut plane, &[1, 2]);
    let back = "-e -t 10.10.0.10:80 -r 10.20.0.2:8080 -m -w 1";
    assert_eq!(commit(&mut plane, now + MINUTE), [back, ENDED]);
    assert_eq!(plane.ledger().draining(), 0);
    // The next time it has its whole time again.
    want(&mut plane, &[1]);
    assert_eq!(commit(&mut plane, now + 2 * MINUTE), [BEGUN, QUIET]);
}

/// k/k#92019, k/k#108319: a new process neither forgets that one drains, nor leaves one at weight 0 that is wanted.
#[test]
fn restart_resets_zero_weight_of_ready() {
    let mut plane = serving(&[1, 2]);
    let now = Instant::now();
    want(&mut plane, &[1]);
    commit(&mut plane, now);
    let mut kernel = plane.kernel().clone();
    let element = crate::element::ElementKey::Draining(
        crate::element::Place::of(&server()).unwrap(),
        SocketAddr::new(ip(20, 2), 8080),
    );
    // The kernel counts: four minutes are left when the next process starts.
    let left = crate::element::ElementValue::For(Some(4 * MINUTE));
    kernel.apply(&Op::Policy(PolicyCommand::Delete(element))).unwrap();
    kernel.apply(&Op::Policy(PolicyCommand::Add(element, left))).unwrap();

    let mut again = plane_with(kernel.clone(), &world_of(vec![web(&[1])]));
    again.adopt().unwrap();
    assert_eq!(commit(&mut again, now), Vec::<String>::new(), "nothing changed");
    assert_eq!(look(&mut again, now + 3 * MINUTE), Vec::<String>::new());
    assert_eq!(
        look(&mut again, now + 4 * MINUTE),
        [GONE, ENDED],
        "no deadline was renewed"
    );

    let mut wanted = plane_with(kernel.clone(), &world_of(vec![web(&[1, 2])]));
    wanted.adopt().unwrap();
    let lines = commit(&mut wanted, now);
    assert_eq!(lines, ["-e -t 10.10.0.10:80 -r 10.20.0.2:8080 -m -w 1", ENDED]);

    // Its time ended while no process ran: the kernel dropped the element.
    kernel.apply(&Op::Policy(PolicyCommand::Delete(element))).unwrap();
    let mut late = plane_with(kernel.clone(), &world_of(vec![web(&[1])]));
    late.adopt().unwrap();
    assert_eq!(commit(&mut late, now), [GONE]);

    // No table at all, as after kube-proxy: it drains from now on.
    kernel.drop_table(nftables::Family::Ip);
    let mut other = plane_with(kernel, &world_of(vec![web(&[1])]));
    other.adopt().unwrap();
    let lines = commit(&mut other, now);
    assert!(lines.contains(&BEGUN.to_owned()), "{lines:#?}");
    assert!(!lines.contains(&GONE.to_owned()), "{lines:#?}");
}

/// Somebody flushes the tables: the deadlines are written again, with what is left of them.
#[test]
fn a_flushed_table_loses_no_deadline() {
    let mut plane = serving(&[1, 2]);
    let now = Instant::now();
    want(&mut plane, &[1]);
    commit(&mut plane, now);
    plane.kernel_mut().drop_table(nftables::Family::Ip);
    plane.adopt().unwrap();
    let lines = commit(&mut plane, now + 10 * MINUTE);
    assert!(lines.contains(&BEGUN.replace("900000", "300000")), "{lines:#?}");
    assert_eq!(look(&mut plane, now + 15 * MINUTE), [GONE, ENDED]);
}

/// L7: those of UDP stay for the answers that are under way, whoever sends meanwhile.
#[test]
fn udp_real_servers_go_after_a_moment() {
    let udp = |endpoints: &[u8]| Face {
        vip: 2,
        ..web(endpoints)
    };
    let mut plane = plane_with(FakeKernel::new(), &world_of(vec![udp(&[1, 2])]));
    plane.adopt().unwrap();
    settle(&mut plane);
    let now = Instant::now();
    plane.want(&service(1), &program(1, &[udp(&[1])]));
    let lines = commit(&mut plane, now);
    assert!(
        lines.contains(&"-e -u 10.10.0.12:80 -r 10.20.0.2:8080 -m -w 0".to_owned()),
        "{lines:#?}"
    );
    assert!(lines.iter().all(|line| !line.contains(" draining ")), "{lines:#?}");
    let place = VirtualServer::Address {
        address: ip(10, 12),
        port: 80,
        protocol: ipvs::Protocol::Udp,
    };
    plane.kernel_mut().connections.insert((place, real(2)), 7);
    let end = now + crate::ledger::UDP_GRACE;
    assert_eq!(plane.ledger().next_look(), Some(end));
    assert_eq!(look(&mut plane, now), Vec::<String>::new());
    let lines = look(&mut plane, end);
    // Marked while it goes and its flows end, and no longer (L8).
    let mark = "element ip kube-ipvs draining { 10.10.0.12 . udp . 80 . 10.20.0.2 . 8080";
    assert_eq!(lines[0], format!("add {mark} timeout 1000ms }}"));
    assert_eq!(lines[1], "-d -u 10.10.0.12:80 -r 10.20.0.2:8080");
    assert!(
        lines[2].starts_with("conntrack -D -p udp --orig-dst 10.10.0.12 --orig-port-dst 80 "),
        "{lines:#?}"
    );
    assert_eq!(lines[3..], [format!("delete {mark} }}")]);
    assert_eq!(plane.ledger().draining(), 0);
}

/// A service that is gone takes its real servers along, those that drain, too.
#[test]
fn a_deleted_service_drains_nothing() {
    let mut plane = serving(&[1, 2]);
    let now = Instant::now();
    want(&mut plane, &[1]);
    commit(&mut plane, now);
    plane.want(&service(1), &Program::default());
    let lines = commit(&mut plane, now);
    assert!(lines.contains(&ENDED.to_owned()), "{lines:#?}");
    assert_eq!(plane.ledger().draining(), 0);
    assert_eq!(normal(plane.kernel().tables()), Snapshot::default());
}
