//! On a node that `--init-only` has set up, CAP_NET_ADMIN suffices: with everything read-only, as another user than root,
//! and without a right to execute anything.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use testbed::daemon::{Daemon, binary};
use testbed::tool;
use testbed::world::{NODE, World, ask_tcp};

use crate::daemon::{eventually, examples};

/// All file systems that the program could write to become read-only, the sysctls too; then the rest is executed.
const READ_ONLY: &str = "mount --make-rprivate / && mount --bind /proc/sys /proc/sys \
    && for place in / /run /proc/sys; do mount -o remount,bind,ro $place || exit 1; done; exec \"$@\"";
const ROOT: &[&str] = &[
    "setpriv",
    "--no-new-privs",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all",
];
const NOBODY: &[&str] = &[
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=+net_admin",
];

fn arguments(manifests: &Path) -> Vec<String> {
    let manifests = manifests.to_string_lossy();
    [
        "--manifests",
        &manifests,
        "--hostname-override",
        NODE,
        "--ipvs-strict-arp",
        "--ipvs-tcp-timeout=600s",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn status(daemon: &Daemon, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default()
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn init_only_then_net_admin_alone_suffices() {
    let world = World::new().unwrap();
    let manifests = examples();
    fs::set_permissions(manifests.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut init = Command::new(binary());
    init.arg("--init-only")
        .arg("--conntrack-max-per-core=0")
        .args(arguments(manifests.path()));
    world.node.run(|| tool::output(init)).unwrap();
    assert!(world.node.sh("ip link show kube-ipvs0").is_ok());
    assert_eq!(world.node.sh("sysctl -n net.ipv4.vs.conntrack").unwrap().trim(), "1");
    // Nothing is served by it.
    assert_eq!(world.node.sh("ipvsadm -Sn").unwrap(), "");

    let file = manifests.path().join("20-web.yaml");
    let text = fs::read_to_string(&file).unwrap();
    for (rights, user) in [(ROOT, "0"), (NOBODY, "65534")] {
        let by = [&["unshare", "--mount", "sh", "-c", READ_ONLY, "sh"], rights].concat();
        let mut arguments = arguments(manifests.path());
        // The timeouts of IPVS are set again, which is no right of its own.
        arguments.push("--deny-exec".to_owned());
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut daemon = Daemon::start_by(&world.node, &by, &arguments).unwrap();
        daemon.wait_until_serving().unwrap();
        // CAP_NET_ADMIN is bit 12.
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status(&daemon, set), "0000000000001000", "{set}");
        }
        let rest = ["Uid", "NoNewPrivs", "Seccomp"].map(|field| status(&daemon, field));
        assert_eq!(rest, [user, "1", "2"]);
        let ask = || ask_tcp(&world.client_pod, "10.96.1.1:80".parse().unwrap()).is_ok();
        assert!(ask());
        // A change is written, and an address added.
        fs::write(&file, text.replace("[10.96.1.1,", "[10.96.1.99,")).unwrap();
        let bound = || {
            world
                .node
                .sh("ip -o addr show dev kube-ipvs0")
                .unwrap()
                .contains("10.96.1.99/")
        };
        eventually(&true, bound);
        fs::write(&file, &text).unwrap();
        eventually(&false, bound);
        let said = daemon.said();
        // Lowering the score is CAP_SYS_RESOURCE's, and nothing depends on it.
        let complaints: Vec<_> = said
            .iter()
            .filter(|line| !line.contains("oomScoreAdj"))
            .filter(|line| {
                ["denied", "not permitted", "Read-only", "sysctl set"]
                    .iter()
                    .any(|word| line.contains(word))
            })
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}
