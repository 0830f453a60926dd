//! What single events change, by decision number; `cost`: how many steps they take; `history`: what any number of them come to; `restriction`, `limit`, `protected` and `endpoint`:
//! what objects say, whatever came before.

mod cost;
mod endpoint;
mod history;
mod limit;
mod protected;
mod restriction;

use std::net::SocketAddr;

use super::*;
use crate::config::Capture;
use crate::frontend::{AddressKind, Frontend, HealthCheck, Masquerade, Refusal};
use crate::object::{
    Endpoint, EndpointPort, ExternalIp, Family, IpMode, LoadBalancerIngress, Protocol, ServicePort, ServiceType,
    TrafficPolicy,
};

/// An empty cluster that waits for no other nodes.
fn cluster() -> Cluster {
    let mut cluster = alone();
    cluster.apply(Event::OtherNodesComplete);
    cluster
}

fn alone() -> Cluster {
    Cluster::new(config())
}

fn config() -> Config {
    Config::of_node("here")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(number: u8) -> ObjectName {
    ObjectName::new("d", &format!("s{number}"))
}

fn tcp(port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        position: 0,
        name: "".into(),
        protocol: Protocol::Tcp,
        port,
        node_port,
    }
}

/// A load-balancer service with every kind of address.
fn everywhere(number: u8) -> Service {
    Service {
        service_type: ServiceType::LoadBalancer,
        cluster_ips: [ip(&format!("10.0.0.{number}"))].into_iter().collect(),
        ports: [tcp(80, 30_000 + u16::from(number))].into_iter().collect(),
        external_ips: vec![ExternalIp {
            position: 0,
            ip: ip(&format!("198.51.100.{number}")),
        }],
        load_balancer_ingress: vec![LoadBalancerIngress {
            position: 0,
            ip: ip(&format!("203.0.113.{number}")),
            mode: IpMode::Vip,
        }],
        ..Service::new(name(number))
    }
}

fn endpoint(last: u8, node: &str) -> Endpoint {
    Endpoint {
        address: ip(&format!("10.1.0.{last}")),
        node_name: Some(node.into()),
        ready: true,
        serving: true,
        terminating: false,
        zone_hints: [].into_iter().collect(),
        node_hints: [].into_iter().collect(),
    }
}

fn slice(number: u8, part: u8, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("d", &format!("s{number}-{part}")),
        service: format!("s{number}").into(),
        headless_label: false,
        family: Some(Family::V4),
        ports: [EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into_iter()
        .collect(),
        endpoints,
        last_change: None,
        invalid: Vec::new(),
    }
}

fn node(text: &str, zone: &str, addresses: &[&str]) -> Node {
    Node {
        name: ObjectName::cluster_scoped(text),
        zone: zone.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        pod_cidrs: Vec::new(),
        deleting: false,
        taints: Vec::new(),
        invalid: Vec::new(),
    }
}

fn apply_service(cluster: &mut Cluster, service: Service) -> Vec<ObjectName> {
    cluster.apply(Event::Service(Change::Applied(service)));
    cluster.take_touched()
}

fn apply_slice(cluster: &mut Cluster, slice: EndpointSlice) -> Vec<ObjectName> {
    cluster.apply(Event::EndpointSlice(Change::Applied(slice)));
    cluster.take_touched()
}

/// A cluster with one service, a local and a remote endpoint, and two addresses.
fn one(service: Service) -> Cluster {
    let mut cluster = cluster();
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1"), ip("192.0.2.2")]));
    apply_slice(
        &mut cluster,
        slice(1, 0, vec![endpoint(1, "here"), endpoint(2, "there")]),
    );
    apply_service(&mut cluster, service);
    cluster
}

fn of_kind(cluster: &Cluster, kind: AddressKind) -> Frontend {
    let program = cluster.program(&name(1));
    program
        .frontends
        .into_iter()
        .find(|frontend| frontend.kind == kind)
        .unwrap()
}

