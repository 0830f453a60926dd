//! All fourteen schedulers (T21): chosen by annotation, read back with ipvsadm, and for six their effect where traffic
//! can tell them apart.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};

use service_model::Scheduler;
use tempfile::TempDir;
use testbed::daemon::Daemon;
use testbed::netns::Netns;
use testbed::world::{self, NODE, World};

use crate::seen;

const PODS: [&str; 3] = ["10.244.1.11", "10.244.1.12", "10.244.2.11"];

/// The VIP of a scheduler's service.
fn vip(scheduler: Scheduler) -> SocketAddr {
    let number = Scheduler::ALL.iter().position(|other| *other == scheduler).unwrap();
    format!("10.96.2.{}:80", number + 1).parse().unwrap()
}

/// A world with one service per scheduler, each with three endpoints, and the folder that they are read from.
fn start() -> (World, Daemon, TempDir) {
    let world = World::new().unwrap();
    let manifests = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for scheduler in Scheduler::ALL {
        let endpoints: Vec<_> = PODS.iter().map(|pod| format!("{{addresses: [{pod}]}}")).collect();
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {scheduler}, annotations: {{kube-ipvs.io/scheduler: {scheduler}}}}}\n\
             spec: {{clusterIP: {}, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: {scheduler}, labels: {{kubernetes.io/service-name: {scheduler}}}}}\n\
             ports: [{{port: 8080}}]\nendpoints: [{}]\n",
            vip(*scheduler).ip(),
            endpoints.join(", ")
        )
        .unwrap();
    }
    fs::write(manifests.path().join("all.yaml"), text).unwrap();
    let path = manifests.path().to_string_lossy().into_owned();
    let mut daemon = Daemon::start(&world.node, &["--manifests", &path, "--hostname-override", NODE]).unwrap();
    daemon.wait_until_serving().unwrap();
    (world, daemon, manifests)
}

#[test]
fn t21_every_scheduler_is_set_and_read_back() {
    let (world, _daemon, _manifests) = start();
    let table = seen::ipvsadm(&world.node);
    for scheduler in Scheduler::ALL {
        let flags = if *scheduler == Scheduler::Maglev {
            " -b mh-fallback,mh-port"
        } else {
            ""
        };
        let line = format!("-A -t {} -s {scheduler}{flags}", vip(*scheduler));
        assert!(table.contains(&line), "{line} is not in {table:?}");
    }
    assert_eq!(table.len(), 14 * 4);
}

/// Opens a connection, learns who answers, and keeps it open.
fn hold(client: &Netns, to: SocketAddr) -> (TcpStream, String) {
    use std::io::Read;
    let mut stream = world::open(client, to).unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    (
        stream,
        String::from_utf8(text).unwrap().split(' ').next().unwrap().to_owned(),
    )
}

fn once(client: &Netns, to: SocketAddr) -> String {
    world::ask_tcp(client, to).unwrap().0
}

fn distinct(names: &[String]) -> usize {
    names.iter().collect::<BTreeSet<_>>().len()
}

#[test]
fn t21_effects_of_the_schedulers_that_kube_proxy_names() {
    let (world, _daemon, _manifests) = start();
    let client = &world.client;

    // rr: one after the other, whatever is open.
    let names: Vec<_> = (0..6).map(|_| once(client, vip(Scheduler::RoundRobin))).collect();
    assert_eq!(distinct(&names[..3]), 3);
    assert_eq!(names[..3], names[3..]);

    // dh: the destination alone decides, so one endpoint serves every client.
    let to = vip(Scheduler::DestinationHashing);
    let names: Vec<_> = [client, &world.client_pod]
        .iter()
        .flat_map(|client| (0..4).map(|_| once(client, to)))
        .collect();
    assert_eq!(distinct(&names), 1);

    // sh: the source's address alone decides. One client has one endpoint; many clients have several.
    let to = vip(Scheduler::SourceHashing);
    assert_eq!(distinct(&(0..6).map(|_| once(client, to)).collect::<Vec<_>>()), 1);
    let mut names = Vec::new();
    for last in 100..116 {
        client.sh(&format!("ip addr add 198.18.0.{last}/24 dev eth0")).unwrap();
        client
            .sh(&format!(
                "ip route replace {}/32 via 198.18.0.1 src 198.18.0.{last}",
                to.ip()
            ))
            .unwrap();
        names.push(once(client, to));
    }
    assert!(distinct(&names) > 1, "{names:?}");

    // lc, sed, nq: open connections count, so three open ones are on three endpoints, and the next goes to the one that
    // lost its own. (rr would have gone on to the next.)
    for scheduler in [
        Scheduler::LeastConnection,
        Scheduler::ShortestExpectedDelay,
        Scheduler::NeverQueue,
    ] {
        let mut open: Vec<_> = (0..3).map(|_| hold(client, vip(scheduler))).collect();
        assert_eq!(
            distinct(&open.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>()),
            3,
            "{scheduler}"
        );
        for _ in 0..3 {
            let (stream, name) = open.remove(1);
            world::answer_rest(stream).unwrap();
            wait_for_active(&world.node, vip(scheduler), 2);
            let next = hold(client, vip(scheduler));
            assert_eq!(next.1, name, "{scheduler}");
            open.insert(1, next);
        }
    }

    // lc counts closed connections that are remembered, too; sed and nq do not: with none open they stay with one.
    let spread = |scheduler| {
        let names: Vec<_> = (0..3)
            .map(|_| {
                wait_for_active(&world.node, vip(scheduler), 0);
                once(client, vip(scheduler))
            })
            .collect();
        distinct(&names)
    };
    assert_eq!(spread(Scheduler::ShortestExpectedDelay), 1);
    assert_eq!(spread(Scheduler::NeverQueue), 1);
    assert!(spread(Scheduler::LeastConnection) > 1);
}

/// Waits until a virtual server has so many active connections: the end of one arrives a moment after it was closed.
fn wait_for_active(node: &Netns, server: SocketAddr, count: u32) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let text = node.sh(&format!("ipvsadm -Ln -t {server}")).unwrap();
        let active: u32 = text
            .lines()
            .filter(|line| line.trim().starts_with("->") && line.contains("Masq"))
            .filter_map(|line| line.split_whitespace().nth(4)?.parse::<u32>().ok())
            .sum();
        if active == count {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
