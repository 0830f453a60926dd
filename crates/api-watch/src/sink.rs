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
/// Events at once, and the wait for each further one. Nodes have a bucket of their own: what is wrong with many services
/// must not hide what is wrong with the node.
const ALL: Bucket = Bucket {
    size: 25,
    refill: Duration::from_secs(5),
};
/// The same for one object: one that changes all the time must not use up what the others need.
const ONE: Bucket = Bucket {
    size: 10,
    refill: Duration::from_secs(60),
};
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

/// Sends what comes, at its pace, until the last sink is gone.
pub(crate) async fn deliver(mut waiting: mpsc::Receiver<ObjectEvent>, client: Client, node: String) {
    let mut limits = Limits::new(Instant::now());
    let mut sent: FxHashMap<ObjectEvent, Instant> = FxHashMap::default();
    while let Some(event) = waiting.recv().await {
        let now = Instant::now();
        sent.retain(|_, at| now.duration_since(*at) < REPEAT);
        if sent.contains_key(&event) || !limits.allow(&event, now) {
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

/// How many events at once, and how long until there is room for one more.
#[derive(Clone, Copy)]
struct Bucket {
    size: u32,
    refill: Duration,
}

/// How many events may be sent now: of services, of nodes, and of each object.
struct Limits {
    services: Limit,
    nodes: Limit,
    objects: FxHashMap<(Kind, ObjectName), Limit>,
}

impl Limits {
    fn new(now: Instant) -> Self {
        Self {
            services: Limit::new(ALL, now),
            nodes: Limit::new(ALL, now),
            objects: FxHashMap::default(),
        }
    }

    fn allow(&mut self, event: &ObjectEvent, now: Instant) -> bool {
        self.objects.retain(|_, limit| !limit.is_full(now));
        let all = match event.kind {
            Kind::Node => &mut self.nodes,
            Kind::Service | Kind::EndpointSlice => &mut self.services,
        };
        let one = self.objects.entry((event.kind, event.object.clone()));
        // An object that has had its share takes nothing from the others.
        one.or_insert_with(|| Limit::new(ONE, now)).allows(now) && all.allows(now)
    }
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

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left == self.bucket.size
    }

    fn allows(&mut self, now: Instant) -> bool {
        self.fill(now);
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
        let mut limit = Limit::new(ALL, start);
        assert_eq!((0..100).filter(|_| limit.allows(start)).count(), 25);
        assert!(!limit.allows(start + ALL.refill / 2));
        assert!(limit.allows(start + ALL.refill));
        assert!(!limit.allows(start + ALL.refill));
        let later = start + ALL.refill * 1000;
        assert_eq!((0..100).filter(|_| limit.allows(later)).count(), 25);
    }

    #[test]
    fn an_object_has_a_share_and_services_leave_room_for_the_node() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        let of = |kind, name: &str| ObjectEvent {
            kind,
            object: ObjectName::new("shop", name),
            ..event("x")
        };
        let mut sent = |kind, name: &str, at| (0..100).filter(|_| limits.allow(&of(kind, name), at)).count();
        assert_eq!(sent(Kind::Service, "noisy", start), 10);
        assert_eq!(sent(Kind::Service, "other", start), 10);
        assert_eq!(sent(Kind::Service, "noisy", start + ONE.refill), 1);
        let all: usize = (0..100)
            .map(|n| sent(Kind::Service, &format!("s{n}"), start + ONE.refill))
            .sum();
        assert_eq!(all, 16);
        assert_eq!(sent(Kind::Node, "n1", start + ONE.refill), 10);
        let later = start + ONE.refill * 20;
        assert_eq!(sent(Kind::Service, "noisy", later), 10);
        // Those that have their whole share again are forgotten.
        assert_eq!(limits.objects.len(), 1);
    }

    #[test]
    fn a_null_sink_takes_everything() {
        EventSink::null().send(event("x"));
    }
}
