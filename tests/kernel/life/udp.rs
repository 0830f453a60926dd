//! L8: datagrams of a stream that never pauses go where the service leads, within a moment of each change.

use std::io::Write;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use testbed::world::NODE;

use super::*;

/// Datagrams a second, from a few ports that never change: each a flow that is never idle.
const RATE: u32 = 20_000;
const PORTS: usize = 4;
/// Shorter than the half minute after which the kernel forgets a flow without answers: what follows by then alone was not
/// ended.
const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER_IP: &str = "10.96.9.9:53";
/// The service's external IP, whose policy is Local.
const EXTERNAL_IP: &str = "203.0.113.99:53";

/// Somebody who sends without end, and hears who answers.
struct Stream {
    stop: Arc<AtomicBool>,
    sockets: Vec<Arc<UdpSocket>>,
    sender: Option<JoinHandle<()>>,
}

impl Stream {
    fn start(from: &Netns, to: &'static str) -> Self {
        let sockets: Vec<_> = (0..PORTS)
            .map(|_| {
                let socket = from.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
                socket.set_nonblocking(true).unwrap();
                Arc::new(socket)
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, sending) = (Arc::clone(&stop), sockets.clone());
        let sender = thread::spawn(move || {
            // Sleep is as coarse as the kernel's clock: what is due is sent at once.
            let (start, mut sent) = (Instant::now(), 0_u128);
            while !stopped.load(Ordering::Relaxed) {
                let due = start.elapsed().as_micros() * u128::from(RATE) / 1_000_000;
                while sent < due {
                    for socket in &sending {
                        let _ = socket.send_to(b"who?", to);
                        sent += 1;
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
            let seconds = start.elapsed().as_secs_f64();
            let _ = writeln!(std::io::stderr(), "{sent} datagrams to {to} in {seconds:.1} s");
        });
        Self {
            stop,
            sockets,
            sender: Some(sender),
        }
    }

    /// Who has answered each port lately; what waited is thrown away.
    fn heard(&self) -> Vec<BTreeSet<String>> {
        let mut text = [0; 128];
        for socket in &self.sockets {
            while socket.recv(&mut text).is_ok() {}
        }
        thread::sleep(Duration::from_millis(200));
        let names = |socket: &Arc<UdpSocket>| {
            let mut all = BTreeSet::new();
            while let Ok(length) = socket.recv(&mut text) {
                let said = String::from_utf8_lossy(&text[..length]).into_owned();
                all.insert(said.split(' ').next().unwrap().to_owned());
            }
            all
        };
        self.sockets.iter().map(names).collect()
    }

    /// Waits until every port is answered by one of these alone, or by nobody.
    fn settles(&self, by: &[&str]) {
        let begin = Instant::now();
        let deadline = begin + PATIENCE;
        loop {
            let heard = self.heard();
            let right = |names: &BTreeSet<String>| match by {
                [] => names.is_empty(),
                _ => names.len() == 1 && names.iter().all(|name| by.contains(&name.as_str())),
            };
            if heard.iter().all(right) {
                let _ = writeln!(std::io::stderr(), "{by:?} after {:.2} s", begin.elapsed().as_secs_f64());
                return;
            }
            assert!(Instant::now() < deadline, "expected {by:?}, heard {heard:?}");
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

/// A UDP service with these endpoints; `None` = it is not there.
fn write(manifests: &Path, endpoints: Option<&[&str]>) {
    let file = manifests.join("99-udp.yaml");
    let Some(endpoints) = endpoints else {
        return fs::write(file, "").unwrap();
    };
    let list: Vec<_> = endpoints
        .iter()
        .map(|ip| {
            let node = if ip.starts_with("10.244.1.") { NODE } else { "node-b" };
            format!("- {{addresses: [{ip}], nodeName: {node}}}\n")
        })
        .collect();
    let endpoints = if list.is_empty() {
        " []".to_owned()
    } else {
        format!("\n{}", list.concat())
    };
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: stream, namespace: udp}}\n\
         spec: {{type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.9.9, externalIPs: [203.0.113.99],\n  \
         ports: [{{port: 53, nodePort: 30053, protocol: UDP}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: stream-1, namespace: udp, labels: {{kubernetes.io/service-name: stream}}}}\n\
         addressType: IPv4\nports: [{{port: 5353, protocol: UDP}}]\nendpoints:{endpoints}\n"
    );
    fs::write(file, text).unwrap();
}

const A1: &str = "10.244.1.11";
const A2: &str = "10.244.1.12";
const B1: &str = "10.244.2.11";

/// k/k#139628, k/k PR#141275, #139629: every transition of a service whose clients never pause.
#[test]
fn udp_stream_follows_every_change() {
    let world = World::new().unwrap();
    let manifests = examples();
    for client in [&world.client_pod, &world.client] {
        write(manifests.path(), None);
        let _daemon = start(&world.node, manifests.path(), &[]);
        // The flows are older than the service: they went nowhere.
        let stream = Stream::start(client, CLUSTER_IP);
        stream.settles(&[]);
        let to = |endpoints: Option<&[&str]>, by: &[&str]| {
            write(manifests.path(), endpoints);
            stream.settles(by);
        };
        to(Some(&[A1]), &["pod-a1"]);
        // Healthy flows stay where they are.
        to(Some(&[A1, A2]), &["pod-a1"]);
        to(Some(&[A2]), &["pod-a2"]);
        to(Some(&[]), &[]);
        to(Some(&[A1]), &["pod-a1"]);
        to(None, &[]);
        // Again, and the old pod's address is another's meanwhile.
        to(Some(&[A2]), &["pod-a2"]);
        to(Some(&[A1]), &["pod-a1"]);
        to(None, &[]);
    }
}

/// NAT is decided when a flow begins: an insider who was redirected from an external IP would stay with an endpoint that
/// is gone. Without the flush this test fails; the one above does not, since IPVS ends the flows of its own connections.
#[test]
fn udp_flows_from_before_a_redirect_are_redirected() {
    let world = World::new().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &["--cluster-cidr=10.244.0.0/16"]);
    let stream = Stream::start(&world.client_pod, EXTERNAL_IP);
    stream.settles(&[]);
    for _ in 0..2 {
        write(manifests.path(), Some(&[B1]));
        stream.settles(&["pod-b1"]);
        write(manifests.path(), Some(&[A1]));
        stream.settles(&["pod-a1"]);
        write(manifests.path(), Some(&[]));
        stream.settles(&[]);
        write(manifests.path(), Some(&[A2]));
        stream.settles(&["pod-a2"]);
        write(manifests.path(), None);
        stream.settles(&[]);
    }
}

/// UDP flows that the node's connection tracker has to this port, by their destination.
fn flows_to(node: &Netns, port: u16) -> BTreeSet<String> {
    let table = node
        .run(|| Ok(fs::read_to_string("/proc/thread-self/net/nf_conntrack")?))
        .unwrap();
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let mut field = |name: &str| words.find_map(|word| word.strip_prefix(name).map(str::to_owned));
        let (to, number) = (field("dst=")?, field("dport=")?);
        (line.contains(" udp ") && number == port.to_string()).then_some(to)
    };
    table.lines().filter_map(of).collect()
}

/// kubernetes/kubernetes#139629, #141371: kube-proxy tells a NodePort's flows by the port's number, so it leaves them where no
/// endpoint is left; with the node's addresses they end, and what passes through to that number of another host goes on.
#[test]
fn udp_flows_to_a_node_port_end_and_no_strangers() {
    const OWN: &str = "192.0.2.10";
    const STRANGER: &str = "192.0.2.20";
    let world = Mode::Nft.world();
    // Nothing runs out while it is looked at.
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        let set = format!("sysctl -qw net.netfilter.nf_conntrack_{timeout}=3600");
        world.node.sh(&set).unwrap();
    }
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &[Mode::Nft.flag(), &run_dir(&manifests)]);
    let both: BTreeSet<_> = [OWN, STRANGER].map(str::to_owned).into();
    let client = world.client.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    for after in [Some(&[][..]), None] {
        write(manifests.path(), Some(&[A1]));
        // Until the rules stand, the flow goes nowhere, and is ended when they do.
        eventually(&true, || {
            client.send_to(b"who?", (OWN, 30_053)).unwrap();
            client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            client.recv(&mut [0; 128]).is_ok()
        });
        client.send_to(b"who?", (STRANGER, 30_053)).unwrap();
        eventually(&both, || flows_to(&world.node, 30_053));
        write(manifests.path(), after);
        eventually(&[STRANGER.to_owned()].into(), || flows_to(&world.node, 30_053));
    }
}
