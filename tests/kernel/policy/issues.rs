//! Regression tests of public issues, by traffic; each names its issue. They take the kernel as it is: what a test
//! needs of the host (another address, somebody's NAT, a program on a port) it makes itself.

use serde_json::{Value, json};
use testbed::netns::Netns;
use testbed::world::serve_host;

use super::scene::{CLIENTS, Client, REFUSED, SILENT, Scene, slices};
use crate::daemon::eventually;
use crate::seen;

const BOTH: &[&str] = &["pod-a1", "pod-b1"];

/// A load balancer on port 80; more of its spec comes on top.
fn balancer(cluster_ips: [&str; 2], balanced: &[&str], more: &Value) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIPs": cluster_ips, "load_balancer": balanced, "ports": [{"port": 80}],
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

/// Lines of `ipvsadm -Sn` that begin so.
fn virtual_servers(node: &Netns, start: &str) -> Vec<String> {
    let all = seen::ipvsadm(node).into_iter();
    all.filter(|line| line.starts_with(start)).collect()
}

/// Answers of pods: which of them does not matter.
fn is_pod(answer: &str) -> bool {
    answer.starts_with("pod-")
}

/// k/k#75290, k/k#93175, talos#8332 (T18): an external IP that is another node's address is refused. That node stays
/// reachable from this one and through it, and the service's other addresses work.
#[test]
fn external_ip_equals_node_ip_refused() {
    let mut scene = Scene::new();
    serve_host(&scene.world.other, 9000, "host-b").unwrap();
    let spec = json!({
        "type": "NodePort", "clusterIPs": ["10.96.5.1", "fd00:10:96::5:1"],
        "externalIPs": ["192.0.2.20", "2001:db8::20", "198.51.100.5"], "ports": [{"port": 80, "nodePort": 30_080}],
    });
    scene.serve("web", spec, &["pod-a1"]);
    scene.start();
    let routes = seen::routes(&scene.world.node);
    assert!(routes.contains("198.51.100.5"), "{routes:?}");
    assert!(
        !routes.contains("192.0.2.20") && !routes.contains("2001:db8::20"),
        "{routes:?}"
    );
    let mut expect = Vec::new();
    for client in [Client::Node, Client::Pod, Client::Outside] {
        expect.extend([
            (client, "192.0.2.20:9000", "host-b"),
            (client, "[2001:db8::20]:9000", "host-b"),
            // Nobody listens there, and it is that node that says so.
            (client, "192.0.2.20:80", REFUSED),
            (client, "198.51.100.5:80", "pod-a1"),
            (client, "10.96.5.1:80", "pod-a1"),
            (client, "192.0.2.10:30080", "pod-a1"),
        ]);
    }
    scene.check(&expect);
    let said = scene.daemon().said();
    let rejected = |line: &&String| line.contains("rejected") && line.contains("is an address of node node-b");
    assert_eq!(said.iter().filter(rejected).count(), 2, "{said:#?}");
}

/// Audit F12: "endpoint IP addresses cannot be the cluster IPs of other Kubernetes Services" (the documentation of Services
/// without selectors). Nobody comes to the node's own programs by such an endpoint, past what refuses other ports (T6).
#[test]
fn f12_an_endpoint_that_is_a_vip_is_refused() {
    let mut scene = Scene::new();
    serve_host(&scene.world.node, 2222, "host-a").unwrap();
    let own = json!({"clusterIPs": ["10.96.7.1", "fd00:10:96::7:1"], "ports": [{"port": 80, "targetPort": 2222}]});
    scene.serve("own", own, &[]);
    let web = json!({"clusterIPs": ["10.96.7.2", "fd00:10:96::7:2"], "ports": [{"port": 2222}]});
    scene.serve("web", web, &["pod-a1"]);
    let slice = |service: &str, number: u8, family: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "ports": [{"port": 2222}], "endpoints": [{"addresses": [address]}],
            "metadata": {
                "name": format!("{service}-by-hand-{number}"), "namespace": "d",
                "labels": {"kubernetes.io/service-name": service},
            },
        })
    };
    let more = json!({"clusterIPs": ["10.96.7.3", "fd00:10:96::7:3"], "ports": [{"port": 80}]});
    scene.serve("other", more, &[]);
    for (number, (service, family, address)) in (1..).zip([
        ("own", "IPv4", "10.96.7.1"),
        ("own", "IPv6", "fd00:10:96::7:1"),
        // A port that the other service has.
        ("other", "IPv4", "10.96.7.2"),
        ("other", "IPv6", "fd00:10:96::7:2"),
    ]) {
        scene.put(&format!("by-hand-{number}"), &slice(service, number, family, address));
    }
    scene.start();
    let mut expect = Vec::new();
    for client in CLIENTS {
        expect.extend([
            (client, "10.96.7.1:80", REFUSED),
            (client, "[fd00:10:96::7:1]:80", REFUSED),
            (client, "10.96.7.3:80", REFUSED),
            (client, "[fd00:10:96::7:3]:80", REFUSED),
            (client, "10.96.7.2:2222", "pod-a1"),
            (client, "192.0.2.10:2222", "host-a"),
        ]);
    }
    scene.check(&expect);
}

