//! Beside rule sets of others: Docker's, and firewalld's with its reloads. Neither side's tables change by the other's
//! doings, and traffic goes on.

use serde_json::{Value, json};
use testbed::netns::Netns;
use testbed::tool;

use super::scene::{CLIENTS, Client, Scene, slices};
use crate::daemon::eventually;

/// What both tests ask for: TCP on 80 → 8080 at each kind of address, one local and one remote endpoint.
fn scene() -> Scene {
    let scene = Scene::new();
    let spec = json!({
        "type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30_080}],
        "clusterIPs": ["10.96.4.1", "fd00:10:96::4:1"],
        "externalIPs": ["198.51.100.4", "2001:db8:51::4"],
        "load_balancer": ["203.0.113.4", "2001:db8:113::4"],
    });
    scene.serve("web", spec, &["pod-a1", "pod-b1"]);
    scene
}

const PLACES: [&str; 8] = [
    "10.96.4.1:80",
    "192.0.2.10:30080",
    "203.0.113.4:80",
    "198.51.100.4:80",
    "[fd00:10:96::4:1]:80",
    "[2001:db8::10]:30080",
    "[2001:db8:113::4]:80",
    "[2001:db8:51::4]:80",
];

/// Every client reaches every place, on either endpoint: round robin has two.
fn traffic_works(scene: &Scene) {
    for client in CLIENTS {
        for place in PLACES {
            let mut answers = [scene.ask(client, place), scene.ask(client, place)];
            answers.sort();
            assert_eq!(answers, ["pod-a1", "pod-b1"], "{client:?} {place}");
        }
    }
}

/// A change of the service and back again, each waited for.
fn churn(scene: &Scene, netns: &Netns) {
    for (pods, count) in [(&["pod-a2"][..], 1), (&[], 0), (&["pod-a1", "pod-b1"], 2)] {
        scene.put("web-endpoints", &slices("web", &super::scene::http(), pods));
        let reals = || {
            let lines = crate::seen::ipvsadm(netns);
            lines
                .iter()
                .filter(|line| line.starts_with("-a -t 10.96.4.1:80 ") && !line.ends_with(" -w 0"))
                .count()
        };
        eventually(&count, reals);
    }
}

