//! The running kernel behind a process that ends after so many messages, which are programs in the iptables mode; and
//! the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Error, Result, ensure};
use dataplane::iptables::{self, Installed, IptablesPlane, Programs};
use dataplane::kernel::{KernelBroken, OpError, PresentServer};
use dataplane::live::LiveKernel;
use dataplane::plane::Plane;
use dataplane::{DataPlane, Kernel, Op, Settings, Snapshot};
use foldhash::HashMap;
use ipvs::{RealServer, VirtualServer};
use service_model::{Cluster, Config, Event, Family};

/// Messages to the kernel: those sent, and those that may still be.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Messages>);

#[derive(Debug)]
struct Messages {
    left: AtomicUsize,
    sent: AtomicUsize,
}

impl Budget {
    pub(crate) fn unlimited() -> Self {
        Self(Arc::new(Messages {
            left: AtomicUsize::new(usize::MAX),
            sent: AtomicUsize::new(0),
        }))
    }

    /// From now on.
    pub(crate) fn allow(&self, messages: usize) {
        self.0.left.store(messages, Ordering::SeqCst);
        self.0.sent.store(0, Ordering::SeqCst);
    }

    /// Since the last call of [`Budget::allow`].
    pub(crate) fn sent(&self) -> usize {
        self.0.sent.load(Ordering::SeqCst)
    }

    fn take(&self) -> bool {
        let left = self.0.left.load(Ordering::SeqCst);
        self.0.left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left != 0 {
            self.0.sent.fetch_add(1, Ordering::SeqCst);
        }
        left != 0
    }
}

/// Ops one message at a time: a transaction of the policy tables is one, every other op is one of its own.
pub(crate) struct StoppingKernel {
    inner: LiveKernel,
    budget: Budget,
}

impl StoppingKernel {
    /// Over new sockets of this thread's namespace.
    pub(crate) fn open(budget: &Budget) -> Result<Self> {
        Ok(Self {
            inner: LiveKernel::open()?,
            budget: budget.clone(),
        })
    }
}

impl Kernel for StoppingKernel {
    fn read(&mut self) -> Result<Snapshot, KernelBroken> {
        self.inner.read()
    }

    fn read_virtual_server(&mut self, server: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken> {
        self.inner.read_virtual_server(server)
    }

    fn connections(&mut self, server: &VirtualServer) -> Result<HashMap<RealServer, u32>, KernelBroken> {
        self.inner.connections(server)
    }

    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        let mut answers = Vec::with_capacity(ops.len());
        for message in ops.chunk_by(|a, b| matches!((a, b), (Op::Policy(_), Op::Policy(_)))) {
            if !self.budget.take() {
                return Err(KernelBroken {
                    operation: "send the next message",
                    source: "the process ended".into(),
                });
            }
            answers.extend(self.inner.execute(message)?);
        }
        Ok(answers)
    }
}

/// One run of a program that writes at a time.
pub(crate) struct StoppingPrograms {
    inner: Installed,
    budget: Budget,
}

impl Programs for StoppingPrograms {
    fn save(&mut self, family: Family) -> Result<String, String> {
        self.inner.save(family)
    }

    fn restore(&mut self, family: Family, text: &str) -> Result<(), String> {
        if !self.budget.take() {
            return Err("the process ended".to_owned());
        }
        self.inner.restore(family, text)
    }
}

/// The IPVS mode in this thread's namespace.
pub(crate) fn ipvs(budget: &Budget) -> Result<DataPlane<StoppingKernel>> {
    Ok(DataPlane::new(StoppingKernel::open(budget)?, Settings::default()))
}

/// The iptables mode in this thread's namespace.
pub(crate) fn iptables(budget: &Budget) -> Result<IptablesPlane<StoppingPrograms>> {
    let programs = StoppingPrograms {
        inner: Installed::find().map_err(Error::msg)?,
        budget: budget.clone(),
    };
    Ok(IptablesPlane::new(programs, iptables::Settings::default()))
}

/// Ops of one share: small, so that what takes one commit in life takes several here (L23).
const SHARE: usize = 16;

/// kube-ipvs without its threads: what its sync thread does with events.
pub(crate) struct Process<P> {
    cluster: Cluster,
    plane: P,
    adopted: bool,
}

impl<P: Plane> Process<P> {
    pub(crate) fn new(config: Config, plane: P) -> Self {
        Self {
            cluster: Cluster::new(config),
            plane,
            adopted: false,
        }
    }

    /// Takes events in and writes what they come to, the addresses of the background as well. False where the process
    /// ended before it was done.
    pub(crate) fn apply(&mut self, events: &[Event]) -> Result<bool> {
        for event in events {
            self.cluster.apply(event.clone());
        }
        for family in [Family::V4, Family::V6] {
            self.plane
                .want_local_traffic(family, self.cluster.local_traffic(family));
            self.plane
                .want_node_ports(family, self.cluster.node_port_places(family));
        }
        for service in self.cluster.take_touched() {
            let program = self.cluster.program(&service);
            self.plane.want(&service, &program);
        }
        let now = Instant::now();
        if !self.adopted {
            self.plane.adopt()?;
            self.adopted = true;
        }
        loop {
            let Ok(report) = self.plane.commit(now, SHARE) else {
                return Ok(false);
            };
            ensure!(report.refused.is_empty(), "refused: {:?}", report.refused);
            if !report.more {
                break;
            }
        }
        while self.plane.next_background(now).is_some() {
            let Ok(report) = self.plane.background(now) else {
                return Ok(false);
            };
            ensure!(report.refused.is_empty(), "refused: {:?}", report.refused);
        }
        Ok(true)
    }
}