/// Audit F12: docs/install.md says where a host firewall sees what IPVS turned to an address of the node.
#[test]
fn f12_a_firewall_behind_ipvs_filters_endpoints_on_the_node() {
    let mut scene = Scene::new();
    let node = scene.world.node.clone();
    serve_host(&node, 2222, "host-a").unwrap();
    scene.serve(
        "own",
        json!({"clusterIPs": ["10.96.7.1"], "ports": [{"port": 80}]}),
        &[],
    );
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": 2222}],
        "endpoints": [{"addresses": ["192.0.2.10"]}],
        "metadata": {"name": "by-hand", "namespace": "d", "labels": {"kubernetes.io/service-name": "own"}},
    });
    scene.put("by-hand", &slice);
    scene.start();
    let drop_at = |priority: u32| {
        node.sh("nft add table inet walls").unwrap();
        let chain = format!("nft add chain inet walls input {{ type filter hook input priority {priority}; }}");
        node.sh(&chain).unwrap();
        node.sh("nft add rule inet walls input tcp dport 2222 drop").unwrap();
    };
    scene.check(&[(Client::Pod, "10.96.7.1:80", "host-a")]);
    drop_at(0);
    scene.check(&[
        (Client::Pod, "10.96.7.1:80", "host-a"),
        (Client::Pod, "192.0.2.10:2222", SILENT),
    ]);
    node.sh("nft delete table inet walls").unwrap();
    drop_at(200);
    scene.check(&[(Client::Pod, "10.96.7.1:80", SILENT)]);
}

/// cloudnativelabs/kube-router#694, k/k#109152, enhancements PR#5781 (T35): link-local cluster IPs and load-balancer addresses
/// of IPv4 are served like any other.
#[test]
fn link_local_cluster_ip_and_lb_address_are_served() {
    let mut scene = Scene::new();
    let spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["169.254.64.1"], "load_balancer": ["169.254.100.5"],
        "ports": [{"port": 80}],
    });
    scene.serve("web", spec, &["pod-b1"]);
    for from in [Client::Other, Client::Outside] {
        let via = if from == Client::Other {
            "192.0.2.10"
        } else {
            "198.18.0.1"
        };
        let route = format!("ip route add 169.254.0.0/16 via {via}");
        scene.of(from).sh(&route).unwrap();
    }
    scene.start();
    let mut expect = Vec::new();
    for client in CLIENTS {
        expect.extend([
            (client, "169.254.64.1:80", "pod-b1"),
            (client, "169.254.100.5:80", "pod-b1"),
        ]);
    }
    expect.push((Client::Pod, "169.254.64.1:81", REFUSED));
    scene.check(&expect);
    assert!(seen::routes(&scene.world.node).contains("169.254.64.1"));
}

