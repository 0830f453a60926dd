//! What no Service may take from a node (T41): audit F1 and F6.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::daemon::Daemon;
use testbed::fake_api::FakeApi;
use testbed::link::link;
use testbed::netns::Netns;
use testbed::world::serve_host;

use crate::daemon::eventually;
use crate::seen;

const SERVICES: &str = "/api/v1/services";
const NODES: &str = "/api/v1/nodes";
/// A node that was cut off from its API server is back within so long.
const RESCUE: Duration = Duration::from_secs(10);

/// A node, 192.0.2.10/24 and 2001:db8::10/64, beside a machine with the API server, 192.0.2.20, which is no Node.
struct Scene {
    node: Netns,
    api: FakeApi,
    run: TempDir,
}

impl Scene {
    fn new() -> Self {
        let (node, server) = (Netns::new().unwrap(), Netns::new().unwrap());
        link(&node, "eth0", &server, "eth0").unwrap();
        for (netns, address) in [(&node, 10), (&server, 20)] {
            netns.sh(&format!("ip addr add 192.0.2.{address}/24 dev eth0")).unwrap();
            netns
                .sh(&format!("ip addr add 2001:db8::{address}/64 dev eth0 nodad"))
                .unwrap();
        }
        let api = FakeApi::start_on_a_thread(&server, ([192, 0, 2, 20], 0).into()).unwrap();
        let addresses = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]});
        api.put(NODES, json!({"metadata": {"name": "n1"}, "status": addresses}));
        let run = tempfile::tempdir().unwrap();
        Self { node, api, run }
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let run = format!("--run-dir={}", self.run.path().display());
        let all: Vec<_> = ["--hostname-override", "n1", &run]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        Daemon::start(&self.node, &all).unwrap()
    }

    /// Started by the API server's address, and serving.
    fn serve(&self, more: &[&str]) -> Daemon {
        let url = self.api.url();
        let mut daemon = self.start(&[&["--master", &url], more].concat());
        daemon.wait_until_serving().unwrap();
        daemon
    }

    /// Notes of the events with this reason, those that were folded into one taken apart.
    fn events(&self, reason: &str) -> BTreeSet<String> {
        let mut notes = BTreeSet::new();
        for (_, event) in self.api.posted() {
            if event["reason"] == reason {
                let note = event["note"].as_str().unwrap_or_default();
                notes.extend(note.split("; ").map(str::to_owned));
            }
        }
        notes
    }

    fn reaches_api(&self) -> bool {
        let api = self.api.address;
        let connect = || Ok(TcpStream::connect_timeout(&api, Duration::from_secs(1)).is_ok());
        self.node.run(connect).unwrap()
    }

    fn routes(&self, expect: &[&str]) {
        eventually(&texts(expect), || seen::routes(&self.node));
    }
}

fn texts(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

fn service(external_ips: &[&str], ports: &[u16]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port}))
        .collect();
    let ips = ["10.96.0.7", "fd00:10:96::7"];
    let spec = json!({"clusterIP": ips[0], "clusterIPs": ips, "externalIPs": external_ips, "ports": ports});
    json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})
}

const OWN: [&str; 2] = ["10.96.0.7", "fd00:10:96::7"];

#[test]
fn f01_f06_addresses_that_the_node_needs_are_refused() {
    let scene = Scene::new();
    for route in [
        "default via 192.0.2.1",
        "198.18.7.0/24 via 192.0.2.2",
        "2001:db8:7::/64 nexthop via 2001:db8::97 dev eth0 nexthop via 2001:db8::99 dev eth0",
    ] {
        scene.node.sh(&format!("ip route add {route}")).unwrap();
    }
    // Another table leads nobody of this node there.
    scene
        .node
        .sh("ip route add 198.18.8.0/24 via 192.0.2.4 table 77")
        .unwrap();
    let refused = [
        ("192.0.2.20", "the address of the API server"),
        ("192.0.2.1", "the default gateway"),
        ("192.0.2.2", "a gateway"),
        ("2001:db8::97", "a gateway"),
        ("2001:db8::99", "a gateway"),
        ("192.0.2.0", "the network address of 192.0.2.0/24"),
        ("192.0.2.255", "the broadcast address of 192.0.2.0/24"),
    ];
    let free = ["192.0.2.4", "192.0.2.5", "2001:db8::98"];
    let wanted: Vec<_> = refused.iter().map(|(address, _)| *address).chain(free).collect();
    scene.api.put(SERVICES, service(&wanted, &[1]));
    let _daemon = scene.serve(&["--ipvs-sync-period=1s"]);
    scene.routes(&[&OWN[..], &free].concat());
    let notes = refused
        .iter()
        .enumerate()
        .map(|(at, (address, what))| format!("spec.externalIPs[{at}]: {address} is {what}"));
    let notes: BTreeSet<_> = notes.collect();
    eventually(&notes, || scene.events("CannotProgram"));
    assert!(scene.reaches_api());

    // A gateway that comes is let go, and one that went may be taken.
    scene.node.sh("ip route add 198.18.9.0/24 via 192.0.2.6").unwrap();
    scene.node.sh("ip route replace default via 192.0.2.7").unwrap();
    scene
        .api
        .put(SERVICES, service(&["192.0.2.1", "192.0.2.6", "192.0.2.7"], &[1]));
    scene.routes(&[&OWN[..], &["192.0.2.1"]].concat());
    scene.node.sh("ip route del 198.18.9.0/24").unwrap();
    scene.routes(&[&OWN[..], &["192.0.2.1", "192.0.2.6"]].concat());
}

