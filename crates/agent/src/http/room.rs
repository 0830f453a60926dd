//! Room for a server's connections: how many it holds, how many of one source, and which one goes when there is no more.
//!
//! Nobody waits: who comes is let in, and the oldest connection that has asked nothing goes. A probe asks as soon as it
//! is connected, so neither idle nor slow clients keep it from its answer, however many they are.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

/// Connections of a server at a time. Three servers fill no more than three quarters of 1,024 descriptors, which a
/// process has at least.
const CONNECTIONS: usize = 256;
/// Of these, connections of one address.
const OF_ONE_SOURCE: usize = 32;

/// A server's room; that of all health-check node ports is one. Clones are the same room.
#[derive(Clone)]
pub(crate) struct Room {
    held: Arc<Mutex<Held>>,
    evicted: Counter,
}

#[derive(Default)]
struct Held {
    /// Number of the next one.
    next: u64,
    /// By number, so the oldest is the first. Its length bounds every walk.
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    source: IpAddr,
    /// The head of its request is there.
    asked: bool,
    /// The connection ends when this is dropped.
    _stays: oneshot::Sender<Infallible>,
}

/// A place in the room, given back when it is dropped.
pub(crate) struct Place {
    number: u64,
    room: Room,
}

/// Answers with an error when the place is another's.
pub(super) type Lost = oneshot::Receiver<Infallible>;

impl Room {
    /// An empty room. Connections that have to go are counted.
    pub(crate) fn new(evicted: Counter) -> Self {
        Self {
            held: Arc::default(),
            evicted,
        }
    }

    /// Lets a connection in. Where its source, or the room, is full, another one goes.
    pub(super) fn enter(&self, source: IpAddr) -> (Place, Lost) {
        // An IPv4 client of an IPv6 socket is the same source.
        let source = source.to_canonical();
        let (stays, lost) = oneshot::channel();
        let mut held = self.lock();
        let of_source = held.connections.values().filter(|held| held.source == source).count();
        let evicted = if of_source >= OF_ONE_SOURCE {
            held.evict(|held| held.source == source)
        } else if held.connections.len() >= CONNECTIONS {
            held.evict(|_| true)
        } else {
            false
        };
        self.count(evicted);
        let number = held.next;
        held.next += 1;
        let connection = Connection {
            source,
            asked: false,
            _stays: stays,
        };
        held.connections.insert(number, connection);
        drop(held);
        let room = self.clone();
        (Place { number, room }, lost)
    }

    /// Lets one go, as there are no descriptors left; false where none is held.
    pub(super) fn make_way(&self) -> bool {
        let evicted = self.lock().evict(|_| true);
        self.count(evicted);
        evicted
    }

    fn count(&self, evicted: bool) {
        if evicted {
            self.evicted.inc();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Ends the oldest of those that have asked nothing; where all have asked, the oldest.
    fn evict(&mut self, of: impl Fn(&Connection) -> bool) -> bool {
        let mut candidates = self.connections.iter().filter(|(_, held)| of(held)).peekable();
        let oldest = candidates.peek().map(|(number, _)| **number);
        let silent = candidates.find(|(_, held)| !held.asked).map(|(number, _)| *number);
        let gone = silent.or(oldest).and_then(|number| self.connections.remove(&number));
        gone.is_some()
    }
}

impl Place {
    /// Tells that the head of the request is there.
    pub(super) fn asked(&self) {
        if let Some(connection) = self.room.lock().connections.get_mut(&self.number) {
            connection.asked = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn room() -> Room {
        Room::new(Counter::default())
    }

    fn source(number: usize) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap()).into()
    }

    /// Numbers of those that have lost their places.
    fn lost(places: &mut [(Place, Lost)]) -> Vec<usize> {
        let all = places.iter_mut().enumerate();
        all.filter_map(|(number, (_, lost))| lost.try_recv().err().map(|error| (number, error)))
            .filter(|(_, error)| *error == oneshot::error::TryRecvError::Closed)
            .map(|(number, _)| number)
            .collect()
    }

    #[test]
    fn f04_the_oldest_that_has_asked_nothing_goes() {
        let room = room();
        let mut places: Vec<_> = (0..CONNECTIONS).map(|number| room.enter(source(number))).collect();
        places[0].0.asked();
        assert_eq!(lost(&mut places), Vec::<usize>::new());
        places.push(room.enter(source(CONNECTIONS)));
        places.push(room.enter(source(CONNECTIONS + 1)));
        assert_eq!(lost(&mut places), [1, 2]);
        assert_eq!(room.evicted.get(), 2);
        // One that ends leaves its place to the next.
        drop(places.remove(3));
        places.push(room.enter(source(3)));
        assert_eq!(lost(&mut places), [1, 2]);
        // Where all have asked, it is the oldest.
        places.iter().for_each(|(place, _)| place.asked());
        places.push(room.enter(source(4)));
        assert_eq!(lost(&mut places), [0, 1, 2]);
    }

    #[test]
    fn f04_a_source_takes_no_place_of_others() {
        let room = room();
        let mut others: Vec<_> = (1..100).map(|number| room.enter(source(number))).collect();
        let mut places: Vec<_> = (0..10 * CONNECTIONS).map(|_| room.enter(source(0))).collect();
        assert_eq!(lost(&mut others), Vec::<usize>::new());
        assert_eq!(
            lost(&mut places),
            (0..10 * CONNECTIONS - OF_ONE_SOURCE).collect::<Vec<_>>()
        );
        let mapped = room.enter("::ffff:10.0.0.0".parse().unwrap());
        assert_eq!(lost(&mut places).len(), 10 * CONNECTIONS - OF_ONE_SOURCE + 1);
        drop((places, others, mapped));
        assert!(room.lock().connections.is_empty() && !room.make_way());
    }
}
