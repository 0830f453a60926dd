//! All servers as the daemon runs them, on loopback, with clients that hold them up.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use service_model::{HealthCheck, NodePortPlaces, ObjectName};
use tokio::net::TcpSocket;

use super::*;
use crate::metrics::Metrics;
use crate::mode::Choice;
use crate::progress::Progress;

/// Connections that are held at each port.
const HELD: usize = 2000;
/// Addresses that they come from, each with many more than a source gets.
const SOURCES: usize = 40;
/// A kubelet waits for so long; who waits for the heads of those that came before waits for much longer.
const PATIENCE: Duration = Duration::from_secs(5);

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Servers of all kinds, on a thread as long as the process lives: their ports, and their metrics.
fn start() -> ([SocketAddr; 3], Arc<Metrics>) {
    let ports = [free_port(), free_port(), free_port()];
    let progress = Arc::new(Progress::new());
    progress.set_serving();
    let choice = Choice::as_requested(Mode::Iptables);
    let metrics = Arc::new(Metrics::new(choice, Arc::clone(&progress), Vec::new()));
    let check = HealthCheck {
        port: ports[2].port(),
        v4: Some(1),
        v6: None,
    };
    let places = NodePortPlaces::At(vec![Ipv4Addr::LOCALHOST.into()]);
    let (health_checks, checks) = watch::channel(Arc::new(HealthChecks {
        services: [(ObjectName::new("shop", "web"), check)].into(),
        places: [Some(places), None],
    }));
    let servers = Servers {
        settings: ServerSettings {
            healthz: Some(ports[0]),
            metrics: Some(ports[1]),
            ..ServerSettings::default()
        },
        mode: Mode::Iptables,
        readers: Readers {
            progress,
            metrics: Arc::clone(&metrics),
            health_checks,
        },
        checks,
        sink: EventSink::null(),
        node_name: "n1".to_owned(),
        health_timeout: Duration::from_secs(600),
        verbosity: Verbosity::of_nobody().1,
    };
    thread::spawn(|| runtime().block_on(servers.run()));
    let begin = Instant::now();
    while ports.iter().any(|port| TcpStream::connect(port).is_err()) {
        assert!(begin.elapsed() < 10 * PATIENCE, "nobody listens");
        thread::sleep(Duration::from_millis(20));
    }
    (ports, metrics)
}

/// Connects, sends half a request, waits until the server ends it, and begins again: half a second later, so that this
/// is about who holds connections and not about who has more processors.
async fn hold(number: usize, to: SocketAddr) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        let source = Ipv4Addr::new(127, 0, 1, u8::try_from(number % SOURCES).unwrap());
        socket.bind((source, 0).into()).unwrap();
        if let Ok(stream) = socket.connect(to).await {
            let _ = stream.try_write(b"GET /livez HTTP/1.1\r\nHost: x\r\n");
            let _ = stream.readable().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn probe(to: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}

#[test]
fn f04_probes_are_answered_while_thousands_of_connections_are_held() {
    allow_descriptors();
    let (ports, metrics) = start();
    thread::spawn(move || {
        runtime().block_on(async {
            for number in 0..HELD {
                for port in ports {
                    tokio::spawn(hold(number, port));
                }
            }
            pending::<()>().await;
        });
    });
    // All of them were there.
    let begin = Instant::now();
    while (0..3).any(|server| metrics.own.evicted.at(server).get() < HELD as u64) {
        assert!(begin.elapsed() < 10 * PATIENCE, "connections are not ended");
        thread::sleep(Duration::from_millis(20));
    }
    let mut took = Vec::new();
    for port in ports.iter().cycle().take(60) {
        let begin = Instant::now();
        // As often as the kubelet does. Where this process gets no processor for long, a probe is the oldest connection.
        let mut tries = (0..3).map(|_| probe(*port, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"));
        let answer = tries.find_map(Result::ok).unwrap();
        took.push(begin.elapsed());
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    took.sort();
    println!("{} probes: median {:?}, longest {:?}", took.len(), took[30], took[59]);
}

#[test]
fn f04_who_sends_half_a_head_is_cut_off() {
    let (ports, _) = start();
    let mut stream = TcpStream::connect(ports[0]).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    // The time is five seconds. It was thirty.
    stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    let ended = stream.read_to_end(&mut Vec::new());
    assert!(ended.is_ok(), "{ended:?}");
}
