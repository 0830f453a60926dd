//! How much work a change is: counted in messages and system calls, which no noise can change.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use dataplane::live::{LiveCounters, LiveKernel};
use dataplane::{DataPlane, Kernel};
use serde_json::{Value, json};
use service_model::{Change, Cluster, Event, Kind, ObjectName};
use testbed::daemon::Daemon;
use testbed::netns::{Netns, isolate};

use crate::load::{self, config, service, slice};
use crate::seen;

/// A node with services, all written.
fn node(services: u32) -> (Cluster, DataPlane<LiveKernel>) {
    let mut cluster = Cluster::new(config());
    for number in 0..services {
        cluster.apply(service(number));
        cluster.apply(slice(number, 5));
    }
    cluster.apply(Event::NodeAddresses(Vec::new()));
    let mut plane = DataPlane::new(LiveKernel::open().unwrap(), load::ROUTES_ALONE);
    plane.adopt().unwrap();
    commit(&mut cluster, &mut plane);
    (cluster, plane)
}

/// What a commit of the waiting changes cost: ops, IPVS messages, messages to rtnetlink and nf_tables, system calls.
fn commit(cluster: &mut Cluster, plane: &mut DataPlane<LiveKernel>) -> (usize, u64, u64, u64) {
    let before = plane.kernel().counters();
    for name in cluster.take_touched() {
        let program = cluster.program(&name);
        plane.want(&name, &program);
    }
    let report = plane.commit(Instant::now()).unwrap();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    let after = plane.kernel().counters();
    (
        report.total(),
        after.ipvs.messages - before.ipvs.messages,
        after.route.messages + after.nftables.messages - before.route.messages - before.nftables.messages,
        calls(&after) - calls(&before),
    )
}

fn calls(counters: &LiveCounters) -> u64 {
    counters.ipvs.system_calls + counters.route.system_calls + counters.nftables.system_calls
}

#[test]
fn one_endpoint_is_one_message_whatever_the_size() {
    let mut costs = Vec::new();
    for services in [10, 10_000] {
        isolate().unwrap();
        let (mut cluster, mut plane) = node(services);
        cluster.apply(slice(3, 6));
        let cost = commit(&mut cluster, &mut plane);
        assert_eq!((cost.0, cost.1, cost.2), (1, 1, 0));
        let added = "-a -t 10.96.0.3:80 -r 10.133.0.3:8080 -m -w 1";
        assert!(seen::ipvsadm(&Netns::current().unwrap()).contains(added));
        costs.push(cost);
        // The same again is nothing; back again is one message.
        cluster.apply(slice(3, 6));
        assert_eq!(commit(&mut cluster, &mut plane), (0, 0, 0, 0));
        cluster.apply(slice(3, 5));
        assert_eq!(commit(&mut cluster, &mut plane).1, 1);
    }
    assert_eq!(costs[0], costs[1]);
    // One sendmsg, one recvmsg.
    assert_eq!(costs[0].3, 2);
}

#[test]
fn adopting_ten_thousand_services_writes_nothing() {
    isolate().unwrap();
    let (mut cluster, plane) = node(10_000);
    drop(plane);
    for number in 0..10_000 {
        cluster.apply(Event::Service(Change::Deleted(ObjectName::new(
            "d",
            &format!("s{number}"),
        ))));
        cluster.apply(service(number));
    }
    cluster.apply(Event::Complete(Kind::Service));
    let mut plane = DataPlane::new(LiveKernel::open().unwrap(), load::ROUTES_ALONE);
    for name in cluster.take_touched() {
        plane.want(&name, &cluster.program(&name));
    }
    plane.adopt().unwrap();
    assert_eq!(plane.commit(Instant::now()).unwrap().total(), 0);
}

/// L9; what it costs, the bench tells.
#[test]
fn an_audit_of_ten_thousand_services_writes_nothing() {
    isolate().unwrap();
    let (_, mut plane) = node(10_000);
    let mut reader = LiveKernel::open().unwrap();
    plane.begin_audit();
    let snapshot = reader.read().unwrap();
    let drift = plane.audited(&snapshot);
    assert!(drift.is_empty(), "{drift}");
    assert_eq!(plane.commit(Instant::now()).unwrap().total(), 0);
}

