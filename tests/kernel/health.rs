//! Health as load balancers and the kubelet ask it: `/healthz`, `/livez` and health-check node ports, by real requests
//! (reference: kube-proxy's §2.5 and §2.6).

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use serde_json::{Value, json};
use testbed::daemon::Daemon;
use testbed::http::{self, Answer, get};
use testbed::netns::Netns;
use testbed::world::{NODE, World};

use crate::daemon::{eventually, examples, start};

const HEALTH: &str = "192.0.2.10:10256";
const METRICS: &str = "127.0.0.1:10249";

fn at(place: &str) -> SocketAddr {
    place.parse().unwrap()
}

fn ask(from: &Netns, place: &str, path: &str) -> Answer {
    get(from, at(place), path).unwrap()
}

fn status(from: &Netns, path: &str) -> u16 {
    ask(from, HEALTH, path).status
}

fn both(from: &Netns) -> (u16, u16) {
    (status(from, "/healthz"), status(from, "/livez"))
}

/// The value of a series of `/metrics`, given as its text.
fn metric(node: &Netns, series: &str) -> Option<f64> {
    let page = ask(node, METRICS, "/metrics").body;
    page.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn node(more: &Value) -> String {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
    });
    for (part, fields) in more.as_object().unwrap() {
        for (name, value) in fields.as_object().unwrap() {
            node[part][name] = value.clone();
        }
    }
    node.to_string()
}

#[test]
fn healthz_and_livez_answer_as_kube_proxy() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &[]);
    for path in ["/healthz", "/livez"] {
        let answer = ask(&world.other, HEALTH, path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, "application/json")
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let eligible = if path == "/healthz" { json!(true) } else { Value::Null };
        assert_eq!((&body["healthy"], &body["nodeEligible"]), (&json!(true), &eligible));
        assert_eq!(body["lastUpdated"], body["currentTime"]);
        for family in ["IPv4", "IPv6"] {
            assert_eq!(body["status"][family]["healthy"], true);
            assert!(body["status"][family]["lastUpdated"].as_str().unwrap().ends_with('Z'));
        }
        let fields: Vec<_> = ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"]
            .into_iter()
            .filter_map(|field| answer.body.find(&format!("\"{field}\"")))
            .collect();
        assert!(fields.is_sorted(), "{}", answer.body);
    }
    // 0.0.0.0 is both families, as in Go; other paths are nothing; every method is answered.
    assert_eq!(ask(&world.other, "[2001:db8::10]:10256", "/livez").status, 200);
    assert_eq!(status(&world.other, "/"), 404);
    assert_eq!(status(&world.other, "/healthz/x"), 404);
    let put = http::request(&world.other, at(HEALTH), "PUT", "/livez", &[], "x").unwrap();
    assert_eq!(put.status, 200);
}

/// Audit F5: a rollout that never reaches the API server must not go on to the next node. The process itself is well.
#[test]
fn f05_healthz_is_503_until_everything_was_programmed_once() {
    let world = World::without_pods().unwrap();
    let unreachable = ["--master", "http://127.0.0.1:1", "--hostname-override", NODE];
    let mut daemon = Daemon::start(&world.node, &unreachable).unwrap();
    daemon.wait_for(0, "lost the API server").unwrap();
    assert_eq!(both(&world.other), (503, 200));
    let body: Value = serde_json::from_str(&ask(&world.other, HEALTH, "/healthz").body).unwrap();
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(false)));
    assert!(daemon.terminate().unwrap().0.success());
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &[]);
    assert_eq!(both(&world.other), (200, 200));
}

