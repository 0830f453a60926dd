//! The iptables mode as a process: drift, restarts, and leaving one mode for the other with traffic (L9, L12, L15).

use std::collections::BTreeSet;
use std::fs;

use testbed::netns::Netns;
use testbed::world::{World, answer_rest, ask_tcp, open};

use crate::daemon::{eventually, examples, start};
use crate::seen;

const WEB: &str = "10.96.1.1:80";
const MODE: &str = "--proxy-mode=iptables";

/// The rules and chains of ours, without counters.
fn rules(node: &Netns) -> BTreeSet<String> {
    let saved = ["iptables-nft-save", "ip6tables-nft-save"].map(|program| node.sh(program).unwrap());
    let lines = saved.iter().flat_map(|text| text.lines());
    lines
        .filter(|line| line.contains("KUBE-"))
        .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
        .collect()
}

/// A world whose node forwards, as its network plugin makes it, with rules of nft's variant that decide which is used.
fn world() -> World {
    let world = World::new().unwrap();
    world.node.sh("sysctl -qw net.ipv4.ip_forward=1").unwrap();
    world.node.sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY").unwrap();
    world
}

#[test]
fn rules_that_others_change_are_repaired_by_the_audit() {
    let world = world();
    let manifests = examples();
    let node = &world.node;
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    let mut daemon = start(node, manifests.path(), &[MODE, "--ipvs-sync-period=1s", &run_dir]);
    let whole = rules(node);
    assert!(whole.len() > 100, "{whole:#?}");
    assert!(ask_tcp(&world.client, WEB.parse().unwrap()).is_ok());
    let harm = [
        "iptables-nft -t nat -F KUBE-SERVICES",
        "ip6tables-nft -t nat -F",
        "iptables-nft -F",
        "iptables-nft -t nat -I KUBE-SERVICES -d 192.0.2.99 -j RETURN",
        "nft flush ruleset",
    ];
    for line in harm {
        let from = daemon.said().len();
        node.sh(line).unwrap();
        daemon.wait_for(from, "not as kube-ipvs programmed it").unwrap();
        // The kubelet's chain is its own to make again.
        let ours = |all: BTreeSet<String>| -> BTreeSet<String> {
            all.into_iter().filter(|line| !line.contains("KUBELET")).collect()
        };
        eventually(&ours(whole.clone()), || ours(rules(node)));
        assert!(ask_tcp(&world.client, WEB.parse().unwrap()).is_ok(), "{line}");
    }
}

#[test]
fn a_restart_changes_no_rule_and_cuts_no_connection() {
    let world = world();
    let manifests = examples();
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    let first = start(&world.node, manifests.path(), &[MODE, &run_dir]);
    let open = open(&world.client, WEB.parse().unwrap()).unwrap();
    let before = rules(&world.node);
    drop(first);
    let _second = start(&world.node, manifests.path(), &[MODE, &run_dir]);
    assert_eq!(rules(&world.node), before);
    answer_rest(open).unwrap();
    // A service that went takes its chains along.
    fs::remove_file(manifests.path().join("20-web.yaml")).unwrap();
    eventually(&false, || {
        rules(&world.node).iter().any(|line| line.contains("shop/web"))
    });
}

/// L15: what the mode before left would go on capturing traffic.
#[test]
fn each_mode_leaves_nothing_to_the_other() {
    let world = world();
    let manifests = examples();
    let node = &world.node;
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    for _ in 0..2 {
        let ipvs = start(node, manifests.path(), &[&run_dir]);
        // The rules go after IPVS serves.
        eventually(&false, || rules(node).iter().any(|line| line.contains("KUBE-SVC")));
        assert!(seen::ipvsadm(node).len() > 20);
        assert!(ask_tcp(&world.client, WEB.parse().unwrap()).is_ok());
        ipvs.terminate().unwrap();

        let iptables = start(node, manifests.path(), &[MODE, &run_dir]);
        eventually(&0, || seen::ipvsadm(node).len());
        eventually(&false, || node.sh("ip link show kube-ipvs0").is_ok());
        eventually(&false, || node.sh("nft list tables").unwrap().contains("kube-ipvs"));
        assert!(seen::routes(node).is_empty());
        assert!(rules(node).iter().any(|line| line.contains("KUBE-SVC")));
        assert!(ask_tcp(&world.client, WEB.parse().unwrap()).is_ok());
        iptables.terminate().unwrap();
    }
}
