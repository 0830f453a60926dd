//! What one service may ask for (T39, T40).

use super::*;
use crate::config::Limits;
use crate::scheduler::Scheduler;

fn with(config: Config, service: Service, endpoints: u8) -> Program {
    let mut cluster = Cluster::new(config);
    cluster.apply(Event::OtherNodesComplete);
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1"), ip("192.0.2.2")]));
    let endpoints = (1..=endpoints).map(|last| endpoint(last, "here")).collect();
    apply_slice(&mut cluster, slice(1, 0, endpoints));
    apply_service(&mut cluster, service);
    cluster.program(&name(1))
}

fn limited(real_servers: usize, source_ranges: usize) -> Config {
    Config {
        limits: Limits {
            real_servers,
            source_ranges,
        },
        ..config()
    }
}

fn reasons(program: &Program) -> Vec<String> {
    program.rejections.iter().map(ToString::to_string).collect()
}

/// Five places, two endpoints each.
#[test]
fn f09_a_service_with_too_many_real_servers_is_refused_as_a_whole() {
    let fits = with(limited(10, 0), everywhere(1), 2);
    assert_eq!((fits.frontends.len(), reasons(&fits)), (5, Vec::new()));
    let refused = |limit, endpoints| {
        let service = Service {
            health_check_node_port: 31_000,
            external_traffic_policy: TrafficPolicy::Local,
            ..everywhere(1)
        };
        let program = with(limited(limit, 0), service, endpoints);
        assert_eq!(program.frontends, []);
        // Balancers hear that nothing is served here.
        assert_eq!(program.health_check.map(|check| check.v4), Some(Some(0)));
        reasons(&program).concat()
    };
    let expect = |asks| {
        format!(
            "Service d/s1: asks for {asks} real servers or more, and the limit is 9 \
             (limits.realServersPerService): nothing of it is served"
        )
    };
    assert_eq!(refused(9, 2), expect(10));
    // Places count without endpoints, and are not even listed.
    assert!(refused(4, 0).contains("asks for 5 real servers"), "{}", refused(4, 0));
}

#[test]
fn f09_the_places_of_a_service_that_is_too_large_are_counted_not_made() {
    let mut service = everywhere(1);
    service.ports = (1..=2_000).map(|number| tcp(number, 0)).collect();
    service.external_ips = (0..2_000_u16)
        .map(|at| ExternalIp {
            position: at.into(),
            ip: [198, 18, at.to_be_bytes()[0], at.to_be_bytes()[1]].into(),
        })
        .collect();
    let mut cluster = cluster();
    let steps = crate::step::count(|| {
        apply_service(&mut cluster, service);
        assert_eq!(cluster.program(&name(1)).frontends, []);
    });
    assert!(steps < 50_000, "{steps}");
    // No other service may have its cluster IP meanwhile.
    let thief = Service {
        external_ips: vec![ExternalIp {
            position: 0,
            ip: ip("10.0.0.1"),
        }],
        ..everywhere(2)
    };
    apply_service(&mut cluster, thief);
    let of_thief = cluster.program(&name(2)).frontends;
    assert!(of_thief.iter().all(|frontend| frontend.key.address != ip("10.0.0.1")));
}

/// What restricts never opens.
#[test]
fn f09_too_many_source_ranges_admit_nobody() {
    let mut service = everywhere(1);
    // Not neighbors, so that none goes into another.
    service.source_ranges = ["10.0.0.0/8", "12.0.0.0/8", "192.0.2.0/24"]
        .map(|range| Some(range.parse().unwrap()))
        .into();
    let admitted = |limit| {
        let program = with(limited(100, limit), service.clone(), 1);
        let mut balanced = program
            .frontends
            .iter()
            .filter(|one| one.kind == AddressKind::LoadBalancer);
        let ranges = balanced.next().unwrap().source_ranges.clone().unwrap();
        (ranges.ranges.len(), ranges.admits_node, reasons(&program).concat())
    };
    assert_eq!(admitted(3), (3, true, String::new()));
    let expect = "Service d/s1: spec.loadBalancerSourceRanges: 3 ranges, counted at each place, and the limit is 2 \
                  (limits.sourceRangesPerService): nobody may connect";
    assert_eq!(admitted(2), (0, false, expect.to_owned()));
}

#[test]
fn f09_ten_rejections_are_told_and_the_rest_counted() {
    let told = |many: usize| {
        let mut service = everywhere(1);
        service.external_ips = (0..many)
            .map(|position| ExternalIp {
                position,
                ip: ip("239.1.1.1"),
            })
            .collect();
        let program = with(config(), service, 1);
        (program.more_rejections, reasons(&program))
    };
    assert_eq!((told(10).0, told(10).1.len()), (0, 10));
    let (more, reasons) = told(1_000);
    assert_eq!((more, reasons.len()), (990, 11));
    assert_eq!(reasons.last().unwrap(), "Service d/s1: and 990 more");
}

#[test]
fn f17_a_scheduler_that_is_not_allowed_is_the_nodes() {
    let check = |allowed: &[Scheduler], wanted: &str, scheduler: Scheduler, rejected: &str| {
        let config = Config {
            allowed_schedulers: allowed.to_vec(),
            scheduler: Scheduler::LeastConnection,
            ..config()
        };
        let service = Service {
            scheduler: Some(wanted.into()),
            ..everywhere(1)
        };
        let program = with(config, service, 1);
        assert!(program.frontends.iter().all(|frontend| frontend.scheduler == scheduler));
        assert!(
            reasons(&program).concat().ends_with(rejected),
            "{:?}",
            reasons(&program)
        );
        assert_eq!(reasons(&program).is_empty(), rejected.is_empty());
    };
    check(&[], "mh", Scheduler::Maglev, "");
    check(&[Scheduler::RoundRobin], "rr", Scheduler::RoundRobin, "");
    check(&[Scheduler::RoundRobin], "lc", Scheduler::LeastConnection, "");
    let why = "mh is not among allowedSchedulers; lc is used";
    check(&[Scheduler::RoundRobin], "mh", Scheduler::LeastConnection, why);
}

/// `mh` has a table for each virtual server.
#[test]
fn f17_a_scheduler_with_a_table_counts_for_more() {
    let served = |scheduler: &str| {
        let service = Service {
            scheduler: Some(scheduler.into()),
            ..everywhere(1)
        };
        with(limited(5 * 64, 0), service, 1).frontends.len()
    };
    assert_eq!((served("rr"), served("mh")), (5, 0));
}
