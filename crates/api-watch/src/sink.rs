//! Events about objects (`kubectl describe`): handed over by whoever has something to tell, and never waited for.

mod deliver;
mod fold;

use service_model::{Kind, ObjectName};
use tokio::sync::mpsc;
use tracing::debug;

pub(crate) use deliver::deliver;

const WAITING: usize = 256;

/// Type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// For information.
    Normal,
    /// Something is wrong.
    Warning,
}

/// An event about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectEvent {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub object: ObjectName,
    /// Type.
    pub event_type: EventType,
    /// Why, one CamelCase word.
    pub reason: &'static str,
    /// What was being done, one CamelCase word.
    pub action: &'static str,
    /// A sentence for a person; cut at 1024 bytes.
    pub note: String,
}

impl ObjectEvent {
    /// About a Node.
    pub fn about_node(
        node_name: &str,
        event_type: EventType,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self {
            kind: Kind::Node,
            object: ObjectName::cluster_scoped(node_name),
            event_type,
            reason,
            action,
            note,
        }
    }
}

/// Takes events about objects.
#[derive(Clone, Debug)]
pub struct EventSink(Option<mpsc::Sender<ObjectEvent>>);

impl EventSink {
    /// Takes events and sends them nowhere: there is no API server.
    pub fn null() -> Self {
        Self(None)
    }

    pub(crate) fn new() -> (Self, mpsc::Receiver<ObjectEvent>) {
        let (sender, waiting) = mpsc::channel(WAITING);
        (Self(Some(sender)), waiting)
    }

    /// Hands an event over and does not wait. Where too many wait, it is dropped: events tell, they do not decide.
    pub fn send(&self, event: ObjectEvent) {
        if let Some(sender) = &self.0
            && let Err(error) = sender.try_send(event)
        {
            debug!(%error, "event dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_sink_takes_everything() {
        let event = || ObjectEvent::about_node("n1", EventType::Normal, "Starting", "Start", String::new());
        (0..1000).for_each(|_| EventSink::null().send(event()));
    }
}
