//! The steps that an object costs grow as its size does, in whatever it is large (audit F2, F33).

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::step::count;

/// Steps to take a service with its slices in, to change it, and to compute it.
fn steps(service: &Service, slices: &[EndpointSlice]) -> u64 {
    let mut cluster = cluster();
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1"), ip("192.0.2.2")]));
    count(|| {
        for slice in slices {
            cluster.apply(Event::EndpointSlice(Change::Applied(slice.clone())));
        }
        for created in [1, 2] {
            let changed = Service {
                created,
                ..service.clone()
            };
            cluster.apply(Event::Service(Change::Applied(changed)));
        }
        let program = cluster.program(&service.name);
        assert!(!program.frontends.is_empty() || !program.rejections.is_empty());
    })
}

/// Four times as much costs five times as much at most: what a service costs whatever its size is little.
fn is_linear(what: &str, input: impl Fn(u16) -> (Service, Vec<EndpointSlice>)) {
    let mut before = None;
    for size in [100, 400, 1_600, 6_400] {
        let (service, slices) = input(size);
        let steps = steps(&service, &slices);
        assert!(
            steps >= u64::from(size),
            "{what}: {steps} steps are not those of {size}"
        );
        let allowed = before.map_or(u64::MAX, |before: u64| 5 * before);
        assert!(
            steps <= allowed,
            "{what}: {size} cost {steps} steps, a quarter of them {before:?}"
        );
        before = Some(steps);
    }
}

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    [198, 18, high, low].into()
}

fn numbered(number: u16) -> ServicePort {
    ServicePort {
        position: number.into(),
        name: format!("p{number}").into(),
        ..tcp(u16::MAX - number, 0)
    }
}

fn external(position: u16, ip: IpAddr) -> ExternalIp {
    ExternalIp {
        position: position.into(),
        ip,
    }
}

fn balanced(position: u16, ip: IpAddr) -> LoadBalancerIngress {
    LoadBalancerIngress {
        position: position.into(),
        ip,
        mode: IpMode::Vip,
    }
}

/// Both policies Local: insiders need ports of their own (T2).
fn both_local(service: Service) -> Service {
    Service {
        external_traffic_policy: TrafficPolicy::Local,
        internal_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: 31_000,
        ..service
    }
}

#[test]
fn f02_faces_are_linear_in_ports() {
    is_linear("ports", |size| {
        let service = Service {
            ports: (0..size).map(numbered).collect(),
            ..both_local(everywhere(1))
        };
        let of_slice = |port: ServicePort| EndpointPort {
            name: port.name,
            protocol: port.protocol,
            port: 8080,
        };
        let slice = EndpointSlice {
            ports: (0..size).map(numbered).map(of_slice).collect(),
            ..slice(1, 0, vec![endpoint(1, "here"), endpoint(2, "there")])
        };
        (service, vec![slice])
    });
}

#[test]
fn f02_faces_are_linear_in_external_ips() {
    is_linear("external IPs", |size| {
        let external_ips = (0..size).map(|at| external(at, address(at))).collect();
        let service = Service {
            external_ips,
            ..both_local(everywhere(1))
        };
        (service, Vec::new())
    });
}

/// One address many times, with many ports: once for each port.
#[test]
fn f02_faces_are_linear_in_duplicates() {
    is_linear("copies of an address, and ports", |size| {
        let mut service = both_local(everywhere(1));
        service.ports = (0..size).map(numbered).collect();
        service.external_ips = (0..size).map(|at| external(at, ip("198.51.100.1"))).collect();
        service.load_balancer_ingress = (0..size).map(|at| balanced(at, ip("203.0.113.1"))).collect();
        (service, Vec::new())
    });
    is_linear("ports of one number", |size| {
        let ports = (0..size).map(|at| ServicePort {
            position: at.into(),
            ..tcp(80, 30_000)
        });
        let service = Service {
            ports: ports.collect(),
            ..both_local(everywhere(1))
        };
        (service, Vec::new())
    });
    is_linear("ports of one number of a slice", |size| {
        let mut slice = slice(1, 0, vec![endpoint(1, "here")]);
        let port = slice.ports.first().unwrap().clone();
        slice.ports = (0..size).map(|_| port.clone()).collect();
        (everywhere(1), vec![slice])
    });
}