const OUTSIDE: [AddressKind; 3] = [
    AddressKind::NodePort,
    AddressKind::LoadBalancer,
    AddressKind::ExternalIp,
];

#[test]
fn t01_t02_t03_external_local() {
    let local = Service {
        external_traffic_policy: TrafficPolicy::Local,
        ..everywhere(1)
    };
    let cluster = one(local.clone());
    for kind in OUTSIDE {
        let frontend = of_kind(&cluster, kind);
        assert_eq!(frontend.endpoints.len(), 1, "{kind:?}");
        assert!(frontend.endpoints[0].local && frontend.masquerade == Masquerade::Never);
        let by_cluster_ip = of_kind(&cluster, AddressKind::ClusterIp).key;
        let redirect = SocketAddr::new(by_cluster_ip.address, by_cluster_ip.port);
        assert_eq!(frontend.insiders, Some(redirect), "T2");
    }
    assert_eq!(of_kind(&cluster, AddressKind::ClusterIp).endpoints.len(), 2);
    assert_eq!(of_kind(&cluster, AddressKind::ClusterIp).insiders, None);

    // Where the cluster IP is Local too, they are sent to a port of it that nobody else may ask.
    let mut both = one(Service {
        internal_traffic_policy: TrafficPolicy::Local,
        ..local.clone()
    });
    let insiders = of_kind(&both, AddressKind::Insiders);
    assert_eq!((insiders.key.port, insiders.endpoints.len()), (65535, 2));
    for kind in OUTSIDE {
        let redirect = SocketAddr::new(insiders.key.address, 65535);
        assert_eq!(of_kind(&both, kind).insiders, Some(redirect), "T2");
    }
    apply_slice(&mut both, slice(1, 0, Vec::new()));
    let frontends = both.program(&name(1)).frontends;
    assert!(frontends.iter().all(|frontend| frontend.insiders.is_none()));
    assert!(frontends.iter().all(|frontend| frontend.kind != AddressKind::Insiders));

    let mut cluster = one(local);
    apply_slice(&mut cluster, slice(1, 0, vec![endpoint(2, "there")]));
    for kind in OUTSIDE {
        let frontend = of_kind(&cluster, kind);
        assert!(frontend.endpoints.is_empty());
        assert_eq!(frontend.refusal, Refusal::Drop, "T1");
    }
}

#[test]
fn t04_internal_local_drops_where_the_endpoints_are_elsewhere() {
    let mut cluster = one(Service {
        internal_traffic_policy: TrafficPolicy::Local,
        ..everywhere(1)
    });
    assert_eq!(of_kind(&cluster, AddressKind::ClusterIp).endpoints.len(), 1);
    apply_slice(&mut cluster, slice(1, 0, vec![endpoint(2, "there")]));
    let frontend = of_kind(&cluster, AddressKind::ClusterIp);
    assert_eq!((frontend.endpoints.len(), frontend.refusal), (0, Refusal::Drop));
    assert_eq!(of_kind(&cluster, AddressKind::NodePort).endpoints.len(), 1);
}

#[test]
fn t05_without_endpoints_everything_is_refused() {
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        let service = Service {
            external_traffic_policy: policy,
            internal_traffic_policy: policy,
            ..everywhere(1)
        };
        let mut cluster = one(service);
        apply_slice(&mut cluster, slice(1, 0, Vec::new()));
        let program = cluster.program(&name(1));
        assert_eq!(program.frontends.len(), 5);
        assert!(
            program
                .frontends
                .iter()
                .all(|frontend| frontend.endpoints.is_empty() && frontend.refusal == Refusal::Reject)
        );
    }
}

#[test]
fn t07_an_address_of_this_node_is_not_bound_again() {
    let mut cluster = one(everywhere(1));
    assert!(!of_kind(&cluster, AddressKind::ExternalIp).node_address);
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1"), ip("198.51.100.1")]));
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert!(of_kind(&cluster, AddressKind::ExternalIp).node_address);
}

