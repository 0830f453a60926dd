//! L9, L10: what others delete or change by hand comes back; what is theirs stays.

use std::thread;
use std::time::Duration;

use super::*;

/// Routes, addresses and the device at once, by notification: no audit comes for an hour.
#[test]
fn routes_and_addresses_that_others_delete_come_back_at_once() {
    let world = World::new().unwrap();
    let manifests = examples();
    let node = &world.node;
    let mut daemon = start(node, manifests.path(), &["--ipvs-sync-period=1h"]);
    let routes = seen::routes(node);
    let addresses: BTreeSet<String> = routes
        .iter()
        .map(|ip| format!("{ip}/{}", if ip.contains(':') { 128 } else { 32 }))
        .collect();
    eventually(&addresses, || seen::addresses(node));
    let harm = [
        "ip route del local 10.96.1.1 dev lo table local proto 163",
        "ip -6 route del local fd00:10:96::101 dev lo table local proto 163",
        "ip addr del 10.96.1.1/32 dev kube-ipvs0",
        "ip addr del fd00:10:96::101/128 dev kube-ipvs0",
        "ip addr flush dev kube-ipvs0",
        "ip route flush table local proto 163",
        "ip link del kube-ipvs0",
    ];
    for line in harm {
        // One change is told in several pieces, of which a late one is taken for another: it may come now.
        thread::sleep(Duration::from_secs(1));
        let from = daemon.said().len();
        node.sh(line).unwrap();
        daemon.wait_for(from, "somebody else changed").unwrap();
        daemon.wait_for(from, "not as kube-ipvs programmed it").unwrap();
        eventually(&routes, || seen::routes(node));
        // Until the device is there again `ip` knows none.
        eventually(&true, || node.sh("ip link show kube-ipvs0").is_ok());
        eventually(&addresses, || seen::addresses(node));
        assert!(ask_tcp(&world.client, web()).is_ok(), "{line}");
    }
    // What we remove ourselves is nobody's disturbance.
    let from = daemon.said().len();
    fs::remove_file(manifests.path().join("20-web.yaml")).unwrap();
    daemon.wait_for(from, " commit ").unwrap();
    eventually(&false, || seen::addresses(node).contains("10.96.1.1/32"));
    assert!(!daemon.said()[from..].iter().any(|line| line.contains("somebody else")));
}

/// By the audit.
#[test]
fn what_others_change_is_repaired() {
    for mode in Mode::ALL {
        let world = mode.world();
        let manifests = examples();
        let node = &world.node;
        let run_dir = run_dir(&manifests);
        let mut daemon = start(
            node,
            manifests.path(),
            &[
                mode.flag(),
                "--ipvs-sync-period=1s",
                "--iptables-sync-period=1s",
                &run_dir,
            ],
        );
        let whole = mode.picture(node);
        assert!(whole.len() > 20, "{whole:#?}");
        for line in harm(mode) {
            let from = daemon.said().len();
            node.sh(&line).unwrap();
            daemon.wait_for(from, "not as kube-ipvs programmed it").unwrap();
            eventually(&whole, || mode.picture(node));
            ask_tcp(&world.client, web()).unwrap_or_else(|error| panic!("{line}: {error:#}"));
        }
    }
}

/// `sysctl --system`, a tuning daemon, a person: without `vs/conntrack` masqueraded connections to VIPs go astray.
#[test]
fn f08_sysctls_that_others_change_come_back() {
    let world = World::new().unwrap();
    let manifests = examples();
    let node = &world.node;
    let flags = ["--ipvs-sync-period=1s", "--ipvs-strict-arp", &run_dir(&manifests)];
    let mut daemon = start(node, manifests.path(), &flags);
    for (name, wanted, other) in [
        ("net/ipv4/vs/conntrack", "1", "0"),
        ("net/ipv4/vs/expire_nodest_conn", "1", "0"),
        ("net/ipv4/vs/expire_quiescent_template", "1", "0"),
        ("net/ipv4/ip_forward", "1", "0"),
        ("net/ipv4/conf/all/arp_ignore", "1", "0"),
        ("net/ipv4/conf/all/arp_announce", "2", "1"),
    ] {
        let value = || node.sh(&format!("cat /proc/sys/{name}")).unwrap().trim().to_owned();
        assert_eq!(value(), wanted, "{name}");
        let from = daemon.said().len();
        let path = format!("/proc/sys/{name}");
        node.run(|| Ok(fs::write(path, other)?)).unwrap();
        let line = daemon.wait_for(from, "not as kube-ipvs programmed it").unwrap();
        assert!(line.contains("sysctls=1"), "{line}");
        assert_eq!(value(), wanted, "{name}");
    }
    ask_tcp(&world.client, web()).unwrap();
}