#[test]
fn a_node_that_goes_is_told_by_healthz_alone() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let file = manifests.path().join("00-node.yaml");
    let _daemon = start(&world.node, manifests.path(), &[]);
    let taint = |key: &str| node(&json!({"spec": {"taints": [{"key": key, "value": "x", "effect": "NoSchedule"}]}}));
    let deleting = node(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    for (text, expect) in [
        (taint("ToBeDeletedByClusterAutoscaler"), (503, 200)),
        (taint("other"), (200, 200)),
        (deleting, (503, 200)),
        (node(&json!({})), (200, 200)),
    ] {
        fs::write(&file, &text).unwrap();
        eventually(&expect, || both(&world.other));
    }
    let body: Value = serde_json::from_str(&ask(&world.other, HEALTH, "/healthz").body).unwrap();
    assert_eq!(body["nodeEligible"], true);
    fs::remove_file(&file).unwrap();
    eventually(&(503, 200), || both(&world.other));
    let body: Value = serde_json::from_str(&ask(&world.other, HEALTH, "/healthz").body).unwrap();
    // The proxy itself is well.
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(false), &json!(true)));
    let count =
        |path: &str, code| metric(&world.node, &format!("kubeproxy_proxy_{path}_total{{code=\"{code}\"}}")).unwrap();
    assert!(count("healthz", 503) >= 3.0 && count("healthz", 200) >= 2.0);
    assert!(count("livez", 200) >= 5.0);
    assert_eq!(count("livez", 503), 0.0);
}

/// Programs that call iptables', and fail as long as a file is there.
fn failing_restore(folder: &Path) -> String {
    for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        let path = folder.join(program);
        let fail = folder.join("fail");
        let script = format!(
            "#!/bin/sh\nif [ -e {} ]; then cat >/dev/null; echo broken >&2; exit 1; fi\nexec /usr/sbin/{program} \"$@\"\n",
            fail.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    format!("PATH={}:{}", folder.display(), std::env::var("PATH").unwrap())
}

#[test]
fn a_sync_that_gets_stuck_is_unhealthy_until_it_gets_on() {
    let world = World::without_pods().unwrap();
    world.node.sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY").unwrap();
    let manifests = examples();
    let folder = tempfile::tempdir().unwrap();
    let path = failing_restore(folder.path());
    let directory = manifests.path().to_string_lossy().into_owned();
    let run_dir = format!("--run-dir={}", folder.path().join("run").display());
    let arguments = [
        "--manifests",
        &directory,
        "--hostname-override",
        NODE,
        "--proxy-mode=iptables",
        "--iptables-sync-period=1s",
        &run_dir,
    ];
    let mut daemon = Daemon::start_by(&world.node, &["env", &path], &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    assert_eq!(both(&world.other), (200, 200));
    fs::write(folder.path().join("fail"), "").unwrap();
    fs::remove_file(manifests.path().join("20-web.yaml")).unwrap();
    eventually(&(503, 503), || both(&world.other));
    let body: Value = serde_json::from_str(&ask(&world.other, HEALTH, "/livez").body).unwrap();
    assert_eq!(body["healthy"], false);
    assert_ne!(body["lastUpdated"], body["currentTime"]);
    let failures = "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"}";
    assert!(metric(&world.node, failures).unwrap() >= 1.0);
    assert!(metric(&world.node, "kube_ipvs_queue_age_seconds").unwrap() >= 2.0);
    fs::remove_file(folder.path().join("fail")).unwrap();
    eventually(&(200, 200), || both(&world.other));
    // A round of the sync period may run just now.
    eventually(&Some(0.0), || metric(&world.node, "kube_ipvs_queue_age_seconds"));
}

/// L11: the node must not leave every load balancer since one object cannot be programmed.
#[test]
fn an_object_that_is_refused_is_a_number_and_no_fault() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let mut daemon = start(&world.node, manifests.path(), &["--ipvs-sync-period=1s"]);
    // The kernel refuses a real server without a route to it: while `lo` is down, there is none to this node.
    world.node.sh("ip link set lo down").unwrap();
    let web = manifests.path().join("20-web.yaml");
    let text = fs::read_to_string(&web).unwrap();
    fs::write(&web, text.replace("[10.244.2.12]", "[10.244.2.77]")).unwrap();
    daemon.wait_for(0, "the kernel refused an op").unwrap();
    // Twice the sync period, and more.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(both(&world.other), (200, 200));
    world.node.sh("ip link set lo up").unwrap();
    let page = ask(&world.node, METRICS, "/metrics").body;
    let refused = |line: &&str| line.starts_with("kube_ipvs_ops_total{") && !line.contains("errno=\"0\"");
    let count = page.lines().filter(refused).count();
    assert!(count > 0, "{page}");
    eventually(&0.0, || {
        let of = |kind| {
            metric(
                &world.node,
                &format!("kube_ipvs_objects{{kind=\"{kind}\",state=\"refused\"}}"),
            )
        };
        ["real_server", "route", "address"]
            .map(|kind| of(kind).unwrap())
            .iter()
            .sum()
    });
}

