//! How many events there are, whatever happens: those of one object and reason become one, at growing intervals.
//!
//! The note of an Event cannot be changed (kubernetes/pkg/apis/core/validation/events.go), so a count on the first one
//! would hide what came after it: what is folded is a new Event, whose note holds all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use service_model::{Kind, ObjectName};
use tokio::time::Instant;
use tracing::debug;

use super::{EventType, ObjectEvent};

/// What comes within this time is one event: the rejections of an object come together.
const GATHER: Duration = Duration::from_millis(200);
/// Between the first and the second event of an object and reason; twice as long between each two that follow.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// The same note is not sent again within this time.
const REPEAT: Duration = Duration::from_secs(600);
/// Objects and reasons that are remembered, or wait.
const KEYS: usize = 1000;
/// Between two looks which of them are over.
const SWEEP: Duration = Duration::from_secs(60);
/// Bytes of notes that one event gathers; the API takes 1024.
const NOTES: usize = 960;
/// Events of all objects at once, and the wait for each further one. Nodes have a bucket of their own: what is wrong with
/// many services must not hide what is wrong with the node.
const ALL: Bucket = Bucket {
    size: 25,
    refill: Duration::from_secs(5),
};

/// What makes events one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: u8,
    object: ObjectName,
    warning: bool,
    reason: &'static str,
}

impl Key {
    fn of(event: &ObjectEvent) -> Self {
        Self {
            kind: match event.kind {
                Kind::Service => 0,
                Kind::EndpointSlice => 1,
                Kind::Node => 2,
            },
            object: event.object.clone(),
            warning: event.event_type == EventType::Warning,
            reason: event.reason,
        }
    }
}

/// Events of one key.
struct Fold {
    /// The first of those that wait, without its note; when it is due.
    waiting: Option<(ObjectEvent, Instant)>,
    /// Distinct notes that wait, at most [`NOTES`] bytes.
    notes: Vec<String>,
    /// Reports that wait, and are not among the notes.
    more: usize,
    /// Notes that were sent last, and when.
    told: Vec<String>,
    at: Option<Instant>,
    /// Before the next one.
    pause: Duration,
    /// When something was last reported.
    heard: Instant,
}

/// Events that wait, and what was sent of each object and reason.
pub(super) struct Folds {
    folds: BTreeMap<Key, Fold>,
    services: Limit,
    nodes: Limit,
    /// When those that are over were last left out.
    swept: Instant,
}

impl Folds {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            folds: BTreeMap::new(),
            services: Limit::new(ALL, now),
            nodes: Limit::new(ALL, now),
            swept: now,
        }
    }

    /// Takes an event in. What is said already, and what there is no room for, is dropped.
    pub(super) fn take(&mut self, mut event: ObjectEvent, now: Instant) {
        if now.duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.folds.retain(|_, fold| !fold.is_over(now));
        }
        let key = Key::of(&event);
        if self.folds.len() >= KEYS && !self.folds.contains_key(&key) {
            debug!(object = %event.object, reason = event.reason, "event dropped");
            return;
        }
        let fold = self.folds.entry(key).or_insert_with(|| Fold::new(now));
        if fold.is_over(now) {
            *fold = Fold::new(now);
        }
        fold.heard = now;
        let note = std::mem::take(&mut event.note);
        if fold.was_told(&note, now) {
            return;
        }
        fold.add(note);
        let due = fold.at.map_or(now, |at| at + fold.pause).max(now + GATHER);
        fold.waiting.get_or_insert((event, due));
    }

    /// When the next event is due, and its kind may send it.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next().map(|(at, _)| at)
    }

    fn next(&self) -> Option<(Instant, &Key)> {
        let waiting = self.folds.iter().filter_map(|(key, fold)| {
            let (event, due) = fold.waiting.as_ref()?;
            let limit = match event.kind {
                Kind::Node => &self.nodes,
                Kind::Service | Kind::EndpointSlice => &self.services,
            };
            Some((limit.free_at().max(*due), key))
        });
        waiting.min_by_key(|(at, _)| *at)
    }

    /// The event that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<ObjectEvent> {
        let (_, key) = self.next().filter(|(at, _)| *at <= now)?;
        let key = key.clone();
        let fold = self.folds.get_mut(&key)?;
        let mut event = fold.waiting.take()?.0;
        event.note = fold.note();
        match event.kind {
            Kind::Node => self.nodes.use_one(now),
            Kind::Service | Kind::EndpointSlice => self.services.use_one(now),
        }
        Some(event)
    }

    /// It was taken, or not: then the same note counts as new.
    pub(super) fn sent(&mut self, event: &ObjectEvent, taken: bool, now: Instant) {
        if let Some(fold) = self.folds.get_mut(&Key::of(event)) {
            fold.pause = match fold.at {
                None => FIRST,
                Some(_) => (fold.pause * 2).min(LONGEST),
            };
            fold.at = Some(now);
            fold.told = std::mem::take(&mut fold.notes);
            fold.more = 0;
            if !taken {
                fold.told.clear();
            }
        }
    }
}

impl Fold {
    fn new(now: Instant) -> Self {
        Self {
            waiting: None,
            notes: Vec::new(),
            more: 0,
            told: Vec::new(),
            at: None,
            pause: Duration::ZERO,
            heard: now,
        }
    }

    /// Nothing waits, and nothing was reported for so long that the next report is as the first.
    fn is_over(&self, now: Instant) -> bool {
        self.waiting.is_none() && now.duration_since(self.heard) >= self.pause.max(REPEAT)
    }

    fn was_told(&self, note: &str, now: Instant) -> bool {
        let is_recent = self.at.is_some_and(|at| now.duration_since(at) < REPEAT);
        is_recent && self.waiting.is_none() && self.told.iter().any(|told| told == note)
    }

