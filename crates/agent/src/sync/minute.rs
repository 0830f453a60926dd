//! How much is said in a minute: a line for what is new, a number for the rest. What can be wrong with the objects of a
//! cluster has no bound, and neither has how often the kernel refuses them; the log has one.

use std::time::{Duration, Instant};

use dataplane::plan::Key;
use foldhash::HashMap;

const MINUTE: Duration = Duration::from_secs(60);
/// An object that the kernel has not refused for so long is as it should be, or gone: at most a minute lies between two
/// tries (L11).
const FORGOTTEN: Duration = Duration::from_secs(300);

/// Lines of one kind.
#[derive(Debug)]
pub(super) struct Minute {
    /// Lines that it may have.
    lines: usize,
    began: Option<Instant>,
    written: usize,
    withheld: usize,
}

impl Minute {
    pub(super) fn of(lines: usize) -> Self {
        Self {
            lines,
            began: None,
            written: 0,
            withheld: 0,
        }
    }

    /// A line may be written. Where it may not it is counted.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let allowed = self.written < self.lines;
        *(if allowed { &mut self.written } else { &mut self.withheld }) += 1;
        allowed
    }

    /// So many are counted, and have no line.
    pub(super) fn withhold(&mut self, number: usize, now: Instant) {
        if number > 0 {
            self.began.get_or_insert(now);
            self.withheld += number;
        }
    }

    /// Ends the minute where it is over. Returns how many had no line, where there were any.
    pub(super) fn end(&mut self, now: Instant) -> Option<usize> {
        let over = self
            .began
            .is_some_and(|began| now.saturating_duration_since(began) >= MINUTE);
        if !over {
            return None;
        }
        let withheld = self.withheld;
        *self = Self::of(self.lines);
        (withheld > 0).then_some(withheld)
    }
}

/// What the kernel refuses, again and again.
#[derive(Debug)]
pub(super) struct Refusals {
    /// Reason, and when it was refused last.
    standing: HashMap<Key, (Box<str>, Instant)>,
    minute: Minute,
}

/// A minute's refusals that had no line of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// Objects that are refused now.
    pub(super) objects: usize,
    pub(super) refusals: usize,
}

impl Refusals {
    pub(super) fn new(lines: usize) -> Self {
        Self {
            standing: HashMap::default(),
            minute: Minute::of(lines),
        }
    }

    /// An object was refused. True where it is to be said: for the first time, or for another reason.
    pub(super) fn take(&mut self, key: Key, reason: &str, now: Instant) -> bool {
        if let Some((before, at)) = self.standing.get_mut(&key)
            && **before == *reason
        {
            *at = now;
            self.minute.withhold(1, now);
            return false;
        }
        self.standing.insert(key, (reason.into(), now));
        self.minute.allows(now)
    }

    /// What is to be said where a minute is over.
    pub(super) fn summary(&mut self, now: Instant) -> Option<Summary> {
        let refusals = self.minute.end(now)?;
        self.standing
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < FORGOTTEN);
        Some(Summary {
            objects: self.standing.len(),
            refusals,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn route(number: u16) -> Key {
        Key::Route(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number).into())
    }

    /// 6,000 objects, each tried again every half minute for ten minutes: 120,000 refusals.
    #[test]
    fn f16_refusals_that_stay_are_a_line_a_minute() {
        let start = Instant::now();
        let mut refusals = Refusals::new(20);
        let (mut lines, mut counted, mut summaries) = (0, 0, Vec::new());
        for round in 0..20 {
            let now = start + MINUTE / 2 * round;
            let summary = refusals.summary(now);
            counted += summary.map_or(0, |summary| summary.refusals);
            summaries.extend(summary);
            for number in 0..6000 {
                lines += usize::from(refusals.take(route(number), "permission denied (EACCES)", now));
            }
        }
        let end = refusals.summary(start + MINUTE * 10);
        counted += end.map_or(0, |summary| summary.refusals);
        assert_eq!(lines, 20);
        assert_eq!(lines + counted, 120_000, "each has a line or is counted");
        assert!(summaries.len() <= 10 && summaries.iter().all(|summary| summary.objects == 6000));
    }

    #[test]
    fn f16_another_reason_is_said_and_what_went_is_forgotten() {
        let start = Instant::now();
        let mut refusals = Refusals::new(20);
        assert!(refusals.take(route(1), "a", start));
        assert!(!refusals.take(route(1), "a", start));
        assert!(refusals.take(route(1), "b", start));
        assert!(refusals.take(route(2), "a", start));
        let expect = Summary {
            objects: 2,
            refusals: 1,
        };
        assert_eq!(refusals.summary(start + MINUTE), Some(expect));
        assert_eq!(refusals.summary(start + MINUTE * 2), None, "nothing was refused");
        let late = start + FORGOTTEN;
        assert!(refusals.take(route(3), "a", late) && !refusals.take(route(3), "a", late));
        let expect = Summary {
            objects: 1,
            refusals: 1,
        };
        assert_eq!(refusals.summary(late + MINUTE), Some(expect));
    }
}
