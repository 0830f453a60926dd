//! How much a commit takes on before the thread looks at what else is to be done.
//!
//! What an op costs the kernel differs by more than a hundred times: each real server added is searched for among those
//! deleted in the last two minutes (net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_trash_get_dest`), and a range is added to a set
//! by copying it. So the number of ops follows the time that they took.

use std::time::Duration;

/// How long a share of a commit may take, about.
const AIM: Duration = Duration::from_millis(50);
/// A share is never less: below that the transaction and not the ops are what costs.
const FEWEST: usize = 64;
/// And never more.
const MOST: usize = 16_384;

/// The number of ops in a share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    ops: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { ops: 4096 }
    }
}

impl Pace {
    /// How many ops to begin with.
    pub(super) fn ops(self) -> usize {
        self.ops
    }

    /// So many ops took so long. What is too little to tell is no news.
    pub(super) fn learn(&mut self, ops: usize, took: Duration) {
        if ops >= FEWEST || took >= AIM {
            let nanoseconds = took.as_nanos().max(1);
            let fits = AIM.as_nanos().saturating_mul(ops as u128) / nanoseconds;
            let fits = usize::try_from(fits).unwrap_or(MOST).clamp(FEWEST, MOST);
            // One slow commit on a busy machine is no rule.
            self.ops = usize::midpoint(self.ops, fits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f09_shares_are_as_long_as_they_may_take() {
        let mut pace = Pace::default();
        // 1 ms an op: 50 of them, and FEWEST is more.
        for _ in 0..20 {
            pace.learn(pace.ops(), Duration::from_micros(1000 * pace.ops() as u64));
        }
        assert!(pace.ops() <= FEWEST + 1, "{}", pace.ops());
        // 10 us an op: 5,000.
        for _ in 0..20 {
            pace.learn(pace.ops(), Duration::from_micros(10 * pace.ops() as u64));
        }
        assert!((4900..=5100).contains(&pace.ops()), "{}", pace.ops());
        // Too little to tell.
        pace.learn(1, Duration::from_micros(1));
        assert!((4900..=5100).contains(&pace.ops()));
        for _ in 0..20 {
            pace.learn(pace.ops(), Duration::ZERO);
        }
        assert!(pace.ops() >= MOST - 1);
    }
}
