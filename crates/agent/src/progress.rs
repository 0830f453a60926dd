//! Whether the sync thread gets on: it writes two atomics a round, who asks for health reads them.
//!
//! An object that the kernel keeps refusing is no lack of progress (L11).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How far the sync thread is, and what it knows of the node.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    /// When the oldest work that is not done came, as [`Progress::moment`]; 0 = none.
    oldest: AtomicU64,
    /// When all that had come was done last.
    updated: AtomicU64,
    /// Load balancers may send traffic to this node.
    node_eligible: AtomicBool,
}

/// Health at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) healthy: bool,
    /// How long ago all that had come was done.
    pub(crate) updated: Duration,
}

impl Progress {
    /// Healthy, with nothing to do.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            oldest: AtomicU64::new(0),
            updated: AtomicU64::new(0),
            node_eligible: AtomicBool::new(true),
        }
    }

    /// Nanoseconds since the start, never 0.
    fn moment(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// Work begins, or waits. What waits already counts from when it came.
    pub(crate) fn begin(&self) {
        if self.oldest.load(Ordering::Relaxed) == 0 {
            self.oldest.store(self.moment(), Ordering::Relaxed);
        }
    }

    /// All that came is done. Returns how long the oldest of it took.
    pub(crate) fn served(&self) -> Duration {
        let now = self.moment();
        self.updated.store(now, Ordering::Relaxed);
        match self.oldest.swap(0, Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_nanos(now.saturating_sub(since)),
        }
    }

    /// How long the oldest work waits; `None` = there is none.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        match self.oldest.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_nanos(self.moment().saturating_sub(since))),
        }
    }

    /// Unhealthy where something waits for longer than that.
    pub(crate) fn health(&self, timeout: Duration) -> Health {
        let updated = self.moment().saturating_sub(self.updated.load(Ordering::Relaxed));
        Health {
            healthy: self.oldest().is_none_or(|age| age < timeout),
            updated: Duration::from_nanos(updated),
        }
    }

    pub(crate) fn set_node_eligible(&self, eligible: bool) {
        self.node_eligible.store(eligible, Ordering::Relaxed);
    }

    pub(crate) fn is_node_eligible(&self) -> bool {
        self.node_eligible.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn what_waits_too_long_is_unhealthy_until_it_is_done() {
        let progress = Progress::new();
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(60));
        assert!(progress.health(short).healthy);
        progress.begin();
        sleep(short);
        // A later change does not make the first one younger.
        progress.begin();
        assert!(!progress.health(short).healthy);
        assert!(progress.health(long).healthy);
        assert!(progress.served() >= short);
        assert_eq!(progress.oldest(), None);
        assert!(progress.health(short).healthy);
        assert!(progress.health(short).updated < long);
    }
}
