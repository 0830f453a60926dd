//! The metrics page beside that of the real kube-proxy in IPVS mode, which read the same API server on the same node:
//! every name, type and set of label names of its page is on ours, but for those that are listed here with their reason.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use testbed::control_plane::{ControlPlane, program};
use testbed::daemon::Daemon;
use testbed::http::get;
use testbed::matrix::upstream::{KubeProxy, KubeProxySettings};
use testbed::netns::Netns;
use testbed::world::{NODE, PODS, Pod, World};

use crate::SERVICES;

const METRICS: &str = "127.0.0.1:10249";
/// Where the API server answers without TLS, as the testbed's kube-proxy asks.
const PLAIN: &str = "192.0.2.20:8002";

const SERVER: &str = "library of the API server, linked into kube-proxy, where nothing counts";
/// What is on kube-proxy's page and not on ours: the beginning of its name, and why.
const ABSENT: &[(&str, &str)] = &[
    ("go_", "the runtime of Go"),
    (
        "kubernetes_build_info",
        "this is no build of Kubernetes, and an alert counts the versions of those; kube_ipvs_build_info is ours",
    ),
    (
        "rest_client_rate_limiter_duration_seconds",
        "there is no limiter: four lists are watched, events have limits of their own",
    ),
    ("rest_client_exec_plugin_", "credential plugins of client-go"),
    ("rest_client_transport_", "cache of client-go's transports"),
    ("registered_metrics_total", "registry of component-base"),
    ("disabled_metrics_total", "registry of component-base"),
    ("hidden_metrics_total", "registry of component-base"),
    (
        "cardinality_enforcement_unexpected_categorizations_total",
        "registry of component-base",
    ),
    ("aggregator_", SERVER),
    ("apiserver_", SERVER),
    (
        "node_collector_",
        "library of the controller manager, linked into kube-proxy, where nothing counts",
    ),
];

/// Type, and sets of label names, of a metric.
type Shape = (String, BTreeSet<BTreeSet<String>>);

/// Each metric of a page, histograms as one.
fn shapes(page: &str) -> BTreeMap<String, Shape> {
    let mut all: BTreeMap<String, Shape> = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            all.entry(name.to_owned()).or_default().0 = kind.to_owned();
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let parts = ["_bucket", "_sum", "_count"]
                .into_iter()
                .filter_map(|end| name.strip_suffix(end));
            let whole = parts.chain([name]).find(|name| all.contains_key(*name)).unwrap();
            // Values here have no commas and no equals signs, but for one of the exec plugin's, which is not compared.
            let names = labels.trim_end_matches('}').split(',');
            let names = names.filter_map(|label| label.split_once('=').map(|(name, _)| name.to_owned()));
            all.get_mut(whole)
                .unwrap()
                .1
                .insert(names.filter(|name| name != "le").collect());
        }
    }
    all
}

fn page(node: &Netns) -> String {
    for path in ["/healthz", "/livez"] {
        get(node, "127.0.0.1:10256".parse().unwrap(), path).unwrap();
    }
    get(node, METRICS.parse().unwrap(), "/metrics").unwrap().body
}

/// Waits for a page that has all of this; how long that takes decides nothing.
fn page_with(node: &Netns, wanted: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let page = page(node);
        let lacks: Vec<_> = wanted.iter().filter(|text| !page.contains(**text)).collect();
        if lacks.is_empty() {
            return page;
        }
        assert!(Instant::now() < deadline, "no {lacks:?} in\n{page}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A pod that has just become ready: the EndpointSlice controller tells this time as the trigger of its change. Its
/// resolution is a second, so it is the next one.
fn create_pod(plane: &ControlPlane, netns: &Netns, pod: &Pod) {
    plane
        .create_running_pod("default", pod.name, NODE, "other", &[pod.v4, pod.v6])
        .unwrap();
    let time = netns.sh("date -u -d +1second +%Y-%m-%dT%H:%M:%SZ").unwrap();
    let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": time.trim()});
    let path = format!("/api/v1/namespaces/default/pods/{}", pod.name);
    for (path, patch) in [
        (format!("{path}/status"), json!({"status": {"conditions": [condition]}})),
        (path, json!({"metadata": {"labels": {"app": "web"}}})),
    ] {
        assert_eq!(plane.request("PATCH", &path, Some(&patch)).unwrap().0, 200);
    }
}

/// Ends a process with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_metric_of_the_real_kube_proxy_is_there() {
    let world = World::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(&program().unwrap(), &world.other, "192.0.2.20", folder.path()).unwrap();
    let mut command = Command::new(program().unwrap());
    command.args(["kubectl", "--kubeconfig"]).arg(&plane.kubeconfig);
    command.args(["proxy", "--address=192.0.2.20", "--port=8002", "--accept-hosts=.*"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let _plain = Ends(world.other.spawn(command).unwrap());
    plane
        .create("/api/v1/nodes", &json!({"metadata": {"name": NODE}}))
        .unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]}});
    let patched = plane.request("PATCH", &format!("/api/v1/nodes/{NODE}/status"), Some(&status));
    assert_eq!(patched.unwrap().0, 200);
    let spec = json!({
        "selector": {"app": "web"}, "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353}],
        "clusterIP": "10.96.1.1", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
    });
    plane
        .create(SERVICES, &json!({"metadata": {"name": "web"}, "spec": spec}))
        .unwrap();
    let settings = KubeProxySettings::ipvs(NODE, PLAIN.parse().unwrap());
    // Endpoints of both families come after the start: they are what network programming is measured by.
    let timed = [
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} ",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} ",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} ",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"} ",
    ];
    let create = |number: usize| create_pod(&plane, &world.other, &PODS[number]);
    let mut kube_proxy = KubeProxy::start(&program().unwrap(), &world.node, &settings, folder.path()).unwrap();
    kube_proxy.wait_until_synchronized().unwrap();
    create(0);
    let theirs = page_with(&world.node, &timed);
    drop(kube_proxy);

    let kubeconfig = plane.kubeconfig.to_string_lossy().into_owned();
    let run_dir = format!("--run-dir={}", folder.path().join("run").display());
    let arguments = ["--kubeconfig", &kubeconfig, "--hostname-override", NODE, &run_dir];
    let mut daemon = Daemon::start(&world.node, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    create(1);
    let counted = timed.map(|series| format!("{series}1\n"));
    let ours = page_with(&world.node, &[&counted[0], &counted[1], "method=\"POST\""]);
    let events = plane
        .kubectl(&["get", "events.v1.events.k8s.io", "-o", "json"])
        .unwrap();
    assert!(
        events.contains("\"Starting\"") && events.contains("StartKubeProxy"),
        "{events}"
    );
    daemon.terminate().unwrap();

    let (theirs, ours) = (shapes(&theirs), shapes(&ours));
    assert!(theirs.len() > 60, "{theirs:#?}");
    let mut unused: BTreeSet<_> = ABSENT.iter().map(|(start, _)| start).collect();
    let mut lacks = Vec::new();
    for (name, shape) in &theirs {
        let known = ABSENT.iter().find(|(start, _)| name.starts_with(start));
        match (known, ours.get(name)) {
            (Some((start, _)), None) => drop(unused.remove(start)),
            (None, Some(found)) if found.0 == shape.0 && found.1.is_superset(&shape.1) => {}
            (_, found) => lacks.push(format!("{name}: {shape:?}, ours: {found:?}")),
        }
    }
    assert_eq!(lacks, [""; 0]);
    assert_eq!(unused, BTreeSet::new(), "reasons for what is not there");
}
