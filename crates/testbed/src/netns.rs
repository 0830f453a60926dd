//! One network namespace, held by a descriptor; closures and commands run in it on threads of their own.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::tool;

/// A network namespace. It goes when the last clone, socket and process in it has gone.
#[derive(Clone, Debug)]
pub struct Netns(Arc<File>);

impl Netns {
    /// A new one, with `lo` up.
    ///
    /// # Errors
    /// Not root, or the kernel has none to give.
    pub fn new() -> Result<Self> {
        let file = thread::spawn(|| -> Result<File> {
            // The thread ends with this closure.
            unshare_network()?;
            this()
        })
        .join()
        .ok()
        .context("the thread panicked")??;
        let netns = Self(Arc::new(file));
        netns.sh("ip link set lo up")?;
        Ok(netns)
    }

    /// The one that this thread is in.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn current() -> Result<Self> {
        Ok(Self(Arc::new(this()?)))
    }

    /// Runs a closure in it, on a thread of its own. Sockets that it makes stay in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered; the closure's own.
    ///
    /// # Panics
    /// Where the closure does, with its message.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter()?;
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command line in it and returns its standard output.
    ///
    /// # Errors
    /// As [`tool::run`].
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(|| tool::sh(line))
    }

    /// Starts a command in it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        self.run(|| command.spawn().with_context(|| format!("start {command:?}")))
    }

    /// Moves this thread into it, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).context("enter a namespace")
    }

    /// Moves an interface of this thread's namespace into it.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn take_interface(&self, name: &str) -> Result<()> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        tool::run(&["ip", "link", "set", name, "netns", &path]).map(drop)
    }
}

/// Moves this thread, and what it starts, into a new network namespace with `lo` up: a kernel of its own for a test.
///
/// # Errors
/// Not root.
pub fn isolate() -> Result<()> {
    unshare_network()?;
    tool::sh("ip link set lo up").map(drop)
}

fn this() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("open this thread's network namespace")
}

#[allow(
    unsafe_code,
    reason = "unshare(2) is unsafe where it splits the descriptors of a thread; the network is no such part"
)]
fn unshare_network() -> Result<()> {
    // SAFETY: CLONE_NEWNET alone changes no memory and no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.context("make a network namespace (are we root?)")
}
