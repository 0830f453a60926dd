//! What somebody with the rights of a namespace does to his Services must not reach those of others: audit F2, F3, F9 and
//! F17 at once, while another Service's endpoints change.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::element::SetName;
use dataplane::rules;
use ipvs::{Ipvs, Protocol, VirtualServer};
use nftables::{Family, Nftables};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::daemon::Daemon;
use testbed::fake_api::FakeApi;
use testbed::http::get;
use testbed::netns::Netns;

use crate::daemon::eventually;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
/// Seconds of attack. The published numbers are of ten minutes.
const SECONDS: &str = "KUBE_IPVS_ATTACK_SECONDS";
/// A change is given up after that; without the bounds that this is about it takes minutes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Service of many ports, each with a name and a number of its own.
fn service(name: &str, ip: &str, ports: u16, more: &Value) -> Value {
    let ports: Vec<_> = (0..ports)
        .map(|n| json!({"name": format!("p{n}"), "protocol": "TCP", "port": 1000 + n, "targetPort": 8080}))
        .collect();
    let mut object = json!({
        "metadata": {"name": name, "namespace": "shop", "annotations": {}},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": ports},
    });
    for (field, value) in more["spec"].as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object["metadata"]["annotations"] = more["annotations"].clone();
    object
}

/// Its endpoints: the same ports at each of these addresses.
fn slice(name: &str, ports: u16, addresses: &[String]) -> Value {
    let ports: Vec<_> = (0..ports)
        .map(|n| json!({"name": format!("p{n}"), "protocol": "TCP", "port": 8080}))
        .collect();
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "metadata": {
            "name": format!("{name}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

fn pods(net: u8, count: u8) -> Vec<String> {
    (1..=count).map(|n| format!("10.244.{net}.{n}")).collect()
}

/// One turn of each attack.
fn attack(api: &FakeApi, turn: u32) {
    let odd = !turn.is_multiple_of(2);
    // F2, F3: what a change of it costs goes with the third power of its ports, and it changes all the time.
    let insiders = json!({
        "annotations": {"turn": turn.to_string()},
        "spec": {
            "externalIPs": ["203.0.113.66"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "sessionAffinity": if odd { "ClientIP" } else { "None" },
        },
    });
    api.put(SERVICES, service("insiders", "10.96.6.6", 2500, &insiders));
    // F9, F17: all real servers are others, with the scheduler that costs most.
    if turn.is_multiple_of(5) {
        let maglev = json!({"annotations": {"kube-ipvs.io/scheduler": "mh"}});
        api.put(SERVICES, service("flip", "10.96.6.7", 1000, &maglev));
        let net = if turn.is_multiple_of(10) { 66 } else { 67 };
        api.put(SLICES, slice("flip", 1000, &pods(net, 20)));
    }
}

/// A node that serves one Service, and the API server that it follows.
struct Node {
    netns: Netns,
    api: FakeApi,
    daemon: Daemon,
    _run_dir: TempDir,
}

impl Node {
    fn start() -> Self {
        let netns = Netns::new().unwrap();
        let api = FakeApi::start_on_a_thread(&netns, ([127, 0, 0, 1], 0).into()).unwrap();
        api.put(SERVICES, service("victim", "10.96.0.7", 1, &json!({})));
        api.put(SLICES, slice("victim", 1, &pods(1, 1)));
        let run_dir = tempfile::tempdir().unwrap();
        let run = format!("--run-dir={}", run_dir.path().display());
        let mut daemon = Daemon::start(&netns, &["--master", &api.url(), "--hostname-override", "n1", &run]).unwrap();
        daemon.wait_until_serving().unwrap();
        Self {
            netns,
            api,
            daemon,
            _run_dir: run_dir,
        }
    }

    /// Gives the Service the endpoint of this turn. Returns how long it took to be live; `None` = too long.
    fn change(&self, turn: usize) -> Option<Duration> {
        let address = format!("10.244.1.{}", 2 + turn % 2);
        self.api.put(SLICES, slice("victim", 1, std::slice::from_ref(&address)));
        let wanted = BTreeSet::from([SocketAddr::new(address.parse().unwrap(), 8080)]);
        self.netns.run(|| Ok(until_served(&wanted))).unwrap()
    }
}

#[test]
fn f03_f09_other_services_change_while_one_is_attacking() {
    let seconds = std::env::var(SECONDS).map_or(20, |text| text.parse().expect("a number of seconds"));
    let node = Node::start();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut live, over) = (Vec::new(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                attack(&node.api, turn);
                thread::sleep(Duration::from_secs(1));
            }
        });
        for turn in 0.. {
            if Instant::now() >= end {
                break;
            }
            let took = node.change(turn);
            let health = ["/healthz", "/livez"].map(|path| {
                let answer = get(&node.netns, ([127, 0, 0, 1], 10256).into(), path).unwrap();
                (path, answer.status)
            });
            // The attacker ends with the test, however that ends.
            let well = took.is_some() && health.iter().all(|(_, status)| *status == 200);
            over.store(!well, Ordering::Relaxed);
            assert_eq!(
                health.map(|(_, status)| status),
                [200, 200],
                "after {} changes",
                live.len()
            );
            live.push(took.expect("a change of an endpoint is live while others attack"));
            thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
    });
    live.sort_unstable();
    let at = |part: usize| live.get((live.len() * part / 100).min(live.len() - 1)).unwrap();
    let seen = node.daemon.said().len();
    println!(
        "{} changes beside the attack of {seconds} s: median {:?}, 99th percentile {:?}, longest {:?}; {seen} lines of log",
        live.len(),
        at(50),
        at(99),
        at(100),
    );
    assert!(live.len() >= 10, "{live:?}");
}

/// How long until the victim's virtual server has these real servers with weight; `None` = too long.
fn until_served(wanted: &BTreeSet<SocketAddr>) -> Option<Duration> {
    let victim = VirtualServer::Address {
        address: [10, 96, 0, 7].into(),
        port: 1000,
        protocol: Protocol::Tcp,
    };
    let mut client = Ipvs::open().unwrap();
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let reals = client.real_servers(&victim).unwrap_or_default();
        let takes = reals.iter().filter(|real| real.config.weight > 0);
        if takes.map(|real| real.server.address).collect::<BTreeSet<_>>() == *wanted {
            return Some(begin.elapsed());
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Source ranges that the kernel holds.
fn ranges_held() -> anyhow::Result<usize> {
    let set = SetName::Sources.definition(Family::Ip);
    Ok(Nftables::open()?.elements(&rules::table(Family::Ip), &set)?.len())
}

/// Audit F9: the kernel takes the longer for each source range the more there are.
#[test]
fn f09_other_services_change_while_source_ranges_come_and_go() {
    const MANY: u16 = 8_000;
    let node = Node::start();
    for (turn, number) in [(0, MANY), (1, 10)] {
        let ranges: Vec<_> = (0..number)
            // Halves that cannot be joined.
            .map(u16::to_be_bytes)
            .map(|[high, low]| format!("20.{high}.{low}.0/25"))
            .collect();
        let spec = json!({"spec": {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}});
        let mut closed = service("closed", "10.96.6.8", 1, &spec);
        closed["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.68"}]}});
        let (begin, from) = (Instant::now(), node.daemon.said().len());
        node.api.put(SERVICES, closed);
        let took = node.change(turn);
        assert!(took.is_some(), "another change is live");
        eventually(&usize::from(number), || node.netns.run(ranges_held).unwrap());
        // A commit is what others wait for: each has a share. The other change is one of them at most.
        let ops = |line: String| Some(line.split_once(" ops=")?.1.split(' ').next()?.parse().unwrap_or(0));
        let shares = node.daemon.said().into_iter().skip(from).filter_map(ops);
        let (shares, largest) = shares.fold((0, 0), |(count, most), ops: usize| (count + 1, most.max(ops)));
        assert!(
            shares >= 3 && largest < usize::from(MANY),
            "{shares} commits, {largest} at most"
        );
        println!(
            "to {number} source ranges in {:?}, {shares} commits; another change after {took:?}",
            begin.elapsed()
        );
    }
}