/// A table with all its handles, by `nft -j`; elements in an order of their own. Where anything of it was written anew,
/// a handle differs.
fn table(netns: &Netns, name: &str) -> Value {
    let text = netns.sh(&format!("nft -j list table {name}")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    for object in json["nftables"].as_array_mut().unwrap() {
        for kind in ["set", "map"] {
            if let Some(elements) = object.get_mut(kind).and_then(|set| set["elem"].as_array_mut()) {
                elements.sort_by_key(ToString::to_string);
            }
            // Deadlines of those that drain end by themselves.
            if object[kind]["name"] == "draining" {
                object[kind]["elem"] = Value::Null;
            }
        }
    }
    json
}

fn ours(netns: &Netns) -> [Value; 2] {
    ["ip kube-ipvs", "ip6 kube-ipvs"].map(|name| table(netns, name))
}

/// What dockerd has on a host, in iptables-nft, before the daemon starts.
const DOCKER: [&str; 15] = [
    "-P FORWARD DROP",
    "-N DOCKER",
    "-N DOCKER-USER",
    "-N DOCKER-ISOLATION-STAGE-1",
    "-N DOCKER-ISOLATION-STAGE-2",
    "-A DOCKER-USER -j RETURN",
    "-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
    "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
    "-A FORWARD -o docker0 -j DOCKER",
    "-t nat -N DOCKER",
    "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A DOCKER -i docker0 -j RETURN",
];

/// T28: FORWARD drops, and services work by the accepts of the short-lived helper.
#[test]
fn t28_beside_docker_traffic_works() {
    let mut scene = scene();
    for program in ["iptables-nft", "ip6tables-nft"] {
        for line in DOCKER {
            scene.world.node.sh(&format!("{program} -w {line}")).unwrap();
        }
    }
    // A port of a container is published that is the service's, too (T30).
    let published = "-t nat -A DOCKER ! -i docker0 -p tcp --dport 80 -j DNAT --to-destination 10.244.1.12:8080";
    scene.world.node.sh(&format!("iptables-nft -w {published}")).unwrap();
    scene.start();
    for program in ["iptables-nft", "ip6tables-nft"] {
        let inserted = format!("{program}: jump from FORWARD to KUBE-FORWARD inserted");
        scene.daemon().wait_for(0, &inserted).unwrap();
    }
    let docker = || scene.world.node.sh("iptables-nft -w -t nat -S").unwrap();
    let before = docker();
    traffic_works(&scene);
    churn(&scene, &scene.world.node);
    traffic_works(&scene);
    assert_eq!(docker(), before);
    // And it is the helper's rules that do it.
    for program in ["iptables-nft", "ip6tables-nft"] {
        scene.world.node.sh(&format!("{program} -w -F KUBE-FORWARD")).unwrap();
    }
    let (v4, v6) = (PLACES[0], PLACES[4]);
    scene.check(&[(Client::Outside, v4, "silent"), (Client::Outside, v6, "silent")]);
}

/// The shape of firewalld's table: base chains 10 behind the standard places, a zone that accepts what comes in here.
const FIREWALLD: &str = "\
table inet firewalld {
	chain mangle_PREROUTING {
		type filter hook prerouting priority mangle + 10; policy accept;
	}
	chain nat_PREROUTING {
		type nat hook prerouting priority dstnat + 10; policy accept;
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname \"lo\" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname \"lo\" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_OUTPUT {
		type filter hook output priority filter + 10; policy accept;
		ct state { established, related } accept
		oifname \"lo\" accept
	}
	chain filter_INPUT_ZONES {
		iifname { \"to-other\", \"to-client\", \"to-asker\", \"pod-a1\", \"pod-a2\" } accept
		meta l4proto { icmp, ipv6-icmp } accept
	}
}
";

fn reload(netns: &Netns, table: &str) {
    let script = format!("table inet firewalld\ndelete table inet firewalld\n{table}");
    netns.run(|| tool::feed(&["nft", "-f", "-"], &script)).unwrap();
}

#[test]
fn beside_firewalld_and_its_reloads_traffic_works() {
    let mut scene = scene();
    let node = scene.world.node.clone();
    reload(&node, FIREWALLD);
    let foreign = || {
        (
            node.sh("nft -a list table inet firewalld").unwrap(),
            table(&node, "inet firewalld"),
        )
    };
    let before = foreign();

    // Start, changes and end of ours leave theirs as it is, to the byte.
    scene.start();
    assert_eq!(foreign(), before);
    traffic_works(&scene);
    churn(&scene, &node);
    assert_eq!(foreign(), before);

    // Their reload leaves ours as it is.
    let own = ours(&node);
    reload(&node, FIREWALLD);
    assert_ne!(table(&node, "inet firewalld"), before.1, "it was made anew");
    assert_eq!(ours(&node), own);
    traffic_works(&scene);

    // So does its end, and ours leaves all there is.
    let before = foreign();
    scene.terminate();
    assert_eq!(foreign(), before);
    assert_eq!(ours(&node), own);
    traffic_works(&scene);
    node.sh("nft delete table inet firewalld").unwrap();
    assert_eq!(ours(&node), own);
    traffic_works(&scene);

    // A start beside a table that came meanwhile adopts ours.
    reload(&node, FIREWALLD);
    let line = scene.start();
    assert!(line.contains("written=0 "), "{line}");
    assert_eq!(ours(&node), own);
    // Their rules do count: a table that accepts nothing is felt.
    reload(
        &node,
        &FIREWALLD
            .replace("ct status dnat accept", "")
            .replace("\"to-client\", ", ""),
    );
    let answer = scene.ask(Client::Outside, PLACES[0]);
    assert!(!answer.starts_with("pod-"), "{answer}");
    assert_eq!(ours(&node), own);
}