/// A load balancer's service with a Local policy, and its endpoints of both families on two nodes.
fn local_service(port: u16, local: &[&str], clusters: &str) -> String {
    let endpoint = |address: &&str| {
        let ready = !address.ends_with("99");
        json!({"addresses": [address], "nodeName": NODE, "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    let mut all = vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIPs": clusters.split(' ').collect::<Vec<_>>(),
                "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
                "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.77"}]}},
        })
        .to_string(),
    ];
    for (family, other) in [("IPv4", "10.244.2.50"), ("IPv6", "fd00:10:244:2::50")] {
        let ours = local
            .iter()
            .filter(|address| address.contains(':') == (family == "IPv6"));
        let mut endpoints: Vec<_> = ours.map(endpoint).collect();
        endpoints.push(json!({"addresses": [other], "nodeName": "node-b"}));
        all.push(
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("front-{}", family.to_lowercase()), "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": "front"}},
                "addressType": family, "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}],
                "endpoints": endpoints,
            })
            .to_string(),
        );
    }
    all.join("\n---\n")
}

/// Status and count at a place; `None` where nobody listens.
fn checked(from: &Netns, place: &str) -> Option<(u16, u64)> {
    let answer = get(from, at(place), "/any/path").ok()?;
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let count = body["localEndpoints"].as_u64().unwrap();
    assert_eq!(answer.header("x-load-balancing-endpoint-weight"), count.to_string());
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(
        (&body["service"], &body["serviceProxyHealthy"]),
        (&json!({"namespace": "shop", "name": "front"}), &json!(true))
    );
    Some((answer.status, count))
}

#[test]
fn health_check_ports_tell_each_family_its_local_ready_endpoints() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let file = manifests.path().join("90-front.yaml");
    const V4: &str = "192.0.2.10:32001";
    const V6: &str = "[2001:db8::10]:32001";
    let write = |port, local: &[&str], clusters| fs::write(&file, local_service(port, local, clusters)).unwrap();
    let both = "10.96.1.90 fd00:10:96::190";
    write(32_001, &["10.244.1.41", "10.244.1.42", "fd00:10:244:1::41"], both);
    let _daemon = start(&world.node, manifests.path(), &[]);
    let seen = || (checked(&world.other, V4), checked(&world.other, V6));
    // Two ports on one address are one endpoint.
    eventually(&(Some((200, 2)), Some((200, 1))), seen);
    let answer = ask(&world.other, V4, "/");
    let text = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"front\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(answer.body, text);
    // One that terminates does not count, though it still gets traffic.
    write(32_001, &["10.244.1.99", "fd00:10:244:1::41"], both);
    eventually(&(Some((503, 0)), Some((200, 1))), seen);
    // Of one family: the other's port is closed.
    write(32_001, &["10.244.1.41"], "10.96.1.90");
    eventually(&(Some((200, 1)), None), seen);
    // Another port; then none.
    write(32_002, &["10.244.1.41"], "10.96.1.90");
    eventually(&None, || checked(&world.other, V4));
    eventually(&Some((200, 1)), || checked(&world.other, "192.0.2.10:32002"));
    fs::remove_file(&file).unwrap();
    eventually(&None, || checked(&world.other, "192.0.2.10:32002"));
}

