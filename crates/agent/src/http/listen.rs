//! Listening sockets, of both families where the address is unspecified, and what happens where there is none.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::TcpListener;
use tracing::warn;

/// Wait until an address that cannot be bound is tried again: upstream's.
pub(crate) const RETRY: Duration = Duration::from_secs(5);
/// As Go's programs: what the kernel allows (`net.core.somaxconn`, 4096 by default).
const BACKLOG: i32 = 4096;

/// Which packets a socket of an unspecified address takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// Both, as Go's programs do.
    Both,
    /// Its own.
    Own,
}

/// The address cannot be bound, and that ends the program.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}")]
pub(crate) struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on an address.
///
/// # Errors
/// It is taken, or not there.
pub(crate) fn open(address: SocketAddr, families: Families) -> io::Result<TcpListener> {
    if families == Families::Both && address.ip().is_unspecified() {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match socket(any, Some(false)) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                return socket(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), None);
            }
            done => return done,
        }
    }
    let only = matches!(address.ip(), IpAddr::V6(_)).then_some(true);
    socket(address, only)
}

fn socket(address: SocketAddr, v6_only: Option<bool>) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if let Some(only) = v6_only {
        sockopt::set_ipv6_v6only(&socket, only)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Listens, and tries again as long as the address cannot be bound.
///
/// # Errors
/// It cannot be bound and `hard_fail` says that this ends the program.
pub(crate) async fn insist(
    what: impl fmt::Display,
    address: SocketAddr,
    hard_fail: bool,
) -> Result<TcpListener, CannotListen> {
    loop {
        match open(address, Families::Both) {
            Ok(listener) => return Ok(listener),
            Err(source) if hard_fail => return Err(CannotListen { address, source }),
            Err(error) => {
                warn!(server = %what, %address, %error, "cannot listen, trying again in {} s", RETRY.as_secs());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
