//! How long to wait before trying again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double, each with jitter, so that the nodes of a cluster do not come back at once.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    tries: u32,
}

impl BackOff {
    /// The next wait: between half and all of 200 ms, 400 ms, … up to 30 s.
    pub(crate) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.tries.min(16)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_with_jitter_up_to_its_cap() {
        let mut back_off = BackOff::default();
        for full in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            let wait = back_off.next().as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
        for _ in 0..100 {
            assert!(back_off.next() <= LONGEST);
        }
        back_off.reset();
        assert!(back_off.next() <= FIRST);
    }
}
