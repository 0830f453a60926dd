//! A node on which the real kube-proxy ran in IPVS mode: it is killed, kube-ipvs starts, traffic never stops, nothing of
//! kube-proxy is left.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::control_plane::program;
use testbed::daemon::{Daemon, binary};
use testbed::fake_api::FakeApi;
use testbed::matrix::upstream::{KubeProxy, KubeProxySettings};
use testbed::netns::Netns;
use testbed::tool;
use testbed::world::{NODE, World, answer, ask_tcp, open};

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const API: &str = "192.0.2.20:8001";
/// Its IPVS mode executes a program for each element of an ipset, on a kernel that may be slow.
const PATIENCE: Duration = Duration::from_secs(240);

/// Rounds from kube-proxy to kube-ipvs and back; `KUBE_IPVS_TAKE_OVERS` says otherwise.
const ROUNDS: usize = 2;

fn start_kube_proxy(node: &Netns, folder: &Path) -> KubeProxy {
    let told = KubeProxySettings::ipvs(NODE, API.parse().unwrap());
    KubeProxy::start(&program().unwrap(), node, &told, folder).unwrap()
}

fn put_service(api: &FakeApi, name: &str, ips: &[&str], node_port: u16) {
    let families: Vec<_> = ips
        .iter()
        .map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" })
        .collect();
    api.put(
        SERVICES,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families,
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": node_port}],
                "loadBalancerSourceRanges": ["198.18.0.0/15"],
                "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            },
            "status": {"loadBalancer": {"ingress": [{"ip": format!("203.0.113.{}", node_port % 200)}]}},
        }),
    );
    for (family, addresses) in [
        ("IPv4", ["10.244.1.11", "10.244.2.11"]),
        ("IPv6", ["fd00:10:244:1::11", "fd00:10:244:2::11"]),
    ] {
        let endpoint = |address: &str, node: &str| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
        api.put(
            SLICES,
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", family.to_lowercase()), "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
                "endpoints": [endpoint(addresses[0], NODE), endpoint(addresses[1], "node-b")],
            }),
        );
    }
}

fn node(name: &str, addresses: [&str; 2]) -> Value {
    let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}})
}

/// Names of chains and ipsets that begin with `KUBE-`.
fn leftovers(node: &Netns) -> Vec<String> {
    let mut found = Vec::new();
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        let saved = node.sh(&format!("{program}-save")).unwrap_or_default();
        let kube = saved.lines().filter(|line| line.contains("KUBE-"));
        found.extend(kube.map(|line| format!("{program}: {line}")));
    }
    found.extend(node.sh("ipset list -n").unwrap().lines().map(str::to_owned));
    found
}

/// Asks places again and again, each by a new connection.
struct Traffic {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(clients: &[(&Netns, &str)]) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |(netns, place): &(&Netns, &str)| {
            let (netns, place) = ((*netns).clone(), place.parse::<SocketAddr>().unwrap());
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    failed.extend(ask_tcp(&netns, place).err().map(|error| format!("{error:#}")));
                    asked.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(20));
                }
                failed
            })
        };
        let threads = clients.iter().map(client).collect();
        Self { stop, asked, threads }
    }

    /// How many were asked, and what failed.
    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.threads.into_iter().flat_map(|thread| thread.join().unwrap());
        (self.asked.load(Ordering::Relaxed), failed.collect())
    }
}

