//! The API server as a source of events: its kinds followed side by side.

use service_model::{Event, Kind};
use tokio::sync::mpsc;

use crate::connection::{ApiConfig, Connection};
use crate::error::Error;
use crate::follow::Follower;
use crate::sink::{EventSink, deliver};

/// A configured API server. No connection is made before [`watch`](Self::watch).
pub struct ApiServer {
    connection: Connection,
}

impl ApiServer {
    /// Reads the kubeconfig, or the pod's service account, and sets up TLS and credentials.
    ///
    /// # Errors
    /// [`Error::Kubeconfig`], [`Error::InCluster`], [`Error::Master`], [`Error::Proxy`], [`Error::Client`]. A server that
    /// cannot be reached is none: it is tried again while watching.
    pub async fn connect(config: &ApiConfig) -> Result<Self, Error> {
        let connection = Connection::new(config).await?;
        Ok(Self { connection })
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        self.connection.url()
    }

    /// A sink for events about objects. Its task ends with the last sink.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn event_sink(&self) -> EventSink {
        let (sink, waiting) = EventSink::new();
        tokio::spawn(deliver(
            waiting,
            self.connection.client.clone(),
            self.connection.node_name().to_owned(),
        ));
        sink
    }

    /// Follows Services, EndpointSlices and this Node. Faults are logged and tried again, with growing waits; the only
    /// end is [`Error::Closed`].
    pub async fn watch(self, events: mpsc::Sender<Event>) -> Error {
        let follow = |kind| Follower::new(self.connection.clone(), kind, events.clone()).run();
        // All of one task: one cannot end without the others.
        tokio::select! {
            end = follow(Kind::Service) => end,
            end = follow(Kind::EndpointSlice) => end,
            end = follow(Kind::Node) => end,
        }
    }
}
