//! What is told of a data plane: counts of objects, their owners, and what became of each op.

use super::*;
use crate::survey::{Counts, ObjectKind};

#[test]
fn everything_is_counted_by_kind_and_has_an_owner() {
    let world = world_of(vec![web(&[1, 2]), Face { vip: 2, ..web(&[3]) }]);
    let mut plane = plane_with(FakeKernel::new(), &world);
    plane.adopt().unwrap();
    let counts = |wanted, present| Counts {
        wanted,
        present,
        refused: 0,
    };
    let before = plane.ledger().survey();
    assert_eq!(before.of(ObjectKind::RealServer), counts(3, 0));
    settle(&mut plane);
    let survey = plane.ledger().survey();
    assert_eq!(survey.of(ObjectKind::VirtualServer), counts(2, 2));
    assert_eq!(survey.of(ObjectKind::RealServer), counts(3, 3));
    assert_eq!(survey.of(ObjectKind::Route), counts(2, 2));
    assert_eq!(survey.of(ObjectKind::Address), counts(2, 2));
    assert_eq!(survey.of(ObjectKind::Table), counts(1, 1));
    let elements = survey.of(ObjectKind::Element);
    assert!(
        elements.wanted > 3 && elements.wanted == elements.present,
        "{elements:?}"
    );
    assert_eq!(survey.owners.len(), 2);
    assert!(survey.owners.iter().all(|(_, owner)| *owner == service(1)));
    // What is deleted leaves nothing; of TCP a real server drains.
    plane.want(&service(1), &program(1, &[web(&[1])]));
    plane.commit(Instant::now()).unwrap();
    let survey = plane.ledger().survey();
    assert_eq!(survey.of(ObjectKind::RealServer), counts(1, 2));
    assert_eq!(survey.draining, 1);
    assert_eq!(survey.owners.len(), 1);
}

#[test]
fn each_op_is_told_with_its_errno() {
    let mut plane = plane_with(FakeKernel::new(), &world_of(vec![web(&[1, 2])]));
    plane.adopt().unwrap();
    let first = plane.commit(Instant::now()).unwrap();
    let count = |name| {
        let of_name = first.answers.iter().filter(|(n, errno, _)| (*n, *errno) == (name, 0));
        of_name.map(|(.., count)| count).sum::<u64>()
    };
    assert_eq!((count("new_virtual_server"), count("new_real_server")), (1, 2));
    assert_eq!((count("install_table"), count("add_route")), (1, 1));
    // Somebody else made it: told, and no error.
    let server = plane.kernel().tables().virtual_servers[0].clone();
    plane.want(&service(1), &Program::default());
    plane.commit(Instant::now()).unwrap();
    let config = server.config;
    plane
        .kernel_mut()
        .apply(&Op::Ipvs(Command::NewService(server.server, config)))
        .unwrap();
    plane.want(&service(1), &program(1, &[web(&[1, 2])]));
    let report = plane.commit(Instant::now()).unwrap();
    assert!(
        report.answers.contains(&("new_virtual_server", libc::EEXIST, 1)),
        "{:?}",
        report.answers
    );
    // What is refused waits, and counts.
    assert!(report.refused.is_empty());
}
