//! kube-ipvs as a process: manifests in, tables and traffic out.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testbed::daemon::{Daemon, binary};
use testbed::netns::Netns;
use testbed::world::{self, NODE, NODE_ADDRESSES, World, ask_tcp, ask_udp};

use crate::seen;

/// A copy of `deploy/examples`, to be changed.
pub(crate) fn examples() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

pub(crate) fn start(node: &Netns, manifests: &Path, more: &[&str]) -> Daemon {
    let manifests = manifests.to_string_lossy();
    let arguments: Vec<&str> = ["--manifests", &manifests, "--hostname-override", NODE]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    let mut daemon = Daemon::start(node, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    daemon
}

/// Waits for what comes in the background; how long it takes decides nothing.
pub(crate) fn eventually<T: PartialEq + std::fmt::Debug>(expect: &T, mut look: impl FnMut() -> T) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = look();
        if found == *expect {
            return;
        }
        assert!(Instant::now() < deadline, "expected {expect:#?}\nfound {found:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn plan(manifests: &Path, more: &[&str]) -> String {
    let mut command = Command::new(binary());
    command
        .arg("plan")
        .arg("--manifests")
        .arg(manifests)
        .args(["--hostname-override", NODE])
        .args(more);
    let output = command.output().unwrap();
    // 2: something is rejected, and the rest is planned.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        matches!(output.status.code(), Some(0 | 2)),
        "{:?}: {said}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The answers of a number of questions, in order.
fn answers(from: &Netns, to: &str, count: usize) -> Vec<String> {
    let to: SocketAddr = to.parse().unwrap();
    (0..count).map(|_| ask_tcp(from, to).unwrap().0).collect()
}

fn distinct(answers: &[String]) -> BTreeSet<&str> {
    answers.iter().map(String::as_str).collect()
}

#[test]
fn clients_get_answers_and_follow_the_endpoints() {
    let world = World::new().unwrap();
    let manifests = examples();
    let mut daemon = start(&world.node, manifests.path(), &[]);
    for client in [&world.client_pod, &world.client] {
        // Round robin: three endpoints, each twice.
        let six = answers(client, "10.96.1.1:80", 6);
        for name in ["pod-a1", "pod-a2", "pod-b1"] {
            assert_eq!(six.iter().filter(|answer| *answer == name).count(), 2, "{six:?}");
        }
        assert_eq!(
            distinct(&answers(client, "[fd00:10:96::101]:80", 4)),
            ["pod-a1", "pod-b1"].into()
        );
        // Session affinity.
        assert_eq!(distinct(&answers(client, "10.96.1.2:80", 6)).len(), 1);
        for dns in ["10.96.0.10:53", "[fd00:10:96::a]:53"] {
            let four: Vec<_> = (0..4)
                .map(|_| ask_udp(client, dns.parse().unwrap()).unwrap().0)
                .collect();
            assert_eq!(distinct(&four), ["pod-a1", "pod-b1"].into());
        }
        // A node port, a load balancer's address, an external IP.
        assert!(
            world::PODS
                .iter()
                .any(|pod| pod.name == answers(client, "192.0.2.10:30080", 1)[0])
        );
        assert_eq!(
            distinct(&answers(client, "203.0.113.5:443", 4)),
            ["pod-a2", "pod-b2"].into()
        );
        assert_eq!(
            distinct(&answers(client, "198.51.100.7:443", 4)),
            ["pod-a2", "pod-b2"].into()
        );
    }

    // One endpoint goes, one comes.
    let file = manifests.path().join("20-web.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let changed = text.replace("10.244.1.12], nodeName: node-a", "10.244.2.12], nodeName: node-b");
    assert_ne!(text, changed);
    let before = daemon.said().len();
    fs::write(&file, changed).unwrap();
    daemon.wait_for(before, " commit ").unwrap();
    assert_eq!(
        distinct(&answers(&world.client, "10.96.1.1:80", 6)),
        ["pod-a1", "pod-b1", "pod-b2"].into()
    );
    // The service goes: its virtual servers and its VIPs as well.
    let before = daemon.said().len();
    fs::remove_file(&file).unwrap();
    daemon.wait_for(before, " commit ").unwrap();
    assert!(
        !seen::ipvsadm(&world.node)
            .iter()
            .any(|line| line.contains("10.96.1.1:80") || line.contains("fd00:10:96::101"))
    );
    assert!(!seen::routes(&world.node).contains("10.96.1.1"));
    eventually(&false, || seen::addresses(&world.node).contains("10.96.1.1/32"));
}

#[test]
fn l02_a_restart_on_an_unchanged_kernel_writes_nothing() {
    let world = World::new().unwrap();
    let manifests = examples();
    let expect = seen::lines(&plan(manifests.path(), &["--node-ip", &NODE_ADDRESSES.join(",")]));
    let addresses = expect.iter().filter(|line| line.starts_with("address")).count();
    let first = start(&world.node, manifests.path(), &[]);
    eventually(&addresses, || seen::addresses(&world.node).len());
    let (status, said) = first.terminate().unwrap();
    assert!(status.success(), "{said:?}");

    let second = start(&world.node, manifests.path(), &["-v=4"]);
    let serving = second
        .said()
        .into_iter()
        .find(|line| line.contains(" serving "))
        .unwrap();
    assert!(serving.contains("written=0 "), "{serving}");
    // Nothing comes later, either: no commit, no sysctl, no address.
    std::thread::sleep(Duration::from_secs(1));
    let said = second.said();
    assert!(
        !said
            .iter()
            .any(|line| line.contains(" commit ") || line.contains("sysctl set") || line.contains("addresses added")),
        "{said:?}"
    );
}

#[test]
fn l12_sigterm_leaves_the_data_path() {
    let world = World::new().unwrap();
    let manifests = examples();
    let daemon = start(&world.node, manifests.path(), &[]);
    let open = world::open(&world.client, "10.96.1.1:80".parse().unwrap()).unwrap();
    let before = seen::ipvsadm(&world.node);
    let (status, _) = daemon.terminate().unwrap();
    assert!(status.success());
    assert_eq!(seen::ipvsadm(&world.node), before);
    world::answer(open).unwrap();
    assert_eq!(answers(&world.client, "10.96.1.1:80", 3).len(), 3);
}

#[test]
fn foreign_virtual_servers_are_left_alone() {
    let world = World::new().unwrap();
    world.node.sh("ipvsadm -A -t 198.18.0.1:9999 -s wlc").unwrap();
    world
        .node
        .sh("ipvsadm -a -t 198.18.0.1:9999 -r 10.244.1.11:8080 -m -w 7")
        .unwrap();
    let manifests = examples();
    let daemon = start(&world.node, manifests.path(), &[]);
    let foreign = [
        "-A -t 198.18.0.1:9999 -s wlc",
        "-a -t 198.18.0.1:9999 -r 10.244.1.11:8080 -m -w 7",
    ];
    assert!(foreign.iter().all(|line| seen::ipvsadm(&world.node).contains(*line)));
    drop(daemon);
    let _again = start(&world.node, manifests.path(), &[]);
    assert!(foreign.iter().all(|line| seen::ipvsadm(&world.node).contains(*line)));
}

#[test]
fn a_service_that_went_while_we_were_away_goes_at_the_start() {
    let world = World::new().unwrap();
    let manifests = examples();
    drop(start(&world.node, manifests.path(), &[]));
    fs::remove_file(manifests.path().join("20-web.yaml")).unwrap();
    // A real server that somebody took, one that somebody added, and a scheduler that somebody changed.
    world.node.sh("ipvsadm -d -t 10.96.1.2:80 -r 10.244.1.11:8080").unwrap();
    world
        .node
        .sh("ipvsadm -a -t 10.96.1.2:80 -r 10.244.9.9:8080 -m")
        .unwrap();
    world.node.sh("ipvsadm -E -t 10.96.0.10:53 -s wlc").unwrap();
    let _again = start(&world.node, manifests.path(), &[]);
    let plan = plan(manifests.path(), &["--node-ip", &NODE_ADDRESSES.join(",")]);
    let expect: BTreeSet<_> = plan
        .lines()
        .filter(|line| line.starts_with('-'))
        .map(str::to_owned)
        .collect();
    // What somebody added may have connections: it drains.
    eventually(&expect, || seen::ipvsadm(&world.node));
}

#[test]
fn dry_run_writes_nothing() {
    let world = World::new().unwrap();
    let manifests = examples();
    let links = world.node.sh("ip -br link").unwrap();
    drop(start(&world.node, manifests.path(), &["--dry-run"]));
    assert_eq!(seen::ipvsadm(&world.node), BTreeSet::new());
    assert_eq!(world.node.sh("ip -br link").unwrap(), links);
    assert_eq!(world.node.sh("sysctl -n net.ipv4.vs.conntrack").unwrap().trim(), "0");
}

#[test]
fn what_ipvs_needs_is_set_once() {
    let netns = Netns::new().unwrap();
    let manifests = tempfile::tempdir().unwrap();
    let first = start(
        &netns,
        manifests.path(),
        &["--ipvs-strict-arp", "--ipvs-tcp-timeout=15m", "--ipvs-udp-timeout=1m"],
    );
    let set = first.said().iter().filter(|line| line.contains("sysctl set")).count();
    assert!(set >= 4, "{:?}", first.said());
    for (name, value) in [
        ("net.ipv4.vs.conntrack", "1"),
        ("net.ipv4.vs.expire_nodest_conn", "1"),
        ("net.ipv4.vs.expire_quiescent_template", "1"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.arp_ignore", "1"),
        ("net.ipv4.conf.all.arp_announce", "2"),
    ] {
        assert_eq!(netns.sh(&format!("sysctl -n {name}")).unwrap().trim(), value, "{name}");
    }
    let timeouts = netns.sh("ipvsadm -L --timeout").unwrap();
    assert!(timeouts.contains("900 120 60"), "{timeouts}");
    drop(first);
    let second = start(&netns, manifests.path(), &["--ipvs-strict-arp"]);
    assert!(
        !second.said().iter().any(|line| line.contains("sysctl set")),
        "{:?}",
        second.said()
    );
}

/// Runs the program to its end and returns status and standard error.
fn ends(netns: &Netns, arguments: &[&str]) -> (Option<i32>, String) {
    netns
        .run(|| {
            let output = Command::new(binary()).args(arguments).output()?;
            Ok((
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        })
        .unwrap()
}

#[test]
fn bad_input_is_one_clear_chain_and_nothing_is_done() {
    let netns = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let broken = file("kubeconfig", "clusters: [");
    let bad_config = file(
        "config.yaml",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nipvs: {scheduler: best}\n",
    );
    let manifests = file("manifests/a.yaml", "");
    let manifests = manifests.parent().unwrap().to_string_lossy().into_owned();
    let check = |arguments: &[&str], expect: &[&str]| {
        let (status, said) = ends(&netns, arguments);
        assert_eq!(status, Some(1), "{arguments:?}: {said}");
        for part in expect {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
        assert_eq!(
            said.lines()
                .filter(|line| line.starts_with("kube-ipvs: ") || line.starts_with("error: "))
                .count(),
            1,
            "{said}"
        );
        assert_eq!(seen::ipvsadm(&netns), BTreeSet::new());
    };
    check(&["--kubeconfig", &broken.to_string_lossy()], &["kubeconfig", "line"]);
    check(&["--kubeconfig", "/nonexistent"], &["/nonexistent", "No such file"]);
    check(&["--master", "no url"], &["\"no url\" is not a URL"]);
    check(&["--manifests", "/nonexistent"], &["/nonexistent", "No such file"]);
    check(
        &["--manifests", &manifests, "--ipvs-scheduler", "best"],
        &["unknown scheduler \"best\""],
    );
    check(
        &["--manifests", &manifests, "--config", &bad_config.to_string_lossy()],
        &["unknown scheduler \"best\""],
    );
    check(
        &["--manifests", &manifests, "--proxy-mode", "userspace"],
        &["must be iptables, ipvs"],
    );
    check(&["--no-such-flag"], &["--no-such-flag"]);
    check(
        &["--manifests", &manifests, "--kubeconfig", "x"],
        &["cannot be used with"],
    );

    // No root.
    let (status, said) = {
        let program = binary();
        let program = program.to_string_lossy();
        let words = [
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            &program,
            "--manifests",
            &manifests,
        ];
        netns
            .run(|| {
                let output = Command::new(words[0]).args(&words[1..]).output()?;
                Ok((
                    output.status.code(),
                    String::from_utf8_lossy(&output.stderr).into_owned(),
                ))
            })
            .unwrap()
    };
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    assert!(netns.sh("ip link show kube-ipvs0").is_err());
}

#[test]
fn a_bad_port_is_rejected_and_the_rest_stands() {
    let netns = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: d}\nspec: {clusterIP: 10.0.0.1, ports: [{name: a, port: 70000}, {name: b, port: 80}]}\n";
    fs::write(folder.path().join("a.yaml"), text).unwrap();
    let daemon = start(&netns, folder.path(), &[]);
    assert_eq!(seen::ipvsadm(&netns), ["-A -t 10.0.0.1:80 -s rr".to_owned()].into());
    let said = daemon.said().join("\n");
    assert!(
        said.contains("rejected") && said.contains("spec.ports[0].port") && said.contains("70000"),
        "{said}"
    );
    let (status, said) = ends(&netns, &["plan", "--manifests", &folder.path().to_string_lossy()]);
    assert_eq!(status, Some(2));
    assert!(
        said.contains("rejected: Service d/a: spec.ports[0].port: 70000 is not between 1 and 65535"),
        "{said}"
    );
}

#[test]
fn an_unreachable_server_is_waited_for() {
    let netns = Netns::new().unwrap();
    let mut daemon = Daemon::start(&netns, &["--master", "http://127.0.0.1:1", "--hostname-override", NODE]).unwrap();
    let said = daemon.wait_for(0, "lost the API server").unwrap();
    assert!(said.contains("refused") && said.contains("retry_in_seconds"), "{said}");
    assert_eq!(seen::ipvsadm(&netns), BTreeSet::new());
    assert!(daemon.terminate().unwrap().0.success());
}
