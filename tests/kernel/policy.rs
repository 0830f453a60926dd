//! The policy tables as a whole: their rules do not grow, the daemon needs no program for them, and they stand beside
//! those of others. What a single rule does for traffic is asked by the matrix, and, where a public issue names the
//! case, in `issues`.

mod affinity;
mod drift;
mod issues;
mod neighbors;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv6Addr;
use std::time::Instant;

use dataplane::DataPlane;
use dataplane::live::LiveKernel;
use ipvs::Counters;
use serde_json::Value;
use service_model::{
    Change, Cluster, Endpoint, Event, IpMode, LoadBalancerIngress, ObjectName, Service, ServicePort, ServiceType,
};
use testbed::daemon::Daemon;
use testbed::netns::{Netns, isolate};
use testbed::tool;
use testbed::world::{NODE, World, ask_tcp};

use crate::daemon::{eventually, examples};
use crate::load;

/// What is asked of the size of a family's table.
const MOST_RULES: usize = 60;

/// What `nft -j` lists, the objects of one kind.
fn listed(netns: &Netns, what: &str, kind: &str) -> Vec<Value> {
    let text = netns.sh(&format!("nft -j {what}")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let objects = json["nftables"].as_array().unwrap().iter();
    objects.filter_map(|object| object.get(kind)).cloned().collect()
}

/// The handles of each family's rules, in the tables of ours. A rule that is written anew gets a new one.
fn rule_handles(netns: &Netns) -> BTreeMap<String, Vec<u64>> {
    let mut found = BTreeMap::new();
    let rules = listed(netns, "-t list ruleset", "rule");
    for rule in rules.iter().filter(|rule| rule["table"] == "kube-ipvs") {
        let family = rule["family"].as_str().unwrap().to_owned();
        let handles: &mut Vec<u64> = found.entry(family).or_default();
        handles.push(rule["handle"].as_u64().unwrap());
    }
    found
}

/// Elements of a set of the IPv4 table, or of a map.
fn elements(netns: &Netns, (kind, name): (&str, &str)) -> usize {
    let found = listed(netns, &format!("list {kind} ip kube-ipvs {name}"), kind);
    found[0]["elem"].as_array().map_or(0, Vec::len)
}

/// A load balancer of both families, alike in length of every address whatever its number.
fn balancer(number: u32, ranges: &[&str]) -> Event {
    let mut service = Service::new(ObjectName::new("d", &format!("s{number}")));
    let [_, _, high, low] = number.to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 1, high.into(), low.into());
    service.cluster_ips.extend([load::vip(number), v6.into()]);
    service.service_type = ServiceType::LoadBalancer;
    service.load_balancer_ingress.push(LoadBalancerIngress {
        position: 0,
        ip: [11, 0, high, low].into(),
        mode: IpMode::Vip,
    });
    service.source_ranges = ranges.iter().map(|range| range.parse().ok()).collect();
    service.ports.push(ServicePort {
        position: 0,
        name: "".into(),
        protocol: service_model::Protocol::Tcp,
        port: 80,
        node_port: 0,
    });
    Event::Service(Change::Applied(service))
}

/// Its slice: so many endpoints elsewhere, so many on this node.
fn endpoints(number: u32, far: u8, near: u8) -> Event {
    let mut event = load::slice(number, far + near);
    if let Event::EndpointSlice(Change::Applied(slice)) = &mut event {
        let here = slice.endpoints.iter_mut().skip(far.into());
        here.for_each(|endpoint: &mut Endpoint| endpoint.node_name = Some("n".into()));
    }
    event
}

/// What nf_tables got for the waiting changes.
fn commit(cluster: &mut Cluster, plane: &mut DataPlane<LiveKernel>) -> Counters {
    let before = plane.kernel().counters().nftables;
    for name in cluster.take_touched() {
        let program = cluster.program(&name);
        plane.want(&name, &program);
    }
    let report = plane.commit(Instant::now()).unwrap();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    let after = plane.kernel().counters().nftables;
    Counters {
        messages: after.messages - before.messages,
        bytes: after.bytes - before.bytes,
        system_calls: after.system_calls - before.system_calls,
    }
}

