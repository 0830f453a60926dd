//! T18 as a whole: an API server, the daemon, the node's routes.

use serde_json::{Value, json};
use testbed::daemon::Daemon;
use testbed::fake_api::{FakeApi, Fault};
use testbed::netns::Netns;

use crate::daemon::eventually;
use crate::seen;

const NODES: &str = "/api/v1/nodes";

fn node(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

#[test]
fn t18_external_ips_of_other_nodes_are_never_bound() {
    let netns = Netns::new().unwrap();
    let api = FakeApi::start_on_a_thread(&netns, ([127, 0, 0, 1], 0).into()).unwrap();
    for (name, address) in [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "192.0.2.3")] {
        api.put(NODES, node(name, address));
    }
    api.put(
        "/api/v1/services",
        json!({
            "metadata": {"name": "s", "namespace": "d"},
            "spec": {
                "clusterIPs": ["10.96.0.7"],
                "externalIPs": ["192.0.2.2", "198.51.100.7"],
                "ports": [{"port": 80}],
            },
        }),
    );
    // The list of all nodes comes late.
    api.fault("includeObject", Fault::Status(500));
    let arguments = ["--master", &api.url(), "--hostname-override", "n1"];
    let start = || {
        let mut daemon = Daemon::start(&netns, &arguments).unwrap();
        let serving = daemon.wait_until_serving().unwrap();
        (daemon, serving)
    };
    let bound = |addresses: &[&str]| {
        let expect = addresses.iter().map(|address| (*address).to_owned()).collect();
        eventually(&expect, || seen::routes(&netns));
    };
    let (daemon, _) = start();
    assert_eq!(api.faults_left(), 0);
    let said = daemon.said();
    let position = |text: &str| said.iter().position(|line| line.contains(text)).unwrap();
    assert!(
        position("listed kind=other Nodes objects=2") < position(" serving "),
        "{said:#?}"
    );
    bound(&["10.96.0.7", "198.51.100.7"]);
    drop(daemon);

    // What a former process bound is not taken away while the nodes are not known.
    let (daemon, serving) = start();
    assert!(serving.contains("written=0"), "{serving}");
    drop(daemon);

    // Nodes that come and go are known with the next list: that of a start, or a quarter of an hour later (L21).
    api.delete(NODES, "n2");
    let (daemon, _) = start();
    bound(&["10.96.0.7", "192.0.2.2", "198.51.100.7"]);
    drop(daemon);
    api.put(NODES, node("n3", "198.51.100.7"));
    let (daemon, _) = start();
    bound(&["10.96.0.7", "192.0.2.2"]);
    drop(daemon);
}
