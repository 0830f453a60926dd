//! What the kernel refused, and when it is tried again (L11).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::HashMap;

use crate::plan::Key;

/// First wait after a refused op.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two tries of one op.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// An op that the kernel refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// How often in a row.
    pub times: u32,
    /// When it is tried again.
    pub retry_at: Instant,
    /// What the kernel said.
    pub reason: Box<str>,
    /// No commit tries it, but the background (L4).
    pub in_background: bool,
}

/// Refused objects, by key and by time.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_key: HashMap<Key, Refused>,
    by_time: BTreeSet<(Instant, Key)>,
    /// The same of what is tried in the background.
    background: BTreeSet<(Instant, Key)>,
    /// When virtual servers are tried again, by address.
    servers: HashMap<IpAddr, BTreeSet<(Instant, Key)>>,
    /// One was made good, or given up, since [`Refusals::take_freed`].
    freed: bool,
}

impl Refusals {
    /// It was refused: the wait doubles each time.
    pub(crate) fn add(&mut self, key: Key, in_background: bool, reason: &str, now: Instant) {
        let times = self.forget(&key).map_or(0, |refused| refused.times);
        let wait = RETRY_MIN.saturating_mul(1 << times.min(6)).min(RETRY_MAX);
        self.insert(
            key,
            Refused {
                times: times.saturating_add(1),
                retry_at: now + wait,
                reason: reason.into(),
                in_background,
            },
        );
    }

    /// It is due, and waits for something else that was refused: it is looked at again after the shortest wait.
    pub(crate) fn postpone(&mut self, key: &Key, now: Instant) {
        if self.by_key.get(key).is_some_and(|refused| refused.retry_at <= now)
            && let Some(refused) = self.forget(key)
        {
            let retry_at = now + RETRY_MIN;
            self.insert(*key, Refused { retry_at, ..refused });
        }
    }

    /// It is as it should be, or not wanted any more. True where it had been refused.
    pub(crate) fn remove(&mut self, key: &Key) -> bool {
        let found = self.forget(key).is_some();
        self.freed |= found;
        found
    }

    fn insert(&mut self, key: Key, refused: Refused) {
        let at = (refused.retry_at, key);
        match refused.in_background {
            true => self.background.insert(at),
            false => self.by_time.insert(at),
        };
        if let Some(ip) = address_of(&key) {
            self.servers.entry(ip).or_default().insert(at);
        }
        self.by_key.insert(key, refused);
    }

    fn forget(&mut self, key: &Key) -> Option<Refused> {
        let refused = self.by_key.remove(key)?;
        let at = (refused.retry_at, *key);
        self.by_time.remove(&at);
        self.background.remove(&at);
        if let Some(ip) = address_of(key)
            && let Some(servers) = self.servers.get_mut(&ip)
        {
            servers.remove(&at);
            if servers.is_empty() {
                self.servers.remove(&ip);
            }
        }
        Some(refused)
    }

    /// It is not to be tried yet.
    pub(crate) fn waits(&self, key: &Key, now: Instant) -> bool {
        self.by_key.get(key).is_some_and(|refused| refused.retry_at > now)
    }

    /// A virtual server at this address is not to be tried yet.
    pub(crate) fn server_waits_at(&self, ip: IpAddr, now: Instant) -> bool {
        let last = self.servers.get(&ip).and_then(BTreeSet::last);
        last.is_some_and(|(at, _)| *at > now)
    }

    /// One was made good, or given up: what waits for it may go on.
    pub(crate) fn freed(&self) -> bool {
        self.freed
    }

    /// What waits may go on: one is due, or was made good, or given up. Asked again, it has to happen again.
    pub(crate) fn take_freed(&mut self, now: Instant) -> bool {
        std::mem::take(&mut self.freed) || self.next().is_some_and(|at| at <= now)
    }

    /// When the next one is due that a commit tries.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// When the next one is due that is tried in the background.
    pub(crate) fn next_in_background(&self) -> Option<Instant> {
        self.background.first().map(|(at, _)| *at)
    }

    /// All.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Refused)> {
        self.by_key.iter()
    }
}

fn address_of(key: &Key) -> Option<IpAddr> {
    match key {
        Key::VirtualServer(server) => server.address(),
        _ => None,
    }
}
