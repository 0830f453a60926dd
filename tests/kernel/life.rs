//! Life cycle with traffic: drain, restart, and what others change by hand.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use testbed::netns::Netns;
use testbed::world::{World, answer_rest, ask_tcp, open};

use crate::daemon::{eventually, examples, start};
use crate::mode::Mode;
use crate::seen;

mod drift;
mod leaving;
mod udp;

const WEB: &str = "10.96.1.1:80";
const WEB_V6: &str = "[fd00:10:96::101]:80";
/// The endpoint that goes and comes, by both families.
const GOING: &str = "10.244.1.11:8080";

fn web() -> SocketAddr {
    WEB.parse().unwrap()
}

/// Writes the service `web` without its first endpoint, or with it.
fn set_first_endpoint(manifests: &Path, there: bool) {
    let file = manifests.join("20-web.yaml");
    let all = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/20-web.yaml")).unwrap();
    let first = "- {addresses: [10.244.1.11], nodeName: node-a}\n";
    assert!(all.contains(first));
    fs::write(file, if there { all } else { all.replace(first, "") }).unwrap();
}

/// A connection, and who it is to.
fn connect(from: &Netns, to: SocketAddr) -> (TcpStream, String) {
    let stream = open(from, to).unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap())
        .read_line(&mut line)
        .unwrap();
    let name = line.split(' ').next().unwrap().to_owned();
    (stream, name)
}

/// Connections to each endpoint, one each.
fn connections(from: &Netns, to: SocketAddr, endpoints: usize) -> Vec<(TcpStream, String)> {
    let all: Vec<_> = (0..endpoints).map(|_| connect(from, to)).collect();
    let names: BTreeSet<_> = all.iter().map(|(_, name)| name).collect();
    assert_eq!(names.len(), endpoints, "round robin reaches each");
    all
}

/// Where old values of sysctls are kept; one for all would be changed by tests in other namespaces.
fn run_dir(manifests: &tempfile::TempDir) -> String {
    format!("--run-dir={}", manifests.path().join("run").display())
}

/// The weight of a real server by `ipvsadm`; `None` = it is not there.
fn weight(netns: &Netns, service: &str, real: &str) -> Option<String> {
    let line = format!("-a -t {service} -r {real} ");
    let all = seen::ipvsadm(netns);
    let found = all.iter().find(|found| found.starts_with(&line))?;
    found.rsplit(' ').next().map(str::to_owned)
}

/// Milliseconds that are left to those that drain, by nft.
fn deadlines(netns: &Netns) -> Vec<u64> {
    let text = netns.sh("nft -j list set ip kube-ipvs draining").unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sets = json["nftables"].as_array().unwrap().iter();
    let elements = sets.filter_map(|object| object["set"]["elem"].as_array());
    elements
        .flatten()
        .map(|element| element["elem"]["expires"].as_u64().expect("it ends"))
        .collect()
}

/// k/k#81308, k/k#84322 (L5): no new connection to an endpoint that is gone, the old ones live, a new process renews nothing, and at its
/// deadline it goes.
#[test]
fn drain_deadline_enforced() {
    let world = World::new().unwrap();
    let manifests = examples();
    let daemon = start(&world.node, manifests.path(), &["--drain-timeout=20s"]);
    let before = connections(&world.client, web(), 3);
    set_first_endpoint(manifests.path(), false);
    eventually(&Some("0".to_owned()), || weight(&world.node, WEB, GOING));
    let left = deadlines(&world.node);
    assert!(left.len() == 1 && left[0] <= 20, "{left:?}");
    let gone = before
        .iter()
        .map(|(_, name)| name.as_str())
        .find(|name| *name == "pod-a1");
    assert!(gone.is_some(), "{before:?}");
    for _ in 0..9 {
        let (name, _) = ask_tcp(&world.client, web()).unwrap();
        assert_ne!(name, "pod-a1");
    }
    for (stream, name) in before {
        answer_rest(stream).unwrap_or_else(|error| panic!("connection to {name}: {error:#}"));
    }
    let (kept, name) = std::iter::repeat_with(|| connect(&world.client, WEB_V6.parse().unwrap()))
        .find(|(_, name)| name == "pod-a1")
        .unwrap();
    assert_eq!(name, "pod-a1", "its other family is not gone");

    drop(daemon);
    let daemon = start(&world.node, manifests.path(), &["--drain-timeout=1h"]);
    assert_eq!(weight(&world.node, WEB, GOING), Some("0".to_owned()));
    let after = deadlines(&world.node);
    assert!(
        after.len() == 1 && after[0] <= left[0],
        "renewed from {left:?} to {after:?}"
    );
    eventually(&None, || weight(&world.node, WEB, GOING));
    assert!(deadlines(&world.node).is_empty());
    answer_rest(kept).unwrap();
    drop(daemon);
}

/// k/k#117205 (L6), with traffic.
#[test]
fn endpoint_flap_keeps_connections() {
    for mode in Mode::ALL {
        let world = mode.world();
        let manifests = examples();
        let _daemon = start(&world.node, manifests.path(), &[mode.flag(), &run_dir(&manifests)]);
        // The iptables mode throws dice: enough for each endpoint to have some.
        let before: Vec<_> = (0..30).map(|_| connect(&world.client, web())).collect();
        assert!(before.iter().any(|(_, name)| name == "pod-a1"), "{before:?}");
        set_first_endpoint(manifests.path(), false);
        eventually(&false, || mode.leads(&world.node, WEB, GOING));
        set_first_endpoint(manifests.path(), true);
        eventually(&true, || mode.leads(&world.node, WEB, GOING));
        if mode == Mode::Ipvs {
            assert!(deadlines(&world.node).is_empty());
        }
        for (stream, name) in before {
            answer_rest(stream).unwrap_or_else(|error| panic!("{mode:?}: connection to {name}: {error:#}"));
        }
    }
}

#[test]
fn a_restart_changes_nothing_and_cuts_no_connection() {
    for mode in Mode::ALL {
        let world = mode.world();
        let manifests = examples();
        let run_dir = run_dir(&manifests);
        let first = start(&world.node, manifests.path(), &[mode.flag(), &run_dir]);
        let open = open(&world.client, web()).unwrap();
        let before = mode.picture(&world.node);
        drop(first);
        let _second = start(&world.node, manifests.path(), &[mode.flag(), &run_dir]);
        assert_eq!(mode.picture(&world.node), before, "{mode:?}");
        answer_rest(open).unwrap();
        // What went meanwhile, and what goes later, takes its objects along.
        for (file, of_service) in [("20-web.yaml", "10.96.1.1"), ("30-cart.yaml", "10.96.1.2")] {
            fs::remove_file(manifests.path().join(file)).unwrap();
            eventually(&false, || {
                let lines = mode.picture(&world.node);
                let at = [format!("{of_service}:"), format!("{of_service}/")];
                lines.iter().any(|line| at.iter().any(|at| line.contains(at)))
            });
        }
    }
}

/// When the last connection has ended it goes long before its deadline.
#[test]
fn a_drain_ends_with_the_last_connection() {
    let world = World::new().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &["--drain-timeout=0"]);
    let before = connections(&world.client, web(), 3);
    set_first_endpoint(manifests.path(), false);
    eventually(&Some("0".to_owned()), || weight(&world.node, WEB, GOING));
    // A reset: IPVS forgets it after ten seconds, one that was closed after two minutes.
    for (stream, _) in &before {
        rustix::net::sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO)).unwrap();
    }
    assert_eq!(weight(&world.node, WEB, GOING), Some("0".to_owned()));
    drop(before);
    eventually(&None, || weight(&world.node, WEB, GOING));
}
