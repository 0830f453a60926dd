//! The API server as a source of events: its collections followed side by side, other nodes listed only while
//! they are wanted.

use std::time::{Duration, Instant};

use service_model::{Batch, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::info;

use crate::collection::Collection;
use crate::connection::{ApiConfig, Connection};
use crate::error::Error;
use crate::follow::Follower;
use crate::node_list::NodeList;
use crate::sink::{EventSink, ObjectEvent, deliver};

/// Other Nodes that are wanted within so long after the start are listed at once: the start waits for them (L2), and
/// their table is little beside what else it lists.
const START: Duration = Duration::from_secs(20);

/// A configured API server. No connection is made before [`watch`](Self::watch).
pub struct ApiServer {
    connection: Connection,
    sink: EventSink,
    /// What sinks were given.
    waiting: mpsc::Receiver<ObjectEvent>,
}

impl ApiServer {
    /// Reads the kubeconfig, or the pod's service account, and sets up TLS and credentials.
    ///
    /// # Errors
    /// [`Error::Kubeconfig`], [`Error::InCluster`], [`Error::Master`], [`Error::Proxy`], [`Error::Client`]. A server that
    /// cannot be reached is none: it is tried again while watching.
    pub async fn connect(config: &ApiConfig) -> Result<Self, Error> {
        let (sink, waiting) = EventSink::new();
        Ok(Self {
            connection: Connection::new(config).await?,
            sink,
            waiting,
        })
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        self.connection.url()
    }

    /// A sink for events about objects. They are sent while [`watch`](Self::watch) runs.
    pub fn event_sink(&self) -> EventSink {
        self.sink.clone()
    }

    /// Follows Services, EndpointSlices and this Node, and the other Nodes while `other_nodes` is true (T18). Faults are
    /// logged and tried again, with growing waits; the only end is [`Error::Closed`].
    pub async fn watch(mut self, batches: mpsc::Sender<Batch>, other_nodes: watch::Receiver<bool>) -> Error {
        // Its sender stays with `self`, so it is never closed.
        let (_, none) = mpsc::channel(1);
        let waiting = std::mem::replace(&mut self.waiting, none);
        let follow = |collection| self.follower(collection, &batches).run();
        // All of one task: one cannot end, or panic, without the others.
        tokio::select! {
            () = deliver(waiting, self.connection.clone()) => Error::Closed,
            end = follow(Collection::Services) => end,
            end = follow(Collection::EndpointSlices) => end,
            end = follow(Collection::ThisNode) => end,
            end = self.follow_other_nodes(&batches, other_nodes) => end,
        }
    }

    fn follower(&self, collection: Collection, batches: &mpsc::Sender<Batch>) -> Follower {
        Follower::new(self.connection.clone(), collection, batches.clone())
    }

    async fn follow_other_nodes(&self, batches: &mpsc::Sender<Batch>, mut wanted: watch::Receiver<bool>) -> Error {
        let start = Instant::now();
        loop {
            becomes(&mut wanted, true).await;
            let spread = self.connection.patience().node_list_spread;
            let spread = if start.elapsed() < START {
                Duration::ZERO
            } else {
                spread
            };
            tokio::select! {
                end = NodeList::new(self.connection.clone(), batches.clone()).run(spread) => return end,
                () = self.no_longer(&mut wanted) => {}
            }
            info!("no service has an external address, other nodes are listed no more");
            if batches.send(vec![Event::OtherNodesForgotten]).await.is_err() {
                return Error::Closed;
            }
        }
    }

    /// Waits until nothing has been wanted for so long that it will not be at once again: a service that is replaced
    /// must not make every node of a cluster list all the others.
    async fn no_longer(&self, wanted: &mut watch::Receiver<bool>) {
        loop {
            becomes(wanted, false).await;
            if timeout(self.connection.patience().other_nodes, becomes(wanted, true))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

/// Waits for a value. Who could tell it and is gone tells nothing any more.
async fn becomes(wanted: &mut watch::Receiver<bool>, value: bool) {
    let told = wanted.wait_for(|wanted| *wanted == value).await.is_ok();
    if !told {
        std::future::pending::<()>().await;
    }
}
