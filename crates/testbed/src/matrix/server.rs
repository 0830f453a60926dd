//! Servers of one namespace: each answers with its name and the address it sees the client at, then ends.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::service::Protocol;
use crate::netns::Netns;

/// The running kernel has this protocol.
pub fn is_supported(protocol: Protocol) -> bool {
    let kind = match protocol {
        Protocol::Sctp => Some(ipproto::SCTP),
        Protocol::Tcp | Protocol::Udp => return true,
    };
    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, kind).is_ok()
}

/// A place to listen at, and what is answered there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) protocol: Protocol,
    /// `::` is all addresses of both families.
    pub(super) at: SocketAddr,
    pub(super) name: String,
}

/// Running servers. They end when this is dropped.
pub(super) struct Servers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Starts them on a thread; they listen when this returns.
    pub(super) fn start(netns: &Netns, places: Vec<Place>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let netns = netns.clone();
        let thread = std::thread::spawn(move || {
            let said = ready.clone();
            let ran = netns.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    for place in places {
                        serve(&place).with_context(|| format!("listen for {place:?}"))?;
                    }
                    let _ = ready.send(Ok(()));
                    let _ = stopped.await;
                    Ok(())
                })
            });
            if let Err(error) = ran {
                let _ = said.send(Err(error));
            }
        });
        started.recv().context("servers ended")??;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(place: &Place) -> Result<()> {
    let name = place.name.clone();
    match place.protocol {
        Protocol::Udp => {
            let socket = bound(place)?;
            // A question lost here would be blamed on the proxy.
            sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20)?;
            let socket = UdpSocket::from(socket);
            tokio::spawn(serve_datagrams(tokio::net::UdpSocket::from_std(socket)?, name));
        }
        Protocol::Tcp | Protocol::Sctp => {
            let socket = bound(place)?;
            rustix::net::listen(&socket, 1024)?;
            let listener = TcpListener::from(socket);
            tokio::spawn(serve_streams(tokio::net::TcpListener::from_std(listener)?, name));
        }
    }
    Ok(())
}

/// Two sockets on one port, one of all addresses and one of a single one, are no conflict.
fn bound(place: &Place) -> Result<OwnedFd> {
    let family = match place.at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let protocol = match place.protocol {
        Protocol::Sctp => Some(ipproto::SCTP),
        Protocol::Tcp | Protocol::Udp => None,
    };
    let kind = match place.protocol {
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Tcp | Protocol::Sctp => SocketType::STREAM,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, kind, flags, protocol)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &place.at)?;
    Ok(socket)
}

async fn serve_streams(listener: tokio::net::TcpListener, name: String) {
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let text = answer(&name, peer);
        tokio::spawn(async move {
            let _ = stream.write_all(text.as_bytes()).await;
        });
    }
}

async fn serve_datagrams(socket: tokio::net::UdpSocket, name: String) {
    let mut question = [0; 64];
    loop {
        // An error is the ICMP error of an earlier answer.
        if let Ok((_, peer)) = socket.recv_from(&mut question).await {
            let _ = socket.send_to(answer(&name, peer).as_bytes(), peer).await;
        }
    }
}

fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

/// Reads what [`Servers`] answer.
pub(super) fn parse(text: &[u8]) -> Option<(String, IpAddr)> {
    let text = std::str::from_utf8(text).ok()?;
    let (name, address) = text.trim().split_once(' ')?;
    Some((name.to_owned(), address.parse().ok()?))
}