    fn add(&mut self, note: String) {
        if self.notes.contains(&note) {
            return;
        }
        let bytes: usize = self.notes.iter().map(|note| note.len() + 2).sum();
        if self.notes.is_empty() || bytes + note.len() <= NOTES {
            self.notes.push(note);
        } else {
            self.more += 1;
        }
    }

    fn note(&self) -> String {
        let all = self.notes.join("; ");
        match self.more {
            0 => all,
            more => format!("{all}; and {more} more"),
        }
    }
}

/// How many events at once, and how long until there is room for one more.
#[derive(Clone, Copy)]
struct Bucket {
    size: u32,
    refill: Duration,
}

/// A bucket, and what is left in it.
struct Limit {
    bucket: Bucket,
    left: u32,
    filled: Instant,
}

impl Limit {
    fn new(bucket: Bucket, now: Instant) -> Self {
        Self {
            bucket,
            left: bucket.size,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let Bucket { size, refill } = self.bucket;
        while self.left < size && now.duration_since(self.filled) >= refill {
            self.left += 1;
            self.filled += refill;
        }
        if self.left == size {
            self.filled = now;
        }
    }

    fn use_one(&mut self, now: Instant) {
        self.fill(now);
        self.left = self.left.saturating_sub(1);
    }

    /// When it has one, as far as is known now.
    fn free_at(&self) -> Instant {
        if self.left > 0 {
            self.filled
        } else {
            self.filled + self.bucket.refill
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, object: &str, note: &str) -> ObjectEvent {
        ObjectEvent {
            kind,
            object: ObjectName::new("shop", object),
            event_type: EventType::Warning,
            reason: "CannotProgram",
            action: "Compute",
            note: note.to_owned(),
        }
    }

    fn web(note: &str) -> ObjectEvent {
        event(Kind::Service, "web", note)
    }

    /// Sends all that is due until a time; when, since the start, and what.
    fn run(folds: &mut Folds, start: Instant, until: Instant) -> Vec<(u64, String)> {
        let mut sent = Vec::new();
        while let Some(due) = folds.next_due().filter(|due| *due <= until) {
            if let Some(event) = folds.due(due) {
                folds.sent(&event, true, due);
                sent.push(((due - start).as_secs(), event.note));
            }
        }
        sent
    }

    #[test]
    fn f28_a_service_that_changes_every_second_is_six_events_an_hour() {
        let start = Instant::now();
        let (mut folds, mut sent) = (Folds::new(start), Vec::new());
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            folds.take(web(&format!("rejected {second}")), now);
            sent.extend(run(&mut folds, start, now + Duration::from_millis(999)));
        }
        let times: Vec<_> = sent.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 60, 180, 420, 900, 1860], "{sent:?}");
        assert!(
            sent[1].1.starts_with("rejected 1; rejected 2; rejected 3; "),
            "{sent:?}"
        );
        // After a quiet time it is as new.
        let later = start + 2 * LONGEST + LONGEST;
        run(&mut folds, start, later);
        let later = later + LONGEST;
        folds.take(web("again"), later);
        assert_eq!(run(&mut folds, later, later + FIRST), [(0, "again".to_owned())]);
    }

    #[test]
    fn f28_what_comes_together_is_one_event_and_nothing_is_lost() {
        let start = Instant::now();
        let mut folds = Folds::new(start);
        for note in ["first", "second", "first"] {
            folds.take(web(note), start);
        }
        assert_eq!(run(&mut folds, start, start + FIRST), [(0, "first; second".to_owned())]);
        // The same again is no news for ten minutes.
        folds.take(web("second"), start + FIRST);
        assert_eq!(folds.next_due(), None);
        folds.take(web("second"), start + 2 * REPEAT);
        assert_eq!(
            run(&mut folds, start, start + 3 * REPEAT),
            [(1200, "second".to_owned())]
        );
        // More than a note holds is counted.
        let mut folds = Folds::new(start);
        (0..500).for_each(|number| folds.take(web(&format!("the address number {number}")), start));
        let (_, note) = run(&mut folds, start, start + FIRST).remove(0);
        assert!(note.len() < 1024 && note.ends_with("; and 458 more"), "{note}");
    }

    #[test]
    fn f28_any_number_of_objects_is_a_bounded_number_of_events() {
        let start = Instant::now();
        let mut folds = Folds::new(start);
        for number in 0..50_000 {
            folds.take(event(Kind::Service, &format!("s{number}"), "x"), start);
        }
        assert_eq!(folds.folds.len(), KEYS);
        let hour = start + Duration::from_secs(3600);
        let sent = run(&mut folds, start, hour).len();
        assert!((700..=25 + 3600 / 5).contains(&sent), "{sent}");
        // Those of the node are among the first.
        let mut folds = Folds::new(start);
        for number in 0..100 {
            folds.take(event(Kind::Service, &format!("s{number}"), "x"), start);
        }
        folds.take(event(Kind::Node, "n1", "of the node"), start);
        let sent = run(&mut folds, start, start + GATHER);
        assert_eq!(sent.len(), 26);
        assert!(sent.iter().any(|(_, note)| note == "of the node"));
    }

    #[test]
    fn an_event_that_is_not_taken_is_told_again() {
        let start = Instant::now();
        let mut folds = Folds::new(start);
        folds.take(web("x"), start);
        let event = folds.due(start + GATHER).unwrap();
        folds.sent(&event, false, start + GATHER);
        folds.take(web("x"), start + FIRST);
        assert_eq!(run(&mut folds, start, start + 2 * FIRST).len(), 1);
    }
}
