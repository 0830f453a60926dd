//! Sends events to the API server, as events.k8s.io/v1.

use std::future::pending;
use std::time::Duration;

use http::{Request, header};
use jiff::Timestamp;
use kube::client::Body;
use serde_json::json;
use service_model::Kind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::fold::Folds;
use super::{EventType, ObjectEvent};
use crate::connection::Connection;
use crate::failure::{Failure, chain};

/// What kube-proxy reports as.
const CONTROLLER: &str = "kube-proxy";
const PATIENCE: Duration = Duration::from_secs(10);
/// API limit of `note`, in bytes.
const NOTE: usize = 1024;

/// Sends what comes, folded and at its pace. Never ends: an event that is not taken is no reason to.
pub(crate) async fn deliver(mut waiting: mpsc::Receiver<ObjectEvent>, connection: Connection) {
    let mut folds = Folds::new(Instant::now());
    let mut sender = Sender {
        connection,
        fails: false,
    };
    loop {
        let due = async {
            match folds.next_due() {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            event = waiting.recv() => match event {
                Some(event) => folds.take(event, Instant::now()),
                None => return pending().await,
            },
            () = due => if let Some(event) = folds.due(Instant::now()) {
                let taken = sender.send(&event).await;
                folds.sent(&event, taken, Instant::now());
            },
        }
    }
}

struct Sender {
    connection: Connection,
    /// The last event was not taken, and that was said.
    fails: bool,
}

impl Sender {
    /// Sends an event; once more with certificates and credentials read anew, where the old ones may be the cause.
    async fn send(&mut self, event: &ObjectEvent) -> bool {
        let mut done = self.post(event).await;
        if let Err(failure) = &done
            && failure.may_be_stale_credentials()
            && self.connection.renew().await.is_ok()
        {
            done = self.post(event).await;
        }
        match &done {
            Ok(()) if self.fails => info!("the API server takes events again"),
            Ok(()) => {}
            Err(failure) if self.fails => debug!(error = chain(failure), object = %event.object, "event not taken"),
            Err(failure) => {
                warn!(error = chain(failure), object = %event.object, "the API server does not take an event, going on without");
            }
        }
        self.fails = done.is_err();
        done.is_ok()
    }

    async fn post(&self, event: &ObjectEvent) -> Result<(), Failure> {
        let (namespace, body) = document(event, self.connection.node_name(), Timestamp::now());
        let request = Request::post(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.into_bytes()))
            .map_err(|error| Failure::Request(error.into()))?;
        let response = timeout(PATIENCE, self.connection.client.send(request))
            .await
            .map_err(|_| Failure::Silence(PATIENCE))?
            .map_err(|error| Failure::Request(error.into()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(Failure::Status {
            code: status.as_u16(),
            message: status.to_string(),
            retry_after: None,
        })
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

#[cfg(test)]
mod tests {
    use service_model::ObjectName;

    use super::*;

    #[test]
    fn an_event_as_the_api_wants_it() {
        let event = ObjectEvent {
            kind: Kind::Service,
            object: ObjectName::new("shop", "web"),
            event_type: EventType::Warning,
            reason: "CannotProgram",
            action: "Compute",
            note: "ä".repeat(600),
        };
        let (namespace, body) = document(&event, "n1", Timestamp::UNIX_EPOCH);
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
}
