//! Events that wait, folded: of each object the newest one alone, so that what waits is never more than what exists.
//!
//! An event costs what its service costs to compute. Without folding, whoever changes one large Service faster than it is
//! computed keeps every other one waiting (audit F3).

use foldhash::HashMap;

use crate::event::{Batch, Event, Kind};
use crate::name::ObjectName;

/// Batches that wait, made one: it leads from the picture before the first of them to the one after the last.
#[derive(Debug, Default)]
pub struct Backlog {
    /// In the order in which they came; `None` = a newer one took its place.
    events: Vec<Option<Event>>,
    /// Where the newest event of each subject is.
    places: HashMap<Subject, usize>,
    /// Events that a newer one took the place of.
    folded: Folded,
}

/// How many events were folded away, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Of Services.
    pub services: u64,
    /// Of EndpointSlices.
    pub endpoint_slices: u64,
}

/// What an event is of. A later event of the same subject makes an earlier one needless.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Object(Kind, ObjectName),
    /// Apart from the object: what was sent of it before stays (L18).
    Unreadable(Kind, ObjectName),
    NodeAddresses,
    Complete(Kind),
    OtherNodesComplete,
    OtherNodesForgotten,
}

impl Subject {
    fn of(event: &Event) -> Self {
        match event {
            Event::Unreadable(rejection) => Self::Unreadable(rejection.kind, rejection.object.clone()),
            Event::NodeAddresses(_) => Self::NodeAddresses,
            Event::Complete(kind) => Self::Complete(*kind),
            Event::OtherNodesComplete => Self::OtherNodesComplete,
            Event::OtherNodesForgotten => Self::OtherNodesForgotten,
            Event::Service(_) | Event::EndpointSlice(_) | Event::Node(_) => match event.object() {
                Some((kind, name)) => Self::Object(kind, name.clone()),
                None => unreachable!("an event of an object names it"),
            },
        }
    }
}

impl Backlog {
    /// Adds a batch behind what waits.
    pub fn push(&mut self, batch: Batch) {
        for event in batch {
            let before = self.places.insert(Subject::of(&event), self.events.len());
            if let Some(before) = before.and_then(|at| self.events.get_mut(at)) {
                match before.take() {
                    Some(Event::Service(_)) => self.folded.services += 1,
                    Some(Event::EndpointSlice(_)) => self.folded.endpoint_slices += 1,
                    _ => {}
                }
            }
            self.events.push(Some(event));
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// All that waits, and how much was folded away.
    pub fn take(&mut self) -> (Batch, Folded) {
        self.places.clear();
        let events = std::mem::take(&mut self.events).into_iter().flatten().collect();
        (events, std::mem::take(&mut self.folded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Change;
    use crate::object::Service;

    fn service(name: &str, port: u16) -> Event {
        let mut service = Service::new(ObjectName::new("d", name));
        service.health_check_node_port = port;
        Event::Service(Change::Applied(service))
    }

    #[test]
    fn f03_a_backlog_is_no_longer_than_its_objects() {
        let mut backlog = Backlog::default();
        for port in 0..1000 {
            backlog.push(vec![service("hot", port), Event::Complete(Kind::Service)]);
        }
        backlog.push(vec![service("other", 1)]);
        assert_eq!(backlog.len(), 3);
        let (events, folded) = backlog.take();
        let newest = [service("hot", 999), Event::Complete(Kind::Service), service("other", 1)];
        assert_eq!(events, newest);
        assert_eq!(folded.services, 999);
        assert!(backlog.is_empty());
        assert_eq!(backlog.take(), (Vec::new(), Folded::default()));
    }
}
