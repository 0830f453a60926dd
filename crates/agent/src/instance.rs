//! One kube-ipvs for each network namespace (L22). Two of them would undo each other's rules for ever where they differ
//! by version or flags.
//!
//! The process that serves has an abstract Unix socket of a fixed name. Such a name is the network namespace's, as all that we write
//! is, needs no file, and is free again when the process ends in whatever way (unix(7)). Nothing is read or
//! written there: a process that waits keeps a connection, which the kernel ends with the socket.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;
use tokio::net::UnixStream;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::config::SecondInstance;

const NAME: &[u8] = b"kube-ipvs";
/// Before the next try, where the kernel does not tell when the other one ends.
const PAUSE: Duration = Duration::from_secs(1);
/// Before the next try, where it told.
const SETTLE: Duration = Duration::from_millis(50);

/// This process is the one. It is until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _socket: UnixListener,
}

/// The process that has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    /// As this process sees it; 0 = in a PID namespace that it does not see into.
    pid: i32,
    uid: u32,
}

impl Holder {
    /// Whoever has no more rights than a guest of the node must not keep the node's proxy from its work.
    fn counts(self, own: u32) -> bool {
        self.uid == 0 || self.uid == own
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("of another PID namespace"),
            pid => write!(f, "process {pid}"),
        }
    }
}

/// What a look at the lock gave.
enum Look {
    Mine(Lock),
    /// Another process has it. The connection ends with that process; none where it cannot be made.
    Theirs(Option<(UnixStream, Holder)>),
    /// A process without root's rights has the name.
    Squatter(Holder),
}

/// Takes the lock, or waits for it, or errs, as is asked; `waits` is told when a wait begins and ends. `None` = there is no
/// lock to be had, and no reason not to serve.
///
/// # Errors
/// Another process has it, and that is to be an error.
pub(crate) async fn take(second: SecondInstance, waits: impl Fn(bool)) -> Result<Option<Lock>> {
    let mut waited = false;
    loop {
        let there = match look() {
            Ok(Look::Mine(lock)) => {
                waits(false);
                if waited {
                    info!("the other kube-ipvs is gone, taking over");
                }
                return Ok(Some(lock));
            }
            Ok(Look::Squatter(holder)) => {
                warn!(%holder, uid = holder.uid, "somebody without root's rights has the abstract socket kube-ipvs, serving without it");
                return Ok(None);
            }
            Err(error) => {
                warn!(%error, "the abstract socket kube-ipvs cannot be had, serving without it");
                return Ok(None);
            }
            Ok(Look::Theirs(there)) => there,
        };
        let holder = there.as_ref().map(|(_, holder)| holder.to_string()).unwrap_or_default();
        if second == SecondInstance::Exit {
            bail!("another kube-ipvs serves in this network namespace: {holder}");
        }
        if !std::mem::replace(&mut waited, true) {
            warn!(
                holder,
                "another kube-ipvs serves in this network namespace, waiting until it ends"
            );
            waits(true);
        }
        match there {
            Some((stream, _)) => {
                end_of(&stream).await;
                sleep(SETTLE).await;
            }
            None => sleep(PAUSE).await,
        }
    }
}

/// Takes it, for something that is not to be done beside a daemon.
///
/// # Errors
/// A daemon serves.
pub(crate) fn take_or_refuse() -> Result<Option<Lock>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(take(SecondInstance::Exit, |_| ()))
        .context("end it first: it would write again what goes")
}

fn look() -> io::Result<Look> {
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?) {
        Ok(_socket) => return Ok(Look::Mine(Lock { _socket })),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        Err(error) => return Err(error),
    }
    // It ended meanwhile, or its queue is full.
    let Ok((stream, holder)) = visit() else {
        return Ok(Look::Theirs(None));
    };
    Ok(if holder.counts(geteuid().as_raw()) {
        Look::Theirs(Some((stream, holder)))
    } else {
        Look::Squatter(holder)
    })
}

/// A connection names the process that listens. It is never accepted.
fn visit() -> io::Result<(UnixStream, Holder)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(NAME)?)?;
    let stream = UnixStream::from_std(socket.into())?;
    let who = stream.peer_cred()?;
    let holder = Holder {
        pid: who.pid().unwrap_or(0),
        uid: who.uid(),
    };
    Ok((stream, holder))
}

async fn end_of(stream: &UnixStream) {
    loop {
        let readable = stream.readable().await;
        match stream.try_read(&mut [0]) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && readable.is_ok() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f15_a_guest_of_the_node_does_not_keep_the_proxy_from_its_work() {
        let check = |uid, own| Holder { pid: 7, uid }.counts(own);
        assert!(check(0, 0) && check(0, 1000) && check(1000, 1000));
        assert!(!check(1000, 0) && !check(65534, 1000));
    }

    #[test]
    fn f15_the_holder_is_named() {
        let named = |pid| Holder { pid, uid: 0 }.to_string();
        assert_eq!(named(7), "process 7");
        assert_eq!(named(0), "of another PID namespace");
    }
}
