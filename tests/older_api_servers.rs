//! kube-ipvs beside the API servers of the oldest releases: lists, streamed and in pages, and what changes after them.
//! `--dry-run` tells what is made of it, so neither IPVS nor a node is needed.
//! `cargo xtask test --level releases` builds the servers and runs it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::control_plane::{ControlPlane, program};
use testbed::daemon::binary;
use testbed::go::release::OLDER_API_SERVERS;
use testbed::netns::Netns;

const ADDRESS: &str = "192.0.2.20";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// Only a hang takes so long.
const LONG: Duration = Duration::from_secs(60);

/// The release from which the server knows `spec.clusterIP` of Services as a field to select by.
const KNOWS_CLUSTER_IP: u16 = 31;
/// With the feature on, 1.30 answers 504 after seconds: its cache hears of no version that comes from other collections.
const STREAMS_LISTS: u16 = 31;
const UNKNOWN_FIELD: &str = "the server does not know the field selector, asking without it";
const NO_STREAMED_LISTS: &str = "the server does not stream lists, listing in pages";

/// kube-ipvs under `--dry-run`: its ops and its log are files. It is killed when this is dropped.
struct Planner {
    process: Child,
    folder: tempfile::TempDir,
}

impl Drop for Planner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Planner {
    fn start(netns: &Netns, kubeconfig: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
        let mut command = Command::new(binary());
        command
            .args([
                "--dry-run",
                "--hostname-override=node-a",
                "--vip-addresses=false",
                "-v=4",
            ])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stdin(Stdio::null())
            .stdout(file("ops"))
            .stderr(file("log"));
        let process = netns.spawn(command).unwrap();
        Self { process, folder }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn wait_for(&mut self, op: &str) {
        let deadline = Instant::now() + LONG;
        while !self.text("ops").lines().any(|line| line.starts_with(op)) {
            let ended = self.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no op {op:?}; ended: {ended:?}; ops:\n{}\nlog:\n{}",
                self.text("ops"),
                self.text("log")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn said(&self, what: &str) -> usize {
        self.text("log").matches(what).count()
    }
}

/// Where `spec.clusterIP` is selected by follows from this: 31 of 1.31.14.
fn minor(api_server: &Path) -> u16 {
    let output = Command::new(api_server).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let minor = text
        .strip_prefix("Kubernetes v1.")
        .and_then(|text| text.split('.').next()?.parse().ok());
    minor.unwrap_or_else(|| panic!("{text:?} is no version of Kubernetes 1"))
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn service(name: &str, labels: &Value, cluster_ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"clusterIP": cluster_ip, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn patch(plane: &ControlPlane, path: &str, change: &Value) {
    let (status, body) = plane.request("PATCH", path, Some(change)).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
}

fn follows(api_server: &Path, streams: bool) {
    let netns = Netns::new().unwrap();
    netns.sh(&format!("ip addr add {ADDRESS}/32 dev lo")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gate = format!("--feature-gates=WatchList={streams}");
    let plane = ControlPlane::start_beside(
        &program().unwrap(),
        api_server,
        &[&gate],
        &netns,
        ADDRESS,
        folder.path(),
    )
    .unwrap();
    plane
        .create("/api/v1/nodes", &json!({"metadata": {"name": "node-a"}}))
        .unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ADDRESS}]}});
    patch(&plane, "/api/v1/nodes/node-a/status", &status);
    let other = json!({"service.kubernetes.io/service-proxy-name": "other"});
    for object in [
        service("web", &json!({}), "10.96.1.1"),
        service("headless", &json!({}), "None"),
        service("of-another-proxy", &other, "10.96.1.3"),
    ] {
        plane.create(SERVICES, &object).unwrap();
    }
    plane.create(SLICES, &slice(&["10.244.1.11"])).unwrap();

    let mut planner = Planner::start(&netns, &plane.kubeconfig);
    planner.wait_for("-a -t 10.96.1.1:80 -r 10.244.1.11:8080 ");
    // By the watches that come after the lists.
    patch(
        &plane,
        &format!("{SLICES}/web-1"),
        &slice(&["10.244.1.11", "10.244.1.12"]),
    );
    planner.wait_for("-a -t 10.96.1.1:80 -r 10.244.1.12:8080 ");
    for object in [
        service("late-headless", &json!({}), "None"),
        service("late-of-another-proxy", &other, "10.96.1.4"),
        service("late", &json!({}), "10.96.1.2"),
    ] {
        plane.create(SERVICES, &object).unwrap();
    }
    planner.wait_for("-A -t 10.96.1.2:80 ");
    let ops = planner.text("ops");
    assert!(!ops.contains("10.96.1.3") && !ops.contains("10.96.1.4"), "{ops}");

    let log = planner.text("log");
    let without_field = usize::from(minor(api_server) < KNOWS_CLUSTER_IP);
    assert_eq!(planner.said(UNKNOWN_FIELD), without_field, "{log}");
    let streams = streams && minor(api_server) >= STREAMS_LISTS;
    assert_eq!(planner.said(NO_STREAMED_LISTS) == 0, streams, "{log}");
    for trouble in ["lost the API server", "rejected"] {
        assert_eq!(planner.said(trouble), 0, "{log}");
    }
}

fn older_api_servers() -> Vec<PathBuf> {
    let paths = std::env::var_os(OLDER_API_SERVERS).unwrap_or_default();
    let paths: Vec<_> = std::env::split_paths(&paths)
        .filter(|path| *path != PathBuf::new())
        .collect();
    assert!(
        !paths.is_empty(),
        "{OLDER_API_SERVERS} names no program; see CONTRIBUTING.md"
    );
    paths
}

#[test]
fn lists_in_pages_are_followed() {
    for path in older_api_servers() {
        follows(&path, false);
    }
}

/// The servers have the feature, off by default; that of 1.30 cannot do it, and is listed in pages.
#[test]
fn streamed_lists_are_followed() {
    for path in older_api_servers() {
        follows(&path, true);
    }
}
