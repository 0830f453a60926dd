//! L13, L16: `kube-ipvs cleanup` leaves a node as it was; L15: a take-over from kube-proxy leaves nothing of it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use testbed::daemon::{Daemon, binary};
use testbed::netns::Netns;
use testbed::world::{NODE, World, ask_tcp};

use crate::daemon::{eventually, examples, start};
use crate::host_rules::backends;
use crate::mode::Mode;
use crate::{leftovers, seen};

/// Status, standard output and standard error of the program.
fn run(netns: &Netns, path: Option<&str>, arguments: &[&str]) -> (i32, Vec<String>, String) {
    let mut command = Command::new(binary());
    command.args(arguments);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = netns.run(|| Ok(command.output()?)).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let lines = text(&output.stdout).lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines, text(&output.stderr))
}

/// Cleans up; what is removed is what a dry run had said, which removes nothing.
fn clean(netns: &Netns, arguments: &[&str]) -> Vec<String> {
    let before = state(netns);
    let dry: Vec<_> = arguments.iter().copied().chain(["--dry-run"]).collect();
    let (_, planned, _) = run(netns, None, &dry);
    assert_eq!(state(netns), before);
    let (status, did, said) = run(netns, None, arguments);
    assert_eq!((status, said.as_str()), (0, ""), "{did:#?}");
    assert_eq!(did, planned);
    did
}

/// All that a proxy changes of a namespace, by the standard tools; lines sorted, without counters and times.
fn state(netns: &Netns) -> BTreeMap<String, Vec<String>> {
    let commands = [
        "ip addr",
        "ip route show table local",
        "ip -6 route show table local",
        "ipvsadm -Sn",
        "nft -s list ruleset",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "ipset save",
        "sysctl -a --pattern ^net.ipv4.(vs|ip_forward|conf.*(forwarding|arp_|route_localnet))",
    ];
    let text = |command: &str| {
        let text = netns.sh(command).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        // `:INPUT ACCEPT [12:345]`
        let mut lines: Vec<_> = lines
            .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
            .collect();
        // Tables and chains of the kernel's own that iptables has made stay, and do nothing.
        let idle = |line: &String| line.starts_with('*') || line == "COMMIT" || line.ends_with(" ACCEPT");
        lines.retain(|line| {
            !command.ends_with("tables-nft-save") && !command.ends_with("tables-legacy-save") || !idle(line)
        });
        lines.sort();
        lines
    };
    commands
        .iter()
        .map(|command| ((*command).to_owned(), text(command)))
        .collect()
}

#[test]
fn l13_cleanup_leaves_the_node_as_it_was() {
    for mode in Mode::ALL {
        let world = mode.world();
        let run_dir = tempfile::tempdir().unwrap();
        let run_dir = format!("--run-dir={}", run_dir.path().join("kube-ipvs").display());
        if mode == Mode::Ipvs {
            // T28: an accept of ours, too.
            world.node.sh("iptables-nft -P FORWARD DROP").unwrap();
            world.node.sh("ip6tables-nft -A FORWARD -p tcp -j RETURN").unwrap();
        }
        let look = || {
            let mut state = state(&world.node);
            if mode != Mode::Ipvs {
                remove_what_stays(&mut state);
            }
            state
        };
        let before = look();
        let manifests = examples();
        // The iptables mode's chains have kube-proxy's names.
        let first: &[&str] = match mode {
            Mode::Ipvs => &["cleanup"],
            Mode::Nft | Mode::Legacy => &["cleanup", "--kube-proxy"],
        };
        for command in [first, &["--cleanup"]] {
            let command = [command, &[&run_dir]].concat();
            let mut daemon = start(
                &world.node,
                manifests.path(),
                &[mode.flag(), "--ipvs-strict-arp", &run_dir],
            );
            ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).unwrap();
            if mode == Mode::Ipvs {
                eventually(&true, || seen::addresses(&world.node).contains("10.96.1.1/32"));
                daemon
                    .wait_for(0, "iptables-nft: jump from FORWARD to KUBE-FORWARD inserted")
                    .unwrap();
            }
            daemon.terminate().unwrap();
            assert_ne!(look(), before);

            let did = clean(&world.node, &command);
            assert_eq!(look(), before, "{mode:?}");
            // VIPs as a whole, then what they lead to, then what decides about it.
            let order = [
                "ip route del local 10.96.1.1/32 ",
                "ip link del kube-ipvs0",
                "ipvsadm -D -t 10.96.1.1:80",
                "nft delete table ip kube-ipvs",
                "iptables-nft -t filter -D FORWARD ",
                "sysctl -w net/ipv4/vs/conntrack=0",
            ];
            let places = order.map(|start| did.iter().position(|line| line.starts_with(start)));
            let in_order = places.iter().all(Option::is_some) && places.is_sorted();
            assert!(mode != Mode::Ipvs || in_order, "{did:#?}");
            assert_eq!(clean(&world.node, &command), [""; 0]);
        }
    }
}

