//! List and watch of one collection: the server's stream in, batches of model events out, and nothing kept but the
//! names.
//!
//! Three ways to be up to date: resume a watch, stream the list (WatchList), list in pages. Which one is next follows
//! from two facts: is there a version to resume from, and can the server stream lists. A list is one batch, and goes on
//! when all of it is there; of one that breaks off nothing does. An event of a watch is a batch of its own.

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
use service_model::{Batch, Event, Kind, ObjectName};
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

/// The watch selectors of kube-proxy from 1.36 on (cmd/kube-proxy/app/server.go). The field is known to API servers from
/// 1.31 on; older ones answer 400.
const OTHER_PROXY: (&str, &str) = ("labelSelector", "!service.kubernetes.io/service-proxy-name");
const HEADLESS: (&str, &str) = ("labelSelector", "!service.kubernetes.io/headless");
const CLUSTER_IP: (&str, &str) = ("fieldSelector", "spec.clusterIP!=None");
const CLUSTER_IP_FIELD: &str = "spec.clusterIP";

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
    batches: mpsc::Sender<Batch>,
    /// The objects that the model has, or knows as unreadable.
    known: FxHashSet<ObjectName>,
    /// Where the next watch resumes; `None` = a list is due.
    version: Option<String>,
    /// The server can stream lists, as far as we know.
    streams_lists: bool,
    /// Lists have pages. Not after a page came too late, when the server had forgotten the list.
    pages: bool,
    /// The server knows the field of the field selector, as far as we know.
    selects_by_field: bool,
}

/// A list that comes in.
#[derive(Default)]
struct Listing {
    batch: Batch,
    names: FxHashSet<ObjectName>,
    /// It has an object whose name cannot be read: which ones are gone is not known.
    nameless: bool,
}

/// An object of a list or a watch.
struct Item {
    name: ObjectName,
    version: String,
    /// What the model hears of it, if it is this follower's.
    event: Option<Event>,
}

