//! What keeps clients out: source ranges, addresses that may not stand where they stand, fields that cannot be read.

use ipnet::IpNet;

use super::*;
use crate::object::InvalidField;

/// What is read of a list of source ranges; `?` = one that cannot be.
fn ranges(list: &[&str]) -> Vec<Option<IpNet>> {
    list.iter()
        .map(|text| (*text != "?").then(|| text.parse().unwrap()))
        .collect()
}

#[test]
fn t15_source_ranges_hold_for_load_balancer_addresses_only() {
    let cluster = one(Service {
        source_ranges: ranges(&["192.0.2.0/24", "fd00::/8"]),
        ..everywhere(1)
    });
    let of = |kind| of_kind(&cluster, kind).source_ranges.map(|ranges| ranges.ranges);
    assert_eq!(
        of(AddressKind::LoadBalancer),
        Some(vec!["192.0.2.0/24".parse().unwrap()])
    );
    assert_eq!(
        (
            of(AddressKind::ClusterIp),
            of(AddressKind::NodePort),
            of(AddressKind::ExternalIp)
        ),
        (None, None, None)
    );
}

/// Who may connect to the load balancer's addresses, by family; `-` = nobody, `*` = everybody.
#[test]
fn t15_a_range_that_cannot_be_read_opens_nothing() {
    let check = |list: &[&str], v4: &str, v6: &str| {
        let mut both = everywhere(1);
        both.cluster_ips.push(ip("fd00::1"));
        both.load_balancer_ingress.push(LoadBalancerIngress {
            position: 1,
            ip: ip("2001:db8:f::1"),
            mode: IpMode::Vip,
        });
        both.source_ranges = ranges(list);
        let program = one(both).program(&name(1));
        let balanced = program
            .frontends
            .iter()
            .filter(|one| one.kind == AddressKind::LoadBalancer);
        let found: Vec<_> = balanced
            .map(|frontend| match &frontend.source_ranges {
                None => "*".to_owned(),
                Some(allowed) if allowed.ranges.is_empty() => {
                    assert!(!allowed.admits_node);
                    "-".to_owned()
                }
                Some(allowed) => allowed
                    .ranges
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            })
            .collect();
        assert_eq!(found, [v4, v6], "{list:?}");
    };
    check(&[], "*", "*");
    check(&["?"], "-", "-");
    check(&["192.0.2.0/24", "?"], "192.0.2.0/24", "-");
    check(&["?", "fd00::/8"], "-", "fd00::/8");
    check(&["?", "fd00::/8", "10.0.0.0/8"], "10.0.0.0/8", "fd00::/8");
    check(&["0.0.0.0/0", "?"], "0.0.0.0/0", "-");
    // A family that none is of has none, as in all of kube-proxy's modes.
    check(&["fd00::/8"], "*", "fd00::/8");
}

/// A balancer on the nodes, whose port has the number of the NodePort: what the ranges keep out does not come in by that.
#[test]
fn t15_ranges_hold_where_the_place_is_a_node_port_too() {
    let service = |list: &[&str]| {
        let mut service = everywhere(1);
        service.ports = [tcp(30_001, 30_001)].into_iter().collect();
        service.load_balancer_ingress[0].ip = ip("192.0.2.1");
        service.source_ranges = ranges(list);
        service
    };
    let at = |cluster: &Cluster, address: &str| {
        let frontends = cluster.program(&name(1)).frontends;
        let mut found = frontends.into_iter().filter(|one| one.key.address == ip(address));
        let one = found.next();
        assert!(found.next().is_none());
        one.map(|one| (one.kind, one.source_ranges.is_some()))
    };
    for mut cluster in [one(everywhere(2)), redirecting(true, NodePortAddresses::All)] {
        apply_service(&mut cluster, service(&["198.18.0.0/16"]));
        assert_eq!(at(&cluster, "192.0.2.1"), Some((AddressKind::LoadBalancer, true)));
        apply_service(&mut cluster, service(&[]));
        let found = at(&cluster, "192.0.2.1");
        assert!(
            found.is_none_or(|found| found == (AddressKind::NodePort, false)),
            "{found:?}"
        );
    }
}

#[test]
fn t15_ranges_are_disjoint_and_admit_the_node_by_any_of_its_addresses() {
    let mut cluster = one(Service {
        source_ranges: ranges(&["10.0.0.0/8", "10.1.0.0/16", "198.18.0.0/25", "198.18.0.128/25"]),
        ..everywhere(1)
    });
    let of = |cluster: &Cluster| of_kind(cluster, AddressKind::LoadBalancer).source_ranges.unwrap();
    let found: Vec<_> = of(&cluster).ranges.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.0/8", "198.18.0.0/24"]);
    assert!(!of(&cluster).admits_node);
    cluster.apply(Event::NodeAddresses(vec![ip("203.0.113.1"), ip("10.7.7.7")]));
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert!(of(&cluster).admits_node);
}

