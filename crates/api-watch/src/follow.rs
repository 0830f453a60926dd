//! List and watch of one collection: the server's stream in, model events out, and nothing kept but the names.
//!
//! Three ways to be up to date: resume a watch, stream the list (WatchList), list in pages. Which one is next follows
//! from two facts: is there a version to resume from, and can the server stream lists.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::BytesMut;
use form_urlencoded::Serializer;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use rustc_hash::FxHashSet;
use serde::Deserialize;
use serde_json::value::RawValue;
use service_model::{Event, Kind, ObjectName};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::back_off::BackOff;
use crate::connection::Connection;
use crate::decode;
use crate::error::Error;
use crate::lines::Lines;

/// Objects of one page.
const PAGE: &str = "500";
/// The server ends a watch after so long, so that clients spread over its instances again.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;

/// What a follower follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collection {
    Services,
    EndpointSlices,
    ThisNode,
    /// All Nodes, without this one: that is [`ThisNode`](Self::ThisNode)'s.
    OtherNodes,
}

impl Collection {
    fn kind(self) -> Kind {
        match self {
            Self::Services => Kind::Service,
            Self::EndpointSlices => Kind::EndpointSlice,
            Self::ThisNode | Self::OtherNodes => Kind::Node,
        }
    }

    /// All of it has been sent.
    fn complete(self) -> Event {
        match self {
            Self::OtherNodes => Event::OtherNodesComplete,
            _ => Event::Complete(self.kind()),
        }
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNodes => f.write_str("other Nodes"),
            _ => self.kind().fmt(f),
        }
    }
}

/// Follows one collection.
pub(crate) struct Follower {
    connection: Connection,
    collection: Collection,
    events: mpsc::Sender<Event>,
    /// The objects that the model has.
    known: FxHashSet<ObjectName>,
    /// Where the next watch resumes; `None` = a list is due.
    version: Option<String>,
    /// The server can stream lists, as far as we know.
    streams_lists: bool,
    /// Lists have pages. Not after a page came too late, when the server had forgotten the list.
    pages: bool,
}

