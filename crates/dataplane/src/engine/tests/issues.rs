//! Regression tests of public issues that the engine alone can show.

use super::*;

/// A kernel whose module `ip_vs_mh` is missing.
fn without_maglev() -> FakeKernel {
    let mut kernel = FakeKernel::new();
    kernel
        .missing_schedulers
        .insert(crate::compile::scheduler_name(Scheduler::Maglev));
    kernel
}

fn maglev(endpoints: &[u8]) -> Face {
    Face {
        scheduler: Scheduler::Maglev,
        ..web(endpoints)
    }
}

/// Which schedulers the kernel holds, by virtual server.
fn schedulers(plane: &DataPlane<FakeKernel>) -> Vec<String> {
    let tables = plane.kernel().tables();
    let text = |present: &crate::kernel::PresentServer| format!("{} {}", present.server, present.config.scheduler);
    tables.virtual_servers.iter().map(text).collect()
}

/// What a report says of schedulers.
fn fallen_back(report: &crate::commit::Report) -> Vec<String> {
    let text = |(server, scheduler): &(ipvs::VirtualServer, ipvs::SchedulerName)| format!("{server} {scheduler}");
    report.fallen_back.iter().map(text).collect()
}

/// Ops since `from` that the kernel refused.
fn refused(plane: &DataPlane<FakeKernel>, from: usize) -> Vec<String> {
    let log = plane.kernel().log[from..].iter();
    log.filter(|(_, answer)| answer.is_err())
        .map(|(op, _)| op.to_string())
        .collect()
}

/// k/k#92033 (T22): a scheduler whose module is missing costs that service its scheduler and nobody anything else.
#[test]
fn missing_scheduler_module_event() {
    let world = World::from([(1, vec![maglev(&[1, 2])]), (2, vec![web(&[3])])]);
    let mut plane = plane_with(without_maglev(), &world);
    plane.adopt().unwrap();
    let now = Instant::now();
    let report = plane.commit(now).unwrap();
    let lacks = ["10.10.0.10:80/TCP mh"];
    assert_eq!(fallen_back(&report), lacks, "server and scheduler are named");
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    assert!(plane.ledger().next_retry().is_none(), "nothing waits");
    assert_eq!(schedulers(&plane), ["10.10.0.10:80/TCP rr", "10.10.0.20:80/TCP rr"]);
    let tables = plane.kernel().tables();
    assert_eq!(
        tables
            .virtual_servers
            .iter()
            .map(|p| p.real_servers.len())
            .collect::<Vec<_>>(),
        [2, 1]
    );
    assert_eq!(tables.routes, [ip(10, 10), ip(10, 20)]);
    // mh's flags would be another scheduler's.
    assert_eq!(tables.virtual_servers[0].config.flags, ipvs::Flags::default());

    // Wanted again, with the same and with another endpoint: what the kernel lacks is neither asked for nor told again.
    let ops = plane.kernel().log.len();
    plane.want(&service(1), &program(1, &[maglev(&[1, 2])]));
    let report = plane.commit(now).unwrap();
    assert!(report.is_empty() && report.fallen_back.is_empty(), "{report:?}");
    plane.want(&service(1), &program(1, &[maglev(&[1, 2, 5])]));
    let report = plane.commit(now).unwrap();
    assert_eq!(fallen_back(&report), [""; 0]);
    assert_eq!(log(&plane, ops), ["-a -t 10.10.0.10:80 -r 10.20.0.5:8080 -m -w 1"]);

    // A second service of the same scheduler gets rr without a refused op, and is told.
    let ops = plane.kernel().log.len();
    plane.want(&service(3), &program(3, &[maglev(&[7])]));
    let report = plane.commit(now).unwrap();
    assert_eq!(fallen_back(&report), ["10.10.0.30:80/TCP mh"]);
    assert_eq!(refused(&plane, ops), [""; 0]);
}

/// T22: the module may have come meanwhile; the kernel is asked again after it was read anew.
#[test]
fn t22_a_missing_scheduler_is_tried_again_after_adoption() {
    let world = world_of(vec![maglev(&[1])]);
    let mut plane = plane_with(without_maglev(), &world);
    plane.adopt().unwrap();
    settle(&mut plane);
    assert_eq!(schedulers(&plane), ["10.10.0.10:80/TCP rr"]);
    plane.kernel_mut().missing_schedulers.clear();
    plane.adopt().unwrap();
    plane.want(&service(1), &program(1, &world[&1]));
    let ops = plane.kernel().log.len();
    let report = plane.commit(Instant::now()).unwrap();
    assert_eq!(fallen_back(&report), [""; 0]);
    assert_eq!(log(&plane, ops), ["-E -t 10.10.0.10:80 -s mh -b mh-fallback,mh-port"]);
}

/// L3 with T22: no VIP is live before its virtual server stands, whatever happened to its scheduler.
#[test]
fn t22_the_route_waits_for_the_virtual_server_that_fell_back() {
    let mut plane = plane_with(without_maglev(), &world_of(vec![maglev(&[1])]));
    plane.adopt().unwrap();
    plane.commit(Instant::now()).unwrap();
    let done = plane.kernel().log.iter().filter(|(_, answer)| answer.is_ok());
    let done: Vec<_> = done
        .filter(|(op, _)| !matches!(op, Op::Policy(_)))
        .map(|(op, _)| op.to_string().split_whitespace().take(1).collect::<String>())
        .collect();
    assert_eq!(done, ["-A", "-a", "route"]);
    assert!(plane.ledger().next_retry().is_none(), "and not for a clock");
}

/// k/k#133773 (L3): on a new node with many services the rules come first, in one batch; then the API server's VIP is
/// complete and live before any other service has anything at all.
#[test]
fn new_node_api_vip_first() {
    let mut plane = DataPlane::new(FakeKernel::new(), Settings::default());
    for number in 0..200u8 {
        let mut program = program(1, &[web(&[1, 2, 3])]);
        program.frontends[0].key.address = ip(99, number);
        plane.want(&ObjectName::new("a", &format!("s{number}")), &program);
    }
    let mut api = program(2, &[web(&[4, 6])]);
    api.frontends[0].key.address = ip(100, 1);
    plane.want(&ObjectName::new("default", "kubernetes"), &api);
    plane.adopt().unwrap();
    plane.commit(Instant::now()).unwrap();

    let lines = log(&plane, 0);
    let policies = plane.kernel().log.iter();
    let policies = policies.take_while(|(op, _)| op.phase() == Phase::Policies).count();
    assert_eq!(lines[0], "install ip");
    assert!(policies > 200 && lines[policies..].iter().all(|line| !line.contains(" element ")));
    let first = &lines[policies..policies + 4];
    let expect = [
        "-A -t 10.100.0.1:80",
        "-a -t 10.100.0.1:80",
        "-a -t 10.100.0.1:80",
        "route add local 10.100.0.1",
    ];
    for (line, start) in first.iter().zip(expect) {
        assert!(line.starts_with(start), "{first:#?}");
    }
    assert!(lines[policies + 4..].iter().all(|line| !line.contains("10.100.0.1")));
}