/// Why something ended before its end.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the version is too old")]
    Expired,
    #[error("the server does not stream lists: {0}")]
    NoStreamedLists(String),
    #[error("the server does not know the field of the selector: {0}")]
    UnknownField(String),
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
    pub(crate) fn new(connection: Connection, collection: Collection, batches: mpsc::Sender<Batch>) -> Self {
        Self {
            connection,
            collection,
            batches,
            known: FxHashSet::default(),
            version: None,
            streams_lists: true,
            pages: true,
            selects_by_field: true,
        }
    }

    /// Runs until no reader takes batches any more.
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
                Failure::UnknownField(reason) => {
                    info!(%kind, reason, "the server does not know the field selector, asking without it");
                    self.selects_by_field = false;
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
        let this_node = format!("metadata.name={}", self.connection.node_name());
        let (path, selectors): (_, &[(&str, &str)]) = match self.collection {
            // T24. What a selector lets through all the same, the model leaves out.
            Collection::Services if self.selects_by_field => ("/api/v1/services", &[OTHER_PROXY, CLUSTER_IP]),
            Collection::Services => ("/api/v1/services", &[OTHER_PROXY]),
            Collection::EndpointSlices => ("/apis/discovery.k8s.io/v1/endpointslices", &[HEADLESS]),
            Collection::ThisNode => ("/api/v1/nodes", &[("fieldSelector", &this_node)]),
            Collection::OtherNodes => ("/api/v1/nodes", &[]),
        };
        let query = Serializer::new(String::new())
            .extend_pairs(selectors)
            .extend_pairs(pairs)
            .finish();
        format!("{path}?{query}")
    }

    fn sends_cluster_ip(&self) -> bool {
        self.collection == Collection::Services && self.selects_by_field
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
            // The sentence names the field, in every release. Asked without it, the same answer is any other failure.
            StatusCode::BAD_REQUEST if self.sends_cluster_ip() && message.contains(CLUSTER_IP_FIELD) => {
                Failure::UnknownField(message)
            }
            _ => Failure::Status {
                code: code.as_u16(),
                message,
                retry_after,
            },
        })
    }

    /// Lists in pages; the model has exactly these objects at the end.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut listing = Listing::default();
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
                listing.add(self.item(item));
            }
            next = page.metadata.next;
            if next.is_empty() {
                self.pages = true;
                return self.complete(listing, page.metadata.resource_version).await;
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
        let mut listing = list.then(Listing::default);
        let mut body = response.into_body();
        let mut lines = Lines::default();
        let mut came = false;
        loop {
            let silence = if listing.is_some() {
                patience.streamed_list
            } else {
                patience.watch
            };
            let frame = match timeout(silence, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Failure::Request(error.into())),
                Ok(None) if listing.is_some() || !came => return Err(Failure::Cut),
                Ok(None) => return Ok(()),
                Err(_) if listing.is_some() => return Err(Failure::NoStreamedLists("no bookmark came".to_owned())),
                Err(_) => return Err(Failure::Silence(silence)),
            };
            let Ok(data) = frame.into_data() else { continue };
            lines.push(&data);
            while let Some(line) = lines.next() {
                let event: WatchEvent<'_> = serde_json::from_slice(&line).map_err(Failure::Garbled)?;
                self.take(&event, &mut listing).await?;
                came = true;
                // Lists that break off, one after the other, are a failure that goes on.
                if listing.is_none() {
                    back_off.reset();
                }
            }
        }
    }

    async fn take(&mut self, event: &WatchEvent<'_>, listing: &mut Option<Listing>) -> Result<(), Failure> {
        match &*event.what {
            "ADDED" | "MODIFIED" => {
                let item = self.item(event.object);
                match (listing, item) {
                    (Some(listing), item) => listing.add(item),
                    (None, Some(item)) => {
                        if let Some(event) = item.event {
                            self.known.insert(item.name);
                            self.send(vec![event]).await?;
                        }
                        self.advance(item.version);
                    }
                    (None, None) => {}
                }
            }
            "DELETED" => {
                let identity = decode::identity(self.collection.kind(), event.object).map_err(Failure::Garbled)?;
                match listing {
                    Some(listing) => listing.remove(self.collection.kind(), &identity.name),
                    None => {
                        if self.known.remove(&identity.name) {
                            let deletion = decode::deletion(self.collection.kind(), identity.name);
                            self.send(vec![deletion]).await?;
                        }
                        self.advance(identity.resource_version);
                    }
                }
            }
            "BOOKMARK" => {
                let identity = decode::identity(self.collection.kind(), event.object).map_err(Failure::Garbled)?;
                match listing.take() {
                    Some(listing) if identity.initial_events_end => {
                        self.complete(listing, identity.resource_version).await?;
                    }
                    Some(_) => return Err(Failure::NoStreamedLists("a bookmark came that ends no list".to_owned())),
                    None => self.advance(identity.resource_version),
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

    /// Where the next watch resumes. A list that is not complete is never resumed from.
    fn advance(&mut self, version: String) {
        if !version.is_empty() {
            self.version = Some(version);
        }
    }

    /// Decodes an object. A bad one is unreadable for the model, which keeps what it has of it (L18); `None` where not
    /// even its name can be read.
    fn item(&self, object: &RawValue) -> Option<Item> {
        let kind = self.collection.kind();
        let of_another =
            |name: &ObjectName| self.collection == Collection::OtherNodes && name.name() == self.connection.node_name();
        let (name, version, event) = match decode::object(kind, object) {
            Ok(decoded) => (decoded.name, decoded.resource_version, decoded.event),
            Err(_) => match decode::identity(kind, object) {
                Ok(identity) => {
                    let rejection = decode::why_not(kind, identity.name.clone(), object);
                    (identity.name, identity.resource_version, Event::Unreadable(rejection))
                }
                Err(error) => {
                    warn!(kind = %self.collection, %error, "an object whose name cannot be read, skipped");
                    return None;
                }
            },
        };
        let event = (!of_another(&name)).then_some(event);
        Some(Item { name, version, event })
    }

    /// What the model has and the list has not is gone.
    async fn complete(&mut self, listing: Listing, version: String) -> Result<(), Failure> {
        let Listing {
            mut batch,
            mut names,
            nameless,
        } = listing;
        if nameless {
            names.extend(self.known.iter().cloned());
        }
        let kind = self.collection.kind();
        let gone = self.known.difference(&names).cloned();
        batch.extend(gone.map(|name| decode::deletion(kind, name)));
        batch.push(self.collection.complete());
        self.known = names;
        self.version = Some(version);
        info!(kind = %self.collection, objects = self.known.len(), "listed");
        self.send(batch).await
    }

    async fn send(&self, batch: Batch) -> Result<(), Failure> {
        self.batches.send(batch).await.map_err(|_| Failure::Closed)
    }
}

impl Listing {
    fn add(&mut self, item: Option<Item>) {
        match item {
            Some(Item {
                name,
                event: Some(event),
                ..
            }) => {
                self.names.insert(name);
                self.batch.push(event);
            }
            Some(_) => {}
            None => self.nameless = true,
        }
    }

    /// It went while the list came in.
    fn remove(&mut self, kind: Kind, name: &ObjectName) {
        if self.names.remove(name) {
            self.batch.push(decode::deletion(kind, name.clone()));
        }
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
