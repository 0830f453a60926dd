//! Measures, on a real kernel: the kernel part of a cold start beside its floor, a cold start from a real API server,
//! and the way of an endpoint's change from the API server to the kernel. Prints; decides nothing.
//!
//! `cargo xtask bench` runs it. Arguments: number of services, number of changes; and `iptables` for that mode alone.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for a person"
)]

#[path = "bench/iptables.rs"]
mod iptables;
#[path = "kernel/load.rs"]
mod load;

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::fake::FakeKernel;
use dataplane::live::LiveKernel;
use dataplane::{DataPlane, Kernel, Op};
use ipvs::{Ipvs, Protocol, VipCommand, Vips, VirtualServer};
use serde_json::{Value, json};
use service_model::{Cluster, Event};
use testbed::control_plane::{self, ControlPlane};
use testbed::daemon::Daemon;
use testbed::netns::{Netns, isolate};
use testbed::world::{NODE, World};

const ENDPOINTS: u8 = 5;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let services: u32 = arguments.next().unwrap_or(10_000);
    let changes: usize = arguments.next().unwrap_or(200).try_into().unwrap();
    println!("{services} services × {ENDPOINTS} endpoints");
    if std::env::args().any(|word| word == "iptables") {
        return iptables::measure(services);
    }
    for round in 1..=3 {
        kernel_part(services, round);
    }
    restart(services);
    match control_plane::program() {
        Ok(program) => from_an_api_server(&program, services, changes),
        Err(error) => println!("no control plane: {error:#}"),
    }
}

/// The same messages by the data plane, and by a loop that does nothing else.
fn kernel_part(services: u32, round: u32) {
    let commands = load::table(services, ENDPOINTS);
    let routes: Vec<_> = (0..services)
        .map(|number| VipCommand::AddRoute(load::vip(number)))
        .collect();

    let policies = policies(services);

    isolate().unwrap();
    let (mut ipvs, mut vips) = (Ipvs::open().unwrap(), Vips::open().unwrap());
    vips.ensure_device().unwrap();
    let mut tables = LiveKernel::open().unwrap();
    let start = Instant::now();
    assert!(tables.execute(&policies).unwrap().iter().all(Result::is_ok));
    assert!(ipvs.execute(&commands).unwrap().iter().all(Result::is_ok));
    assert!(vips.execute(&routes).unwrap().iter().all(Result::is_ok));
    let floor = start.elapsed();
    drop((ipvs, vips, tables));

    isolate().unwrap();
    let mut plane = DataPlane::new(LiveKernel::open().unwrap(), load::ROUTES_ALONE);
    plane.adopt().unwrap();
    let mut cluster = Cluster::new(load::config());
    let start = Instant::now();
    for number in 0..services {
        cluster.apply(load::service(number));
        cluster.apply(load::slice(number, ENDPOINTS));
    }
    cluster.apply(Event::NodeAddresses(Vec::new()));
    for name in cluster.take_touched() {
        let program = cluster.program(&name);
        plane.want(&name, &program);
    }
    let model = start.elapsed();
    let start = Instant::now();
    let report = plane.commit(Instant::now()).unwrap();
    let commit = start.elapsed();
    let messages = commands.len() + routes.len() + policies.len();
    assert_eq!(report.total(), messages);
    let counters = plane.kernel().counters();
    println!(
        "kernel part, round {round}: {messages} messages; floor {:.3} s; commit {:.3} s ({:.2}×, {:.0} messages/s, {} system calls); model and ledger before it {:.3} s",
        floor.as_secs_f64(),
        commit.as_secs_f64(),
        commit.as_secs_f64() / floor.as_secs_f64(),
        messages as f64 / commit.as_secs_f64(),
        counters.ipvs.system_calls + counters.route.system_calls + counters.nftables.system_calls,
        model.as_secs_f64(),
    );
    let mut reader = LiveKernel::open().unwrap();
    plane.begin_audit();
    let start = Instant::now();
    let snapshot = reader.read().unwrap();
    let read = start.elapsed();
    let drift = plane.audited(&snapshot);
    assert!(drift.is_empty(), "{drift}");
    println!(
        "  audit: read beside the sync thread in {:.3} s, compared in it in {:.3} s",
        read.as_secs_f64(),
        (start.elapsed() - read).as_secs_f64(),
    );
}

