//! Echo servers: each answers a line with its name and that line, by TCP and UDP, and counts whom it accepted.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::request::{Place, Protocol};
use crate::netns::Netns;

/// The thread that runs servers of any namespace. They end when this is dropped.
pub struct Servers {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One server. It ends when this is dropped, and its connections with it.
pub struct Server {
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    open: AtomicU64,
}

impl Servers {
    /// Starts the thread.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || drop(runtime.block_on(stopped)));
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Starts a server; it listens when this returns.
    ///
    /// # Errors
    /// A place is taken, or not the namespace's.
    pub fn start(&self, netns: &Netns, name: &str, places: &[Place]) -> Result<Server> {
        let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
        netns.run(|| {
            for place in places {
                match place.protocol {
                    Protocol::Tcp => listeners.push(listen(place.at).with_context(|| format!("listen at {place}"))?),
                    Protocol::Udp => sockets.push(bind(place.at).with_context(|| format!("bind {place}"))?),
                }
            }
            Ok(())
        })?;
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = oneshot::channel();
        let mut work = JoinSet::new();
        // Descriptors are registered with the thread's runtime, whatever thread does so.
        let _here = self.handle.enter();
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            work.spawn(accept(listener, name.to_owned(), Arc::clone(&counts)));
        }
        for socket in sockets {
            work.spawn(echo_datagrams(
                tokio::net::UdpSocket::from_std(socket)?,
                name.to_owned(),
            ));
        }
        self.handle.spawn(async move {
            let _: Result<(), _> = stopped.await;
            drop(work);
        });
        Ok(Server {
            counts,
            stop: Some(stop),
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

impl Server {
    /// TCP connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// TCP connections that are open.
    pub fn open(&self) -> u64 {
        self.counts.open.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

fn listen(at: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind(at: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn accept(listener: tokio::net::TcpListener, name: String, counts: Arc<Counts>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        counts.accepted.fetch_add(1, Ordering::SeqCst);
        while connections.try_join_next().is_some() {}
        connections.spawn(echo_lines(stream, name.clone(), Open::new(&counts)));
    }
}

async fn echo_lines(stream: TcpStream, name: String, _open: Open) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    let mut text = Vec::new();
    loop {
        text.clear();
        text.extend_from_slice(name.as_bytes());
        text.push(b' ');
        let read = stream.read_until(b'\n', &mut text).await;
        if !read.is_ok_and(|length| length != 0) || stream.write_all(&text).await.is_err() {
            return;
        }
    }
}

async fn echo_datagrams(socket: tokio::net::UdpSocket, name: String) {
    let mut question = [0; 256];
    loop {
        // An error is the ICMP error of an earlier answer.
        if let Ok((length, peer)) = socket.recv_from(&mut question).await {
            let mut text = format!("{name} ").into_bytes();
            text.extend_from_slice(question.get(..length).unwrap_or_default());
            let _ = socket.send_to(&text, peer).await;
        }
    }
}

/// Counts a connection while it lives.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