/// One change after another of one service among so many: rules of each family, and what each change cost.
fn costs(services: u32) -> (BTreeMap<String, usize>, Vec<(&'static str, Counters)>) {
    isolate().unwrap();
    let netns = Netns::current().unwrap();
    let mut cluster = Cluster::new(load::config());
    for number in 0..services {
        cluster.apply(balancer(number, &[]));
        cluster.apply(endpoints(number, 1, 0));
    }
    cluster.apply(Event::NodeAddresses(Vec::new()));
    cluster.apply(Event::OtherNodesComplete);
    let mut plane = DataPlane::new(LiveKernel::open().unwrap(), load::ROUTES_ALONE);
    plane.adopt().unwrap();
    commit(&mut cluster, &mut plane);
    let rules = rule_handles(&netns);
    // The set is as large as the test thinks.
    assert_eq!(
        elements(&netns, ("set", "services")),
        2 * usize::try_from(services).unwrap()
    );

    let mut found = Vec::new();
    let small = [
        ("set", "hairpin"),
        ("map", "verdicts"),
        ("set", "restricted"),
        ("set", "sources"),
    ];
    let mut step = |what: &'static str, events: Vec<Event>, expect: [usize; 4]| {
        events.into_iter().for_each(|event| cluster.apply(event));
        let cost = commit(&mut cluster, &mut plane);
        assert_eq!(small.map(|set| elements(&netns, set)), expect, "{what}: {small:?}");
        found.push((what, cost));
    };
    let narrow = balancer(3, &["192.0.2.0/24", "10.0.0.0/8"]);
    let wide = balancer(3, &["192.0.0.0/16", "10.0.0.0/8"]);
    step("a remote endpoint", vec![endpoints(3, 2, 0)], [0, 0, 0, 0]);
    step("a local endpoint", vec![endpoints(3, 2, 1)], [1, 0, 0, 0]);
    step("none left", vec![endpoints(3, 0, 0)], [0, 2, 0, 0]);
    step("back again", vec![endpoints(3, 1, 0)], [0, 0, 0, 0]);
    step("source ranges", vec![narrow], [0, 0, 1, 2]);
    step("other ranges", vec![wide], [0, 0, 1, 2]);
    let gone = Event::Service(Change::Deleted(ObjectName::new("d", "s3")));
    step("gone", vec![gone], [0, 0, 0, 0]);
    step("new", vec![balancer(3, &[])], [0, 0, 0, 0]);
    // Elements alone were written: no rule has another handle.
    assert_eq!(rule_handles(&netns), rules);
    let counts = rules.into_iter().map(|(family, handles)| (family, handles.len()));
    (counts.collect(), found)
}

#[test]
fn rules_do_not_grow_with_services() {
    let (few, many) = (costs(10), costs(5_000));
    assert_eq!(few, many);
    let (rules, costs) = many;
    assert_eq!(rules.keys().collect::<Vec<_>>(), ["ip", "ip6"]);
    assert!(
        rules.values().all(|count| (10..=MOST_RULES).contains(count)),
        "{rules:?}"
    );
    let (what, remote) = costs[0];
    assert_eq!((what, remote), ("a remote endpoint", Counters::default()), "IPVS alone");
    for (what, cost) in &costs[1..] {
        // A transaction is one sendmsg and at least one recvmsg: at most what adds, and what removes.
        assert!((2..=4).contains(&cost.system_calls), "{what}: {cost:?}");
        assert!(cost.messages > 2, "{what}: {cost:?}");
    }
}

