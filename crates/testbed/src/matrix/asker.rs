//! Clients: one question by TCP, UDP, SCTP or ICMP echo from the namespace of the calling thread, and what came of it.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::server;
use super::service::Protocol;

/// What came of one question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Came {
    /// The name of who answered, and the source it saw.
    Answer(String, IpAddr),
    /// An echo reply.
    Echo,
    /// Refused at the first packet.
    Refused,
    /// Refused after packets were sent again.
    RefusedLate,
    /// An error that says that there is no way.
    Unreachable(String),
    /// Nothing.
    Silence,
    /// Something else.
    Odd(String),
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(name, source) => write!(f, "{name} (seeing {source})"),
            Self::Echo => f.write_str("an echo reply"),
            Self::Refused => f.write_str("refused at once"),
            Self::RefusedLate => f.write_str("refused late, after retransmission"),
            Self::Unreachable(why) => write!(f, "unreachable ({why})"),
            Self::Silence => f.write_str("silence"),
            Self::Odd(what) => f.write_str(what),
        }
    }
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Transport(Protocol),
    Echo,
}

/// Asks once, from a new port.
pub(super) async fn ask(by: By, to: SocketAddr, patience: Duration) -> Came {
    let asked = async {
        match by {
            By::Transport(Protocol::Udp) => by_datagram(to).await,
            By::Transport(protocol) => by_stream(protocol, to).await,
            By::Echo => by_echo(to.ip()).await,
        }
    };
    match timeout(patience, asked).await {
        Err(_) => Came::Silence,
        Ok(Ok(came)) => came,
        Ok(Err(error)) => came_of(&error),
    }
}

fn came_of(error: &anyhow::Error) -> Came {
    let Some(io) = error.downcast_ref::<Error>() else {
        return Came::Odd(format!("{error:#}"));
    };
    match io.kind() {
        ErrorKind::ConnectionRefused => Came::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
            Came::Unreachable(io.to_string())
        }
        _ => Came::Odd(io.to_string()),
    }
}

async fn by_stream(protocol: Protocol, to: SocketAddr) -> Result<Came> {
    let kind = match protocol {
        Protocol::Sctp => Some(ipproto::SCTP),
        Protocol::Tcp | Protocol::Udp => None,
    };
    let socket = TcpStream::from(socket(to.ip(), SocketType::STREAM, kind)?);
    if protocol == Protocol::Sctp {
        rustix::net::bind(&socket, &SocketAddr::new(own_address(to.ip())?, 0)).context("bind")?;
    }
    // tokio closes its own descriptor where the connection fails; this one still tells how.
    let kept = socket.try_clone()?;
    let mut stream = match TcpSocket::from_std_stream(socket).connect(to).await {
        Ok(stream) => stream,
        Err(error) => {
            let came = came_of(&error.into());
            let again = protocol == Protocol::Tcp && retransmissions(&kept) > 0;
            return Ok(if came == Came::Refused && again {
                Came::RefusedLate
            } else {
                came
            });
        }
    };
    drop(kept);
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await?;
    answer(&text)
}

/// The address by which this host speaks to the world. SCTP's first chunk lists every address of a socket that is bound
/// to none, on a node all VIPs on kube-ipvs0: some sixty of IPv6 do not fit a packet, which cannot be fragmented then.
fn own_address(to: IpAddr) -> Result<IpAddr> {
    let (any, world): (IpAddr, IpAddr) = match to {
        IpAddr::V4(_) => ([0; 4].into(), [198, 51, 100, 250].into()),
        IpAddr::V6(_) => ([0_u16; 8].into(), [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1].into()),
    };
    let probe = UdpSocket::bind((any, 0))?;
    probe.connect((world, 9)).context("a way to the world")?;
    Ok(probe.local_addr()?.ip())
}

async fn by_datagram(to: SocketAddr) -> Result<Came> {
    let socket = datagrams(to, None)?;
    match socket.send(b"who?").await {
        // What a filter of the host itself drops or rejects is told as EPERM; an ICMP error comes on top of it.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let mut text = [0; 128];
    let length = socket.recv(&mut text).await?;
    answer(text.get(..length).unwrap_or_default())
}

async fn by_echo(to: IpAddr) -> Result<Came> {
    let (protocol, request, reply) = match to {
        IpAddr::V4(_) => (ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (ipproto::ICMPV6, 128, 129),
    };
    let socket = datagrams((to, 0).into(), Some(protocol))?;
    // The kernel writes checksum and identifier.
    socket
        .send(&[request, 0, 0, 0, 0, 0, 0, 1, b'e', b'c', b'h', b'o'])
        .await?;
    let mut packet = [0; 128];
    socket.recv(&mut packet).await?;
    Ok(match packet.first() {
        Some(kind) if *kind == reply => Came::Echo,
        kind => Came::Odd(format!("ICMP of type {kind:?}")),
    })
}

fn datagrams(to: SocketAddr, protocol: Option<rustix::net::Protocol>) -> Result<tokio::net::UdpSocket> {
    let socket = socket(to.ip(), SocketType::DGRAM, protocol)?;
    rustix::net::connect(&socket, &to).map_err(Error::from)?;
    Ok(tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?)
}

fn socket(to: IpAddr, kind: SocketType, protocol: Option<rustix::net::Protocol>) -> Result<OwnedFd> {
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, kind, flags, protocol).context("make a socket")
}

fn answer(text: &[u8]) -> Result<Came> {
    Ok(match server::parse(text) {
        Some((name, source)) => Came::Answer(name, source),
        None => Came::Odd(format!(
            "an answer of somebody else: {:?}",
            String::from_utf8_lossy(text)
        )),
    })
}

/// Segments that were sent again on a TCP socket.
#[allow(
    unsafe_code,
    reason = "rustix has no TCP_INFO; the call fills a buffer of plain numbers"
)]
fn retransmissions(socket: &impl AsFd) -> u32 {
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: the structure is of integers, for which zero is a value; the kernel writes at most `length` bytes of it,
    // and the descriptor is open while it is borrowed.
    let (status, info) = unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let descriptor = socket.as_fd().as_raw_fd();
        let place = std::ptr::from_mut(&mut info).cast();
        let status = libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length);
        (status, info)
    };
    if status == 0 { info.tcpi_total_retrans } else { 0 }
}