#[test]
fn t09_external_addresses_of_cluster_policy_are_masqueraded() {
    let cluster = one(everywhere(1));
    assert!(
        OUTSIDE
            .iter()
            .all(|kind| of_kind(&cluster, *kind).masquerade == Masquerade::Always)
    );
    assert_eq!(
        of_kind(&cluster, AddressKind::ClusterIp).masquerade,
        Masquerade::Outsiders,
        "T11"
    );
}

#[test]
fn t14_masquerade_all() {
    let mut cluster = Cluster::new(Config {
        masquerade_all: true,
        ..config()
    });
    cluster.apply(Event::Service(Change::Applied(everywhere(1))));
    assert_eq!(of_kind(&cluster, AddressKind::ClusterIp).masquerade, Masquerade::Always);
}

#[test]
fn t16_node_ports_follow_the_addresses() {
    let mut cluster = one(everywhere(1));
    let node_ports = |cluster: &Cluster| -> Vec<_> {
        let frontends = cluster.program(&name(1)).frontends;
        frontends
            .iter()
            .filter(|f| f.kind == AddressKind::NodePort)
            .map(|f| f.key.address.to_string())
            .collect()
    };
    assert_eq!(node_ports(&cluster), ["192.0.2.1", "192.0.2.2"]);
    cluster.apply(Event::NodeAddresses(vec![
        ip("192.0.2.2"),
        ip("127.0.0.1"),
        ip("fe80::1"),
        ip("2001:db8::1"),
    ]));
    assert_eq!(cluster.take_touched(), [name(1)]);
    // No address of a family that the service does not have, no loopback (T17).
    assert_eq!(node_ports(&cluster), ["192.0.2.2"]);
    // The same addresses again, in another order: nothing.
    cluster.apply(Event::NodeAddresses(vec![
        ip("2001:db8::1"),
        ip("192.0.2.2"),
        ip("fe80::1"),
        ip("127.0.0.1"),
    ]));
    assert!(cluster.take_touched().is_empty());
}

#[test]
fn t18_an_address_of_another_node_is_rejected_as_long_as_it_is_one() {
    let mut cluster = one(everywhere(1));
    cluster.apply(Event::Node(Change::Applied(node("there", "", &["198.51.100.1"]))));
    assert_eq!(cluster.take_touched(), [name(1)]);
    let program = cluster.program(&name(1));
    assert_eq!(
        program.rejections[0].to_string(),
        "Service d/s1: spec.externalIPs[0]: 198.51.100.1 is an address of node there"
    );
    assert!(
        program
            .frontends
            .iter()
            .all(|frontend| frontend.kind != AddressKind::ExternalIp)
    );
    cluster.apply(Event::Node(Change::Deleted(ObjectName::cluster_scoped("there"))));
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert!(cluster.program(&name(1)).rejections.is_empty());
}

/// k3s-io/k3s#2804: balancers that run on the nodes write the addresses of all nodes into the status.
#[test]
fn t18_a_load_balancer_address_of_another_node_is_left_to_it() {
    let mut cluster = one(everywhere(1));
    cluster.apply(Event::Node(Change::Applied(node("there", "", &["203.0.113.1"]))));
    assert_eq!(cluster.take_touched(), [name(1)]);
    let program = cluster.program(&name(1));
    assert_eq!((program.elsewhere, program.rejections.len()), (1, 0));
    let balanced = |program: &Program| {
        program
            .frontends
            .iter()
            .any(|one| one.kind == AddressKind::LoadBalancer)
    };
    assert!(!balanced(&program));
    // This node's own answers.
    cluster.apply(Event::NodeAddresses(vec![ip("203.0.113.1")]));
    let program = cluster.program(&name(1));
    assert!(program.elsewhere == 0 && balanced(&program));
}