/// The lines of a trace of `execve` over a daemon's life.
fn executed(world: &World, more: &[&str]) -> Vec<String> {
    let manifests = examples();
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let trace = trace.to_string_lossy();
    let path = manifests.path().to_string_lossy();
    // -D: the tracer is the grandchild, so that the child that gets SIGTERM is the daemon.
    let strace = ["strace", "-D", "-f", "-e", "trace=execve,execveat", "-o", &trace];
    let arguments = [&["--manifests", &path, "--hostname-override", NODE], more].concat();
    let mut daemon = Daemon::start_by(&world.node, &strace, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    let expected_host_rules = usize::from(more.iter().any(|argument| argument.ends_with("=always")));
    eventually(&true, || {
        daemon.said().iter().filter(|line| line.contains("host rules")).count() >= 4 * expected_host_rules
    });

    let vip = "10.96.1.1:80".parse().unwrap();
    ask_tcp(&world.client, vip).unwrap();
    let file = manifests.path().join("20-web.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("10.244.1.12], nodeName: node-a", "10.244.2.12], nodeName: node-b"),
    )
    .unwrap();
    let serves =
        |real: &str| crate::seen::ipvsadm(&world.node).contains(&format!("-a -t 10.96.1.1:80 -r {real} -m -w 1"));
    eventually(&true, || serves("10.244.2.12:8080"));
    fs::remove_file(&file).unwrap();
    eventually(&false, || crate::seen::routes(&world.node).contains("10.96.1.1"));
    world.node.sh("ip addr add 198.51.100.77/32 dev lo").unwrap();
    let node_port = |line: &String| line.starts_with("-A -t 198.51.100.77:30080");
    eventually(&true, || crate::seen::ipvsadm(&world.node).iter().any(node_port));
    world.node.sh("ip addr del 198.51.100.77/32 dev lo").unwrap();

    let id = daemon.id();
    let (status, said) = daemon.terminate().unwrap();
    assert!(status.success(), "{said:?}");
    let read = || fs::read_to_string(&*trace).unwrap();
    let ended = |line: &str| line.starts_with(&id.to_string()) && line.contains("+++ exited with 0 +++");
    eventually(&true, || read().lines().any(ended));
    read()
        .lines()
        .filter(|line| line.contains("exec"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_daemon_executes_nothing() {
    let world = World::new().unwrap();
    for more in [&["--iptables-forward-accept=never"][..], &[]] {
        let lines = executed(&world, more);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains("kube-ipvs"), "{lines:?}");
    }
    // The trace does see what is executed.
    let lines = executed(&world, &["--iptables-forward-accept=always"]);
    let programs: BTreeSet<_> = lines.iter().filter(|line| line.contains("tables")).collect();
    assert!(lines.len() > 2 && !programs.is_empty(), "{lines:#?}");
}

/// What people do by hand: list one set or chain by its name, and load what `plan` prints, which is promised to be what
/// `nft -f -` takes. Not the rules on `sources`: nft 1.0.6 makes of them what no kernel takes (a byte order of one byte).
#[test]
fn nft_takes_our_names_and_what_is_planned() {
    let world = World::new().unwrap();
    let manifests = examples();
    let path = manifests.path().to_string_lossy();
    let arguments = ["--manifests", &path, "--hostname-override", NODE];
    let mut daemon = Daemon::start(&world.node, &arguments).unwrap();
    daemon.wait_until_serving().unwrap();
    let word = |object: &Value, field: &str| object[field].as_str().unwrap().to_owned();
    let mut names = 0;
    for kind in ["set", "map", "chain"] {
        for object in listed(&world.node, "-t list ruleset", kind) {
            let (family, name) = (word(&object, "family"), word(&object, "name"));
            let line = format!("nft list {kind} {family} kube-ipvs {name}");
            assert!(world.node.sh(&line).unwrap().contains(&name));
            names += 1;
        }
    }
    assert_eq!(names, 2 * (14 + 10));

    let plan = crate::daemon::plan(manifests.path(), &[]);
    let begins = |line: &&str| ["add ", "delete "].iter().any(|verb| line.starts_with(verb));
    let policies: Vec<_> = plan
        .lines()
        .filter(begins)
        .filter(|line| !line.contains("@sources"))
        .collect();
    assert!(policies.len() > 80, "{plan}");
    let script = policies.join("\n");
    world.node.run(|| tool::feed(&["nft", "-f", "-"], &script)).unwrap();
}
