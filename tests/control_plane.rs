//! kube-ipvs against a real kube-apiserver whose EndpointSlices the real controller writes. One boot of the control
//! plane for all of it. `cargo xtask test` runs it; without a kernel with IPVS or the control plane it fails.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod metrics_beside;
mod take_over;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::control_plane::{ControlPlane, program};
use testbed::daemon::{Daemon, binary};
use testbed::netns::Netns;
use testbed::world::{self, NODE, NODE_ADDRESSES, PODS, World};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const API_SERVER: &str = "192.0.2.30";

fn table(node: &Netns) -> BTreeSet<String> {
    node.sh("ipvsadm -Sn")
        .unwrap()
        .lines()
        .map(|line| line.trim().to_owned())
        // Those of weight 0 drain.
        .filter(|line| !line.ends_with(" -w 0"))
        .collect()
}

/// What `kube-ipvs plan` makes of the objects that kubectl gives.
fn plan(plane: &ControlPlane) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let objects = plane
        .kubectl(&["get", "services,endpointslices,nodes", "-A", "-o", "json"])
        .unwrap();
    fs::write(folder.path().join("all.json"), objects).unwrap();
    let mut command = Command::new(binary());
    command.arg("plan").arg("--manifests").arg(folder.path());
    command.args(["--hostname-override", NODE, "--node-ip", &NODE_ADDRESSES.join(",")]);
    // Rejected objects have an exit status of their own; the plan is printed all the same.
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter(|line| line.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

/// The table becomes what the objects say; how long that takes decides nothing.
fn follows(plane: &ControlPlane, node: &Netns, ready: impl Fn(&BTreeSet<String>) -> bool) -> BTreeSet<String> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let expect = plan(plane);
        let found = table(node);
        if ready(&expect) && found == expect {
            return found;
        }
        assert!(Instant::now() < deadline, "expected {expect:#?}\nfound {found:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn service(name: &str, annotations: &Value, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec})
}

/// One of the events has all of these.
fn told(plane: &ControlPlane, daemon: &Daemon, texts: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let events = plane
            .kubectl(&["get", "events.v1.events.k8s.io", "-o", "json"])
            .unwrap();
        let events: Value = serde_json::from_str(&events).unwrap();
        let mut all = events["items"].as_array().unwrap().iter().map(Value::to_string);
        if all.any(|event| texts.iter().all(|text| event.contains(text))) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{texts:?}: {events:#}\n{}",
            daemon.said().join("\n")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// F1: it would take the API server from every node, and its deletion could not be heard.
fn the_api_servers_address_is_refused(plane: &ControlPlane, node: &Netns, daemon: &Daemon) {
    let spec = json!({"externalIPs": [API_SERVER], "clusterIP": "10.96.1.66", "ports": [{"port": 1}]});
    plane.create(SERVICES, &service("taker", &json!({}), &spec)).unwrap();
    let why = format!("spec.externalIPs[0]: {API_SERVER} is the address of the API server");
    told(plane, daemon, &["CannotProgram", "taker", &why]);
    let routes = || node.sh("ip route show table local proto 163").unwrap();
    assert!(
        routes().contains("10.96.1.66 ") && !routes().contains(API_SERVER),
        "{}",
        routes()
    );
    plane.kubectl(&["delete", "service", "taker"]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while routes().contains("10.96.1.66 ") {
        assert!(Instant::now() < deadline, "the deletion is not heard");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_real_api_server_is_followed() {
    let world = World::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // As behind a balancer: no Node has this address.
    world.other.sh("ip addr add 192.0.2.30/24 dev eth0").unwrap();
    let plane = ControlPlane::start(&program().unwrap(), &world.other, API_SERVER, folder.path()).unwrap();
    for (name, address) in [("node-a", "192.0.2.10"), ("node-b", "192.0.2.20")] {
        plane
            .create("/api/v1/nodes", &json!({"metadata": {"name": name}}))
            .unwrap();
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        assert_eq!(
            plane
                .request("PATCH", &format!("/api/v1/nodes/{name}/status"), Some(&status))
                .unwrap()
                .0,
            200
        );
    }
    let http = json!([{"port": 80, "targetPort": 8080}]);
    let both = json!(["IPv4", "IPv6"]);
    plane.create(SERVICES, &service("web", &json!({}), &json!({"selector": {"app": "web"}, "ports": http, "clusterIP": "10.96.1.1", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": both}))).unwrap();
    plane
        .create(
            SERVICES,
            &service(
                "gate",
                &json!({"kube-ipvs.io/scheduler": "mh"}),
                &json!({"type": "NodePort", "selector": {"app": "web"}, "ports": http, "sessionAffinity": "ClientIP"}),
            ),
        )
        .unwrap();
    plane
        .create(
            SERVICES,
            &service(
                "headless",
                &json!({}),
                &json!({"selector": {"app": "web"}, "ports": http, "clusterIP": "None"}),
            ),
        )
        .unwrap();
    for pod in &PODS[..3] {
        plane
            .create_running_pod(
                "default",
                pod.name,
                if pod.local { "node-a" } else { "node-b" },
                "web",
                &[pod.v4, pod.v6],
            )
            .unwrap();
    }

    let kubeconfig = plane.kubeconfig.to_string_lossy().into_owned();
    let mut daemon = Daemon::start(
        &world.node,
        &["--kubeconfig", &kubeconfig, "--hostname-override", NODE, "-v=4"],
    )
    .unwrap();
    daemon.wait_until_serving().unwrap();
    let web = |lines: &BTreeSet<String>| {
        lines
            .iter()
            .filter(|line| line.starts_with("-a -t 10.96.1.1:80 "))
            .count()
    };
    let found = follows(&plane, &world.node, |lines| web(lines) == 3);
    assert!(
        found.contains("-a -t 10.96.0.1:443 -r 192.0.2.30:6443 -m -w 1"),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("-A -t 192.0.2.10:") && line.contains("-s mh -p 10800")),
        "{found:?}"
    );
    let to = "10.96.1.1:80".parse().unwrap();
    let names: BTreeSet<_> = (0..6).map(|_| world::ask_tcp(&world.client, to).unwrap().0).collect();
    assert_eq!(names, PODS[..3].iter().map(|pod| pod.name.to_owned()).collect());
    // This server streams lists; no other way was tried.
    let said = daemon.said().join("\n");
    assert!(
        said.contains("listed kind=Service") && !said.contains("listing in pages"),
        "{said}"
    );

    the_api_servers_address_is_refused(&plane, &world.node, &daemon);

    // An endpoint comes, an endpoint goes.
    let last = PODS[3];
    plane
        .create_running_pod("default", last.name, "node-b", "web", &[last.v4, last.v6])
        .unwrap();
    follows(&plane, &world.node, |lines| web(lines) == 4);
    plane
        .kubectl(&["delete", "pod", "pod-a1", "--grace-period=0", "--force"])
        .unwrap();
    follows(&plane, &world.node, |lines| web(lines) == 3);
    let names: BTreeSet<_> = (0..6).map(|_| world::ask_tcp(&world.client, to).unwrap().0).collect();
    assert_eq!(names, ["pod-a2", "pod-b1", "pod-b2"].map(str::to_owned).into());

    // A scheduler changes in place; one that is none is told by an event, and the default is used.
    plane
        .kubectl(&["annotate", "service", "web", "kube-ipvs.io/scheduler=lc"])
        .unwrap();
    follows(&plane, &world.node, |lines| lines.contains("-A -t 10.96.1.1:80 -s lc"));
    plane
        .kubectl(&[
            "annotate",
            "service",
            "web",
            "--overwrite",
            "kube-ipvs.io/scheduler=best",
        ])
        .unwrap();
    follows(&plane, &world.node, |lines| lines.contains("-A -t 10.96.1.1:80 -s rr"));
    told(
        &plane,
        &daemon,
        &["CannotProgram", "unknown scheduler \\\"best\\\"", "kube-proxy"],
    );

    // A label that gives the service to another proxy acts at once; so does its removal.
    plane
        .kubectl(&[
            "label",
            "service",
            "web",
            "service.kubernetes.io/service-proxy-name=other",
        ])
        .unwrap();
    follows(&plane, &world.node, |lines| web(lines) == 0);
    assert!(
        !world
            .node
            .sh("ip route show table local")
            .unwrap()
            .contains("10.96.1.1 ")
    );
    plane
        .kubectl(&["label", "service", "web", "service.kubernetes.io/service-proxy-name-"])
        .unwrap();
    follows(&plane, &world.node, |lines| web(lines) == 3);

    // A restart writes nothing; a service that is deleted goes.
    daemon.terminate().unwrap();
    let mut daemon = Daemon::start(&world.node, &["--kubeconfig", &kubeconfig, "--hostname-override", NODE]).unwrap();
    let serving = daemon.wait_until_serving().unwrap();
    assert!(serving.contains("written=0 "), "{serving}");
    plane.kubectl(&["delete", "service", "web"]).unwrap();
    follows(&plane, &world.node, |lines| web(lines) == 0);
    assert!(daemon.terminate().unwrap().0.success());
}