#[test]
fn f06_ports_of_the_host_are_refused_at_its_addresses() {
    let scene = Scene::new();
    let virtual_servers = || {
        let all = seen::ipvsadm(&scene.node);
        let at = |line: &String| Some(line.strip_prefix("-A ")?.split(' ').nth(1)?.to_owned());
        all.iter()
            .filter_map(at)
            .filter(|place| place.starts_with("192.0.2.10:") || place.starts_with("198.51.100.7:"))
            .collect::<BTreeSet<_>>()
    };
    serve_host(&scene.node, 8443, "host").unwrap();
    let listen = |at: &str| {
        let at: SocketAddr = at.parse().unwrap();
        scene.node.run(|| Ok(std::net::TcpListener::bind(at)?)).unwrap()
    };
    let _kept = [
        listen("127.0.0.1:8444"),
        listen("[2001:db8::10]:8445"),
        listen("192.0.2.10:8446"),
    ];
    let ports = [9000, 8443, 8444, 8445, 8446, 10250, 10256];
    scene
        .api
        .put(SERVICES, service(&["192.0.2.10", "198.51.100.7"], &ports));
    let _daemon = scene.serve(&["--ipvs-sync-period=1s"]);
    let mut expect: BTreeSet<_> = ports.iter().map(|port| format!("198.51.100.7:{port}")).collect();
    expect.extend([9000, 8444, 8445].map(|port| format!("192.0.2.10:{port}")));
    eventually(&expect, virtual_servers);
    let what = |port, whose| format!("192.0.2.10:{port}/TCP is {whose}");
    for (port, whose) in [
        (8443, "a port on which the host listens"),
        (8446, "a port on which the host listens"),
        (10250, "the kubelet's port"),
        (10256, "the health check of kube-ipvs"),
    ] {
        let is_told = || {
            let notes = scene.events("CannotProgram");
            notes.iter().any(|note| note.contains(&what(port, whose)))
        };
        eventually(&true, is_told);
    }
    // The host begins to listen where a Service is: the next audit gives it back.
    let _late = listen("0.0.0.0:9000");
    expect.remove("192.0.2.10:9000");
    eventually(&expect, virtual_servers);
}

/// F1: a former process bound the API server's address, as it could not know that it is one.
#[test]
fn f01_a_node_that_is_cut_off_from_its_api_server_frees_itself() {
    let scene = Scene::new();
    let manifests = tempfile::tempdir().unwrap();
    let bind = |port: u16| {
        let api_version = |version: &str, kind: &str, mut object: Value| {
            object["apiVersion"] = version.into();
            object["kind"] = kind.into();
            object
        };
        let slice = json!({
            "metadata": {"name": "s-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "ports": [{"name": format!("p{port}"), "port": 6443}],
            "endpoints": [{"addresses": ["192.0.2.77"]}],
        });
        let items = [
            api_version("v1", "Service", service(&["192.0.2.20", "198.51.100.7"], &[port])),
            api_version("discovery.k8s.io/v1", "EndpointSlice", slice),
        ];
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        fs::write(manifests.path().join("all.json"), list.to_string()).unwrap();
        let folder = manifests.path().to_string_lossy();
        let mut daemon = scene.start(&["--manifests", &folder]);
        daemon.wait_until_serving().unwrap();
        let addresses = texts(&["10.96.0.7/32", "192.0.2.20/32", "198.51.100.7/32", "fd00:10:96::7/128"]);
        eventually(&addresses, || seen::addresses(&scene.node));
        daemon.terminate().unwrap();
    };
    let refused = || bind(1);
    // Whoever connects gets no answer, and waits.
    let silent = || bind(scene.api.address.port());
    scene
        .node
        .sh("ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0")
        .unwrap();
    let by_hand = || {
        scene
            .node
            .sh("ip route add local 192.0.2.20 dev lo table local scope host proto 163")
            .unwrap();
    };
    let ways: [&dyn Fn(); 3] = [&refused, &silent, &by_hand];
    for (round, cut_off) in ways.into_iter().enumerate() {
        cut_off();
        assert!(!scene.reaches_api(), "{round}");
        let start = Instant::now();
        let daemon = scene.serve(&[]);
        let took = start.elapsed();
        assert!(took < RESCUE, "{took:?}");
        assert!(scene.reaches_api());
        let said = daemon.said();
        let freed: Vec<_> = said
            .iter()
            .filter(|line| line.contains("unbound address=192.0.2.20"))
            .collect();
        assert!(freed.len() == 1 && freed[0].contains("ERROR"), "{said:#?}");
        eventually(&(round + 1), || {
            let posted = scene.api.posted();
            posted
                .iter()
                .filter(|(_, event)| event["reason"] == "ApiServerFreed")
                .count()
        });
        // What else was bound waited for the picture, and went with it.
        scene.routes(&[]);
        daemon.terminate().unwrap();
    }
}

/// The address of the Service `kubernetes` is bound by us, and the way to the API server all the same.
#[test]
fn f01_a_cluster_ip_that_leads_to_the_api_server_stays() {
    let scene = Scene::new();
    let port = scene.api.address.port();
    let spec =
        json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"name": "https", "port": 443}]});
    let name = json!({"name": "kubernetes", "namespace": "default"});
    scene.api.put(SERVICES, json!({"metadata": name, "spec": spec}));
    let slice = json!({
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4", "ports": [{"name": "https", "port": port}],
        "endpoints": [{"addresses": ["192.0.2.20"]}],
    });
    scene.api.put("/apis/discovery.k8s.io/v1/endpointslices", slice);
    scene.serve(&[]).terminate().unwrap();
    let mut daemon = scene.start(&["--master", "http://10.96.0.1:443"]);
    let serving = daemon.wait_until_serving().unwrap();
    assert!(serving.contains("written=0"), "{serving}");
    assert!(!daemon.said().iter().any(|line| line.contains("unbound")));
    scene.routes(&["10.96.0.1"]);
}