/// zalando/skipper#3151, kubernetes/kubernetes#80579: a pod of this node whose slice has no port of the service takes no
/// traffic, so the load balancer leaves this node out.
#[test]
fn health_check_ports_do_not_count_what_takes_no_traffic() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    fs::write(
        manifests.path().join("90-front.yaml"),
        local_service(32_001, &[], "10.96.1.90"),
    )
    .unwrap();
    let file = manifests.path().join("91-more.yaml");
    let write = |ports: &Value| {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "front-more", "namespace": "shop", "labels": {"kubernetes.io/service-name": "front"}},
            "addressType": "IPv4", "ports": ports, "endpoints": [{"addresses": ["10.244.1.41"], "nodeName": NODE}],
        });
        fs::write(&file, slice.to_string()).unwrap();
    };
    write(&Value::Null);
    let _daemon = start(&world.node, manifests.path(), &[]);
    let seen = || checked(&world.other, "192.0.2.10:32001");
    for (ports, expect) in [
        (Value::Null, (503, 0)),
        (json!([{"name": "b", "port": 8081}]), (200, 1)),
        (json!([{"name": "c", "port": 8082}]), (503, 0)),
        (json!([{"name": "a", "port": 8080}]), (200, 1)),
        (json!([{"name": "a", "port": 8080, "protocol": "UDP"}]), (503, 0)),
    ] {
        write(&ports);
        eventually(&Some(expect), seen);
    }
}

#[test]
fn health_check_ports_are_on_node_port_addresses_and_a_taken_one_is_tried_again() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let file = manifests.path().join("90-front.yaml");
    fs::write(&file, local_service(32_001, &["10.244.1.41"], "10.96.1.90")).unwrap();
    let taken = world
        .node
        .run(|| Ok(TcpListener::bind(at("192.0.2.10:32001"))?))
        .unwrap();
    let mut daemon = start(&world.node, manifests.path(), &["--nodeport-addresses=192.0.2.0/24"]);
    let said = daemon.wait_for(0, "cannot listen on a health-check port").unwrap();
    assert!(
        said.contains("shop/front") && said.contains("192.0.2.10:32001"),
        "{said}"
    );
    drop(taken);
    eventually(&Some((200, 1)), || checked(&world.other, "192.0.2.10:32001"));
    assert_eq!(checked(&world.client, "198.18.0.1:32001"), None);
    // An address that comes is listened on.
    world.node.sh("ip addr add 192.0.2.11/24 dev to-other").unwrap();
    eventually(&Some((200, 1)), || checked(&world.other, "192.0.2.11:32001"));
}

#[test]
fn a_port_that_is_taken_is_tried_again() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let taken = world
        .node
        .run(|| Ok(TcpListener::bind(at("192.0.2.10:10256"))?))
        .unwrap();
    let mut daemon = start(&world.node, manifests.path(), &[]);
    daemon.wait_for(0, "cannot listen, trying again").unwrap();
    drop(taken);
    daemon.wait_for(0, "listening server=\"healthz\"").unwrap();
    assert_eq!(both(&world.other), (200, 200));
}

/// A process without descriptors ends idle connections, and neither waits for them nor turns in circles.
#[test]
fn f04_probes_are_answered_where_descriptors_ran_out() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let daemon = start(&world.node, manifests.path(), &[]);
    assert_eq!(status(&world.other, "/livez"), 200);
    let id = daemon.id();
    let open = fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    let limit = open + 10;
    world
        .node
        .sh(&format!("prlimit --pid {id} --nofile={limit}:{limit}"))
        .unwrap();
    let hold = || {
        world.other.run(|| {
            let mut stream = TcpStream::connect(at(HEALTH))?;
            stream.write_all(b"GET /livez HTTP/1.1\r\n")?;
            Ok(stream)
        })
    };
    let held: Vec<_> = (0..30).map(|_| hold().unwrap()).collect();
    for _ in 0..5 {
        assert_eq!(status(&world.other, "/livez"), 200);
    }
    let evicted = "kube_ipvs_http_connections_evicted_total{server=\"healthz\"}";
    assert!(metric(&world.node, evicted).unwrap() >= 20.0);
    drop(held);
}