fn wait(what: &str, log: &dyn Fn() -> String, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come:\n{}", log());
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn l15_kube_ipvs_takes_over_from_the_real_kube_proxy() {
    let world = World::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let api = FakeApi::start_on_a_thread(&world.other, API.parse().unwrap()).unwrap();
    api.put("/api/v1/nodes", node(NODE, ["192.0.2.10", "2001:db8::10"]));
    api.put("/api/v1/nodes", node("node-b", ["192.0.2.20", "2001:db8::20"]));
    put_service(&api, "web", &["10.96.1.1", "fd00:10:96::101"], 30_080);
    let rounds = std::env::var("KUBE_IPVS_TAKE_OVERS").map_or(ROUNDS, |text| text.parse().unwrap());
    let untouched = state(&world.node);
    for round in 1..=rounds {
        put_service(&api, "gone", &["10.96.1.2", "fd00:10:96::102"], 31_999);
        take_over(&world, &api, folder.path());
        assert_eq!(state(&world.node), untouched, "after round {round}");
    }
}

/// What both proxies could leave, but for chains and ipsets, and for sysctls: kube-proxy restores none, and those that
/// were right already are not kube-ipvs's to restore.
fn state(node: &Netns) -> Vec<String> {
    let lines = [
        "ipvsadm -Sn",
        "ip route show table local proto 163",
        "ip -6 route show table local proto 163",
        "ip -br link",
        "nft list tables",
    ];
    let mut all: Vec<_> = lines.iter().map(|line| node.sh(line).unwrap()).collect();
    // The tables of iptables itself stay, empty.
    for text in &mut all {
        *text = text
            .lines()
            .filter(|line| !line.starts_with("table ip") || line.contains("kube"))
            .collect();
    }
    all
}

/// kube-proxy serves, is killed, kube-ipvs serves, ends, and is cleaned up.
fn take_over(world: &World, api: &FakeApi, folder: &Path) {
    let kube_proxy = start_kube_proxy(&world.node, folder);
    let log = || fs::read_to_string(folder.join(format!("{NODE}.log"))).unwrap_or_default();
    // A sync writes its virtual servers, then the elements of its ipsets, then its rules; each family for itself.
    wait("kube-proxy", &log, || {
        let has = |line: &str, text: &str| world.node.sh(line).is_ok_and(|said| said.contains(text));
        has("ipvsadm -Sn", "[2001:db8::10]:31999 ")
            && has("ipvsadm -Sn", "192.0.2.10:31999 ")
            && has("ipvsadm -Sn", "10.96.1.1:80 ")
            && has("ipset list KUBE-NODE-PORT-TCP", "31999")
            && has("ipset list KUBE-6-NODE-PORT-TCP", "31999")
            && has("iptables-save", "KUBE-IPVS-FILTER")
            && has("ip6tables-save", "KUBE-IPVS-FILTER")
    });
    assert!(leftovers(&world.node).len() > 60, "{:#?}", leftovers(&world.node));
    let places = [
        (&world.client, "10.96.1.1:80"),
        (&world.client, "192.0.2.10:30080"),
        (&world.client, "203.0.113.80:80"),
        (&world.client, "[fd00:10:96::101]:80"),
        (&world.client_pod, "10.96.1.1:80"),
        (&world.node, "10.96.1.1:80"),
    ];
    let mut long_lived = Vec::new();
    for (client, place) in &places {
        long_lived.push(open(client, place.parse().unwrap()).unwrap());
    }
    let traffic = Traffic::start(&places);

    drop(kube_proxy);
    api.delete(SERVICES, "shop/gone");
    let server = format!("http://{API}");
    let run_dir = format!("--run-dir={}", folder.join("run").display());
    let arguments = [
        "--master",
        &server,
        "--hostname-override",
        NODE,
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
        &run_dir,
    ];
    let mut daemon = Daemon::start(&world.node, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    daemon.wait_for(0, " ipsets removed").unwrap();

    assert_eq!(leftovers(&world.node), [""; 0]);
    let servers = world.node.sh("ipvsadm -Sn").unwrap();
    assert!(
        !servers.contains(":31999 ") && !servers.contains("10.96.1.2:"),
        "{servers}"
    );
    assert!(servers.contains("192.0.2.10:30080 "), "{servers}");
    thread::sleep(Duration::from_secs(2));
    let (asked, failed) = traffic.end();
    assert!(asked > 60, "{asked}");
    assert_eq!(failed, [""; 0], "of {asked}");
    for connection in long_lived {
        answer(connection).unwrap();
    }
    daemon.terminate().unwrap();

    let clean = || {
        let mut command = Command::new(binary());
        command.args(["--cleanup", &run_dir]);
        world.node.run(|| tool::output(command)).unwrap()
    };
    assert!(clean().contains("ip link del kube-ipvs0\n"));
    assert_eq!(clean(), "");
    assert_eq!(world.node.sh("ipvsadm -Sn").unwrap(), "");
}