#[test]
fn t18_an_address_that_two_nodes_have_is_rejected_until_both_are_gone() {
    for (first, second) in [("a", "b"), ("b", "a")] {
        let mut cluster = one(everywhere(1));
        for text in ["a", "b", first] {
            cluster.apply(Event::Node(Change::Applied(node(text, "", &["198.51.100.1"]))));
        }
        let gone = |text: &str| Event::Node(Change::Deleted(ObjectName::cluster_scoped(text)));
        cluster.apply(gone(first));
        let reason = cluster.program(&name(1)).rejections[0].reason.to_string();
        assert_eq!(reason, format!("198.51.100.1 is an address of node {second}"));
        cluster.apply(gone(second));
        assert!(cluster.program(&name(1)).rejections.is_empty());
    }
}

#[test]
fn t18_external_addresses_are_held_back_until_the_other_nodes_are_known() {
    let mut cluster = alone();
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1")]));
    assert!(!cluster.wants_other_nodes());
    apply_service(&mut cluster, everywhere(1));
    assert!(cluster.wants_other_nodes() && !cluster.knows_other_nodes());
    let kinds = |cluster: &Cluster| -> Vec<_> {
        let program = cluster.program(&name(1));
        assert!(program.rejections.is_empty());
        program.frontends.iter().map(|frontend| frontend.kind).collect()
    };
    assert_eq!(kinds(&cluster), [AddressKind::ClusterIp, AddressKind::NodePort]);
    // An address of this node is nobody else's.
    cluster.apply(Event::NodeAddresses(vec![ip("198.51.100.1")]));
    assert_eq!(kinds(&cluster).last(), Some(&AddressKind::ExternalIp));
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1")]));
    cluster.take_touched();

    cluster.apply(Event::OtherNodesComplete);
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert_eq!(kinds(&cluster).len(), 4);
    cluster.apply(Event::OtherNodesComplete);
    assert!(cluster.take_touched().is_empty());

    cluster.apply(Event::Node(Change::Applied(node("there", "", &["203.0.113.1"]))));
    assert_eq!(cluster.program(&name(1)).elsewhere, 1);
    cluster.apply(Event::OtherNodesForgotten);
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert_eq!(kinds(&cluster), [AddressKind::ClusterIp, AddressKind::NodePort]);
}

#[test]
fn t18_other_nodes_are_wanted_for_addresses_that_could_be_theirs() {
    let wants = |service: Service| {
        let mut cluster = alone();
        apply_service(&mut cluster, service);
        cluster.wants_other_nodes()
    };
    let plain = || Service {
        external_ips: Vec::new(),
        load_balancer_ingress: Vec::new(),
        ..everywhere(1)
    };
    let ingress = |mode| Service {
        load_balancer_ingress: vec![LoadBalancerIngress {
            position: 0,
            ip: ip("203.0.113.1"),
            mode,
        }],
        ..plain()
    };
    assert!(!wants(plain()));
    assert!(wants(ingress(IpMode::Vip)) && !wants(ingress(IpMode::Proxy)));
    assert!(!wants(Service {
        other_proxy: true,
        ..everywhere(1)
    }));
    let mut switched_off = Cluster::new(Config {
        allow_external_ips: false,
        ..alone().config
    });
    apply_service(
        &mut switched_off,
        Service {
            load_balancer_ingress: Vec::new(),
            ..everywhere(1)
        },
    );
    assert!(!switched_off.wants_other_nodes());
    // The last one goes.
    let mut cluster = one(everywhere(1));
    apply_service(&mut cluster, everywhere(2));
    cluster.apply(Event::Service(Change::Deleted(name(1))));
    assert!(cluster.wants_other_nodes());
    apply_service(
        &mut cluster,
        Service {
            external_ips: Vec::new(),
            service_type: ServiceType::NodePort,
            ..everywhere(2)
        },
    );
    assert!(!cluster.wants_other_nodes());
}

