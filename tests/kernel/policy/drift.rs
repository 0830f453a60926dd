//! What others do to our tables by hand does not last.

use std::fs;
use std::thread;
use std::time::Duration;

use testbed::world::{World, ask_tcp};

use crate::daemon::{eventually, examples, start};
use crate::seen;

/// By a person or another agent: whole again at once, and told; what we do ourselves is no disturbance.
#[test]
fn tables_that_others_change_are_whole_again() {
    let world = World::new().unwrap();
    let manifests = examples();
    let mut daemon = start(&world.node, manifests.path(), &[]);
    let whole = seen::ruleset(&world.node);
    let file = manifests.path().join("20-web.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let from = daemon.said().len();
    fs::write(
        &file,
        text.replace("10.244.1.12], nodeName: node-a", "10.244.2.12], nodeName: node-b"),
    )
    .unwrap();
    daemon.wait_for(from, " commit ").unwrap();
    fs::write(&file, &text).unwrap();
    eventually(&whole, || seen::ruleset(&world.node));
    assert!(!daemon.said().iter().any(|line| line.contains("somebody else")));
    let harm = [
        "nft flush ruleset",
        "nft delete table ip kube-ipvs",
        "nft delete table ip6 kube-ipvs",
        "nft flush chain ip kube-ipvs pre",
        "nft flush set ip kube-ipvs services",
        "nft flush map ip kube-ipvs verdicts",
        "nft add element ip kube-ipvs vips { 192.0.2.77 }",
        "nft insert rule ip kube-ipvs in drop",
    ];
    for line in harm {
        // One change is told in several pieces, of which a late one is taken for another: it may come now.
        thread::sleep(Duration::from_secs(1));
        let from = daemon.said().len();
        world.node.sh(line).unwrap();
        daemon.wait_for(from, "somebody else changed").unwrap();
        eventually(&whole, || seen::ruleset(&world.node));
    }
    assert!(ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).is_ok());
}