/// The iptables mode's rule against strangers on 127.0.0.1 is the kubelet's, too, and nft shows the tables that iptables
/// has made, without rules.
fn remove_what_stays(state: &mut BTreeMap<String, Vec<String>>) {
    state.remove("nft -s list ruleset");
    for lines in state.values_mut() {
        lines.retain(|line| !line.contains("KUBE-FIREWALL"));
    }
}

/// k/k#55857, kube-proxy#6: virtual servers of others were flushed.
#[test]
fn foreign_vs_untouched_at_start_and_cleanup() {
    let world = World::new().unwrap();
    let run_dir = tempfile::tempdir().unwrap();
    let run_dir = format!("--run-dir={}", run_dir.path().display());
    for line in [
        "ipvsadm -A -t 198.18.0.1:9999 -s wlc",
        "ipvsadm -a -t 198.18.0.1:9999 -r 10.244.1.11:8080 -m -w 7",
        // A port that a NodePort of kube-proxy has, by a balancer that routes; and a mark.
        "ipvsadm -A -t 192.0.2.100:30080 -s rr",
        "ipvsadm -a -t 192.0.2.100:30080 -r 192.0.2.20 -g",
        "ipvsadm -A -f 77 -s rr",
        "ip link add dummy7 type dummy",
        "ip addr add 203.0.113.77/32 dev dummy7",
        "ip route add local 203.0.113.78/32 dev lo table local proto 99",
        "nft add table ip foreign",
        "ipset create FOREIGN hash:ip",
        "iptables-nft -N FOREIGN",
        "iptables-nft -A FORWARD -j FOREIGN",
    ] {
        world.node.sh(line).unwrap();
    }
    let before = state(&world.node);
    let manifests = examples();
    let daemon = start(&world.node, manifests.path(), &[&run_dir]);
    let foreign = seen::ipvsadm(&world.node);
    assert!(
        before["ipvsadm -Sn"].iter().all(|line| foreign.contains(line)),
        "{foreign:?}"
    );
    daemon.terminate().unwrap();
    clean(&world.node, &["cleanup", &run_dir]);
    assert_eq!(state(&world.node), before);
    leftovers::make(&world.node, "nft");
    clean(&world.node, &["--cleanup", &run_dir]);
    let mut after = state(&world.node);
    // The kernel's own chains of the table that iptables made, and the sets of a network policy, are nobody's leftovers.
    let tables = [
        "nft -s list ruleset",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "ipset save",
    ];
    for table in tables {
        assert!(before[table].iter().all(|line| after[table].contains(line)), "{table}");
        after.insert(table.to_owned(), before[table].clone());
    }
    assert_eq!(after, before);
}

