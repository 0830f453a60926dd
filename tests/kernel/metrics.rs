//! The metrics server: what its pages are, and that numbers tell what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use testbed::http::{self, get};
use testbed::netns::Netns;
use testbed::world::{World, ask_tcp};

use crate::daemon::{eventually, examples, start};
use crate::load;

const PLACE: &str = "127.0.0.1:10249";

fn at() -> SocketAddr {
    PLACE.parse().unwrap()
}

fn page(node: &Netns) -> String {
    let answer = get(node, at(), "/metrics").unwrap();
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    answer.body
}

/// The value of a series, given as its text.
fn value(node: &Netns, series: &str) -> f64 {
    let page = page(node);
    let found = page
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no series {series} in\n{page}"))
}

/// Help, type and label sets without their values, of each metric.
fn shape(page: &str) -> String {
    let mut series: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut heads: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let name = rest.split(' ').nth(1).unwrap();
            heads.entry(name).or_default().push(line);
            continue;
        }
        let (series_name, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series_name.split_once('{').unwrap_or((series_name, ""));
        let labels: Vec<_> = labels
            .trim_end_matches('}')
            .split(',')
            .filter_map(|label| label.split_once('=').map(|(name, _)| name))
            .collect();
        series.entry(name).or_default().insert(labels.join(","));
    }
    let mut text = String::new();
    for (name, lines) in heads {
        lines.iter().for_each(|line| writeln!(text, "{line}").unwrap());
        for end in ["", "_bucket", "_count", "_sum"] {
            for labels in series.remove(&*format!("{name}{end}")).into_iter().flatten() {
                writeln!(text, "{name}{end}{{{labels}}}").unwrap();
            }
        }
    }
    assert_eq!(series, BTreeMap::new(), "series without a head");
    text
}

/// What `promtool check metrics` finds, where it is installed (Debian package `prometheus`).
fn promtool(page: &str) -> Option<String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some(said)
}

/// Upstream's names that promtool would have otherwise.
const KEPT_AS_UPSTREAM: &[&str] = &[
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total non-counter metrics should not have \"_total\" suffix",
    "kubeproxy_sync_proxy_rules_iptables_total non-counter metrics should not have \"_total\" suffix",
];

fn check_page(mode: &str, golden: &str) {
    let world = World::new().unwrap();
    world.node.sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY").unwrap();
    let manifests = examples();
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    let _daemon = start(&world.node, manifests.path(), &[mode, &run_dir]);
    let page = page(&world.node);
    let found = shape(&page);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel").join(golden);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &found).unwrap();
    }
    let expect = fs::read_to_string(&file).unwrap();
    assert_eq!(found, expect, "UPDATE=1 writes {golden} anew");
    match promtool(&page) {
        None => eprintln!("promtool is not installed: the page is not linted"),
        Some(said) => {
            let others: Vec<_> = said.lines().filter(|line| !KEPT_AS_UPSTREAM.contains(line)).collect();
            assert_eq!(others, [""; 0]);
        }
    }
}

#[test]
fn the_page_of_the_ipvs_mode() {
    check_page("--proxy-mode=ipvs", "metrics-ipvs.txt");
}

#[test]
fn the_page_of_the_iptables_mode() {
    check_page("--proxy-mode=iptables", "metrics-iptables.txt");
}

#[test]
fn other_pages_are_kube_proxys() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &[]);
    let ask = |path: &str| get(&world.node, at(), path).unwrap();
    let text = |path: &str| {
        let answer = ask(path);
        assert_eq!(
            (answer.status, answer.header("x-content-type-options")),
            (200, "nosniff"),
            "{path}"
        );
        assert!(answer.header("content-type").starts_with("text/plain"), "{path}");
        answer.body
    };
    assert_eq!(text("/proxyMode"), "ipvs");
    assert_eq!(ask("/proxyMode").header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(text("/healthz"), "ok");
    assert_eq!(text("/healthz?verbose"), "[+]ping ok\nhealthz check passed\n");
    let slis = text("/metrics/slis");
    let total = "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2";
    assert!(
        slis.contains(total) && slis.contains("process_start_time_seconds "),
        "{slis}"
    );
    let reset = http::request(&world.node, at(), "DELETE", "/metrics/slis", &[], "").unwrap();
    assert_eq!(reset.body, "metrics reset\n");
    assert!(!text("/metrics/slis").contains("healthcheck"));
    let configz = ask("/configz");
    assert_eq!(configz.header("content-type"), "application/json");
    let body: Value = serde_json::from_str(&configz.body).unwrap();
    // The public object, wrapped once (kubernetes/kubernetes#136044).
    assert_eq!(
        body.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["kubeproxy.config.k8s.io"]
    );
    let inner = &body["kubeproxy.config.k8s.io"];
    let field = |name: &str| inner.pointer(name).cloned().unwrap_or_default();
    assert_eq!(field("/kind"), "KubeProxyConfiguration");
    assert_eq!(field("/apiVersion"), "kubeproxy.config.k8s.io/v1alpha1");
    assert_eq!(
        (field("/mode"), field("/ipvs/syncPeriod")),
        (json!("ipvs"), json!("30s"))
    );
    assert_eq!(field("/conntrack/tcpEstablishedTimeout"), "24h0m0s");
    assert!(text("/flagz").starts_with("\nkube-proxy flagz\nWarning: "));
    let statusz = text("/statusz");
    assert!(
        statusz.contains("\nStarted: ") && statusz.contains("\nUp: 0 hr 00 min "),
        "{statusz}"
    );
    let json = http::request(
        &world.node,
        at(),
        "GET",
        "/statusz",
        &[("Accept", "application/json")],
        "",
    )
    .unwrap();
    assert_eq!(json.status, 406);
    for (path, kind, field) in [("/statusz", "Statusz", "paths"), ("/flagz", "Flagz", "flags")] {
        let accept = format!("application/json;v=v1beta1;g=config.k8s.io;as={kind}");
        let answer = http::request(&world.node, at(), "GET", path, &[("Accept", &accept)], "").unwrap();
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (
                200,
                format!("application/json;g=config.k8s.io;v=v1beta1;as={kind}").as_str()
            )
        );
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (&body["kind"], &body["metadata"]["name"]),
            (&json!(kind), &json!("kube-proxy"))
        );
        assert!(!body[field].is_null(), "{body}");
    }
    // Without profiling there is nothing to debug.
    for path in [
        "/",
        "/debug/pprof/",
        "/debug/pprof/profile",
        "/debug/flags/v",
        "/metrics/",
    ] {
        assert_eq!(ask(path).status, 404, "{path}");
    }
    // Not for others.
    assert!(get(&world.other, "192.0.2.10:10249".parse().unwrap(), "/metrics").is_err());
}

