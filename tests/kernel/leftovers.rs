//! What a kube-proxy in IPVS mode leaves, made by hand in the shapes of its source (pkg/proxy/ipvs/proxier.go), and what
//! the kubelet and a network policy have beside it.

use testbed::netns::Netns;
use testbed::tool;

/// Type of each ipset, by its name without `KUBE-` and `KUBE-6-`.
const SETS: [(&str, &str); 17] = [
    ("LOOP-BACK", "hash:ip,port,ip"),
    ("CLUSTER-IP", "hash:ip,port"),
    ("EXTERNAL-IP", "hash:ip,port"),
    ("EXTERNAL-IP-LOCAL", "hash:ip,port"),
    ("LOAD-BALANCER", "hash:ip,port"),
    ("LOAD-BALANCER-FW", "hash:ip,port"),
    ("LOAD-BALANCER-LOCAL", "hash:ip,port"),
    ("LOAD-BALANCER-SOURCE-IP", "hash:ip,port,ip"),
    ("LOAD-BALANCER-SOURCE-CIDR", "hash:ip,port,net"),
    ("NODE-PORT-TCP", "bitmap:port range 0-65535"),
    ("NODE-PORT-LOCAL-TCP", "bitmap:port range 0-65535"),
    ("NODE-PORT-UDP", "bitmap:port range 0-65535"),
    ("NODE-PORT-LOCAL-UDP", "bitmap:port range 0-65535"),
    ("NODE-PORT-SCTP-HASH", "hash:ip,port"),
    ("NODE-PORT-LOCAL-SCTP-HASH", "hash:ip,port"),
    ("HEALTH-CHECK-NODE-PORT", "bitmap:port range 0-65535"),
    ("IPVS-IPS", "hash:ip"),
];

const RULES: &str = r#"*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -m comment --comment "Kubernetes service lb portal" -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-NWPLCY-ABC - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j KUBE-ROUTER-FORWARD
-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
-A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-NWPLCY-ABC -m set --match-set KUBE-SRC-ABC src -j ACCEPT
-A KUBE-PROXY-FIREWALL -m comment --comment "Kubernetes service load balancer ip + port for load balancer with sourceRange" -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
-A KUBE-ROUTER-FORWARD -j KUBE-NWPLCY-ABC
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
"#;

/// Lines with these are the kubelet's or a network policy's.
const OTHERS: [&str; 8] = [
    "KUBE-KUBELET-CANARY",
    "KUBE-MARK-DROP",
    "KUBE-FIREWALL",
    "KUBE-IPTABLES-HINT",
    "KUBE-ROUTER",
    "KUBE-NWPLCY",
    "*",
    "COMMIT",
];

/// A name as kube-proxy gives it in a family: 31 characters at most.
pub(crate) fn set_name(family: u8, set: &str) -> String {
    let prefix = if family == 4 { "KUBE-" } else { "KUBE-6-" };
    format!("{prefix}{set}").chars().take(31).collect()
}

fn restore(netns: &Netns, words: &[&str], text: &str) {
    netns.run(|| tool::feed(words, text)).unwrap();
}

/// What stays of others.
pub(crate) fn make_others(netns: &Netns, backend: &str) {
    let is_others = |line: &&str| OTHERS.iter().any(|part| line.contains(part));
    let rules: Vec<_> = RULES.lines().filter(is_others).collect();
    make_rules(netns, backend, &(rules.join("\n") + "\n"));
}

fn make_rules(netns: &Netns, backend: &str, rules: &str) {
    for (program, src) in [("iptables", "KUBE-SRC-ABC"), ("ip6tables", "inet6:KUBE-SRC-ABC")] {
        let rules = rules.replace("KUBE-SRC-ABC", src);
        let rules = if program == "iptables" {
            rules
        } else {
            rules.replace("--match-set KUBE-", "--match-set KUBE-6-")
        };
        let family = if program == "iptables" { "inet" } else { "inet6" };
        restore(
            netns,
            &["ipset", "restore", "-exist"],
            &format!("create {src} hash:ip family {family}\n"),
        );
        restore(netns, &[&format!("{program}-{backend}-restore"), "--noflush"], &rules);
    }
}

/// All of kube-proxy's beside what [`make_others`] makes, which is to be there. NodePorts: TCP 30080 and 31999 of both
/// families, SCTP 31998 of IPv4.
pub(crate) fn make(netns: &Netns, backend: &str) {
    let mut sets = String::new();
    for (family, name) in [(4, "inet"), (6, "inet6")] {
        for (set, kind) in SETS {
            let more = if kind.starts_with("hash") {
                format!(" family {name} hashsize 1024 maxelem 65536")
            } else {
                String::new()
            };
            sets += &format!("create {} {kind}{more}\n", set_name(family, set));
        }
        let tcp = set_name(family, "NODE-PORT-TCP");
        sets += &format!("add {tcp} 30080\nadd {tcp} 31999\n");
    }
    sets += "add KUBE-NODE-PORT-SCTP-HASH 192.0.2.10,sctp:31998\n";
    sets += "add KUBE-CLUSTER-IP 10.96.1.1,tcp:80\nadd KUBE-IPVS-IPS 10.96.1.1\nadd KUBE-IPVS-IPS 10.96.9.9\n";
    restore(netns, &["ipset", "restore"], &sets);
    let is_theirs = |line: &&str| !OTHERS[..OTHERS.len() - 2].iter().any(|part| line.contains(part));
    let rules: Vec<_> = RULES.lines().filter(is_theirs).collect();
    make_rules(netns, backend, &(rules.join("\n") + "\n"));
}

/// kube-proxy's virtual servers and addresses: one service that `deploy/examples` has, one that it has not, and a
/// NodePort of each.
pub(crate) fn make_virtual_servers(netns: &Netns) {
    netns.sh("ip link add kube-ipvs0 type dummy").unwrap();
    for address in ["10.96.1.1/32", "10.96.9.9/32", "fd00:10:96::999/128"] {
        netns.sh(&format!("ip addr add {address} dev kube-ipvs0")).unwrap();
    }
    for place in [
        "-t 10.96.1.1:80",
        "-t 10.96.9.9:80",
        "-t [fd00:10:96::999]:80",
        "-t 192.0.2.10:30080",
        "-t 192.0.2.10:31999",
        "-t [2001:db8::10]:31999",
        "--sctp-service 192.0.2.10:31998",
    ] {
        netns.sh(&format!("ipvsadm -A {place} -s rr")).unwrap();
    }
    netns.sh("ipvsadm -a -t 10.96.1.1:80 -r 10.244.1.11:8080 -m").unwrap();
    netns
        .sh("ipvsadm -a -t 192.0.2.10:31999 -r 10.244.1.11:8080 -m")
        .unwrap();
}
