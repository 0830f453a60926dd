//! Threads beside the sync thread that hear and read, and never write: what others do to what we programmed (L9).

use std::future::Future;
use std::sync::mpsc::{self as requests, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use dataplane::KernelBroken;
use dataplane::kernel::chain;
use ipvs::{Gone, VipMonitor};
use nftables::Monitor;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::host_needs::{HostNeeds, HostReader};

/// Somebody changed what we programmed, or may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbance {
    /// The policy tables; not us.
    Tables,
    /// A route, an address or the device; perhaps us.
    Vips(Gone),
}

/// What the audit found.
pub(crate) struct Look<P> {
    /// What the kernel held while it looked; `None` where it could not be read.
    pub(crate) picture: Option<P>,
    /// How long that took.
    pub(crate) took: Duration,
}

/// What listens on a kernel that is written.
pub(crate) struct Listeners<P> {
    /// Of the IPVS mode alone.
    pub(crate) monitors: Option<(Monitor, VipMonitor)>,
    pub(crate) reader: Reader<P>,
}

/// Reads everything that the audit compares.
pub(crate) type Reader<P> = Box<dyn FnMut() -> Result<P, KernelBroken> + Send>;

/// What the sync thread hears of them, and asks.
pub(crate) struct Heard<P> {
    pub(crate) disturbances: mpsc::Receiver<Disturbance>,
    pub(crate) looks: mpsc::Receiver<Look<P>>,
    /// Asks for a look; `None` = nobody looks.
    pub(crate) ask: Option<Sender<()>>,
}

/// Disturbances between a listener and the sync thread. When it is full the listener waits, and the kernel keeps what
/// it has to tell.
const CHANNEL: usize = 256;

/// Reading what the host needs costs at most one part in so many of a processor's time.
const HOST_SHARE: u32 = 33;

/// What the host needs, and whom to ask to read it again.
pub(crate) struct Host {
    /// `None` until it has been read.
    pub(crate) needs: watch::Receiver<Option<HostNeeds>>,
    pub(crate) ask: Sender<()>,
}

/// Starts the threads; what is returned beside ends when one of them does.
pub(crate) fn start<P: Send + 'static>(
    listeners: Option<Listeners<P>>,
) -> Result<(Heard<P>, Host, impl Future<Output = anyhow::Error>)> {
    let (disturbed, disturbances) = mpsc::channel(CHANNEL);
    let (looked, looks) = mpsc::channel(1);
    let (ends, mut first) = mpsc::channel(4);
    let mut heard = Heard {
        disturbances,
        looks,
        ask: None,
    };
    if let Some(mut listeners) = listeners {
        let (ask, asked) = requests::channel();
        heard.ask = Some(ask);
        if let Some((mut tables, mut vips)) = listeners.monitors {
            let tell = disturbed.clone();
            run("policy-monitor", ends.clone(), move || {
                loop {
                    tables.wait()?;
                    tell.blocking_send(Disturbance::Tables)?;
                }
            })?;
            run("vip-monitor", ends.clone(), move || {
                loop {
                    for gone in vips.wait()? {
                        disturbed.blocking_send(Disturbance::Vips(gone))?;
                    }
                }
            })?;
        }
        run("audit", ends.clone(), move || {
            loop {
                asked.recv()?;
                let told = looked.blocking_send(look(&mut listeners.reader));
                told.map_err(|_| anyhow!("nobody hears it"))?;
            }
        })?;
    }
    let host = read_host(ends)?;
    let end = async move { first.recv().await.unwrap_or_else(|| anyhow!("a listener panicked")) };
    Ok((heard, host, end))
}

/// Reads what the host needs: at once, and when it is asked to.
fn read_host(ends: mpsc::Sender<anyhow::Error>) -> Result<Host> {
    let mut reader = HostReader::open().context("read what the host needs")?;
    let (tell, needs) = watch::channel(None);
    let (ask, asked) = requests::channel();
    run("host", ends, move || {
        loop {
            let start = Instant::now();
            let now = Some(reader.read());
            tell.send_if_modified(|before| {
                let differs = *before != now;
                *before = now;
                differs
            });
            thread::sleep(start.elapsed() * HOST_SHARE);
            asked.recv()?;
            // One reading answers all who have asked meanwhile.
            while asked.try_recv().is_ok() {}
        }
    })?;
    Ok(Host { needs, ask })
}

fn look<P>(reader: &mut Reader<P>) -> Look<P> {
    let start = Instant::now();
    let picture = reader()
        .inspect_err(|error| warn!(error = chain(error), "the audit cannot read the kernel"))
        .ok();
    Look {
        picture,
        took: start.elapsed(),
    }
}

/// A thread that tells its error, or that it panicked by saying nothing.
fn run(
    name: &'static str,
    ends: mpsc::Sender<anyhow::Error>,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let work = move || {
        let error = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(anyhow!("panicked")))
            .err()
            .unwrap_or_else(|| anyhow!("ended"));
        let _ = ends.blocking_send(error.context(name));
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .with_context(|| format!("start the thread {name}"))?;
    Ok(())
}
