//! Invariant 8: what `kube-ipvs plan` prints, put into an empty node by the standard tools, is what the daemon makes there.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use testbed::netns::Netns;
use testbed::tool;
use testbed::world::NODE_ADDRESSES;

use crate::daemon::{eventually, examples, plan, start};
use crate::mode::Mode;
use crate::seen;

/// One command line a line; a test of the agent sees that no setting is missing.
const SETTINGS: &str = include_str!("plan-settings.txt");
/// The other node that a line has a name of.
const NODE_B: &str = "apiVersion: v1
kind: Node
metadata: {name: node-b}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.20}]}
";

#[test]
fn plan_is_what_the_daemon_does() {
    let mut plans = BTreeMap::new();
    for line in SETTINGS.lines().filter(|line| !line.starts_with('#')) {
        let flags: Vec<_> = line.split_whitespace().collect();
        let manifests = examples();
        fs::write(manifests.path().join("node-b.yaml"), NODE_B).unwrap();
        let addresses = NODE_ADDRESSES.join(",");
        let plan = plan(manifests.path(), &[&["--node-ip", &addresses], &flags[..]].concat());
        let mode = if line.contains(Mode::Nft.flag()) {
            Mode::Nft
        } else {
            Mode::Ipvs
        };

        let world = mode.world();
        let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
        let _daemon = start(&world.node, manifests.path(), &[&[&*run_dir], &flags[..]].concat());
        let empty = Netns::new().unwrap();
        empty.sh("ip link set lo up").unwrap();
        load(mode, &empty, &plan);
        match mode {
            Mode::Ipvs => assert_same_ipvs(line, &world.node, &empty, &plan),
            Mode::Nft | Mode::Legacy => {
                let planned = mode.picture(&empty);
                assert!(planned.len() > 60, "{line}: {planned:#?}");
                assert_eq!(mode.picture(&world.node), planned, "{line}");
            }
        }
        // A line without an effect would show nothing.
        if let Some(other) = plans.insert(plan, line) {
            panic!("the plan of {line:?} is that of {other:?}");
        }
    }
    assert!(plans.len() > 15);
}

fn assert_same_ipvs(line: &str, node: &Netns, empty: &Netns, plan: &str) {
    let planned = seen::ipvsadm(empty);
    assert!(planned.len() > 10, "{line}: {plan}");
    assert_eq!(seen::ipvsadm(node), planned, "{line}");
    assert!(!seen::routes(empty).is_empty(), "{line}: {plan}");
    assert_eq!(seen::routes(node), seen::routes(empty), "{line}");
    // They come in the background.
    let addresses = seen::addresses(empty);
    assert_eq!(addresses.is_empty(), line.contains("--vip-addresses=false"), "{line}");
    eventually(&addresses, || seen::addresses(node));
    let (done, asked) = (seen::ruleset(node), seen::ruleset(empty));
    assert_eq!(loadable(done), loadable(asked), "{line}");
    let rules = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| unloadable(line));
        let mut rules: Vec<_> = lines.map(|line| body(line).to_owned()).collect();
        rules.sort();
        rules
    };
    assert_eq!(rules(&node.sh("nft list ruleset").unwrap()), rules(plan), "{line}");
}

/// Puts it there, line by line as the tool that it is for takes it; no line is left over.
fn load(mode: Mode, empty: &Netns, plan: &str) {
    let feed = |words: &[&str], lines: &[&str]| {
        let text = format!("{}\n", lines.join("\n"));
        empty
            .run(|| tool::feed(words, &text))
            .unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    };
    if mode != Mode::Ipvs {
        let mut program = "";
        let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in plan.lines() {
            match line.strip_prefix("# ") {
                Some("iptables-restore --noflush") => program = "iptables-nft-restore",
                Some("ip6tables-restore --noflush") => program = "ip6tables-nft-restore",
                _ => texts.entry(program).or_default().push(line),
            }
        }
        assert_eq!(texts.len(), 2, "{plan}");
        for (program, lines) in texts {
            feed(&[program, "--noflush"], &lines);
        }
        return;
    }
    empty.sh("ip link add kube-ipvs0 type dummy").unwrap();
    let mut lines: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in plan.lines() {
        let tool = match line.split(' ').next().unwrap_or_default() {
            "add" | "delete" if unloadable(line) => continue,
            "add" | "delete" => "nft",
            "-A" | "-a" => "ipvsadm",
            "route" | "address" => "ip",
            // Nothing flows on an empty node.
            "conntrack" => continue,
            _ => panic!("{line:?} is for no tool"),
        };
        lines.entry(tool).or_default().push(line);
    }
    feed(&["nft", "-f", "-"], &lines["nft"]);
    feed(&["ipvsadm", "-R"], &lines["ipvsadm"]);
    feed(&["ip", "-batch", "-"], &lines["ip"]);
}

/// nft 1.0.6 makes of rules with `inet_proto` in a set of intervals what no kernel takes. They are compared as text.
fn unloadable(line: &str) -> bool {
    line.contains("@sources") || line.contains("@pods")
}

/// A rule without the words that say where it is put.
fn body(line: &str) -> &str {
    if line.starts_with("add rule ") {
        line.splitn(6, ' ').nth(5).unwrap_or_default()
    } else {
        line
    }
}

fn loadable(mut ruleset: Value) -> Value {
    let objects = ruleset["nftables"].as_array_mut().unwrap();
    objects.retain(|object| object.get("rule").is_none() || !unloadable(&object.to_string()));
    assert!(objects.len() > 60);
    ruleset
}
