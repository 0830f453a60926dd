//! A small world of namespaces: a node under test with two pods and a client pod, another host with two pods, and a
//! client outside. Both families everywhere. `deploy/examples` describes services on just these addresses.
//!
//! Pods hang on links of their own, as with a routed CNI, so replies pass the node. The other host and the client
//! route everything through it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::link::link;
use crate::netns::Netns;

/// Name of the node under test.
pub const NODE: &str = "node-a";
/// Addresses of the node's interfaces.
pub const NODE_ADDRESSES: &[&str] = &[
    "10.244.1.1",
    "192.0.2.10",
    "198.18.0.1",
    "2001:db8::10",
    "2001:db8:1::1",
];
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(3);
const TCP_PORTS: &[u16] = &[8080, 5353, 6443, 8443];
const UDP_PORTS: &[u16] = &[5353];

/// A pod that serves.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// What its servers answer.
    pub name: &'static str,
    /// Its IPv4 address.
    pub v4: &'static str,
    /// Its IPv6 address.
    pub v6: &'static str,
    /// On the node under test.
    pub local: bool,
}

/// All of them.
pub const PODS: &[Pod] = &[
    Pod {
        name: "pod-a1",
        v4: "10.244.1.11",
        v6: "fd00:10:244:1::11",
        local: true,
    },
    Pod {
        name: "pod-a2",
        v4: "10.244.1.12",
        v6: "fd00:10:244:1::12",
        local: true,
    },
    Pod {
        name: "pod-b1",
        v4: "10.244.2.11",
        v6: "fd00:10:244:2::11",
        local: false,
    },
    Pod {
        name: "pod-b2",
        v4: "10.244.2.12",
        v6: "fd00:10:244:2::12",
        local: false,
    },
];

/// The world. Its servers answer as long as the process lives.
pub struct World {
    /// The node under test.
    pub node: Netns,
    /// A pod of the node, which only asks: 10.244.1.21, fd00:10:244:1::21.
    pub client_pod: Netns,
    /// The other host: 192.0.2.20, 2001:db8::20.
    pub other: Netns,
    /// A client that no cluster knows: 198.18.0.2, 2001:db8:1::2.
    pub client: Netns,
}

impl World {
    /// Builds it.
    ///
    /// # Errors
    /// Not root, or a tool or kernel feature is missing.
    pub fn new() -> Result<Self> {
        let world = Self::without_pods()?;
        for pod in PODS {
            if pod.local {
                let netns = Netns::new()?;
                world.add_pod(&netns, pod.name, pod.v4, pod.v6)?;
                serve(&netns, pod)?;
            } else {
                world.other.sh(&format!("ip addr add {}/32 dev lo", pod.v4))?;
                world.other.sh(&format!("ip addr add {}/128 dev lo nodad", pod.v6))?;
                serve(&world.other, pod)?;
            }
        }
        Ok(world)
    }

    /// Builds it without [`PODS`] and their servers.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn without_pods() -> Result<Self> {
        let world = Self {
            node: Netns::new()?,
            client_pod: Netns::new()?,
            other: Netns::new()?,
            client: Netns::new()?,
        };
        let node = &world.node;
        node.sh("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0")?;
        let links = [
            (
                &world.other,
                "to-other",
                "192.0.2.10/24 2001:db8::10/64",
                "192.0.2.20/24 2001:db8::20/64",
            ),
            (
                &world.client,
                "to-client",
                "198.18.0.1/24 2001:db8:1::1/64",
                "198.18.0.2/24 2001:db8:1::2/64",
            ),
        ];
        for (far, name, near_addresses, far_addresses) in links {
            link(node, name, far, "eth0")?;
            let near: Vec<_> = near_addresses.split(' ').collect();
            for address in &near {
                node.sh(&format!("ip addr add {address} dev {name} nodad"))?;
            }
            for address in far_addresses.split(' ') {
                far.sh(&format!("ip addr add {address} dev eth0 nodad"))?;
            }
            for address in near {
                let gateway = address.split('/').next().unwrap_or_default();
                far.sh(&format!("ip route add default via {gateway}"))?;
            }
        }
        node.sh("ip route add 10.244.2.0/24 via 192.0.2.20")?;
        node.sh("ip route add fd00:10:244:2::/64 via 2001:db8::20")?;
        world.add_pod(&world.client_pod, "to-asker", "10.244.1.21", "fd00:10:244:1::21")?;
        Ok(world)
    }

    /// Hangs a namespace on the node, by an interface of this name there.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_pod(&self, pod: &Netns, name: &str, v4: &str, v6: &str) -> Result<()> {
        link(&self.node, name, pod, "eth0")?;
        for line in [
            format!("ip addr add 10.244.1.1/32 dev {name}"),
            format!("ip addr add fe80::1/64 dev {name} nodad"),
            format!("ip route add {v4}/32 dev {name}"),
            format!("ip route add {v6}/128 dev {name}"),
        ] {
            self.node.sh(&line)?;
        }
        for line in [
            format!("ip addr add {v4}/32 dev eth0"),
            format!("ip addr add {v6}/128 dev eth0 nodad"),
            "ip route add 10.244.1.1 dev eth0 scope link".to_owned(),
            "ip route add default via 10.244.1.1".to_owned(),
            "ip route add default via fe80::1 dev eth0".to_owned(),
        ] {
            pod.sh(&line)?;
        }
        Ok(())
    }
}