#[test]
fn f02_faces_are_linear_in_load_balancer_addresses_and_node_ports() {
    is_linear("load-balancer addresses and node ports", |size| {
        let mut service = everywhere(1);
        service.ports = (0..size).map(|at| tcp(20_000 + at, 20_000 + at)).collect();
        // The node's own last.
        let elsewhere = (1..size).map(|at| balanced(at, ip("203.0.113.1")));
        let own = balanced(0, ip("192.0.2.1"));
        service.load_balancer_ingress = elsewhere.chain([own]).collect();
        service.source_ranges = vec![Some("10.0.0.0/8".parse().unwrap())];
        (service, Vec::new())
    });
}

#[test]
fn f02_programs_are_linear_in_ranges() {
    is_linear("ranges", |size| {
        let range = |at| IpNet::from(address(2 * at));
        let service = Service {
            source_ranges: (0..size).map(range).map(Some).collect(),
            ..everywhere(1)
        };
        (service, Vec::new())
    });
    is_linear("neighbors and nested ranges", |size| {
        let range = |at: u16| IpNet::new(address(at), 32 - u8::try_from(at % 9).unwrap()).unwrap();
        let service = Service {
            source_ranges: (0..size).map(range).map(Some).collect(),
            ..everywhere(1)
        };
        (service, Vec::new())
    });
}

#[test]
fn f02_programs_are_linear_in_endpoints() {
    let endpoints = |size: u16| {
        (0..size).map(address).map(|address| Endpoint {
            address,
            ..endpoint(1, "here")
        })
    };
    is_linear("endpoints", |size| {
        (both_local(everywhere(1)), vec![slice(1, 0, endpoints(size).collect())])
    });
    is_linear("slices", |size| {
        let slices = endpoints(size).enumerate().map(|(at, endpoint)| EndpointSlice {
            name: ObjectName::new("d", &format!("s1-{at}")),
            ..slice(1, 0, vec![endpoint])
        });
        (both_local(everywhere(1)), slices.collect())
    });
}

#[test]
fn f02_programs_are_linear_in_rejections() {
    is_linear("addresses that cannot be", |size| {
        let service = Service {
            external_ips: (0..size).map(|at| external(at, ip("239.1.1.1"))).collect(),
            ..everywhere(1)
        };
        (service, Vec::new())
    });
}

/// A claim that joins or leaves those that wait for a place concerns the next ones alone.
#[test]
fn f33_a_place_that_many_want_concerns_few() {
    let wants = |number: u16, created| Service {
        created,
        cluster_ips: [address(number)].into_iter().collect(),
        ports: [tcp(80, 0)].into_iter().collect(),
        external_ips: vec![external(0, ip("198.51.100.1"))],
        ..Service::new(ObjectName::new("d", &format!("n{number}")))
    };
    let touched = |many: u16| {
        let mut cluster = cluster();
        let mut all = 0;
        for number in 0..many {
            all += apply_service(&mut cluster, wants(number, i64::from(number) * 10)).len();
        }
        // The first, one in the middle, the last: each goes, comes back older than all, and turns young.
        for number in [0, many / 2, many - 1] {
            for created in [Some(-1), Some(5), Some(1 << 40), None, Some(0)] {
                let change = match created {
                    Some(created) => Change::Applied(wants(number, created)),
                    None => Change::Deleted(wants(number, 0).name),
                };
                cluster.apply(Event::Service(change));
                let concerned = cluster.take_touched().len();
                assert!(concerned <= 5, "{concerned} of {many}");
            }
        }
        all
    };
    assert_eq!(touched(10), 10);
    assert_eq!(touched(1_000), 1_000);
}

proptest! {
    /// Ports of insiders are free, differ, and are the greatest that are.
    #[test]
    fn f02_insiders_ports_are_those_that_a_search_for_each_finds(
        taken in prop::collection::vec((65_500..=u16::MAX, any::<bool>()), 1..40),
    ) {
        let mut service = both_local(everywhere(1));
        let port = |(number, udp)| ServicePort {
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            ..tcp(number, 0)
        };
        service.ports = taken.into_iter().map(port).collect();
        let list = faces(&service, &config(), &cluster().nodes);
        for (at, port) in service.ports.iter().enumerate() {
            let has = |number: u16| service.ports.iter().any(|other| other.port == number && other.protocol == port.protocol);
            let expect = (1..=u16::MAX).rev().filter(|number| !has(*number)).nth(at);
            prop_assert_eq!(list.insiders_port(at), expect);
        }
    }
}