/// The names of all system calls of the daemon's sync thread while one endpoint is added, as strace saw them. Left out:
/// waiting (futex), which strace itself interrupts, and reading the clock, which is a call in User-Mode Linux only.
fn calls_for_one_endpoint(services: u32) -> Vec<String> {
    let netns = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let object = |kind: &str, version: &str, name: &str, rest: &Value| {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        for (field, value) in rest.as_object().unwrap() {
            object[field] = value.clone();
        }
        object
    };
    let slice = |number: u32, endpoints: u8| {
        let endpoints: Vec<_> = (0..endpoints)
            .map(|endpoint| json!({"addresses": [load::pod(number, endpoint)]}))
            .collect();
        let metadata =
            json!({"name": format!("s{number}-a"), "labels": {"kubernetes.io/service-name": format!("s{number}")}});
        let rest =
            json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints});
        object("EndpointSlice", "discovery.k8s.io/v1", "", &rest)
    };
    let service = |number: u32| {
        let spec = json!({"spec": {"clusterIP": load::vip(number), "ports": [{"port": 80}]}});
        object("Service", "v1", &format!("s{number}"), &spec)
    };
    let items: Vec<_> = (0..services)
        .map(service)
        .chain((0..services).filter(|n| *n != 3).map(|n| slice(n, 5)))
        .collect();
    let write = |name: &str, value: &Value| fs::write(folder.path().join(name), value.to_string()).unwrap();
    write("all.json", &json!({"kind": "List", "apiVersion": "v1", "items": items}));
    write("one.json", &slice(3, 5));
    let path = folder.path().to_string_lossy().into_owned();
    let mut daemon = Daemon::start(
        &netns,
        &[
            "--manifests",
            &path,
            "--hostname-override",
            "n",
            "--vip-addresses=false",
        ],
    )
    .unwrap();
    daemon.wait_until_serving().unwrap();

    // The allocator gives back what the start took; let that be over.
    let before = daemon.said().len();
    write("one.json", &slice(3, 6));
    daemon.wait_for(before, " commit ").unwrap();

    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
    let sync = tasks
        .map(|task| task.unwrap().file_name().into_string().unwrap())
        .find(|task| fs::read_to_string(format!("/proc/{task}/comm")).unwrap().trim() == "sync")
        .unwrap();
    let trace = folder.path().join("trace");
    let mut strace = Command::new("strace")
        .args(["-qq", "-p", &sync, "-o"])
        .arg(&trace)
        .spawn()
        .unwrap();
    let traced = || {
        fs::read_to_string(format!("/proc/{sync}/status"))
            .unwrap()
            .contains("TracerPid:\t0\n")
    };
    while traced() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = daemon.said().len();
    write("one.json", &slice(3, 7));
    daemon.wait_for(before, " commit ").unwrap();
    // What the thread does after its line of log, it does now.
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(strace.id().try_into().unwrap()).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    strace.wait().unwrap();
    let added = "-a -t 10.96.0.3:80 -r 10.134.0.3:8080 -m -w 1";
    assert!(seen::ipvsadm(&netns).contains(added));
    let text = fs::read_to_string(trace).unwrap();
    let names = text
        .lines()
        .filter_map(|line| line.split_once('('))
        .map(|(name, _)| name.to_owned());
    // The allocator gives memory back at times of its own.
    let left_out = ["futex", "restart_syscall", "clock_gettime", "madvise"];
    names
        .filter(|name| !name.contains(' ') && !left_out.contains(&name.as_str()))
        .collect()
}

#[test]
fn one_endpoint_costs_the_daemon_the_same_calls_whatever_the_size() {
    let few = calls_for_one_endpoint(10);
    let many = calls_for_one_endpoint(10_000);
    assert_eq!(few, many);
    // The message and its answer; the line of log is another thread's.
    assert_eq!(few, ["sendto", "recvfrom"]);
}
