//! Addresses and ports that no service may take from this node (T41).

use std::collections::BTreeMap;

use super::*;
use crate::protected::ProtectedPorts;

/// What a service gets that wants these as external IP and as load-balancer IP, with a port: the rejections.
fn rejected(cluster: &mut Cluster, address: &str, port: u16) -> Vec<String> {
    apply_service(cluster, wants(address, port));
    reasons(cluster, address, port)
}

fn wants(address: &str, port: u16) -> Service {
    Service {
        external_ips: vec![ExternalIp {
            position: 0,
            ip: ip(address),
        }],
        load_balancer_ingress: vec![LoadBalancerIngress {
            position: 0,
            ip: ip(address),
            mode: IpMode::Vip,
        }],
        ports: [tcp(port, 0)].into_iter().collect(),
        ..everywhere(1)
    }
}

fn reasons(cluster: &Cluster, address: &str, port: u16) -> Vec<String> {
    let program = cluster.program(&name(1));
    let bound = program
        .frontends
        .iter()
        .any(|frontend| frontend.key.address == ip(address) && frontend.key.port == port);
    assert_eq!(bound, program.rejections.is_empty(), "{address}");
    program.rejections.iter().map(|one| one.reason.to_string()).collect()
}

fn protected(address: &str, what: &str) -> Protected {
    let addresses = [(ip(address), what.into())].into_iter().collect();
    Protected {
        addresses,
        ..Protected::default()
    }
}

#[test]
fn f06_addresses_that_are_nobodys_are_refused() {
    for address in ["0.1.2.3", "240.0.0.1", "255.255.255.255", "0.0.0.0"] {
        let reasons = rejected(&mut one(everywhere(1)), address, 80);
        assert_eq!(reasons.len(), 2, "{address}: {reasons:?}");
    }
    // Some clouds give class E to pods and services.
    let mut class_e = everywhere(1);
    class_e.cluster_ips = [ip("240.0.0.1")].into_iter().collect();
    assert_eq!(
        of_kind(&one(class_e), AddressKind::ClusterIp).key.address,
        ip("240.0.0.1")
    );
}

#[test]
fn f01_a_protected_address_is_refused_as_long_as_it_is_one() {
    let mut cluster = one(everywhere(1));
    let api_server = "198.51.100.9";
    assert!(rejected(&mut cluster, api_server, 1).is_empty());
    // Others hear nothing.
    apply_service(&mut cluster, everywhere(2));
    cluster.set_protected(protected(api_server, "the address of the API server"));
    assert_eq!(cluster.take_touched(), [name(1)]);
    let why = "198.51.100.9 is the address of the API server";
    assert_eq!(reasons(&cluster, api_server, 1), [why, why]);
    cluster.set_protected(protected(api_server, "the address of the API server"));
    assert!(cluster.take_touched().is_empty());
    cluster.set_protected(protected(api_server, "the default gateway"));
    assert_eq!(cluster.take_touched(), [name(1)]);
    cluster.set_protected(Protected::default());
    assert_eq!(cluster.take_touched(), [name(1)]);
    assert!(reasons(&cluster, api_server, 1).is_empty());
    // Known before the service is.
    cluster.set_protected(protected("203.0.113.77", "the default gateway"));
    assert_eq!(rejected(&mut cluster, "203.0.113.77", 80).len(), 2);
}

/// What the host answers itself at the node's addresses stays its own: in the iptables mode, too.
#[test]
fn f06_ports_of_the_host_at_the_nodes_addresses_are_refused() {
    let redirect = Capture::Redirect {
        localhost_node_ports: true,
    };
    for capture in [Capture::Bind, redirect] {
        let mut cluster = Cluster::new(Config { capture, ..config() });
        cluster.apply(Event::OtherNodesComplete);
        cluster.apply(Event::NodeAddresses(vec![ip("192.0.2.1")]));
        assert_eq!(
            rejected(&mut cluster, "192.0.2.1", 10_250),
            ["192.0.2.1:10250/TCP is the kubelet's port"]
        );
        assert!(rejected(&mut cluster, "192.0.2.1", 10_256).is_empty());
        cluster.set_protected(Protected {
            ports: vec![ProtectedPorts {
                protocol: Protocol::Tcp,
                at: None,
                numbers: 10_249..=10_256,
                whose: "a port of kube-ipvs".into(),
            }],
            ..protected("192.0.2.1", "an address of the API server")
        });
        assert_eq!(cluster.take_touched(), [name(1)]);
        assert_eq!(reasons(&cluster, "192.0.2.1", 10_256).len(), 1);
        // Not on addresses that are the service's, nor beside the ports.
        assert!(rejected(&mut cluster, "198.51.100.1", 10_256).is_empty());
        assert!(rejected(&mut cluster, "192.0.2.1", 10_257).is_empty());
        // Who listens at one of the node's addresses has nothing of the others.
        for (at, refused) in [("192.0.2.1/32", 1), ("192.0.2.9/32", 0), ("0.0.0.0/0", 1), ("::/0", 0)] {
            cluster.set_protected(Protected {
                addresses: BTreeMap::new(),
                ports: vec![ProtectedPorts {
                    protocol: Protocol::Tcp,
                    at: Some(at.parse().unwrap()),
                    numbers: 10_257..=10_257,
                    whose: "a port on which the host listens".into(),
                }],
            });
            assert_eq!(reasons(&cluster, "192.0.2.1", 10_257).len(), refused, "{at}");
        }
    }
}

