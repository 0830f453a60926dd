//! The rules of the iptables mode beside those of the real kube-proxy for the same objects: after its differences of
//! [`difference::DIFFERENCES`] are made, they are equal, chain by chain and rule by rule, as `iptables-save` shows both.
//!
//! Each world has two namespaces: in one kube-proxy runs, with a fake API server; in the other the text of
//! `kube-ipvs plan` is restored. Needs root, iptables and the control plane; no IPVS. `cargo xtask test` runs it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect, and tells what it compared"
)]

mod difference;
mod saved;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use testbed::control_plane::program;
use testbed::daemon::binary;
use testbed::matrix::upstream::{Api, KubeProxy};
use testbed::netns::Netns;
use testbed::tool;

use crate::difference::DIFFERENCES;
use crate::saved::Saved;
use crate::world::{API, World, worlds};

/// A namespace with the addresses of the world's node.
fn node(world: &World) -> Netns {
    let netns = Netns::new().unwrap();
    for address in &world.addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        netns.sh(&format!("ip addr add {address}/{length} dev lo")).unwrap();
    }
    netns
}

fn save(netns: &Netns) -> [Saved; 2] {
    [true, false].map(|v4| {
        let command = if v4 { "iptables-save" } else { "ip6tables-save" };
        Saved::parse(v4, &netns.sh(command).unwrap())
    })
}

/// What `kube-ipvs plan` says, restored, with the jumps.
fn ours(world: &World) -> [Saved; 2] {
    let folder = tempfile::tempdir().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": world.objects});
    fs::write(folder.path().join("all.json"), list.to_string()).unwrap();
    let mut command = Command::new(binary());
    command.args([
        "plan",
        "--proxy-mode=iptables",
        "--hostname-override",
        &world.upstream.node,
    ]);
    command.arg("--manifests").arg(folder.path()).args(&world.flags);
    let addresses = world.addresses.iter().map(|ip| format!("--node-ip={ip}"));
    let output = command.args(addresses).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let at = text.find("# ip6tables-restore").unwrap();
    let netns = node(world);
    for (command, input) in [("iptables", &text[..at]), ("ip6tables", &text[at..])] {
        netns
            .run(|| tool::feed(&[&format!("{command}-restore"), "--noflush"], input))
            .unwrap();
    }
    save(&netns)
}

/// How often each difference had to be made, or what is left that no row explains.
fn compare(world: &World, upstream: [Saved; 2], ours: &[Saved; 2]) -> Result<Vec<usize>, String> {
    let mut counts = vec![0; DIFFERENCES.len()];
    let mut left = String::new();
    for (mut upstream, ours) in upstream.into_iter().zip(ours) {
        for (count, difference) in counts.iter_mut().zip(&DIFFERENCES) {
            *count += (difference.apply)(&mut upstream, world);
        }
        upstream.sort();
        left += &upstream.difference(ours);
    }
    if left.is_empty() { Ok(counts) } else { Err(left) }
}

fn check(world: &World) -> Result<Vec<usize>, String> {
    let ours = ours(world);
    let folder = tempfile::tempdir().unwrap();
    let netns = node(world);
    let _api = Api::start(&netns, API.into(), world.objects.clone()).unwrap();
    let mut proxy = KubeProxy::start(&program().unwrap(), &netns, &world.upstream, folder.path()).unwrap();
    proxy.wait_until_synchronized().unwrap();
    // What came while it synchronized for the first time is in the next one.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let compared = compare(world, save(&netns), &ours);
        if compared.is_ok() || Instant::now() > deadline {
            return compared;
        }
        thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn rules_are_those_of_kube_proxy() {
    let filter = std::env::var("KUBE_IPVS_GOLDEN").unwrap_or_default();
    let worlds: Vec<_> = worlds()
        .into_iter()
        .filter(|world| world.name.contains(&filter))
        .collect();
    assert!(worlds.len() >= 20 || !filter.is_empty(), "{}", worlds.len());
    let mut totals = vec![0; DIFFERENCES.len()];
    let mut wrong = BTreeMap::new();
    for world in &worlds {
        let start = Instant::now();
        match check(world) {
            Ok(counts) => totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count),
            Err(left) => drop(wrong.insert(&world.name, left)),
        }
        println!("{:5.1} s  {}", start.elapsed().as_secs_f64(), world.name);
    }
    for (name, left) in &wrong {
        println!("== {name}: `-` upstream's, `+` ours\n{left}");
    }
    println!("differences in {} worlds:", worlds.len());
    for (total, difference) in totals.iter().zip(&DIFFERENCES) {
        println!("{total:6}  {:4} {}", difference.decision, difference.what);
    }
    assert!(wrong.is_empty(), "{:?}", wrong.keys());
    // A row that no world needs is none. Whether there are counters is the kernel's choice.
    let needed = |(total, difference): (&usize, &difference::Difference)| *total > 0 || difference.decision == "L19";
    assert!(!filter.is_empty() || totals.iter().zip(&DIFFERENCES).all(needed));
}