/// A process that takes over from one that was killed, with nothing changed; and its first change after it.
fn restart(services: u32) {
    let netns = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, objects: &[Value]| {
        let list = json!({"kind": "List", "apiVersion": "v1", "items": objects});
        fs::write(folder.path().join(name), list.to_string()).unwrap();
    };
    let all = (1..services).flat_map(|number| objects(number, &endpoints(number)));
    write("all.json", &all.collect::<Vec<_>>());
    write("one.json", &objects(0, &endpoints(0)));
    let path = folder.path().to_string_lossy().into_owned();
    for what in ["cold start", "restart"] {
        let start = Instant::now();
        let mut daemon = Daemon::start(&netns, &["--manifests", &path, "--hostname-override", NODE]).unwrap();
        let said = daemon.wait_until_serving().unwrap();
        let serving = start.elapsed();
        assert_eq!(what == "restart", said.contains("written=0"), "{said}");
        let from = daemon.said().len();
        let mut more = endpoints(0);
        more.push(format!("10.200.0.{}", what.len()));
        write("one.json", &objects(0, &more));
        daemon.wait_for(from, " commit ").unwrap();
        println!(
            "{what} from a directory: serving after {:.2} s, the first change written after {:.2} s ({})",
            serving.as_secs_f64(),
            start.elapsed().as_secs_f64(),
            said.split_whitespace()
                .filter(|word| word.starts_with("written="))
                .collect::<String>(),
        );
        write("one.json", &objects(0, &endpoints(0)));
        let from = daemon.said().len();
        daemon.wait_for(from, " commit ").unwrap();
        wait_for_addresses(&netns, services);
    }
}

/// A service and its slice.
fn objects(number: u32, endpoints: &[String]) -> [Value; 2] {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")}});
    service["spec"] = json!({"clusterIP": cluster_ip(number), "ports": [{"port": 80, "targetPort": 8080}]});
    let mut slice = slice(number, endpoints);
    slice["apiVersion"] = "discovery.k8s.io/v1".into();
    slice["kind"] = "EndpointSlice".into();
    [service, slice]
}

/// What the policy tables get: rules, and three elements a service.
fn policies(services: u32) -> Vec<Op> {
    let mut plane = DataPlane::new(FakeKernel::new(), load::ROUTES_ALONE);
    let mut cluster = Cluster::new(load::config());
    for number in 0..services {
        cluster.apply(load::service(number));
        cluster.apply(load::slice(number, ENDPOINTS));
    }
    for name in cluster.take_touched() {
        plane.want(&name, &cluster.program(&name));
    }
    let plan = plane.plan(Instant::now());
    let ops = plan.ops().iter().filter(|op| matches!(op, Op::Policy(_)));
    ops.cloned().collect()
}

fn from_an_api_server(program: &std::path::Path, services: u32, changes: usize) {
    let world = World::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(program, &world.other, "192.0.2.20", folder.path()).unwrap();
    plane
        .create("/api/v1/nodes", &json!({"metadata": {"name": NODE}}))
        .unwrap();
    let start = Instant::now();
    create(&world.other, services);
    println!("objects created in {:.0} s", start.elapsed().as_secs_f64());

    let kubeconfig = plane.kubeconfig.to_string_lossy().into_owned();
    let start = Instant::now();
    let mut daemon = Daemon::start(&world.node, &["--kubeconfig", &kubeconfig, "--hostname-override", NODE]).unwrap();
    let serving = daemon.wait_until_serving().unwrap();
    println!(
        "cold start from the API server, process start to every VIP live: {:.2} s",
        start.elapsed().as_secs_f64()
    );
    println!("  {serving}");
    for line in daemon.said().iter().filter(|line| line.contains(" commit ")) {
        println!("  {line}");
    }
    println!("  peak memory {} KiB", peak_memory(daemon.id()));
    wait_for_addresses(&world.node, services);
    println!(
        "  every address on kube-ipvs0 after {:.1} s; peak memory {} KiB",
        start.elapsed().as_secs_f64(),
        peak_memory(daemon.id())
    );

    let mut latencies: Vec<(Duration, Duration)> = (0..changes).map(|number| change(&world, number)).collect();
    for (name, of) in [
        (
            "from sending the request",
            (|pair: &(Duration, Duration)| pair.0) as fn(&(Duration, Duration)) -> Duration,
        ),
        ("from the API server's answer", |pair| pair.1),
    ] {
        latencies.sort_by_key(of);
        let at = |share: usize| of(&latencies[(latencies.len() - 1) * share / 100]).as_secs_f64() * 1000.0;
        println!(
            "endpoint change to kernel, {name}: median {:.2} ms, 99th percentile {:.2} ms, largest {:.2} ms ({changes} changes)",
            at(50),
            at(99),
            at(100)
        );
    }
    println!("  peak memory {} KiB", peak_memory(daemon.id()));
    daemon.terminate().unwrap();
}

