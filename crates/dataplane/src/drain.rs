//! Real servers that take no new connections and wait until the old ones end (L5, L6).
//!
//! Which drain is told by the kernel alone: weight 0, and a deadline in our table's set `draining`. So a new process goes
//! on where the last one was killed, and renews no deadline. One of UDP stays so shortly that its deadline is not kept; it
//! is in the set while it goes (L8, `rules`).

use std::time::{Duration, Instant};

use foldhash::{HashMap, HashSet};
use ipvs::{RealServer, VirtualServer};

/// How often draining real servers are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How long a real server of UDP is marked while it goes and its flows end; a killed process leaves the mark no longer.
const OVER_MARK: Duration = Duration::from_secs(1);

/// How far one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Read from the kernel: what is left of its time; `None` = no end.
    Left(Option<Duration>),
    /// Until its last connection ends, or until then; `None` = no end.
    Until(Option<Instant>),
    /// It may go.
    Over,
}

/// A real server of a virtual server.
pub type Drained = (VirtualServer, RealServer);

/// All that drain.
#[derive(Debug, Default)]
pub struct Drains {
    states: HashMap<Drained, State>,
    /// When they were looked at last.
    looked_at: Option<Instant>,
}

impl Drains {
    /// It drains, for this long at most; `None` = as long as a connection lives. One that drains already keeps its
    /// deadline.
    pub(crate) fn begin(&mut self, key: Drained, timeout: Option<Duration>, now: Instant) {
        let state = self.states.entry(key).or_insert(State::Left(timeout));
        if let State::Left(left) = *state {
            // A time that no clock can tell is no end.
            *state = State::Until(left.and_then(|left| now.checked_add(left)));
        }
        self.looked_at.get_or_insert(now);
    }

    /// It drained already when this process, or this look at the kernel, began; `left` is `None` where its time is over,
    /// `Some(None)` where it has no end. What is known already counts more.
    pub(crate) fn found(&mut self, key: Drained, left: Option<Option<Duration>>) {
        self.states.entry(key).or_insert(left.map_or(State::Over, State::Left));
    }

    /// It is wanted again, or gone. True where it drained.
    pub(crate) fn end(&mut self, key: &Drained) -> bool {
        let drained = self.states.remove(key).is_some();
        if self.states.is_empty() {
            self.looked_at = None;
        }
        drained
    }

    /// It waits for its connections to end.
    pub(crate) fn waits(&self, key: &Drained) -> bool {
        matches!(self.states.get(key), Some(State::Left(_) | State::Until(_)))
    }

    /// What is left of its time, never zero; `None` = no end.
    pub(crate) fn left(&self, key: &Drained, now: Instant) -> Option<Duration> {
        match self.states.get(key)? {
            State::Left(left) => *left,
            State::Until(until) => {
                until.map(|until| until.saturating_duration_since(now).max(Duration::from_millis(1)))
            }
            State::Over => Some(OVER_MARK),
        }
    }

    /// When they are to be looked at; `None` = none drains.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let deadlines = self.states.values().filter_map(|state| match state {
            State::Until(until) => *until,
            State::Left(_) | State::Over => None,
        });
        let regular = self.looked_at.map(|at| at + LOOK_INTERVAL);
        regular.into_iter().chain(deadlines).min()
    }

    /// Virtual servers with one that waits, each once, with a note that they are looked at now.
    pub(crate) fn begin_look(&mut self, now: Instant) -> Vec<VirtualServer> {
        self.looked_at = (!self.states.is_empty()).then_some(now);
        let waiting = self.states.iter().filter(|(_, state)| **state != State::Over);
        let servers: HashSet<_> = waiting.map(|((server, _), _)| *server).collect();
        servers.into_iter().collect()
    }

    /// What the kernel says of a virtual server's real servers and their connections. Returns those that may go.
    pub(crate) fn look(
        &mut self,
        server: &VirtualServer,
        connections: &HashMap<RealServer, u32>,
        now: Instant,
    ) -> Vec<RealServer> {
        let mut over = Vec::new();
        for ((_, real), state) in self.states.iter_mut().filter(|((of, _), _)| of == server) {
            let past = matches!(state, State::Until(Some(until)) if *until <= now);
            let idle = connections.get(real).is_none_or(|count| *count == 0);
            if *state != State::Over && (past || idle) {
                *state = State::Over;
                over.push(*real);
            }
        }
        over
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// None drains.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }
}