/// k/k#109286, kube-proxy#13, gardener#4599: sets, chains and virtual servers stayed, and a second run failed.
#[test]
fn cleanup_idempotent_all_sets() {
    for backend in backends() {
        let netns = Netns::new().unwrap();
        netns.sh("ip addr add 192.0.2.10/24 dev lo").unwrap();
        netns.sh("ip addr add 2001:db8::10/64 dev lo nodad").unwrap();
        leftovers::make_others(&netns, backend);
        let mut others = state(&netns);
        leftovers::make(&netns, backend);
        leftovers::make_virtual_servers(&netns);
        let made = state(&netns);
        assert!(made["ipset save"].len() > 34, "{made:#?}");

        // Addresses on kube-ipvs0 and what is served there are what we would have taken over; the rest is not asked for.
        let did = clean(&netns, &["cleanup"]);
        let rest = state(&netns);
        assert_eq!(did.len(), 4, "{did:#?}");
        for command in ["ipset save", "iptables-nft-save", "iptables-legacy-save"] {
            assert_eq!(rest[command], made[command], "{command}");
        }
        assert_eq!(rest["ipvsadm -Sn"].len(), 5, "NodePorts and one real server: {rest:#?}");

        clean(&netns, &["--cleanup"]);
        let mut after = state(&netns);
        // Tables whose chains are the kernel's own stay as they were made.
        for (state, table) in [
            (&mut others, "nft -s list ruleset"),
            (&mut after, "nft -s list ruleset"),
        ] {
            state.remove(table);
        }
        assert_eq!(after, others, "{backend}");
        for arguments in [["--cleanup"].as_slice(), &["cleanup", "--kube-proxy"], &["cleanup"]] {
            assert_eq!(clean(&netns, arguments), [""; 0]);
        }
    }
}

#[test]
fn l13_what_is_left_is_told() {
    let netns = Netns::new().unwrap();
    leftovers::make(&netns, "nft");
    // A network plugin marks by kube-proxy's chain, and somebody uses one of its sets.
    netns.sh("iptables-nft -t nat -N CNI-DN-1").unwrap();
    netns.sh("iptables-nft -t nat -A CNI-DN-1 -j KUBE-MARK-MASQ").unwrap();
    netns.sh("iptables-nft -N FOREIGN").unwrap();
    netns
        .sh("iptables-nft -A FOREIGN -m set --match-set KUBE-IPVS-IPS dst -j ACCEPT")
        .unwrap();
    let (status, did, said) = run(&netns, None, &["cleanup", "--kube-proxy"]);
    assert_eq!(status, 1, "{said}");
    assert!(did.contains(&"ipset destroy KUBE-CLUSTER-IP".to_owned()), "{did:#?}");
    let expect = [
        "note: iptables-nft: chain KUBE-MARK-MASQ stays: CNI-DN-1 uses it",
        "left: ipset destroy KUBE-IPVS-IPS",
    ];
    for line in expect {
        assert!(said.lines().any(|said| said == line), "{said}");
    }
    assert!(
        said.contains("failed: ipset KUBE-IPVS-IPS: destroy an ipset: "),
        "{said}"
    );
    netns.sh("iptables-nft -F FOREIGN").unwrap();
    assert_eq!(run(&netns, None, &["cleanup", "--kube-proxy"]).0, 0);
    assert!(
        netns
            .sh("iptables-nft -t nat -S KUBE-MARK-MASQ")
            .unwrap()
            .contains("MARK")
    );

    // An interface of our name that is none of ours.
    let netns = Netns::new().unwrap();
    netns.sh("ip link add kube-ipvs0 type bridge").unwrap();
    let (status, _, said) = run(&netns, None, &["cleanup"]);
    assert_eq!(status, 1);
    assert!(
        said.contains("is not a dummy device") && said.contains("left: ip link del kube-ipvs0"),
        "{said}"
    );
}

