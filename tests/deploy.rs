//! What lies in `deploy` is well-formed, and its parts agree on versions. That kustomize and helm render the same objects
//! is seen by `cargo xtask e2e`, by upstream's programs; that a cluster takes them, by its steps.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Files below a folder, by their extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
    found
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Templates are no YAML yet: helm reads them in `cargo xtask e2e`.
fn manifests() -> Vec<PathBuf> {
    let mut manifests = files(&deploy(), "yaml");
    manifests.retain(|path| !path.components().any(|part| part.as_os_str() == "templates"));
    manifests
}

#[test]
fn every_manifest_is_yaml_with_objects() {
    let manifests = manifests();
    assert!(manifests.len() >= 15, "{manifests:?}");
    for path in manifests {
        let documents = documents(&path);
        assert!(
            documents.iter().any(Value::is_object),
            "{} has no object",
            path.display()
        );
        let kustomize = path.components().any(|part| part.as_os_str() == "kustomize");
        for document in documents.iter().filter(|_| kustomize) {
            assert!(document["kind"].is_string(), "{}: {document}", path.display());
        }
    }
}

#[test]
fn every_dashboard_is_json_with_panels() {
    let dashboards = files(&deploy().join("grafana"), "json");
    assert!(!dashboards.is_empty());
    for path in dashboards {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        assert!(!panels.is_empty());
        for panel in panels {
            assert!(panel["targets"][0]["expr"].is_string(), "{panel}");
        }
    }
}

#[test]
fn every_alert_says_what_is_wrong() {
    let rules = documents(&deploy().join("prometheus/rules.yaml"));
    let alerts = rules[0]["groups"][0]["rules"].as_array().unwrap();
    assert!(!alerts.is_empty());
    for alert in alerts {
        for field in [
            "/alert",
            "/expr",
            "/labels/severity",
            "/annotations/summary",
            "/annotations/description",
        ] {
            assert!(alert.pointer(field).is_some_and(Value::is_string), "{field}: {alert}");
        }
    }
}

#[test]
fn versions_are_those_of_the_workspace() {
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    let mut images = 0;
    for path in manifests() {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|line| line.contains("image: ghcr.io/kube-ipvs/")) {
            let tag = line.rsplit(':').next().unwrap().trim_end_matches("-iptables");
            assert_eq!(tag, version, "{}: {line}", path.display());
            images += 1;
        }
    }
    assert!(images >= 3);
    let chart = &documents(&deploy().join("helm/kube-ipvs/Chart.yaml"))[0];
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// What the program asks for: lists and watches, and events that are created. `cargo xtask e2e` sees that it is enough.
#[test]
fn f26_the_cluster_role_has_what_is_used_and_nothing_else() {
    let rbac = documents(&deploy().join("kustomize/base/rbac.yaml"));
    let role = rbac.iter().find(|document| document["kind"] == "ClusterRole").unwrap();
    let rules: Vec<_> = role["rules"].as_array().unwrap().iter().map(Value::to_string).collect();
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| {
        serde_json::json!({"apiGroups": [group], "resources": resources, "verbs": verbs}).to_string()
    };
    let expect = [
        rule("", &["services", "nodes"], &["list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
        rule("events.k8s.io", &["events"], &["create"]),
    ];
    assert_eq!(rules, expect);
}

/// The container that runs on writes to no folder of the host.
#[test]
fn f27_least_privilege_mounts_nothing_writable() {
    let of = |folder: &str| {
        let path = deploy().join("kustomize").join(folder).join("daemon-set.yaml");
        documents(&path).remove(0)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].clone()
    };
    let overlay = of("least-privilege");
    let stays = |mount: &&Value| {
        let overlay = overlay.as_array().into_iter().flatten();
        let mut same = overlay.filter(|patch| patch["mountPath"] == mount["mountPath"]);
        !same.any(|patch| patch["$patch"] == "delete")
    };
    let base = of("base");
    let left: Vec<_> = base.as_array().unwrap().iter().filter(stays).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(
        (&left[0]["name"], &left[0]["readOnly"]),
        (&Value::from("config"), &Value::from(true))
    );
}