/// k/k#114815 (T7): a load balancer's address on a NIC of the node. Its NodePorts, the service at the address, and the
/// node's own programs there all work; nothing is bound a second time.
#[test]
fn lb_ip_on_nic_keeps_nodeport() {
    let mut scene = Scene::new();
    let node = scene.world.node.clone();
    node.sh("ip addr add 192.0.2.50/24 dev to-other").unwrap();
    node.sh("ip addr add 2001:db8::50/64 dev to-other nodad").unwrap();
    serve_host(&node, 2222, "host-a").unwrap();
    let ports = json!({"ports": [{"port": 80, "nodePort": 30_080}]});
    let spec = balancer(
        ["10.96.5.2", "fd00:10:96::5:2"],
        &["192.0.2.50", "2001:db8::50"],
        &ports,
    );
    scene.serve("web", spec, &["pod-b1"]);
    scene.start();
    let mut expect = Vec::new();
    for client in CLIENTS {
        for (port, answer) in [(80, "pod-b1"), (30_080, "pod-b1"), (2222, "host-a")] {
            expect.push((client, format!("192.0.2.50:{port}"), answer));
            expect.push((client, format!("[2001:db8::50]:{port}"), answer));
        }
        expect.push((client, "192.0.2.10:30080".to_owned(), "pod-b1"));
    }
    let expect: Vec<_> = expect
        .iter()
        .map(|(client, to, answer)| (*client, to.as_str(), *answer))
        .collect();
    scene.check(&expect);
    assert!(!seen::routes(&node).contains("192.0.2.50"));
    scene.remove("web");
    eventually(&Vec::<String>::new(), || virtual_servers(&node, "-A -t 192.0.2.50"));
    let own = node.sh("ip -j addr show dev to-other").unwrap();
    assert!(own.contains("192.0.2.50") && own.contains("2001:db8::50"), "{own}");
    scene.check(&[(Client::Outside, "192.0.2.50:2222", "host-a")]);
}

/// A service whose external policy is Local and whose only endpoint is on the other host.
fn local_elsewhere(scene: &Scene) {
    let more = json!({"externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30_080}]});
    let spec = balancer(
        ["10.96.5.3", "fd00:10:96::5:3"],
        &["203.0.113.3", "2001:db8:113::3"],
        &more,
    );
    scene.serve("web", spec, &["pod-b1"]);
}

/// k/k#93456 (T2): what the node itself (so every hostNetwork pod) sends to the load balancer's address or NodePort of
/// a service with policy Local and no endpoint here, is answered from elsewhere.
#[test]
fn etp_local_hostnetwork_client() {
    let mut scene = Scene::new();
    local_elsewhere(&scene);
    scene.start();
    let places = [
        "203.0.113.3:80",
        "[2001:db8:113::3]:80",
        "192.0.2.10:30080",
        "[2001:db8::10]:30080",
    ];
    let clients = [Client::Node, Client::Pod];
    let expect: Vec<_> = clients
        .into_iter()
        .flat_map(|client| places.map(|place| (client, place, "pod-b1")))
        .collect();
    scene.check(&expect);
}

/// k/k#71596, k/k#75262 (T1): what comes from outside to such a service is dropped here; nothing of it reaches the
/// endpoint elsewhere, whose reply would be lost.
#[test]
fn etp_local_external_dropped() {
    let mut scene = Scene::new();
    local_elsewhere(&scene);
    let count = "\
table inet seen {
	chain input {
		type filter hook input priority 0;
		tcp dport 8080 counter
	}
}
";
    let other = &scene.world.other;
    other.run(|| testbed::tool::feed(&["nft", "-f", "-"], count)).unwrap();
    scene.start();
    let other = &scene.world.other;
    let packets = || {
        let text = other.sh("nft -j list table inet seen").unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let objects = json["nftables"].as_array().unwrap().iter();
        let rule = objects.filter_map(|object| object.get("rule")).next().unwrap();
        rule["expr"]
            .as_array()
            .unwrap()
            .iter()
            .find_map(|part| part["counter"]["packets"].as_u64())
            .unwrap()
    };
    scene.check(&[
        (Client::Outside, "203.0.113.3:80", SILENT),
        (Client::Outside, "[2001:db8:113::3]:80", SILENT),
        (Client::Outside, "192.0.2.10:30080", SILENT),
        (Client::Outside, "[2001:db8::10]:30080", SILENT),
    ]);
    assert_eq!(packets(), 0);
    assert_eq!(virtual_servers(&scene.world.node, "-a -t 203.0.113.3:80"), [""; 0]);
    // The counter counts, and the endpoint answers.
    scene.check(&[(Client::Outside, "10.96.5.3:80", "pod-b1")]);
    assert_ne!(packets(), 0);
}

/// k/k PR#119791 (T15): two services share a load balancer's address, each with source ranges of its own.
#[test]
fn lb_shared_ip_two_services_source_ranges() {
    let mut scene = Scene::new();
    let shared = ["203.0.113.9", "2001:db8:113::9"];
    let outside = json!(["198.18.0.0/24", "2001:db8:1::/64"]);
    let hosts = json!(["192.0.2.20/32", "2001:db8::20/128"]);
    for (name, number, port, ranges) in [("a", 4, 80, outside), ("b", 5, 81, hosts)] {
        let v6 = format!("fd00:10:96::5:{number}");
        let more = json!({"loadBalancerSourceRanges": ranges, "ports": [{"port": port}]});
        scene.serve(
            name,
            balancer([&format!("10.96.5.{number}"), &v6], &shared, &more),
            &["pod-a1"],
        );
    }
    scene.start();
    let check = |open: &'static str| {
        let mut expect = Vec::new();
        for address in ["203.0.113.9", "[2001:db8:113::9]"] {
            for (client, port, answer) in [
                (Client::Outside, 80, "pod-a1"),
                (Client::Outside, 81, open),
                (Client::Other, 80, SILENT),
                (Client::Other, 81, "pod-a1"),
                (Client::Pod, 80, SILENT),
            ] {
                expect.push((client, format!("{address}:{port}"), answer));
            }
        }
        let expect: Vec<_> = expect
            .iter()
            .map(|(client, to, answer)| (*client, to.as_str(), *answer))
            .collect();
        scene.check(&expect);
    };
    check(SILENT);
    // One opens; the other's ranges hold on.
    let spec = balancer(
        ["10.96.5.5", "fd00:10:96::5:5"],
        &shared,
        &json!({"ports": [{"port": 81}]}),
    );
    scene.put("b", &super::scene::service("b", spec));
    eventually(&"pod-a1".to_owned(), || scene.ask(Client::Outside, "203.0.113.9:81"));
    check("pod-a1");
}

