//! How long to wait before trying again.

use std::time::Duration;

use crate::failure::Failure;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
/// Before a list that a lost version makes due: all nodes of a cluster hear of it at the same moment.
const SPREAD: Duration = Duration::from_secs(1);

/// Waits that double, each with jitter, so that the nodes of a cluster do not come back at once.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    tries: u32,
    /// The last failure was no answer of the API server.
    unanswered: bool,
    /// A version was lost, and no watch has brought anything since.
    lost_version: bool,
}

impl BackOff {
    /// The wait after a failure.
    pub(crate) fn after(&mut self, failure: &Failure) -> Duration {
        let answered = failure.is_an_answer();
        // What the waits had grown by while the server was away says nothing about one that answers.
        if answered && std::mem::take(&mut self.unanswered) {
            self.tries = 0;
        }
        self.unanswered = !answered;
        if failure.asks_for_a_list() && !std::mem::replace(&mut self.lost_version, true) {
            self.tries = 0;
            return SPREAD.mul_f64(fastrand::f64());
        }
        let wait = self.next();
        match failure {
            Failure::Status {
                retry_after: Some(after),
                ..
            } => wait.max(*after),
            _ => wait,
        }
    }

    /// Between half and all of 200 ms, 400 ms, … up to 30 s.
    fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.tries.min(16)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// A list is complete. Whether its version is good for a watch is not known yet.
    pub(crate) fn listed(&mut self) {
        self.unanswered = false;
        if !self.lost_version {
            self.tries = 0;
        }
    }

    /// A watch brought something.
    pub(crate) fn watched(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Failure {
        Failure::Status {
            code,
            message: String::new(),
            retry_after: None,
        }
    }

    fn away() -> Failure {
        Failure::Silence(Duration::ZERO)
    }

    #[test]
    fn doubles_with_jitter_up_to_its_cap() {
        let mut back_off = BackOff::default();
        for full in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            let wait = back_off.after(&away()).as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
        for _ in 0..100 {
            assert!(back_off.after(&away()) <= LONGEST);
        }
        back_off.watched();
        assert!(back_off.after(&away()) <= FIRST);
    }

    #[test]
    fn f14_a_lost_version_is_listed_at_once_and_a_server_that_answers_is_asked_soon() {
        for answer in [status(401), status(403), Failure::Expired] {
            let mut back_off = BackOff::default();
            for _ in 0..20 {
                back_off.after(&away());
            }
            assert!(back_off.after(&answer) <= SPREAD, "{answer}");
            assert!(back_off.after(&status(403)) <= 2 * FIRST, "{answer}");
        }
        // A server that asks for patience gets it.
        let mut back_off = BackOff::default();
        for _ in 0..20 {
            back_off.after(&away());
        }
        for code in [429, 500, 503] {
            assert!(back_off.after(&status(code)) >= LONGEST / 2, "{code}");
        }
        // A server whose every list is at once too old is asked less and less, as long as no watch brings anything.
        let mut back_off = BackOff::default();
        let mut wait = Duration::ZERO;
        for _ in 0..20 {
            wait = back_off.after(&Failure::Expired);
            back_off.listed();
        }
        assert!(wait >= LONGEST / 2);
        back_off.watched();
        assert!(back_off.after(&Failure::Expired) <= SPREAD);
    }
}