#[test]
fn numbers_tell_what_happened() {
    let world = World::new().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &["--ipvs-sync-period=1s"]);
    let node = &world.node;
    let of = |kind: &str, state: &str| value(node, &format!("kube_ipvs_objects{{kind=\"{kind}\",state=\"{state}\"}}"));
    let lines = node.sh("ipvsadm -Sn").unwrap();
    #[allow(clippy::cast_precision_loss, reason = "dozens")]
    let count = |start: &str| lines.lines().filter(|line| line.starts_with(start)).count() as f64;
    assert_eq!(
        (of("virtual_server", "wanted"), of("virtual_server", "present")),
        (count("-A"), count("-A"))
    );
    assert_eq!(of("real_server", "present"), count("-a"));
    let syncs = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    let before = value(node, syncs);
    let deleted = |op: &str| format!("kube_ipvs_ops_total{{op=\"{op}\",errno=\"0\"}}");
    assert_eq!(value(node, &deleted("new_virtual_server")), count("-A"));

    // Connections, by the kernel's counters.
    let web = "kube_ipvs_virtual_server_connections_total{namespace=\"shop\",service=\"web\",virtual_server=\"10.96.1.1:80/TCP\"}";
    assert_eq!(value(node, web), 0.0);
    for _ in 0..5 {
        ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).unwrap();
    }
    eventually(&5.0, || value(node, web));
    let bytes = web.replace("connections", "outgoing_bytes");
    assert!(value(node, &bytes) > 500.0);

    // A change is one sync; nothing waits after it.
    let seen = value(node, "kubeproxy_sync_proxy_rules_service_changes_total");
    fs::remove_file(manifests.path().join("40-edge.yaml")).unwrap();
    eventually(&(seen + 1.0), || {
        value(node, "kubeproxy_sync_proxy_rules_service_changes_total")
    });
    eventually(&true, || value(node, syncs) > before);
    eventually(&0.0, || {
        value(node, "kubeproxy_sync_proxy_rules_service_changes_pending")
    });
    let last = |what: &str| {
        value(
            node,
            &format!("kubeproxy_sync_proxy_rules_last_{what}_seconds{{ip_family=\"IPv6\"}}"),
        )
    };
    assert!(last("timestamp") >= last("queued_timestamp"));
    eventually(&true, || of("virtual_server", "wanted") < count("-A"));
    assert!(!page(node).contains("service=\"edge\""));

    // Somebody else changes something.
    node.sh("ipvsadm -D -t 10.96.1.1:80").unwrap();
    eventually(&1.0, || {
        value(node, "kube_ipvs_drift_repaired_total{kind=\"virtual_server\"}")
    });
}

/// The guard, and what a scrape costs: docs/metrics.md has the numbers that this prints.
#[test]
fn of_ten_thousand_services_two_thousand_have_series_of_their_own() {
    let world = World::without_pods().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let service = |number: u32| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}"), "namespace": "d"},
            "spec": {"clusterIP": load::vip(number), "ports": [{"port": 80}]},
        })
    };
    let items: Vec<_> = (0..10_000).map(service).collect();
    let list = json!({"kind": "List", "apiVersion": "v1", "items": items});
    fs::write(folder.path().join("all.json"), list.to_string()).unwrap();
    let _daemon = start(&world.node, folder.path(), &["--vip-addresses=false"]);
    let start = Instant::now();
    let page = page(&world.node);
    let took = start.elapsed();
    let named = |line: &&str| line.starts_with("kube_ipvs_virtual_server_connections_total{namespace=\"d\"");
    assert_eq!(page.lines().filter(named).count(), 2000);
    let other = "kube_ipvs_virtual_server_connections_total{namespace=\"\",service=\"other\",virtual_server=\"\"} 0";
    assert!(page.lines().any(|line| line == other));
    assert_eq!(
        value(
            &world.node,
            "kube_ipvs_objects{kind=\"virtual_server\",state=\"present\"}"
        ),
        10_000.0
    );
    let collected = value(&world.node, "kube_ipvs_virtual_server_collect_seconds");
    let _ = writeln!(
        std::io::stderr(),
        "a page of {} bytes took {took:?}, of it {collected} s the list of IPVS",
        page.len()
    );
}