#[test]
fn l13_without_iptables_it_says_what_it_could_not_look_at() {
    let netns = Netns::new().unwrap();
    let without = Some("/nonexistent");
    for arguments in [["cleanup"].as_slice(), &["--cleanup"]] {
        let (status, _, said) = run(&netns, without, arguments);
        assert!(said.contains("there is no iptables on the path"), "{said}");
        // A legacy table of the kernel's own is enough for doubt.
        let legacy = netns.sh("iptables-legacy -t nat -S").is_ok() && arguments[0] == "--cleanup";
        assert!(status == 0 || legacy, "{said}");
    }
    let netns = Netns::new().unwrap();
    leftovers::make(&netns, "nft");
    let (status, did, said) = run(&netns, without, &["cleanup", "--kube-proxy"]);
    assert_eq!(status, 1);
    assert!(said.contains("left: there may be rules of kube-proxy"), "{said}");
    // Sets that no rule uses need no program.
    assert!(
        did.contains(&"ipset destroy KUBE-6-LOAD-BALANCER-LOCAL".to_owned()),
        "{did:#?}"
    );
}

#[test]
fn l16_old_values_are_kept_and_restored() {
    let netns = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let manifests = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("kube-ipvs");
    let flag = format!("--run-dir={}", run_dir.display());
    let get = |name: &str| netns.sh(&format!("sysctl -n {name}")).unwrap().trim().to_owned();
    netns
        .sh("sysctl -qw net.ipv4.conf.all.arp_ignore=2 net.ipv4.ip_forward=1")
        .unwrap();
    drop(start(&netns, manifests.path(), &["--ipvs-strict-arp", &flag]));
    let kept = fs::read_to_string(run_dir.join("sysctls")).unwrap();
    let expect = "net/ipv4/conf/all/arp_announce = 0\nnet/ipv4/conf/all/arp_ignore = 2\nnet/ipv4/vs/conntrack = 0\n\
                  net/ipv4/vs/expire_nodest_conn = 0\nnet/ipv4/vs/expire_quiescent_template = 0\n";
    assert_eq!(kept, expect);
    // A restart finds our values, and one that somebody else has set.
    netns.sh("sysctl -qw net.ipv4.vs.expire_nodest_conn=2").unwrap();
    drop(start(&netns, manifests.path(), &["--ipvs-strict-arp", &flag]));
    assert_eq!(fs::read_to_string(run_dir.join("sysctls")).unwrap(), expect);
    // Changed after us: theirs.
    netns
        .sh("sysctl -qw net.ipv4.vs.conntrack=0 net.ipv4.conf.all.arp_announce=1")
        .unwrap();
    let did = clean(&netns, &["cleanup", &flag]);
    assert!(!did.iter().any(|line| line.contains("arp_announce")), "{did:?}");
    assert_eq!(get("net.ipv4.conf.all.arp_ignore"), "2");
    assert_eq!(get("net.ipv4.conf.all.arp_announce"), "1");
    assert_eq!(get("net.ipv4.vs.expire_nodest_conn"), "0");
    assert_eq!(get("net.ipv4.ip_forward"), "1", "was right, is nobody's change");
    assert!(!run_dir.exists());

    // Nowhere to keep them: a warning, and the daemon serves.
    let daemon = start(&netns, manifests.path(), &["--run-dir=/proc/nowhere"]);
    let said = daemon.said().join("\n");
    assert!(said.contains("old values of sysctls are not kept"), "{said}");
}

