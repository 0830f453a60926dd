//! Whether the sync thread gets on: it writes a few atomics a round, who asks for health reads them.
//!
//! An object that the kernel keeps refusing is no lack of progress (L11), nor is much work in shares, of which each is done
//! in turn (L23). A round that does not end is one, whatever the
//! thread does in it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How far the sync thread is, and what it knows of the node.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    /// When the oldest work that is not done came, as [`Progress::moment`]; 0 = none.
    oldest: AtomicU64,
    /// When a share of it was done last.
    moved: AtomicU64,
    /// When the round began in which the thread is; 0 = it waits for something to do.
    round: AtomicU64,
    /// When all that had come was done last.
    updated: AtomicU64,
    /// Everything was programmed once: this node serves.
    serving: AtomicBool,
    /// Load balancers may send traffic to this node.
    node_eligible: AtomicBool,
    /// Another process serves in this network namespace, and this one waits (L22).
    standby: AtomicBool,
}

/// Health at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// The thread gets on.
    pub(crate) healthy: bool,
    /// What clients ask for is answered: everything was programmed once.
    pub(crate) serving: bool,
    /// How long ago all that had come was done.
    pub(crate) updated: Duration,
}

impl Progress {
    /// Healthy, with nothing to do, and not serving yet.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            oldest: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            round: AtomicU64::new(0),
            serving: AtomicBool::new(false),
            updated: AtomicU64::new(0),
            node_eligible: AtomicBool::new(true),
            standby: AtomicBool::new(false),
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

    /// The thread has something to do; until [`Progress::end_round`] it is in this round.
    pub(crate) fn begin_round(&self) {
        self.round.store(self.moment(), Ordering::Relaxed);
    }

    /// The thread waits for something to do.
    pub(crate) fn end_round(&self) {
        self.round.store(0, Ordering::Relaxed);
    }

    /// As [`Progress::begin`], for work that may have come at any time of this round.
    pub(crate) fn begin_with_round(&self) {
        if self.oldest.load(Ordering::Relaxed) == 0 {
            let since = self.round.load(Ordering::Relaxed).max(1);
            self.oldest.store(since, Ordering::Relaxed);
        }
    }

    /// All that came before `since` is done; what came later waits.
    pub(crate) fn served_until(&self, since: Instant) {
        let since = since.saturating_duration_since(self.start).as_nanos();
        let since = u64::try_from(since).unwrap_or(u64::MAX).max(1);
        self.oldest.store(since, Ordering::Relaxed);
        self.updated.store(since, Ordering::Relaxed);
    }

    /// A share of what waits was done. Its turns are fair, so all of it comes to its own.
    pub(crate) fn moved(&self) {
        self.moved.store(self.moment(), Ordering::Relaxed);
    }

    /// Everything was programmed once.
    pub(crate) fn set_serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
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

    /// How long the oldest work waits, or the round lasts, whichever is longer; `None` = there is none.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        let now = self.moment();
        [&self.oldest, &self.round]
            .into_iter()
            .map(|moment| moment.load(Ordering::Relaxed))
            .filter(|since| *since != 0)
            .min()
            .map(|since| Duration::from_nanos(now.saturating_sub(since)))
    }

    /// Unhealthy where a round lasts longer than that, or something waits and nothing of it was done for longer.
    pub(crate) fn health(&self, timeout: Duration) -> Health {
        let now = self.moment();
        let waits = match self.oldest.load(Ordering::Relaxed) {
            0 => 0,
            oldest => oldest.max(self.moved.load(Ordering::Relaxed)),
        };
        let since = [waits, self.round.load(Ordering::Relaxed)];
        let in_time = |since: u64| since == 0 || Duration::from_nanos(now.saturating_sub(since)) < timeout;
        let updated = self.moment().saturating_sub(self.updated.load(Ordering::Relaxed));
        Health {
            healthy: since.into_iter().all(in_time),
            serving: self.serving.load(Ordering::Relaxed),
            updated: Duration::from_nanos(updated),
        }
    }

    pub(crate) fn set_node_eligible(&self, eligible: bool) {
        self.node_eligible.store(eligible, Ordering::Relaxed);
    }

    pub(crate) fn set_standby(&self, standby: bool) {
        self.standby.store(standby, Ordering::Relaxed);
    }

    pub(crate) fn is_standby(&self) -> bool {
        self.standby.load(Ordering::Relaxed)
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

    #[test]
    fn f09_much_work_is_healthy_as_long_as_shares_of_it_are_done() {
        let progress = Progress::new();
        let short = Duration::from_millis(20);
        progress.begin();
        sleep(short);
        assert!(!progress.health(short).healthy);
        progress.moved();
        assert!(progress.health(short * 100).healthy);
        assert!(progress.oldest() >= Some(short), "it waits all the same");
        progress.begin_round();
        sleep(short);
        assert!(!progress.health(short).healthy);
    }

    #[test]
    fn f03_a_round_that_does_not_end_is_unhealthy_and_what_came_in_it_counts_from_its_begin() {
        let progress = Progress::new();
        let short = Duration::from_millis(20);
        progress.begin_round();
        sleep(short);
        assert!(!progress.health(short).healthy);
        progress.begin();
        assert!(progress.served() < short);
        progress.begin_with_round();
        progress.end_round();
        assert!(!progress.health(short).healthy);
        assert!(progress.served() >= short);
        assert!(progress.health(short).healthy);
    }

    #[test]
    fn f05_nothing_is_served_before_everything_was_done_once() {
        let progress = Progress::new();
        let health = progress.health(Duration::from_secs(60));
        assert!(health.healthy && !health.serving);
        progress.set_serving();
        assert!(progress.health(Duration::from_secs(60)).serving);
    }
}