/// Why something ended before its end.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the version is too old")]
    Expired,
    #[error("the server does not stream lists: {0}")]
    NoStreamedLists(String),
    #[error("status {code}: {message}")]
    Status {
        code: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("request")]
    Request(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Silence(Duration),
    #[error("the stream ended within the list")]
    Cut,
    #[error("the response is not what was asked for")]
    Garbled(#[source] serde_json::Error),
    #[error("the reader of events is gone")]
    Closed,
}

#[derive(Deserialize)]
struct WatchEvent<'a> {
    #[serde(borrow, rename = "type")]
    what: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMetadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl Follower {
    pub(crate) fn new(connection: Connection, collection: Collection, events: mpsc::Sender<Event>) -> Self {
        Self {
            connection,
            collection,
            events,
            known: FxHashSet::default(),
            version: None,
            streams_lists: true,
            pages: true,
        }
    }

    /// Runs until nobody takes events any more.
    pub(crate) async fn run(mut self) -> Error {
        let mut back_off = BackOff::default();
        loop {
            let done = match self.version.clone() {
                Some(version) => self.watch(&version, &mut back_off).await,
                None if self.streams_lists => self.stream_list(&mut back_off).await,
                None => self.list().await,
            };
            let Err(failure) = done else { continue };
            let kind = self.collection;
            let wait = match &failure {
                Failure::Closed => return Error::Closed,
                Failure::NoStreamedLists(reason) => {
                    debug!(%kind, reason, "the server does not stream lists, listing in pages");
                    self.streams_lists = false;
                    continue;
                }
                Failure::Expired => {
                    info!(%kind, "the version is too old, listing again");
                    self.version = None;
                    back_off.next()
                }
                Failure::Status {
                    retry_after: Some(after),
                    ..
                } => back_off.next().max(*after),
                _ => back_off.next(),
            };
            if !matches!(failure, Failure::Expired) {
                let error = chain(&failure);
                warn!(%kind, error, retry_in_seconds = wait.as_secs_f32(), "lost the API server, the last state stays");
            }
            tokio::time::sleep(wait).await;
            if matches!(failure, Failure::Request(_) | Failure::Status { code: 401, .. })
                && let Err(error) = self.connection.renew().await
            {
                warn!(%kind, error = chain(&error), "the credentials cannot be read again, the old ones are used");
            }
        }
    }

    fn uri(&self, pairs: &[(&str, &str)]) -> String {
        const LABELS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
        let this_node = format!("metadata.name={}", self.connection.node_name());
        let (path, selectors): (_, &[(&str, &str)]) = match self.collection {
            Collection::Services => (
                "/api/v1/services",
                &[("labelSelector", LABELS), ("fieldSelector", "spec.clusterIP!=None")],
            ),
            Collection::EndpointSlices => ("/apis/discovery.k8s.io/v1/endpointslices", &[("labelSelector", LABELS)]),
            Collection::ThisNode => ("/api/v1/nodes", &[("fieldSelector", &this_node)]),
            Collection::OtherNodes => ("/api/v1/nodes", &[]),
        };
        let query = Serializer::new(String::new())
            .extend_pairs(selectors)
            .extend_pairs(pairs)
            .finish();
        format!("{path}?{query}")
    }

    async fn get(&self, pairs: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let request = Request::get(self.uri(pairs))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("kube-ipvs/", env!("CARGO_PKG_VERSION")))
            .body(Body::empty())
            .map_err(|error| Failure::Request(error.into()))?;
        let patience = self.connection.patience().response;
        let response = timeout(patience, self.connection.client.send(request))
            .await
            .map_err(|_| Failure::Silence(patience))?
            .map_err(|error| Failure::Request(error.into()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.min(30)));
        let body = read(response.into_body(), patience).await.unwrap_or_default();
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        let message = if status.message.is_empty() {
            code.to_string()
        } else {
            status.message
        };
        Err(match code {
            StatusCode::GONE => Failure::Expired,
            _ => Failure::Status {
                code: code.as_u16(),
                message,
                retry_after,
            },
        })
    }

    /// Lists in pages; the model has exactly these objects at the end.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut seen = FxHashSet::default();
        let mut next = String::new();
        loop {
            let mut pairs = Vec::new();
            if self.pages {
                pairs.push(("limit", PAGE));
            }
            if !next.is_empty() {
                pairs.push(("continue", next.as_str()));
            }
            let response = match self.get(&pairs).await {
                Err(Failure::Expired) if !next.is_empty() => {
                    self.pages = false;
                    return Err(Failure::Expired);
                }
                other => other?,
            };
            let body = read(response.into_body(), self.connection.patience().watch).await?;
            let page: Page<'_> = serde_json::from_slice(&body).map_err(Failure::Garbled)?;
            for item in page.items.iter().flatten() {
                self.apply(item, &mut Some(&mut seen)).await?;
            }
            next = page.metadata.next;
            if next.is_empty() {
                self.pages = true;
                return self.complete(&seen, page.metadata.resource_version).await;
            }
        }
    }

    /// A list as a watch: the objects, then a bookmark, then what changes.
    async fn stream_list(&mut self, back_off: &mut BackOff) -> Result<(), Failure> {
        let pairs = [
            ("watch", "true"),
            ("sendInitialEvents", "true"),
            ("resourceVersionMatch", "NotOlderThan"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds()),
        ];
        let response = self.get(&pairs).await.map_err(|failure| match failure {
            // A server without the feature forbids the parameter; which code it gives depends on its version.
            Failure::Status {
                code: 400 | 403 | 422,
                message,
                ..
            } => Failure::NoStreamedLists(message),
            other => other,
        })?;
        self.stream(response, true, back_off).await
    }

    async fn watch(&mut self, version: &str, back_off: &mut BackOff) -> Result<(), Failure> {
        let pairs = [
            ("watch", "true"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds()),
        ];
        let response = self.get(&pairs).await?;
        self.stream(response, false, back_off).await
    }

    /// Takes in a stream until its end. An end in order that brought nothing counts as a failure: there would be no
    /// wait before the next.
    async fn stream(&mut self, response: Response<Body>, list: bool, back_off: &mut BackOff) -> Result<(), Failure> {
        let patience = self.connection.patience();
        let mut seen = list.then(FxHashSet::default);
        let mut body = response.into_body();
        let mut lines = Lines::default();
        let mut came = false;
        loop {
            let silence = if seen.is_some() {
                patience.streamed_list
            } else {
                patience.watch
            };
            let frame = match timeout(silence, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Failure::Request(error.into())),
                Ok(None) if seen.is_some() || !came => return Err(Failure::Cut),
                Ok(None) => return Ok(()),
                Err(_) if seen.is_some() => return Err(Failure::NoStreamedLists("no bookmark came".to_owned())),
                Err(_) => return Err(Failure::Silence(silence)),
            };
            let Ok(data) = frame.into_data() else { continue };
            lines.push(&data);
            while let Some(line) = lines.next() {
                let event: WatchEvent<'_> = serde_json::from_slice(&line).map_err(Failure::Garbled)?;
                self.take(&event, &mut seen).await?;
                came = true;
                back_off.reset();
            }
        }
    }

    async fn take(&mut self, event: &WatchEvent<'_>, seen: &mut Option<FxHashSet<ObjectName>>) -> Result<(), Failure> {
        match &*event.what {
            "ADDED" | "MODIFIED" => {
                let version = self.apply(event.object, &mut seen.as_mut()).await?;
                self.advance(version, seen.is_none());
            }
            "DELETED" => {
                let identity = decode::identity(self.collection.kind(), event.object).map_err(Failure::Garbled)?;
                if let Some(seen) = seen {
                    seen.remove(&identity.name);
                } else if self.known.remove(&identity.name) {
                    self.send(decode::deletion(self.collection.kind(), identity.name))
                        .await?;
                }
                self.advance(Some(identity.resource_version), seen.is_none());
            }
            "BOOKMARK" => {
                let identity = decode::identity(self.collection.kind(), event.object).map_err(Failure::Garbled)?;
                match seen.take() {
                    Some(seen) if identity.initial_events_end => {
                        self.complete(&seen, identity.resource_version).await?;
                    }
                    Some(_) => return Err(Failure::NoStreamedLists("a bookmark came that ends no list".to_owned())),
                    None => self.advance(Some(identity.resource_version), true),
                }
            }
            "ERROR" => {
                let status = Status::deserialize(event.object).map_err(Failure::Garbled)?;
                return Err(match status.code {
                    410 => Failure::Expired,
                    code => Failure::Status {
                        code,
                        message: status.message,
                        retry_after: None,
                    },
                });
            }
            other => debug!(kind = %self.collection, what = other, "unknown watch event"),
        }
        Ok(())
    }

    /// A list that is not complete is never resumed from.
    fn advance(&mut self, version: Option<String>, resumable: bool) {
        if let Some(version) = version.filter(|version| resumable && !version.is_empty()) {
            self.version = Some(version);
        }
    }

    /// Sends an object to the model. A bad one is named and skipped: the model keeps what it has of it.
    async fn apply(
        &mut self,
        object: &RawValue,
        seen: &mut Option<&mut FxHashSet<ObjectName>>,
    ) -> Result<Option<String>, Failure> {
        let decoded = match decode::object(self.collection.kind(), object) {
            Ok(decoded) => decoded,
            Err(error) => {
                let identity = decode::identity(self.collection.kind(), object).ok();
                let name = identity
                    .as_ref()
                    .map_or("(without a name)", |identity| identity.name.as_str());
                warn!(kind = %self.collection, object = name, %error, "bad object, skipped");
                if let (Some(seen), Some(identity)) = (seen, &identity) {
                    seen.insert(identity.name.clone());
                }
                return Ok(identity.map(|identity| identity.resource_version));
            }
        };
        if let Some(seen) = seen {
            seen.insert(decoded.name.clone());
        }
        if self.collection != Collection::OtherNodes || decoded.name.name() != self.connection.node_name() {
            self.known.insert(decoded.name);
            self.send(decoded.event).await?;
        }
        Ok(Some(decoded.resource_version))
    }

    /// What the model has and the list has not is gone.
    async fn complete(&mut self, seen: &FxHashSet<ObjectName>, version: String) -> Result<(), Failure> {
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|name| !seen.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.known.remove(&name);
            self.send(decode::deletion(self.collection.kind(), name)).await?;
        }
        self.version = Some(version);
        info!(kind = %self.collection, objects = self.known.len(), "listed");
        self.send(self.collection.complete()).await
    }

    async fn send(&self, event: Event) -> Result<(), Failure> {
        self.events.send(event).await.map_err(|_| Failure::Closed)
    }
}

async fn read(mut body: Body, patience: Duration) -> Result<BytesMut, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = timeout(patience, body.frame())
        .await
        .map_err(|_| Failure::Silence(patience))?
    {
        let frame = frame.map_err(|error| Failure::Request(error.into()))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

fn seconds() -> String {
    fastrand::u32(WATCH_SECONDS).to_string()
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