/// A node where kube-proxy ran: what is wanted is adopted, what is not goes, with its rules and sets.
#[test]
fn l15_what_kube_proxy_left_goes_once_we_serve() {
    for backend in backends() {
        let world = World::new().unwrap();
        let run_dir = tempfile::tempdir().unwrap();
        let run_dir = format!("--run-dir={}", run_dir.path().display());
        let node = &world.node;
        leftovers::make_others(node, backend);
        leftovers::make(node, backend);
        leftovers::make_virtual_servers(node);
        // Not of kube-proxy: another port, and its port at an address that is balanced otherwise.
        node.sh("ipvsadm -A -t 192.0.2.10:9999 -s wlc").unwrap();
        node.sh("ipvsadm -A -t 192.0.2.100:31999 -s rr").unwrap();
        node.sh("ipvsadm -a -t 192.0.2.100:31999 -r 192.0.2.20 -g").unwrap();
        // T28: kube-proxy's chain is wanted here, and there only.
        node.sh(&format!("iptables-{backend} -P FORWARD DROP")).unwrap();
        let manifests = examples();
        let arguments = [
            "--manifests",
            &manifests.path().to_string_lossy(),
            "--hostname-override",
            NODE,
            &run_dir,
        ];
        let mut daemon = Daemon::start(node, &arguments).unwrap();
        daemon.wait_until_serving().unwrap();
        daemon.wait_for(0, "34 ipsets removed").unwrap();
        let said = daemon.said().join("\n");
        assert!(!said.contains("not removed"), "{said}");
        let servers = seen::ipvsadm(node);
        let has = |place: &str| servers.iter().any(|line| line.contains(&format!(" {place} ")));
        for place in [
            "10.96.1.1:80",
            "192.0.2.10:30080",
            "192.0.2.10:9999",
            "192.0.2.100:31999",
        ] {
            assert!(has(place), "{place}: {servers:#?}");
        }
        for place in [
            "10.96.9.9:80",
            "[fd00:10:96::999]:80",
            "192.0.2.10:31999",
            "[2001:db8::10]:31999",
            "192.0.2.10:31998",
        ] {
            assert!(!has(place), "{place}: {servers:#?}");
        }
        eventually(&false, || {
            let sets = node.sh("ipset list -n").unwrap();
            sets.lines()
                .any(|name| name != "KUBE-SRC-ABC" && name != "inet6:KUBE-SRC-ABC")
        });
        let chains = |program: &str| -> Vec<String> {
            let saved = node.sh(&format!("{program}-{backend}-save")).unwrap();
            let chains = saved.lines().filter_map(|line| line.strip_prefix(":KUBE-"));
            let mut names: Vec<_> = chains.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        let others = [
            "FIREWALL",
            "FORWARD",
            "IPTABLES-HINT",
            "KUBELET-CANARY",
            "KUBELET-CANARY",
            "KUBELET-CANARY",
            "MARK-DROP",
            "NWPLCY-ABC",
            "ROUTER-FORWARD",
        ];
        assert_eq!(chains("iptables"), others);
        assert_eq!(
            chains("ip6tables"),
            others.into_iter().filter(|name| *name != "FORWARD").collect::<Vec<_>>()
        );
        ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).unwrap();
        daemon.terminate().unwrap();

        // A second start has nothing to remove.
        let daemon = start(node, manifests.path(), &[&run_dir]);
        assert!(daemon.said().iter().all(|line| !line.contains(" removed")));
    }
}

/// The sets that we read are those that the tool lists.
#[test]
fn ports_of_ipsets_are_those_that_the_tool_lists() {
    let netns = Netns::new().unwrap();
    let look = |work: &(dyn Fn(&mut ipvs::Ipsets) -> Vec<u16> + Sync)| {
        netns.run(|| Ok(work(&mut ipvs::Ipsets::open()?))).unwrap()
    };
    assert_eq!(
        look(&|sets| vec![u16::try_from(sets.names().unwrap().len()).unwrap()]),
        [0]
    );
    netns.sh("ipset create ports bitmap:port range 0-65535").unwrap();
    netns.sh("ipset create places hash:ip,port family inet6").unwrap();
    netns.sh("ipset add ports 30000-32767").unwrap();
    netns.sh("ipset add places 2001:db8::1,sctp:31000").unwrap();
    assert_eq!(
        look(&|sets| sets.ports("ports").unwrap()),
        (30_000..=32_767).collect::<Vec<_>>()
    );
    assert_eq!(look(&|sets| sets.ports("places").unwrap()), [31_000]);
    netns
        .run(|| {
            let mut sets = ipvs::Ipsets::open()?;
            let mut names = sets.names()?;
            names.sort();
            assert_eq!(names, ["places", "ports"]);
            assert!(sets.ports("nothing").unwrap_err().is_not_found());
            sets.destroy("nothing")?;
            sets.destroy("ports")?;
            Ok(())
        })
        .unwrap();
    assert_eq!(netns.sh("ipset list -n").unwrap().trim(), "places");
}
