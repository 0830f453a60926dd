//! Which crate may depend on which: the table of ARCHITECTURE.md, enforced.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What a crate of the workspace may name, as a normal or build dependency. A crate of others that is not in any list
/// here is free, unless it is in [`OWNED`].
const ALLOWED: &[(&str, &[&str])] = &[
    ("service-model", &[]),
    ("netlink", &[]),
    ("api-watch", &["service-model"]),
    ("ipvs", &["netlink"]),
    ("nftables", &["netlink"]),
    ("conntrack", &["netlink"]),
    ("dataplane", &["service-model", "ipvs", "nftables", "conntrack"]),
    (
        "agent",
        &[
            "service-model",
            "api-watch",
            "ipvs",
            "nftables",
            "conntrack",
            "dataplane",
        ],
    ),
    ("testbed", &[]),
    ("xtask", &["testbed"]),
    ("integration", &[]),
];

/// Crates of others that belong to few of ours: breaking releases, or compile time, stay behind these.
const OWNED: &[(&str, &[&str])] = &[
    ("kube", &["api-watch"]),
    ("k8s-openapi", &["api-watch"]),
    ("netlink-sys", &["netlink"]),
    ("netlink-packet-core", &["netlink", "ipvs"]),
    ("netlink-packet-generic", &["netlink", "ipvs"]),
    ("netlink-packet-route", &["ipvs"]),
    ("rtnetlink", &["ipvs"]),
    ("clap", &["agent", "xtask"]),
    ("hyper", &["agent", "api-watch", "testbed"]),
];

/// `service-model` is pure: these alone.
const PURE: &[&str] = &["foldhash", "ipnet", "smallvec", "thiserror"];

/// Hashes without a seed. Who writes objects chooses the keys of our maps, and keys that collide make each look-up a walk
/// (audit F24). `foldhash` begins each process with a seed of its own.
const UNSEEDED: &[&str] = &["fnv", "fxhash", "nohash-hasher", "rustc-hash"];

/// The workspace's crates with their normal and build dependencies.
fn workspace() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .unwrap();
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let dependencies = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .map(|dependency| dependency.name.clone())
                .collect();
            (package.name.to_string(), dependencies)
        })
        .collect()
}

/// The sentences that tell what is wrong, one per edge.
fn violations(workspace: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for (package, dependencies) in workspace {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == package) else {
            found.push(format!("{package} is not in the table of tests/edges.rs"));
            continue;
        };
        for dependency in dependencies {
            let ours = workspace.contains_key(dependency);
            let owners = OWNED
                .iter()
                .find(|(name, _)| name == dependency)
                .map(|(_, owners)| *owners);
            if ours && !allowed.contains(&dependency.as_str()) {
                found.push(format!("{package} must not depend on {dependency}"));
            } else if owners.is_some_and(|owners| !owners.contains(&package.as_str())) {
                found.push(format!(
                    "{package} must not name {dependency}, which belongs to {owners:?}"
                ));
            } else if UNSEEDED.contains(&dependency.as_str()) {
                found.push(format!("{package} must not name {dependency}: its hash has no seed"));
            } else if package == "service-model" && !PURE.contains(&dependency.as_str()) {
                found.push(format!("service-model is pure: {dependency} is none of {PURE:?}"));
            }
        }
    }
    found
}

#[test]
fn the_edges_are_those_of_the_table() {
    let workspace = workspace();
    assert!(workspace.len() >= 9, "{workspace:?}");
    assert_eq!(violations(&workspace), Vec::<String>::new());
}

#[test]
fn f24_a_hash_without_a_seed_is_found() {
    let mut workspace = workspace();
    let dependencies = workspace.entry("service-model".to_owned()).or_default();
    dependencies.insert("rustc-hash".to_owned());
    let found = violations(&workspace);
    assert_eq!(found, ["service-model must not name rustc-hash: its hash has no seed"]);
}

#[test]
fn each_kind_of_violation_is_found() {
    let check = |package: &str, dependency: &str, expect: &str| {
        let mut workspace = workspace();
        workspace
            .entry(package.to_owned())
            .or_default()
            .insert(dependency.to_owned());
        let found = violations(&workspace);
        assert!(found.iter().any(|sentence| sentence.contains(expect)), "{found:?}");
    };
    check("service-model", "netlink", "service-model must not depend on netlink");
    check("dataplane", "kube", "dataplane must not name kube");
    check("agent", "testbed", "agent must not depend on testbed");
    check("service-model", "tokio", "service-model is pure: tokio");
    check("newcomer", "ipnet", "newcomer is not in the table");
}