/// A balancer's address on an interface of the node, as kube-vip puts it there, is the service's: sshd listens there, too,
/// and does not mean it. Who listens at this address alone does, and so do we.
#[test]
fn f06_a_balancers_address_on_an_interface_has_ports_of_its_own() {
    let mut cluster = Cluster::new(config());
    cluster.apply(Event::OtherNodesComplete);
    let (own, lent) = ("192.0.2.1", "192.0.2.50");
    cluster.apply(Event::NodeAddresses(vec![ip(own), ip(lent)]));
    // As a load-balancer IP, as an external IP.
    let are_refused = |cluster: &mut Cluster, address, at: Option<&str>| {
        cluster.set_protected(Protected {
            addresses: BTreeMap::new(),
            ports: vec![ProtectedPorts {
                protocol: Protocol::Tcp,
                at: at.map(|at| at.parse().unwrap()),
                numbers: 22..=22,
                whose: "a port on which the host listens".into(),
            }],
        });
        let (mut balancer, mut external) = (wants(address, 22), wants(address, 22));
        balancer.external_ips.clear();
        external.load_balancer_ingress.clear();
        [balancer, external].map(|service| {
            apply_service(cluster, service);
            !reasons(cluster, address, 22).is_empty()
        })
    };
    let any = Some("0.0.0.0/0");
    // Nothing is known of the Node.
    assert_eq!(are_refused(&mut cluster, lent, any), [true, true]);
    let is_node = |addresses: &[&str]| Event::Node(Change::Applied(node("here", "", addresses)));
    cluster.apply(is_node(&[own]));
    for (address, at, expect) in [
        (own, any, [true, true]),
        (lent, any, [false, true]),
        (lent, Some("192.0.2.50/32"), [true, true]),
        (lent, None, [true, true]),
    ] {
        assert_eq!(are_refused(&mut cluster, address, at), expect, "{address} {at:?}");
    }
    // The Node's addresses change.
    let mut balancer = wants(lent, 22);
    balancer.external_ips.clear();
    assert_eq!(are_refused(&mut cluster, lent, any), [false, true]);
    apply_service(&mut cluster, balancer);
    for (addresses, expect) in [(&[own, lent][..], 1), (&[own], 0)] {
        cluster.apply(is_node(addresses));
        assert_eq!(cluster.take_touched(), [name(1)]);
        assert_eq!(reasons(&cluster, lent, 22).len(), expect);
    }
}

#[test]
fn f06_ranges_bound_where_addresses_may_be() {
    let net = |text: &str| vec![text.parse().unwrap()];
    let mut cluster = Cluster::new(Config {
        external_ip_ranges: net("198.51.100.0/24"),
        load_balancer_ip_ranges: net("203.0.113.0/24"),
        ..config()
    });
    cluster.apply(Event::OtherNodesComplete);
    apply_service(&mut cluster, everywhere(1));
    assert_eq!(cluster.program(&name(1)).rejections, []);
    let mut turned = everywhere(1);
    let (external, balanced) = (ip("203.0.113.1"), ip("198.51.100.1"));
    turned.external_ips[0].ip = external;
    turned.load_balancer_ingress[0].ip = balanced;
    apply_service(&mut cluster, turned);
    let program = cluster.program(&name(1));
    assert!(
        program
            .frontends
            .iter()
            .all(|frontend| ![external, balanced].contains(&frontend.key.address))
    );
    let reasons: Vec<_> = program.rejections.iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        [
            "Service d/s1: status.loadBalancer.ingress[0].ip: 198.51.100.1 is in no range of loadBalancerIPRanges",
            "Service d/s1: spec.externalIPs[0]: 203.0.113.1 is in no range of externalIPRanges",
        ]
    );
}
