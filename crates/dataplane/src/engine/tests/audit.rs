//! L9: a look at the kernel beside the running engine.

use super::*;
use crate::adoption::Drift;

/// A plane at rest, and what the kernel holds.
fn resting(world: &World) -> DataPlane<FakeKernel> {
    let mut plane = plane_with(FakeKernel::new(), world);
    plane.adopt().unwrap();
    settle(&mut plane);
    plane
}

#[test]
fn an_audit_of_an_untouched_kernel_finds_and_writes_nothing() {
    let mut plane = resting(&world_of(vec![web(&[1, 2]), Face { vip: 2, ..web(&[3]) }]));
    let ops = plane.kernel().log.len();
    plane.begin_audit();
    let snapshot = plane.kernel_mut().read().unwrap();
    assert_eq!(plane.audited(&snapshot), Drift::default());
    plane.commit(Instant::now()).unwrap();
    assert_eq!(plane.kernel().log.len(), ops);
}

#[test]
fn what_somebody_else_changed_is_counted_and_repaired() {
    let mut plane = resting(&world_of(vec![web(&[1, 2]), Face { vip: 1, ..web(&[3]) }]));
    let wanted = plane.kernel().tables();
    let present = &wanted.virtual_servers[0];
    let (real, config) = present.real_servers[0];
    let quiet = ipvs::RealServerConfig { weight: 0, ..config };
    for op in [
        Op::Ipvs(Command::SetDest(present.server, real, quiet)),
        Op::Ipvs(Command::DelService(wanted.virtual_servers[1].server)),
        Op::Vip(VipCommand::DelRoute(ip(10, 10))),
        Op::Vip(VipCommand::DelAddress(ip(10, 10))),
    ] {
        plane.kernel_mut().apply(&op).unwrap();
    }
    plane.begin_audit();
    let snapshot = plane.kernel_mut().read().unwrap();
    let drift = plane.audited(&snapshot);
    let expected = Drift {
        virtual_servers: 1,
        real_servers: 2,
        routes: 1,
        addresses: 1,
        ..Drift::default()
    };
    assert_eq!(drift, expected);
    settle(&mut plane);
    assert_eq!(plane.kernel().tables(), wanted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is written while somebody looks, what he saw before harms nothing.
    #[test]
    fn an_old_look_changes_nothing(from in world(), to in world()) {
        let mut plane = plane_with(FakeKernel::new(), &from);
        plane.adopt().unwrap();
        settle(&mut plane);
        plane.begin_audit();
        let snapshot = plane.kernel_mut().read().unwrap();
        turn(&mut plane, &from, &to);
        let now = Instant::now();
        plane.commit(now).unwrap();
        while plane.has_addresses_to_add(now) {
            plane.commit_addresses(now).unwrap();
        }
        let after = plane.kernel().tables();
        prop_assert_eq!(plane.audited(&snapshot), Drift::default());
        plane.commit(now).unwrap();
        prop_assert_eq!(plane.kernel().tables(), after);
    }
}