#[test]
fn t19_the_loser_takes_over_when_the_winner_goes() {
    let mut cluster = cluster();
    let with = |number, created, external: &str| Service {
        created,
        external_ips: vec![ExternalIp {
            position: 0,
            ip: ip(external),
        }],
        load_balancer_ingress: Vec::new(),
        ..everywhere(number)
    };
    apply_service(&mut cluster, with(1, 20, "198.51.100.9"));
    assert_eq!(
        apply_service(&mut cluster, with(2, 10, "198.51.100.9")),
        [name(1), name(2)]
    );
    let has = |cluster: &Cluster, number| {
        cluster
            .program(&name(number))
            .frontends
            .iter()
            .any(|f| f.kind == AddressKind::ExternalIp)
    };
    assert!(!has(&cluster, 1) && has(&cluster, 2), "the older one has it");
    // A cluster IP is stronger than an external IP of any age.
    assert_eq!(apply_service(&mut cluster, with(9, 30, "198.51.100.200")), [name(9)]);
    let third = Service {
        cluster_ips: [ip("198.51.100.9")].into_iter().collect(),
        ..with(3, 99, "198.51.100.3")
    };
    assert_eq!(apply_service(&mut cluster, third), [name(1), name(2), name(3)]);
    assert!(!has(&cluster, 1) && !has(&cluster, 2));
    let rejections = cluster.program(&name(2)).rejections;
    assert_eq!(
        rejections[0].to_string(),
        "Service d/s2: spec.externalIPs[0]: 198.51.100.9:80/TCP is taken by service d/s3"
    );
    cluster.apply(Event::Service(Change::Deleted(name(3))));
    assert_eq!(cluster.take_touched(), [name(1), name(2), name(3)]);
    cluster.apply(Event::Service(Change::Deleted(name(2))));
    assert_eq!(cluster.take_touched(), [name(1), name(2)]);
    assert!(has(&cluster, 1));
}

#[test]
fn t24_labels_act_at_once() {
    let mut cluster = one(everywhere(1));
    let other_proxy = Service {
        other_proxy: true,
        ..everywhere(1)
    };
    assert_eq!(apply_service(&mut cluster, other_proxy), [name(1)]);
    assert!(cluster.program(&name(1)).frontends.is_empty());
    assert_eq!(apply_service(&mut cluster, everywhere(1)), [name(1)]);
    assert_eq!(cluster.program(&name(1)).frontends.len(), 5);
}

#[test]
fn t25_a_change_of_the_zone_touches_what_has_hints() {
    let mut cluster = one(everywhere(1));
    let hinted = |last, zone: &str| Endpoint {
        zone_hints: [zone.into()].into_iter().collect(),
        ..endpoint(last, "there")
    };
    apply_slice(&mut cluster, slice(1, 0, vec![hinted(1, "a"), hinted(2, "b")]));
    apply_service(&mut cluster, everywhere(2));
    let endpoints = |cluster: &Cluster| of_kind(cluster, AddressKind::ClusterIp).endpoints.len();
    assert_eq!(endpoints(&cluster), 2);
    cluster.apply(Event::Node(Change::Applied(node("here", "a", &[]))));
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert_eq!(endpoints(&cluster), 1);
}

#[test]
fn health_checks_count_local_ready_addresses() {
    let local = Service {
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: 31_000,
        ..everywhere(1)
    };
    let mut cluster = one(local);
    let check = |cluster: &Cluster| cluster.program(&name(1)).health_check;
    let counted = |v4, v6| {
        Some(HealthCheck {
            port: 31_000,
            v4: Some(v4),
            v6,
        })
    };
    assert_eq!(check(&cluster), counted(1, None));
    let going = Endpoint {
        ready: false,
        terminating: true,
        ..endpoint(1, "here")
    };
    apply_slice(&mut cluster, slice(1, 0, vec![going, endpoint(2, "there")]));
    assert_eq!(check(&cluster), counted(0, None));
    // Of two families each is counted for itself; an address counts once.
    let both = Service {
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: 31_000,
        cluster_ips: [ip("10.0.0.1"), ip("fd00::1")].into_iter().collect(),
        ..everywhere(1)
    };
    apply_service(&mut cluster, both);
    let six = |last: u8| Endpoint {
        address: ip(&format!("fd00:1::{last}")),
        ..endpoint(1, "here")
    };
    for part in [1, 2] {
        let slice = EndpointSlice {
            family: Some(Family::V6),
            ..slice(1, part, vec![six(1), six(part)])
        };
        apply_slice(&mut cluster, slice);
    }
    assert_eq!(check(&cluster), counted(0, Some(2)));
    apply_service(
        &mut cluster,
        Service {
            health_check_node_port: 31_000,
            ..everywhere(1)
        },
    );
    assert_eq!(check(&cluster), None);
}