/// k/k#72236 (T6): a program that listens on every address of the node is not reached through a VIP.
#[test]
fn host_port_not_reachable_via_vip() {
    let mut scene = Scene::new();
    serve_host(&scene.world.node, 7777, "host-a").unwrap();
    let spec = balancer(
        ["10.96.5.6", "fd00:10:96::5:6"],
        &["203.0.113.6", "2001:db8:113::6"],
        &json!({"externalIPs": ["198.51.100.6"]}),
    );
    scene.serve("web", spec, &["pod-a1"]);
    scene.start();
    let vips = [
        "10.96.5.6:7777",
        "203.0.113.6:7777",
        "198.51.100.6:7777",
        "[fd00:10:96::5:6]:7777",
        "[2001:db8:113::6]:7777",
    ];
    let mut expect = Vec::new();
    for client in CLIENTS {
        expect.extend(vips.map(|vip| (client, vip, REFUSED)));
        expect.extend([
            (client, "192.0.2.10:7777", "host-a"),
            (client, "[2001:db8::10]:7777", "host-a"),
            (client, "10.96.5.6:80", "pod-a1"),
        ]);
    }
    scene.check(&expect);
}

/// k3s#7183 (T7): an external IP that is the node's own address. The node's programs there stay reachable.
#[test]
fn node_external_ip_not_filtered() {
    let mut scene = Scene::new();
    serve_host(&scene.world.node, 6443, "host-a").unwrap();
    let spec = json!({
        "clusterIPs": ["10.96.5.7", "fd00:10:96::5:7"], "externalIPs": ["192.0.2.10", "2001:db8::10"],
        "ports": [{"port": 80}],
    });
    scene.serve("web", spec, BOTH);
    scene.start();
    let mut expect = Vec::new();
    for client in CLIENTS {
        for address in ["192.0.2.10", "[2001:db8::10]"] {
            expect.push((client, format!("{address}:6443"), "host-a"));
            // Nobody there: the node itself says so.
            expect.push((client, format!("{address}:6444"), REFUSED));
        }
    }
    let expect: Vec<_> = expect
        .iter()
        .map(|(client, to, answer)| (*client, to.as_str(), *answer))
        .collect();
    scene.check(&expect);
    for client in CLIENTS {
        for place in ["192.0.2.10:80", "[2001:db8::10]:80", "10.96.5.7:80"] {
            let answer = scene.ask(client, place);
            assert!(is_pod(&answer), "{client:?} {place} {answer}");
        }
    }
}

