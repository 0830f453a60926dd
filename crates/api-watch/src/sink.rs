//! Events about objects (`kubectl describe`): sent as events.k8s.io/v1, rate-limited, never waited for.

use std::time::Duration;

use http::{Request, header};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use rustc_hash::FxHashMap;
use serde_json::json;
use service_model::{Kind, ObjectName};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::debug;

/// What kube-proxy reports as.
const CONTROLLER: &str = "kube-proxy";
const WAITING: usize = 256;
/// Events at once, and the wait for each further one.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5);
/// The same event is not sent again within this time.
const REPEAT: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(10);
/// API limit of `note`, in bytes.
const NOTE: usize = 1024;

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

/// Sends what comes, at its pace, until the last sink is gone.
pub(crate) async fn deliver(mut waiting: mpsc::Receiver<ObjectEvent>, client: Client, node: String) {
    let mut limit = Limit::new(Instant::now());
    let mut sent: FxHashMap<ObjectEvent, Instant> = FxHashMap::default();
    while let Some(event) = waiting.recv().await {
        let now = Instant::now();
        sent.retain(|_, at| now.duration_since(*at) < REPEAT);
        if sent.contains_key(&event) || !limit.allows(now) {
            debug!(object = %event.object, reason = event.reason, "event held back");
            continue;
        }
        match timeout(PATIENCE, post(&client, &event, &node)).await {
            Ok(Ok(())) => drop(sent.insert(event, now)),
            Ok(Err(error)) => debug!(error, object = %event.object, "event not taken"),
            Err(_) => debug!(object = %event.object, "event not taken in time"),
        }
    }
}

async fn post(client: &Client, event: &ObjectEvent, node: &str) -> Result<(), String> {
    let (namespace, body) = document(event, node, Timestamp::now());
    let request = Request::post(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.into_bytes()))
        .map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(response.status().to_string())
    }
}

/// Namespace and body of the event.
fn document(event: &ObjectEvent, node: &str, now: Timestamp) -> (String, String) {
    let api_version = match event.kind {
        Kind::Service | Kind::Node => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
    };
    let namespace = match event.object.namespace() {
        "" => "default",
        namespace => namespace,
    };
    let mut regarding =
        json!({ "apiVersion": api_version, "kind": event.kind.to_string(), "name": event.object.name() });
    if !event.object.namespace().is_empty()
        && let Some(fields) = regarding.as_object_mut()
    {
        fields.insert("namespace".to_owned(), event.object.namespace().into());
    }
    let body = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{}.{:x}", event.object.name(), fastrand::u64(..)), "namespace": namespace },
        "eventTime": format!("{now:.6}"),
        "type": match event.event_type { EventType::Normal => "Normal", EventType::Warning => "Warning" },
        "reason": event.reason,
        "action": event.action,
        "note": cut(&event.note, NOTE),
        "reportingController": CONTROLLER,
        "reportingInstance": node,
        "regarding": regarding,
    });
    (namespace.to_owned(), body.to_string())
}

fn cut(text: &str, longest: usize) -> &str {
    let end = (0..=longest.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// A bucket of events.
struct Limit {
    left: u32,
    filled: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            filled: now,
        }
    }

    fn allows(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.duration_since(self.filled) >= REFILL {
            self.left += 1;
            self.filled += REFILL;
        }
        if self.left == BURST {
            self.filled = now;
        }
        self.left.checked_sub(1).map(|left| self.left = left).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(note: &str) -> ObjectEvent {
        ObjectEvent {
            kind: Kind::Service,
            object: ObjectName::new("shop", "web"),
            event_type: EventType::Warning,
            reason: "CannotProgram",
            action: "Compute",
            note: note.to_owned(),
        }
    }

    #[test]
    fn an_event_as_the_api_wants_it() {
        let (namespace, body) = document(&event(&"ä".repeat(600)), "n1", Timestamp::UNIX_EPOCH);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(namespace, "shop");
        assert_eq!(body["eventTime"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            body["regarding"],
            json!({"apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "shop"})
        );
        assert_eq!(body["reportingController"], "kube-proxy");
        assert_eq!(body["note"].as_str().unwrap().len(), 1024);
    }

    #[test]
    fn a_burst_then_one_by_one() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert_eq!((0..100).filter(|_| limit.allows(start)).count(), 25);
        assert!(!limit.allows(start + REFILL / 2));
        assert!(limit.allows(start + REFILL));
        assert!(!limit.allows(start + REFILL));
        assert_eq!((0..100).filter(|_| limit.allows(start + REFILL * 1000)).count(), 25);
    }

    #[test]
    fn a_null_sink_takes_everything() {
        EventSink::null().send(event("x"));
    }
}