fn harm(mode: Mode) -> Vec<String> {
    let Some(suffix) = mode.suffix() else {
        return [
            "-D -t 10.96.1.1:80",
            "-d -t 10.96.1.1:80 -r 10.244.1.11:8080",
            "-e -t 10.96.1.1:80 -r 10.244.1.11:8080 -m -w 7",
            "-e -t 10.96.1.1:80 -r 10.244.1.11:8080 -m -w 0",
            "-a -t 10.96.1.1:80 -r 10.244.9.9:8080 -m",
            "-E -t 10.96.1.1:80 -s lc",
            "-E -t 10.96.1.1:80 -s rr -p 60",
            "-A -t 10.96.1.1:81 -s rr",
            "-C",
        ]
        .map(|words| format!("ipvsadm {words}"))
        .into();
    };
    let rules = [
        "iptables -t nat -F KUBE-SERVICES",
        "iptables -t nat -D PREROUTING 1",
        "iptables -F INPUT",
        "iptables -F",
        "ip6tables -t nat -F",
        "iptables -t nat -I KUBE-SERVICES -d 192.0.2.99 -j RETURN",
        "iptables -t nat -N KUBE-SVC-AAAAAAAAAAAAAAAA",
    ];
    let of_mode = |line: &str| line.replacen("tables ", &format!("tables{suffix} "), 1);
    let mut all: Vec<_> = rules.map(of_mode).into();
    all.extend((mode == Mode::Nft).then(|| "nft flush ruleset".to_owned()));
    all
}

/// k/k#55857, kube-proxy#6: at other addresses, beside ours, through start, churn and audits.
#[test]
fn what_others_programmed_stays() {
    let world = World::new().unwrap();
    let manifests = examples();
    let node = &world.node;
    for line in [
        "ipvsadm -A -t 192.0.2.10:9999 -s wlc -p 60",
        "ipvsadm -a -t 192.0.2.10:9999 -r 10.244.1.11:8080 -g -w 5",
        "ipvsadm -A -f 7 -s rr",
        "ipvsadm -A -u 203.0.113.200:53 -s lc",
        "ip addr add 203.0.113.200/32 dev lo",
        "ip route add local 203.0.113.201 dev lo table local proto 99",
        "nft add table ip other",
        "nft add set ip other vips { type ipv4_addr; elements = { 10.96.1.1 } }",
    ] {
        node.sh(line).unwrap();
    }
    let servers = seen::ipvsadm(node);
    assert_eq!(servers.len(), 4);
    let theirs = || -> Vec<String> {
        let mut all: Vec<_> = seen::ipvsadm(node).intersection(&servers).cloned().collect();
        all.push(node.sh("ip route show table local proto 99").unwrap());
        all.push(node.sh("ip addr show dev lo").unwrap());
        all.push(node.sh("nft list table ip other").unwrap());
        all
    };
    let before = theirs();
    let mut daemon = start(node, manifests.path(), &["--ipvs-sync-period=1s"]);
    assert_eq!(theirs(), before, "at start");
    for round in 0..3 {
        let from = daemon.said().len();
        set_first_endpoint(manifests.path(), round % 2 == 1);
        // A commit that met the harm would make it good without a word.
        daemon.wait_for(from, " commit ").unwrap();
        let from = daemon.said().len();
        // One repair is one audit that has seen everything.
        node.sh("ipvsadm -D -t 10.96.1.1:80").unwrap();
        daemon.wait_for(from, "not as kube-ipvs programmed it").unwrap();
        assert_eq!(theirs(), before, "round {round}");
    }
}