/// k/k#61938 (T30): a hostPort of another pod, for every local destination as portmap does it, on a service's port.
/// The service wins on its VIPs, on which no other port leads anywhere; the hostPort works at the node's addresses.
#[test]
fn hostport_same_port_as_service() {
    let mut scene = Scene::new();
    let node = scene.world.node.clone();
    for (program, to) in [
        ("iptables-nft", "10.244.1.12:8080"),
        ("ip6tables-nft", "[fd00:10:244:1::12]:8080"),
    ] {
        for chain in ["PREROUTING", "OUTPUT"] {
            let local = "-m addrtype --dst-type LOCAL -p tcp -m multiport --dports 80,81";
            node.sh(&format!(
                "{program} -w -t nat -A {chain} {local} -j DNAT --to-destination {to}"
            ))
            .unwrap();
        }
    }
    let spec = balancer(
        ["10.96.5.8", "fd00:10:96::5:8"],
        &["203.0.113.8", "2001:db8:113::8"],
        &json!({}),
    );
    scene.serve("web", spec, &["pod-b1"]);
    scene.start();
    let mut expect = Vec::new();
    for client in CLIENTS {
        for vip in ["10.96.5.8", "203.0.113.8", "[fd00:10:96::5:8]", "[2001:db8:113::8]"] {
            expect.push((client, format!("{vip}:80"), "pod-b1"));
            expect.push((client, format!("{vip}:81"), REFUSED));
        }
        expect.push((client, "192.0.2.10:80".to_owned(), "pod-a2"));
        expect.push((client, "192.0.2.10:81".to_owned(), "pod-a2"));
    }
    let expect: Vec<_> = expect
        .iter()
        .map(|(client, to, answer)| (*client, to.as_str(), *answer))
        .collect();
    scene.check(&expect);
}

/// k/k#112185, k/k PR#129147 (T16): NodePorts answer at an address that comes after the start, and no more where it
/// has gone, by itself or with its interface.
#[test]
fn nodeport_follows_late_interface() {
    let mut scene = Scene::new();
    let node = scene.world.node.clone();
    let spec = json!({
        "type": "NodePort", "clusterIPs": ["10.96.5.9", "fd00:10:96::5:9"], "ports": [{"port": 80, "nodePort": 30_080}],
    });
    scene.serve("web", spec, BOTH);
    scene.start();
    let places = ["198.51.100.99:30080", "[2001:db8:51::99]:30080"];
    let served = || -> usize {
        places
            .map(|place| virtual_servers(&node, &format!("-A -t {place} ")).len())
            .iter()
            .sum()
    };
    let masqueraded = || {
        let sets = super::listed(&node, "list ruleset", "set").into_iter();
        let text: Vec<_> = sets
            .filter(|set| set["name"] == "masqueraded")
            .map(|set| set["elem"].to_string())
            .collect();
        usize::from(text.concat().contains("198.51.100.99")) + usize::from(text.concat().contains("2001:db8:51::99"))
    };
    for last in ["ip addr flush dev late", "ip link del late"] {
        assert_eq!(served(), 0);
        if node.sh("ip link show late").is_err() {
            node.sh("ip link add late type dummy").unwrap();
            node.sh("ip link set late up").unwrap();
        }
        node.sh("ip addr add 198.51.100.99/32 dev late").unwrap();
        node.sh("ip addr add 2001:db8:51::99/128 dev late nodad").unwrap();
        eventually(&2, served);
        for client in CLIENTS {
            for place in places {
                let answer = scene.ask(client, place);
                assert!(is_pod(&answer), "{client:?} {place} {answer}");
            }
        }
        // The masquerade of T9 is there for it, too.
        assert_eq!(masqueraded(), 2);
        node.sh(last).unwrap();
        eventually(&0, served);
        eventually(&0, masqueraded);
    }
}

