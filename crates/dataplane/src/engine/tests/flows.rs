//! L8: UDP flows to endpoints that are gone, and those that began before there was a service, end; others go on.

use super::*;
use crate::element::Place;

fn dns(endpoints: &[u8]) -> Face {
    Face {
        vip: 2,
        port: 53,
        ..web(endpoints)
    }
}

fn place() -> Place {
    Place {
        address: ip(10, 12),
        port: 53,
        protocol: ipvs::Protocol::Udp,
    }
}

fn answered_by(last: u8) -> (Place, SocketAddr) {
    (place(), SocketAddr::new(ip(20, last), 8080))
}

/// A plane with flows of these; the VIP itself "answers" what was sent before it was there.
fn with_flows(endpoints: &[u8], flows: &[(Place, SocketAddr)]) -> DataPlane<FakeKernel> {
    let mut plane = plane_with(FakeKernel::new(), &world_of(vec![dns(endpoints)]));
    plane.adopt().unwrap();
    settle(&mut plane);
    plane.kernel_mut().flows.extend(flows);
    plane
}

fn want(plane: &mut DataPlane<FakeKernel>, faces: &[Face]) -> Vec<String> {
    let from = plane.kernel().log.len();
    plane.want(&service(1), &program(1, faces));
    let now = Instant::now();
    plane.commit(now).unwrap();
    let later = now + crate::ledger::UDP_GRACE;
    plane.look_at_drains(later).unwrap();
    plane.commit(later).unwrap();
    let mut lines = log(plane, from);
    lines.retain(|line| !line.contains(" draining ") && !line.contains(" hairpin "));
    lines
}

/// k/k#76664, k/k PR#119010: after the real server is gone, and only then.
#[test]
fn flush_after_removal_order() {
    let mut plane = with_flows(&[1, 3], &[answered_by(1), answered_by(3)]);
    let lines = want(&mut plane, &[dns(&[1])]);
    let flush =
        "conntrack -D -p udp --orig-dst 10.10.0.12 --orig-port-dst 53 # but not those answered by 10.20.0.1:8080";
    let leaving = format!("{flush}, 10.20.0.3:8080");
    let quiet = "-e -u 10.10.0.12:53 -r 10.20.0.3:8080 -m -w 0";
    assert_eq!(lines, [quiet, &leaving, "-d -u 10.10.0.12:53 -r 10.20.0.3:8080", flush]);
    assert_eq!(plane.kernel().flows, [answered_by(1)].into());
}

/// k/k#139628: the last endpoint goes.
#[test]
fn udp_scale_to_zero_flush() {
    let mut plane = with_flows(&[1], &[answered_by(1)]);
    want(&mut plane, &[dns(&[])]);
    assert!(plane.kernel().flows.is_empty());
}

/// k/k PR#141275: the service itself goes.
#[test]
fn udp_service_delete_flush() {
    let mut plane = with_flows(&[1], &[answered_by(1)]);
    want(&mut plane, &[]);
    assert!(plane.kernel().flows.is_empty());
}

/// What was sent to the VIP before there was anybody.
#[test]
fn udp_flows_from_before_the_service_end() {
    let mut plane = plane_with(FakeKernel::new(), &World::new());
    plane.adopt().unwrap();
    let other = (Place { port: 54, ..place() }, SocketAddr::new(ip(10, 12), 54));
    let early = (place(), SocketAddr::new(ip(10, 12), 53));
    plane.kernel_mut().flows.extend([early, other]);
    want(&mut plane, &[dns(&[1])]);
    assert_eq!(plane.kernel().flows, [other].into());
    // The first endpoint of a service that had none.
    let mut plane = with_flows(&[], &[early]);
    want(&mut plane, &[dns(&[1])]);
    assert!(plane.kernel().flows.is_empty());
}

/// A change that costs no endpoint ends no flow and asks nothing.
#[test]
fn nothing_is_asked_where_nothing_changed() {
    let mut plane = with_flows(&[1, 3], &[answered_by(1)]);
    assert_eq!(want(&mut plane, &[dns(&[1, 3])]), Vec::<String>::new());
    let lines = want(&mut plane, &[dns(&[1, 3]), Face { vip: 0, ..web(&[1]) }]);
    assert!(lines.iter().all(|line| !line.starts_with("conntrack")), "{lines:#?}");
}

/// A refused removal is followed by the flush again when it succeeds.
#[test]
fn flows_end_after_a_removal_that_was_refused() {
    let mut plane = with_flows(&[1, 3], &[answered_by(3)]);
    let now = Instant::now();
    plane.want(&service(1), &program(1, &[dns(&[1])]));
    plane.commit(now).unwrap();
    assert_eq!(plane.kernel().flows.len(), 1, "its answer may be under way");
    // Behind the mark.
    let number = plane.kernel().log.len() + 1;
    plane.kernel_mut().faults.insert(number, libc::ENOMEM);
    let later = now + crate::ledger::UDP_GRACE;
    plane.look_at_drains(later).unwrap();
    plane.commit(later).unwrap();
    // The endpoint was there still, and traffic made its flow anew.
    plane.kernel_mut().flows.insert(answered_by(3));
    settle(&mut plane);
    assert!(plane.kernel().flows.is_empty());
}

/// A place without endpoints of its own that sends insiders to another one with these.
fn redirected(kind: AddressKind, endpoints: &[u8]) -> Program {
    let to = Face {
        port: 54,
        ..dns(endpoints)
    };
    let mut program = program(1, &[dns(&[]), to]);
    program.frontends[0].kind = kind;
    program.frontends[0].insiders = Some(SocketAddr::new(ip(10, 12), 54));
    program
}

/// T2: flows of insiders are named by where they were sent first, and answered by endpoints of where they arrive.
#[test]
fn flows_of_insiders_end_with_the_endpoints_that_they_were_sent_to() {
    for kind in [AddressKind::ExternalIp, AddressKind::NodePort] {
        let mut plane = DataPlane::new(FakeKernel::new(), Settings::default());
        plane.want(&service(1), &redirected(kind, &[1, 3]));
        plane.adopt().unwrap();
        settle(&mut plane);
        let flows = [answered_by(1), answered_by(3)];
        plane.kernel_mut().flows.extend(flows);
        plane.want(&service(1), &redirected(kind, &[1]));
        settle(&mut plane);
        assert_eq!(plane.kernel().flows, [answered_by(1)].into(), "{kind:?}");
    }
}

/// Audit F18: a look walks the whole connection tracker, so the next one waits as long as the caller says. Nothing else
/// does, and the look is not forgotten.
#[test]
fn f18_looks_for_flows_rest_and_nothing_else_does() {
    let mut plane = with_flows(&[1], &[answered_by(1)]);
    let (now, until) = (Instant::now(), Instant::now() + Duration::from_secs(5));
    plane.rest_flows(until);
    let from = plane.kernel().log.len();
    plane.want(&service(1), &program(1, &[]));
    plane.commit(now).unwrap();
    let lines = log(&plane, from);
    assert!(lines.contains(&"-D -u 10.10.0.12:53".to_owned()), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("conntrack")), "{lines:?}");
    assert_eq!(plane.ledger().next_retry(), Some(until));
    assert!(!plane.kernel().flows.is_empty());
    plane.commit(until).unwrap();
    assert!(plane.kernel().flows.is_empty());
    assert_eq!(plane.ledger().next_retry(), None);
}