#[test]
fn slices_come_before_their_service_move_and_go() {
    let mut cluster = cluster();
    apply_slice(&mut cluster, slice(1, 0, vec![endpoint(1, "there")]));
    apply_service(&mut cluster, everywhere(1));
    assert_eq!(of_kind(&cluster, AddressKind::ClusterIp).endpoints.len(), 1);
    // The same slice for another service: both are touched.
    let moved = EndpointSlice {
        service: "s2".into(),
        ..slice(1, 0, vec![endpoint(1, "there")])
    };
    assert_eq!(apply_slice(&mut cluster, moved), [name(1), name(2)]);
    assert!(of_kind(&cluster, AddressKind::ClusterIp).endpoints.is_empty());
    cluster.apply(Event::EndpointSlice(Change::Deleted(ObjectName::new("d", "s1-0"))));
    assert_eq!(cluster.take_touched(), [name(2)]);
    cluster.apply(Event::EndpointSlice(Change::Deleted(ObjectName::new("d", "s1-0"))));
    cluster.apply(Event::Service(Change::Deleted(ObjectName::new("d", "never-seen"))));
    assert!(cluster.take_touched().is_empty());
}

fn redirecting(localhost_node_ports: bool, addresses: NodePortAddresses) -> Cluster {
    let mut cluster = Cluster::new(Config {
        capture: Capture::Redirect { localhost_node_ports },
        node_port_addresses: addresses,
        node_ip: None,
        ..config()
    });
    cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1"), ip("2001:db8::1")]));
    cluster
}

#[test]
fn a_redirecting_data_plane_gets_one_frontend_for_a_node_port_and_the_endpoints_of_insiders() {
    let mut cluster = redirecting(true, NodePortAddresses::All);
    apply_slice(
        &mut cluster,
        slice(1, 0, vec![endpoint(1, "here"), endpoint(2, "there")]),
    );
    apply_service(
        &mut cluster,
        Service {
            external_traffic_policy: TrafficPolicy::Local,
            internal_traffic_policy: TrafficPolicy::Local,
            ..everywhere(1)
        },
    );
    let frontends = cluster.program(&name(1)).frontends;
    let node_ports: Vec<_> = frontends
        .iter()
        .filter(|frontend| frontend.kind == AddressKind::NodePort)
        .collect();
    assert_eq!(node_ports.len(), 1);
    assert!(node_ports[0].key.address.is_unspecified());
    assert!(frontends.iter().all(|frontend| frontend.insiders.is_none()
        && frontend.kind != AddressKind::Insiders
        && frontend.policy == TrafficPolicy::Local
        && frontend.endpoints.len() == 1));
    let of_insiders = |frontend: &Frontend| frontend.insider_endpoints.len();
    assert!(
        frontends
            .iter()
            .all(|frontend| of_insiders(frontend) == if frontend.kind == AddressKind::ClusterIp { 0 } else { 2 })
    );
}

/// It binds nothing, so no other node is waited for, and none is cut off.
#[test]
fn t18_a_redirecting_data_plane_redirects_addresses_of_other_nodes() {
    let mut cluster = redirecting(true, NodePortAddresses::All);
    apply_service(&mut cluster, everywhere(1));
    assert!(!cluster.wants_other_nodes());
    let program = cluster.program(&name(1));
    assert!(program.rejections.is_empty());
    assert!(
        program
            .frontends
            .iter()
            .any(|frontend| frontend.kind == AddressKind::ExternalIp)
    );
}