/// k/k#70113: a link-local address that the kernel or somebody gives `kube-ipvs0` or another interface is neither a
/// VIP to be taken away nor a place for NodePorts.
#[test]
fn own_link_local_ignored() {
    let mut scene = Scene::new();
    let node = scene.world.node.clone();
    let spec = json!({
        "type": "NodePort", "clusterIPs": ["10.96.5.10", "fd00:10:96::5:10"],
        "ports": [{"port": 80, "nodePort": 30_080}],
    });
    scene.serve("web", spec, BOTH);
    scene.start();
    let vips = ["10.96.5.10/32", "fd00:10:96::5:10/128"].map(str::to_owned).into();
    eventually(&vips, || seen::addresses(&node));
    node.sh("ip addr add fe80::77/64 dev kube-ipvs0 nodad").unwrap();
    node.sh("ip addr add fe80::78/64 dev to-client nodad").unwrap();
    let line = scene.start();
    assert!(line.contains("written=0 "), "{line}");
    // What is written later would be written by now: the service's going is behind it.
    scene.remove("web");
    eventually(&Vec::<String>::new(), || seen::ipvsadm(&node).into_iter().collect());
    eventually(&true, || seen::addresses(&node).is_empty());
    let text = node.sh("ip -j addr show dev kube-ipvs0").unwrap();
    assert!(text.contains("fe80::77"), "{text}");
    let said = scene.daemon().said();
    assert!(
        said.iter()
            .all(|line| !line.contains("fe80") && !line.contains("refused an op")),
        "{said:#?}"
    );
    scene.serve(
        "web",
        json!({
            "type": "NodePort", "clusterIPs": ["10.96.5.10", "fd00:10:96::5:10"],
            "ports": [{"port": 80, "nodePort": 30_080}],
        }),
        BOTH,
    );
    eventually(&1, || virtual_servers(&node, "-A -t [2001:db8::10]:30080").len());
    let table = seen::ipvsadm(&node);
    assert!(table.iter().all(|line| !line.contains("fe80")), "{table:#?}");
}

/// k/k PR#138688 (T21): `mh` while endpoints come, drain and go: no connection finds that there is no destination.
#[test]
fn mh_rollout_no_nodest() {
    let mut scene = Scene::new();
    let spec = json!({"clusterIPs": ["10.96.5.11", "fd00:10:96::5:11"], "ports": [{"port": 80}]});
    let mut web = super::scene::service("web", spec);
    web["metadata"]["annotations"] = json!({"kube-ipvs.io/scheduler": "mh"});
    scene.put("web", &web);
    scene.put(
        "web-endpoints",
        &slices("web", &super::scene::http(), &["pod-a1", "pod-a2"]),
    );
    scene.start();
    let endpoints = |pods: &[&str]| scene.put("web-endpoints", &slices("web", &super::scene::http(), pods));
    let reals = |count: usize| {
        let look = || {
            let all = virtual_servers(&scene.world.node, "-a -t 10.96.5.11:80 ");
            all.iter().filter(|line| !line.ends_with(" -w 0")).count()
        };
        eventually(&count, look);
    };
    let all_answer = || {
        for number in 0..12 {
            let place = ["10.96.5.11:80", "[fd00:10:96::5:11]:80"][number % 2];
            let answer = scene.ask(Client::Outside, place);
            assert!(is_pod(&answer), "{place} {answer}");
        }
    };
    for pods in [
        &["pod-a1", "pod-a2", "pod-b1"][..],
        &["pod-a2", "pod-b1"],
        &["pod-b1", "pod-b2"],
    ] {
        endpoints(pods);
        reals(pods.len());
        all_answer();
    }
    // One that drains keeps its place in the table and takes nothing new.
    scene
        .world
        .node
        .sh("ipvsadm -e -t 10.96.5.11:80 -r 10.244.2.11:8080 -m -w 0")
        .unwrap();
    for _ in 0..12 {
        assert_eq!(scene.ask(Client::Outside, "10.96.5.11:80"), "pod-b2");
    }
}
