//! The host's iptables: what `kube-ipvs host-rules` does to them, and that replies get through then (T28, L19).

use std::process::Command;

use nftables::{Hook, Nftables, Policy};
use testbed::daemon::{Daemon, binary};
use testbed::netns::Netns;
use testbed::tool;
use testbed::world::{NODE, World, ask_tcp};

const FORWARD: [&str; 3] = [
    "-N KUBE-FORWARD",
    r#"-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT"#,
    r#"-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"#,
];
const JUMP: &str = r#"-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD"#;

/// What the helper says that it did.
fn help(netns: &Netns, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(binary());
    command.arg("host-rules").args(arguments);
    let said = netns.run(|| tool::output(command)).unwrap();
    said.lines().map(str::to_owned).collect()
}

/// A chain as `iptables -S` lists it; empty where there is none.
fn list(netns: &Netns, program: &str, chain: &str) -> Vec<String> {
    let text = netns.sh(&format!("{program} -w -S {chain}")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The backends that this kernel has; nf_tables is always one.
pub(crate) fn backends() -> Vec<&'static str> {
    let netns = Netns::new().unwrap();
    let legacy = netns.sh("iptables-legacy -w -S").is_ok() && netns.sh("ip6tables-legacy -w -S").is_ok();
    if !legacy {
        eprintln!("this kernel has no legacy iptables");
    }
    ["nft", "legacy"]
        .into_iter()
        .filter(|backend| *backend == "nft" || legacy)
        .collect()
}

#[test]
fn t28_nothing_is_done_where_nothing_drops() {
    for backend in backends() {
        let netns = Netns::new().unwrap();
        let saved = || netns.sh("nft list ruleset").unwrap() + &netns.sh("iptables-legacy-save").unwrap_or_default();
        let before = saved();
        assert_eq!(help(&netns, &["--health-port=31000"]), ["nothing to do"]);
        assert_eq!(saved(), before, "not even a table");
        netns
            .sh(&format!("iptables-{backend} -w -A FORWARD -s 192.0.2.1 -j DROP"))
            .unwrap();
        assert_eq!(help(&netns, &["--health-port=31000"]), ["nothing to do"]);
        netns.sh(&format!("iptables-{backend} -w -P FORWARD DROP")).unwrap();
        assert_eq!(help(&netns, &["--iptables-forward-accept=never"]), ["nothing to do"]);
        assert_eq!(list(&netns, &format!("iptables-{backend}"), "KUBE-FORWARD"), [""; 0]);
    }
}

#[test]
fn t28_where_forward_drops_the_rules_are_put_once_at_the_head() {
    for backend in backends() {
        for (family, other) in [("iptables", "ip6tables"), ("ip6tables", "iptables")] {
            let netns = Netns::new().unwrap();
            let program = format!("{family}-{backend}");
            netns.sh(&format!("{program} -w -P FORWARD DROP")).unwrap();
            netns.sh(&format!("{program} -w -A FORWARD -p tcp -j RETURN")).unwrap();
            let did = help(&netns, &[]);
            let expect = [
                "chain KUBE-FORWARD written",
                "jump from FORWARD to KUBE-FORWARD inserted",
            ];
            assert_eq!(did, expect.map(|text| format!("{program}: {text}")));
            assert_eq!(list(&netns, &program, "KUBE-FORWARD"), FORWARD);
            let forward = ["-P FORWARD DROP", JUMP, "-A FORWARD -p tcp -j RETURN"];
            assert_eq!(list(&netns, &program, "FORWARD"), forward);
            assert_eq!(help(&netns, &[]), ["nothing to do"]);

            // Another bit, a rule too many: the chain is written anew, the jump and the rules of others stay.
            netns.sh(&format!("{program} -w -I KUBE-FORWARD -j DROP")).unwrap();
            assert_eq!(help(&netns, &[]), [format!("{program}: chain KUBE-FORWARD written")]);
            assert_eq!(list(&netns, &program, "KUBE-FORWARD"), FORWARD);
            let did = help(&netns, &["--iptables-masquerade-bit=3"]);
            assert_eq!(did, [format!("{program}: chain KUBE-FORWARD written")]);
            assert!(list(&netns, &program, "KUBE-FORWARD")[1].contains("0x8/0x8"));
            assert_eq!(list(&netns, &program, "FORWARD"), forward);

            // The family whose policy accepts has nothing.
            assert_eq!(list(&netns, &format!("{other}-{backend}"), "KUBE-FORWARD"), [""; 0]);
        }
    }
}

#[test]
fn t28_always_is_both_families_of_the_backend_that_has_rules() {
    for backend in backends() {
        let netns = Netns::new().unwrap();
        netns
            .sh(&format!("iptables-{backend} -w -A INPUT -p tcp -j RETURN"))
            .unwrap();
        assert_eq!(help(&netns, &["--iptables-forward-accept=always"]).len(), 4);
        for program in [format!("iptables-{backend}"), format!("ip6tables-{backend}")] {
            assert_eq!(list(&netns, &program, "KUBE-FORWARD"), FORWARD);
            assert_eq!(list(&netns, &program, "FORWARD"), ["-P FORWARD ACCEPT", JUMP]);
        }
        assert_eq!(help(&netns, &["--iptables-forward-accept=always"]), ["nothing to do"]);
    }
}

#[test]
fn t28_health_check_ports_are_accepted_where_input_drops() {
    for backend in backends() {
        let netns = Netns::new().unwrap();
        let program = format!("iptables-{backend}");
        netns.sh(&format!("{program} -w -P INPUT DROP")).unwrap();
        assert_eq!(help(&netns, &[]), ["nothing to do"]);
        let ports = ["--health-port=31000", "--health-port=31001"];
        assert_eq!(help(&netns, &ports).len(), 2);
        let rule = |port: u16| {
            format!(
                r#"-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes health check node port" -m tcp --dport {port} -j ACCEPT"#
            )
        };
        let chain = |ports: &[u16]| -> Vec<String> {
            std::iter::once("-N KUBE-NODE-PORT".to_owned())
                .chain(ports.iter().map(|port| rule(*port)))
                .collect()
        };
        assert_eq!(list(&netns, &program, "KUBE-NODE-PORT"), chain(&[31_000, 31_001]));
        let jump = r#"-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT"#;
        assert_eq!(list(&netns, &program, "INPUT"), ["-P INPUT DROP", jump]);
        assert_eq!(help(&netns, &ports), ["nothing to do"]);
        assert_eq!(
            help(&netns, &ports[1..]),
            [format!("{program}: chain KUBE-NODE-PORT written")]
        );
        assert_eq!(list(&netns, &program, "KUBE-NODE-PORT"), chain(&[31_001]));
        assert_eq!(list(&netns, &program, "KUBE-FORWARD"), [""; 0]);
    }
}

#[test]
fn without_iptables_the_helper_says_so() {
    let mut command = Command::new(binary());
    command.arg("host-rules").env("PATH", "/nonexistent");
    let error = format!("{:#}", tool::output(command).unwrap_err());
    assert!(error.contains("there is no iptables on the path"), "{error}");
}

/// A table of iptables' name that nft made otherwise: nothing can be put there, which is said.
#[test]
fn a_table_that_iptables_cannot_change_is_an_error() {
    let netns = Netns::new().unwrap();
    netns
        .run(|| {
            let chain = "{ type filter hook forward priority 10; policy drop; }";
            tool::run(&["nft", "add", "table", "ip", "filter"])?;
            tool::run(&["nft", "add", "chain", "ip", "filter", "FORWARD", chain])
        })
        .unwrap();
    let mut command = Command::new(binary());
    command.arg("host-rules");
    let error = format!("{:#}", netns.run(|| tool::output(command)).unwrap_err());
    assert!(error.contains("holds what iptables cannot change"), "{error}");
}

#[test]
fn base_chains_are_those_that_nft_lists() {
    let netns = Netns::new().unwrap();
    netns.sh("ip6tables-nft -P FORWARD DROP").unwrap();
    netns
        .run(|| {
            let script = "\
add table inet walls
add chain inet walls in { type filter hook input priority 0; policy drop; }
add chain inet walls out { type filter hook output priority 0; }
add chain inet walls jumped
add table arp a
add chain arp a i { type filter hook input priority 0; policy drop; }
add table ip n
add chain ip n p { type nat hook postrouting priority 100; }
";
            tool::feed(&["nft", "-f", "-"], script)
        })
        .unwrap();
    let chains = netns.run(|| Ok(Nftables::open()?.base_chains()?)).unwrap();
    let mut found: Vec<_> = chains
        .iter()
        .map(|chain| (chain.to_string(), chain.hook, chain.policy))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expect = [
        ("inet walls in", Hook::Input, Policy::Drop),
        ("inet walls out", Hook::Output, Policy::Accept),
        ("ip n p", Hook::Postrouting, Policy::Accept),
        ("ip6 filter FORWARD", Hook::Forward, Policy::Drop),
    ];
    assert_eq!(
        found,
        expect.map(|(text, hook, policy)| (text.to_owned(), hook, policy))
    );
}

/// The daemon finds the policy, has the rules put, and a client gets its replies.
#[test]
fn t28_replies_cross_a_forward_chain_that_drops() {
    let world = World::new().unwrap();
    world.node.sh("iptables-nft -P FORWARD DROP").unwrap();
    let manifests = crate::daemon::examples();
    let path = manifests.path().to_string_lossy();
    let arguments = ["--manifests", &path, "--hostname-override", NODE];
    let mut daemon = Daemon::start(&world.node, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    daemon
        .wait_for(0, "iptables-nft: jump from FORWARD to KUBE-FORWARD inserted")
        .unwrap();
    assert_eq!(list(&world.node, "iptables-nft", "KUBE-FORWARD"), FORWARD);
    ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).unwrap();
    // Without the rules it does not: the policy is what the test thinks it is.
    world.node.sh("iptables-nft -F KUBE-FORWARD").unwrap();
    assert!(ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).is_err());
    drop(daemon);

    // A daemon that finds no iptables says so and goes on.
    let without = ["env", "PATH=/nonexistent"];
    let mut daemon = Daemon::start_by(&world.node, &without, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    daemon.wait_for(0, "there is no iptables on the path").unwrap();
    drop(daemon);

    // Nothing drops: nothing is started.
    world.node.sh("iptables-nft -P FORWARD ACCEPT").unwrap();
    let mut daemon = Daemon::start(&world.node, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    let (_, said) = daemon.terminate().unwrap();
    assert!(said.iter().all(|line| !line.contains("host rules")), "{said:?}");
    assert_eq!(list(&world.node, "iptables-nft", "KUBE-FORWARD"), ["-N KUBE-FORWARD"]);
}