/// Answers on all ports of a pod with its name and who asked.
fn serve(netns: &Netns, pod: &Pod) -> Result<()> {
    netns.run(|| {
        for address in [pod.v4, pod.v6] {
            let address: IpAddr = address.parse()?;
            for port in TCP_PORTS {
                let listener =
                    TcpListener::bind((address, *port)).with_context(|| format!("listen on {address}:{port}"))?;
                let name = pod.name;
                thread::spawn(move || serve_tcp(&listener, name));
            }
            for port in UDP_PORTS {
                let socket = UdpSocket::bind((address, *port)).with_context(|| format!("bind {address}:{port}"))?;
                let name = pod.name;
                thread::spawn(move || serve_udp(&socket, name));
            }
        }
        Ok(())
    })
}

/// A program of a host: answers by TCP on a port of all its addresses, of both families, as a pod does.
///
/// # Errors
/// The port is taken.
pub fn serve_host(netns: &Netns, port: u16, name: &'static str) -> Result<()> {
    netns.run(|| {
        let any: IpAddr = [0_u16; 8].into();
        let listener = TcpListener::bind((any, port)).with_context(|| format!("listen on port {port}"))?;
        thread::spawn(move || serve_tcp(&listener, name));
        Ok(())
    })
}

fn serve_tcp(listener: &TcpListener, name: &'static str) {
    for stream in listener.incoming().flatten() {
        // A client that keeps its connection open must not hold up others.
        thread::spawn(move || {
            let mut stream = stream;
            let Ok(peer) = stream.peer_addr() else { return };
            let _ = stream.write_all(format!("{name} {peer}\n").as_bytes());
            let mut rest = [0; 64];
            while stream.read(&mut rest).is_ok_and(|length| length != 0) {}
        });
    }
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut question = [0; 512];
    loop {
        match socket.recv_from(&mut question) {
            Ok((_, peer)) => drop(socket.send_to(format!("{name} {peer}\n").as_bytes(), peer)),
            // An ICMP error of an earlier answer.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Asks by TCP and returns who answered, and from which address it saw the question.
///
/// # Errors
/// Refused, unreachable, or no answer in three seconds.
pub fn ask_tcp(from: &Netns, to: SocketAddr) -> Result<(String, String)> {
    from.run(|| answer(connect(to)?))
}

/// Opens a TCP connection from a namespace.
///
/// # Errors
/// As [`ask_tcp`].
pub fn open(from: &Netns, to: SocketAddr) -> Result<TcpStream> {
    from.run(|| connect(to))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads the answer of an open connection and closes it.
///
/// # Errors
/// No answer in three seconds, or not one of ours.
pub fn answer(mut stream: TcpStream) -> Result<(String, String)> {
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read the answer")?;
    split(&text)
}

/// Ends a connection whose answer was read, and waits for the other side's end.
///
/// # Errors
/// It does not come in three seconds.
pub fn answer_rest(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).context("read to the end")?;
    Ok(())
}

/// Asks by UDP from a new port and returns what [`ask_tcp`] does.
///
/// # Errors
/// As [`ask_tcp`].
pub fn ask_udp(from: &Netns, to: SocketAddr) -> Result<(String, String)> {
    from.run(|| {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"who?")?;
        let mut text = [0; 512];
        let length = socket.recv(&mut text).with_context(|| format!("an answer of {to}"))?;
        split(&String::from_utf8_lossy(text.get(..length).unwrap_or_default()))
    })
}

fn split(text: &str) -> Result<(String, String)> {
    match text.trim().split_once(' ') {
        Some((name, peer)) => Ok((name.to_owned(), peer.to_owned())),
        None => bail!("an answer of somebody else: {text:?}"),
    }
}

/// The kind of an I/O error anywhere in a chain: refused, unreachable or silent.
pub fn kind_of(error: &anyhow::Error) -> Option<ErrorKind> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind)
}