/// By four connections at a time.
fn create(netns: &Netns, services: u32) {
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                netns
                    .run(|| {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= services {
                                return Ok(());
                            }
                            let name = format!("s{number}");
                            let service = json!({"metadata": {"name": name}, "spec": {"clusterIP": cluster_ip(number), "ports": [{"port": 80, "targetPort": 8080}]}});
                            post("/api/v1/namespaces/default/services", &service);
                            post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice(number, &endpoints(number)));
                        }
                    })
                    .unwrap();
            });
        }
    });
}

fn post(path: &str, object: &Value) {
    let (status, body) = control_plane::request("POST", path, Some(object)).unwrap();
    assert_eq!(status, 201, "{body}");
}

/// Clear of the first addresses, which the cluster has taken for itself.
fn cluster_ip(number: u32) -> String {
    let [_, _, high, low] = (number + 256).to_be_bytes();
    format!("10.96.{high}.{low}")
}

fn endpoints(number: u32) -> Vec<String> {
    (0..ENDPOINTS)
        .map(|endpoint| load::pod(number, endpoint).to_string())
        .collect()
}

fn slice(number: u32, addresses: &[String]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {"name": format!("s{number}-a"), "labels": {"kubernetes.io/service-name": format!("s{number}")}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
    })
}

/// Adds an endpoint to a service; returns the time to the kernel from the request, and from its answer.
fn change(world: &World, number: usize) -> (Duration, Duration) {
    let service = u32::try_from(number * 47 % 10_000).unwrap();
    let mut addresses = endpoints(service);
    addresses.push(load::pod(service, ENDPOINTS + 1).to_string());
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/s{service}-a");
    let body = slice(service, &addresses);
    let server = VirtualServer::Address {
        address: cluster_ip(service).parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let watcher = world.node.clone();
    let (ready, start_now) = std::sync::mpsc::channel();
    let seen = thread::spawn(move || {
        watcher
            .run(|| {
                let mut ipvs = Ipvs::open()?;
                ready.send(())?;
                let deadline = Instant::now() + Duration::from_secs(60);
                while ipvs.real_servers(&server)?.len() != usize::from(ENDPOINTS) + 1 {
                    assert!(Instant::now() < deadline, "the change does not arrive");
                    thread::sleep(Duration::from_micros(100));
                }
                Ok(Instant::now())
            })
            .unwrap()
    });
    start_now.recv().unwrap();
    let (sent, answered) = world
        .other
        .run(|| {
            let sent = Instant::now();
            let (status, text) = control_plane::request("PUT", &path, Some(&body))?;
            assert_eq!(status, 200, "{text}");
            Ok((sent, Instant::now()))
        })
        .unwrap();
    let seen = seen.join().unwrap();
    (seen.duration_since(sent), seen.saturating_duration_since(answered))
}

fn wait_for_addresses(node: &Netns, services: u32) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let count = node
            .sh("ip -4 -br -o addr show dev kube-ipvs0")
            .unwrap()
            .split_whitespace()
            .count();
        if count >= usize::try_from(services).unwrap() || Instant::now() > deadline {
            return;
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn peak_memory(id: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or_default()
        .trim()
        .trim_end_matches(" kB")
        .to_owned()
}
