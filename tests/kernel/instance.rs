//! One kube-ipvs for each network namespace (L22), and a log that nobody reads (F22).

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use testbed::daemon::{Daemon, binary};
use testbed::http::get;
use testbed::netns::Netns;
use testbed::world::{NODE, World};

use crate::daemon::{eventually, examples, start};
use crate::seen;

/// Ports of its own: those of the first one are taken.
const SECOND: &[&str] = &[
    "--healthz-bind-address=0.0.0.0:11256",
    "--metrics-bind-address=127.0.0.1:11249",
];
/// Rules that differ from those of the first one: without the lock the two undo each other's for ever.
const DIFFERS: &str = "--iptables-masquerade-bit=20";

fn second(node: &Netns, manifests: &tempfile::TempDir, more: &[&str]) -> Daemon {
    let manifests = manifests.path().to_string_lossy();
    let arguments = ["--manifests", &manifests, "--hostname-override", NODE, DIFFERS];
    Daemon::start(node, &[&arguments, SECOND, more].concat()).unwrap()
}

fn rules(node: &Netns) -> String {
    node.sh("nft -s list table ip kube-ipvs").unwrap()
}

#[test]
fn f15_a_second_daemon_waits_until_the_first_one_ends() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let node = &world.node;
    let mut first = start(node, manifests.path(), &[]);
    let before = rules(node);
    let mut waits = second(node, &manifests, &[]);
    let line = waits.wait_for(0, "waiting until it ends").unwrap();
    assert!(line.contains(&format!("process {}", first.id())), "{line}");
    let status = |path| get(node, "127.0.0.1:11256".parse().unwrap(), path).map(|answer| (answer.status, answer.body));
    eventually(&true, || status("/livez").is_ok());
    assert_eq!(status("/livez").unwrap().0, 200);
    let (code, body) = status("/healthz").unwrap();
    assert!(code == 503 && body.contains("waits until it ends"), "{code} {body}");
    // The first one goes on, undisturbed.
    let from = first.said().len();
    fs::remove_file(manifests.path().join("20-web.yaml")).unwrap();
    first.wait_for(from, " commit ").unwrap();
    assert!(!first.said().iter().any(|line| line.contains("somebody else")));
    assert_eq!(rules(node).contains("0x00004000"), before.contains("0x00004000"));

    let mut refused = second(node, &manifests, &["--second-instance=exit"]);
    refused
        .wait_for(0, "another kube-ipvs serves in this network namespace")
        .unwrap();
    eventually(&Some(1), || refused.ended().unwrap().and_then(|status| status.code()));

    // Killed: no word, and no trace that has to be removed.
    drop(first);
    waits.wait_for(0, "taking over").unwrap();
    waits.wait_until_serving().unwrap();
    eventually(&200, || status("/healthz").unwrap().0);
    assert_ne!(rules(node), before);
}

#[test]
fn f15_cleanup_beside_a_daemon_is_refused() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let node = &world.node;
    let daemon = start(node, manifests.path(), &[]);
    let conntrack = || node.sh("cat /proc/sys/net/ipv4/vs/conntrack").unwrap();
    let before = (seen::ipvsadm(node), rules(node), conntrack());
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    for arguments in [["cleanup", &run_dir], ["--cleanup", &run_dir]] {
        let mut command = Command::new(binary());
        command.args(arguments);
        let output = node.run(|| Ok(command.output()?)).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("end it first") && said.contains(&format!("process {}", daemon.id())),
            "{said}"
        );
    }
    assert_eq!((seen::ipvsadm(node), rules(node), conntrack()), before);
}

/// Ends it with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Standard error is a pipe that nobody reads, and that is full: 64 KiB (pipe(7)).
#[test]
fn f22_a_log_that_nobody_reads_stops_no_change() {
    let world = World::without_pods().unwrap();
    let manifests = examples();
    let node = &world.node;
    let (_reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'\n'; 64 << 10]).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["--conntrack-max-per-core=0", "--hostname-override", NODE, "--manifests"])
        .arg(manifests.path())
        .stdout(Stdio::null())
        .stderr(full);
    let _daemon = Killed(node.spawn(command).unwrap());
    let file = manifests.path().join("20-web.yaml");
    let all = fs::read_to_string(&file).unwrap();
    eventually(&true, || {
        seen::ipvsadm(node).iter().any(|line| line.contains("10.96.1.1:80"))
    });
    for round in 0..4 {
        let there = round % 2 == 1;
        if there {
            fs::write(&file, &all).unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        let has = || seen::ipvsadm(node).iter().any(|line| line.contains("10.96.1.1:80"));
        eventually(&there, has);
    }
}