/// The node's addresses are claimed one by one, although they are served by one frontend.
#[test]
fn t19_a_node_port_wins_over_an_external_ip_at_an_address_of_the_node() {
    let mut cluster = redirecting(true, NodePortAddresses::All);
    let service = everywhere(1);
    let port = service.ports[0].node_port;
    apply_service(&mut cluster, service);
    let mut other = everywhere(2);
    other.external_ips = vec![ExternalIp {
        ip: ip("192.0.2.1"),
        position: 0,
    }];
    other.ports[0].port = port;
    other.ports[0].node_port = 0;
    apply_service(&mut cluster, other);
    let program = cluster.program(&name(2));
    assert!(
        program
            .frontends
            .iter()
            .all(|frontend| frontend.kind != AddressKind::ExternalIp)
    );
    assert!(
        program.rejections[0].reason.contains("is taken by service"),
        "{:?}",
        program.rejections
    );
}

#[test]
fn t16_t17_where_node_ports_answer() {
    let check = |localhost: bool, addresses: NodePortAddresses, expect: [NodePortPlaces; 2]| {
        let cluster = redirecting(localhost, addresses.clone());
        let found = [Family::V4, Family::V6].map(|family| cluster.node_port_places(family));
        assert_eq!(found, expect, "{localhost} {addresses:?}");
    };
    let every = |loopback| NodePortPlaces::EveryLocal { loopback };
    let at = |addresses: &[&str]| NodePortPlaces::At(addresses.iter().map(|address| ip(address)).collect());
    let among = |primary, cidrs: &[&str]| NodePortAddresses::Among {
        primary,
        cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    let cidrs = |cidrs: &[&str]| among(false, cidrs);
    check(true, NodePortAddresses::All, [every(true), every(false)]);
    check(false, NodePortAddresses::All, [every(false), every(false)]);
    // No primary address is known: nothing is opened by that.
    check(true, among(true, &[]), [at(&[]), at(&[])]);
    check(true, cidrs(&["192.0.2.0/24"]), [at(&["192.0.2.1"]), every(false)]);
    check(
        true,
        cidrs(&["192.0.2.0/24", "::/0"]),
        [at(&["192.0.2.1"]), every(false)],
    );
    let with_loopback = ["192.0.2.0/24", "127.0.0.0/8", "::1/128"];
    check(true, cidrs(&with_loopback), [at(&["192.0.2.1", "127.0.0.1"]), at(&[])]);
    check(false, cidrs(&with_loopback), [at(&["192.0.2.1"]), at(&[])]);
    // Keywords of Kubernetes 1.37.
    let localhost = ["127.0.0.0/8", "::1/128"];
    check(true, cidrs(&localhost), [at(&["127.0.0.1"]), at(&[])]);
    check(false, cidrs(&localhost), [at(&[]), at(&[])]);
    check(true, cidrs(&["0.0.0.0/0", "::/0"]), [every(true), every(false)]);
    check(true, among(true, &["0.0.0.0/0", "::/0"]), [every(true), every(false)]);
    check(true, among(true, &localhost), [at(&["127.0.0.1"]), at(&[])]);
}

/// `primary` beside CIDRs and `localhost`; each family by itself.
#[test]
fn t16_primary_is_one_of_several_that_are_selected() {
    let check = |primary: &[&str], cidrs: &[&str], expect: [&[&str]; 2]| {
        let addresses = NodePortAddresses::Among {
            primary: true,
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        };
        let mut cluster = redirecting(true, addresses);
        let interfaces = ["192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1", "2001:db8::2"];
        cluster.apply(Event::NodeAddresses(interfaces.map(ip).into()));
        cluster.apply(Event::Node(Change::Applied(node("here", "", primary))));
        let found = [Family::V4, Family::V6].map(|family| cluster.node_port_places(family));
        let expect = expect.map(|list| NodePortPlaces::At(list.iter().map(|address| ip(address)).collect()));
        assert_eq!(found, expect, "{primary:?} {cidrs:?}");
    };
    let both = ["192.0.2.2", "2001:db8::2"];
    check(&both, &[], [&["192.0.2.2"], &["2001:db8::2"]]);
    check(
        &both,
        &["198.51.100.0/24"],
        [&["192.0.2.2", "198.51.100.1"], &["2001:db8::2"]],
    );
    check(
        &both,
        &["127.0.0.0/8", "::1/128"],
        [&["192.0.2.2", "127.0.0.1"], &["2001:db8::2"]],
    );
    // Of a node without an IPv6 address IPv6 is not opened.
    check(&["192.0.2.2"], &["127.0.0.0/8"], [&["192.0.2.2", "127.0.0.1"], &[]]);
    check(&[], &["198.51.100.0/24"], [&["198.51.100.1"], &[]]);
}

/// `bindAddress` counts more than the Node object, in its family.
#[test]
fn the_primary_address_may_be_set() {
    let mut cluster = Cluster::new(Config {
        node_ip: Some(ip("192.0.2.9")),
        ..config()
    });
    let own = node("here", "", &["192.0.2.1", "2001:db8::1"]);
    cluster.apply(Event::Node(Change::Applied(own)));
    assert_eq!(cluster.primary_addresses(), [ip("192.0.2.9"), ip("2001:db8::1")]);
}

#[test]
fn load_balancers_may_use_a_node_that_stays() {
    let mut cluster = cluster();
    assert!(cluster.is_node_eligible());
    let tainted = Node {
        taints: vec!["other".into(), "ToBeDeletedByClusterAutoscaler".into()],
        ..node("here", "a", &[])
    };
    let deleting = Node {
        deleting: true,
        ..node("here", "a", &[])
    };
    for (change, eligible) in [
        (Change::Applied(tainted.clone()), false),
        (Change::Applied(node("here", "a", &[])), true),
        (Change::Applied(deleting), false),
        (Change::Applied(node("here", "a", &[])), true),
        // Others are no matter.
        (
            Change::Applied(Node {
                name: ObjectName::cluster_scoped("there"),
                ..tainted
            }),
            true,
        ),
        (Change::Deleted(ObjectName::cluster_scoped("there")), true),
        (Change::Deleted(ObjectName::cluster_scoped("here")), false),
    ] {
        cluster.apply(Event::Node(change));
        assert_eq!(cluster.is_node_eligible(), eligible);
    }
}

#[test]
fn arrivals_are_counted_and_changes_of_endpoints_timed() {
    let mut cluster = cluster();
    let timed = |part, last, time| EndpointSlice {
        last_change: Some(time),
        ..slice(1, part, vec![endpoint(last, "there")])
    };
    apply_service(&mut cluster, everywhere(1));
    apply_slice(&mut cluster, timed(0, 1, 5));
    // The first list tells of old changes.
    let start = cluster.arrivals();
    assert_eq!((start.services, start.endpoint_slices), (1, 1));
    assert_eq!(cluster.take_pending().triggers.len(), 0);
    cluster.apply(Event::Complete(Kind::Service));
    cluster.apply(Event::Complete(Kind::EndpointSlice));
    apply_service(&mut cluster, everywhere(1));
    apply_slice(&mut cluster, timed(0, 1, 6));
    let same = cluster.arrivals();
    assert_eq!((same.services, same.pending.services), (2, 0));
    assert_eq!((same.endpoint_slices, same.pending.endpoint_slices), (2, 0));
    assert!(same.pending.triggers.is_empty());
    apply_slice(&mut cluster, timed(0, 2, 7));
    apply_slice(&mut cluster, timed(1, 3, 8));
    let triggers = cluster.take_pending().triggers;
    assert_eq!(triggers[&name(1)], [(Family::V4, 7), (Family::V4, 8)]);
    // What went has no time of its own, and takes those that wait along, as upstream.
    apply_slice(&mut cluster, timed(0, 4, 9));
    cluster.apply(Event::EndpointSlice(Change::Deleted(ObjectName::new("d", "s1-1"))));
    let gone = cluster.take_pending();
    assert_eq!((gone.endpoint_slices, gone.triggers.len()), (2, 0));
}