/// The API forbids link-local addresses as endpoints' and as external IPs, not as cluster IPs and in the status
/// (kubernetes/kubernetes#109152, cloudnativelabs/kube-router#694).
#[test]
fn which_addresses_may_stand_where() {
    let check = |address: &str, expect: [bool; 4]| {
        let with = |change: &dyn Fn(&mut Service)| {
            let mut service = everywhere(1);
            let own = if address.contains(':') { "fd00::1" } else { "10.0.0.1" };
            service.cluster_ips = [ip(own)].into_iter().collect();
            change(&mut service);
            let program = one(service).program(&name(1));
            let serves = program.frontends.iter().any(|one| one.key.address == ip(address));
            assert_eq!(
                program.rejections.is_empty(),
                serves,
                "{address}: {:?}",
                program.rejections
            );
            serves
        };
        let found = [
            with(&|service| service.cluster_ips = [ip(address)].into_iter().collect()),
            with(&|service| {
                let ip = ip(address);
                service.external_ips = vec![ExternalIp { position: 0, ip }];
            }),
            with(&|service| service.load_balancer_ingress[0].ip = ip(address)),
            {
                let mut cluster = cluster();
                let slice = EndpointSlice {
                    family: Some(if address.contains(':') { Family::V6 } else { Family::V4 }),
                    ..slice(
                        1,
                        0,
                        vec![Endpoint {
                            address: ip(address),
                            ..endpoint(1, "there")
                        }],
                    )
                };
                apply_slice(&mut cluster, slice);
                let mut service = everywhere(1);
                service.cluster_ips.push(ip("fd00::1"));
                apply_service(&mut cluster, service);
                let program = cluster.program(&name(1));
                let takes = program.frontends.iter().any(|one| !one.endpoints.is_empty());
                assert_eq!(program.rejections.is_empty(), takes, "{address}");
                takes
            },
        ];
        assert_eq!(found, expect, "{address}: cluster IP, external IP, status, endpoint");
    };
    check("198.51.100.7", [true; 4]);
    check("169.254.64.1", [true, false, true, false]);
    // Nobody's as external addresses (T41).
    check("240.0.0.1", [true, false, false, true]);
    check("0.0.0.1", [true, false, false, true]);
    check("2001:db8::7", [true; 4]);
    check("fec0::1", [true; 4]);
    for never in [
        "0.0.0.0",
        "127.0.0.1",
        "127.8.0.1",
        "224.0.0.5",
        "239.1.1.1",
        "255.255.255.255",
    ] {
        check(never, [false; 4]);
    }
    for never in ["::", "::1", "ff02::1", "ff0e::1", "fe80::1"] {
        check(never, [false; 4]);
    }
}

/// A service whose only cluster IP cannot be read is not headless.
#[test]
fn a_cluster_ip_that_cannot_be_read_is_told() {
    let unread = InvalidField {
        field: "spec.clusterIPs".into(),
        reason: "\"10.0.0\" is not an IP address".into(),
    };
    let port = InvalidField {
        field: "spec.ports[1].port".into(),
        reason: "is missing".into(),
    };
    let service = |invalid: &[&InvalidField], other_proxy| Service {
        cluster_ips: [].into_iter().collect(),
        invalid: invalid.iter().map(|one| (*one).clone()).collect(),
        other_proxy,
        ..everywhere(1)
    };
    let told = |service| one(service).program(&name(1)).rejections.len();
    assert_eq!(told(service(&[&unread, &port], false)), 1);
    assert_eq!(told(service(&[&port], false)), 0);
    assert_eq!(told(service(&[&unread], true)), 0);
}

/// An unknown type is none that is asked from outside, and yet its policy holds.
#[test]
fn t01_a_local_policy_holds_whatever_the_type() {
    for service_type in [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer] {
        let mut cluster = one(Service {
            service_type,
            external_traffic_policy: TrafficPolicy::Local,
            ..everywhere(1)
        });
        apply_slice(&mut cluster, slice(1, 0, vec![endpoint(2, "there")]));
        let node_port = of_kind(&cluster, AddressKind::NodePort);
        assert_eq!(
            (node_port.endpoints.len(), node_port.refusal),
            (0, Refusal::Drop),
            "{service_type:?}"
        );
    }
    // One that nobody asks from outside needs no place for insiders.
    let inside = one(Service {
        external_traffic_policy: TrafficPolicy::Local,
        internal_traffic_policy: TrafficPolicy::Local,
        cluster_ips: [ip("10.0.0.1")].into_iter().collect(),
        ports: [tcp(80, 0)].into_iter().collect(),
        ..Service::new(name(1))
    });
    assert_eq!(inside.program(&name(1)).frontends.len(), 1);
}
