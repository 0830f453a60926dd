//! List and watch of one collection: the server's stream in, batches of model events out, and nothing kept but the
//! names.
//!
//! Three ways to be up to date: resume a watch, stream the list (WatchList), list in pages. Which one is next follows
//! from two facts: is there a version to resume from, and can the server stream lists. A list is one batch, and goes on
//! when all of it is there; of one that breaks off nothing does. An event of a watch is a batch of its own.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod listing;

use std::time::{Duration, Instant};

use foldhash::HashSet;
use http::Response;
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use service_model::{Batch, Event, ObjectName};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::back_off::BackOff;
use crate::collection::{CLUSTER_IP_FIELD, Collection};
use crate::connection::Connection;
use crate::decode;
use crate::error::Error;
use crate::failure::{Failure, Status, chain};
use crate::lines::Lines;
use crate::request::{JSON, get, read};
use crate::version::is_older;
use listing::{Item, Listing, Page, WatchEvent};

/// Objects of one page.
const PAGE: &str = "500";
/// The server ends a watch after so long, so that clients spread over its instances again.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
/// Events that do not fit what was listed make a list due at most so often: a server that sends such ones all the time
/// is still followed.
const CONTRADICTION_PAUSE: Duration = Duration::from_secs(3600);

/// Follows one collection.
pub(crate) struct Follower {
    connection: Connection,
    collection: Collection,
    batches: mpsc::Sender<Batch>,
    /// The objects that the model has, or knows as unreadable.
    known: HashSet<ObjectName>,
    /// Where the next watch resumes; `None` = a list is due.
    version: Option<String>,
    /// The server may have been restored meanwhile: its version is looked at before a watch is resumed.
    doubtful: bool,
    /// When an event last did not fit what was listed.
    contradiction: Option<Instant>,
    /// The server streams lists.
    streams_lists: Ability,
    /// Lists have pages. Not after a page came too late, when the server had forgotten the list.
    pages: bool,
    /// The server knows the field of the field selector.
    selects_by_field: Ability,
}

/// Something that servers can do, but for old ones.
#[derive(Default)]
struct Ability {
    /// When the server last said that it cannot. It may have been replaced since.
    refused: Option<Instant>,
}

impl Ability {
    fn is_there(&self) -> bool {
        self.refused.is_none()
    }

    fn refuse(&mut self) {
        self.refused = Some(Instant::now());
    }

    fn ask_again_after(&mut self, pause: Duration) {
        self.refused = self.refused.filter(|at| at.elapsed() < pause);
    }
}

impl Follower {
    pub(crate) fn new(connection: Connection, collection: Collection, batches: mpsc::Sender<Batch>) -> Self {
        Self {
            connection,
            collection,
            batches,
            known: HashSet::default(),
            version: None,
            doubtful: false,
            contradiction: None,
            streams_lists: Ability::default(),
            pages: true,
            selects_by_field: Ability::default(),
        }
    }

    /// Runs until no reader takes batches any more.
    pub(crate) async fn run(mut self) -> Error {
        let mut back_off = BackOff::default();
        loop {
            let done = match self.version.clone() {
                Some(version) if self.doubtful => self.look(&version).await,
                Some(version) => self.watch(&version, &mut back_off).await,
                None => self.list(&mut back_off).await,
            };
            let Err(failure) = done else { continue };
            let kind = self.collection.kind();
            match &failure {
                Failure::Closed => return Error::Closed,
                Failure::NoStreamedLists(reason) => {
                    debug!(%kind, reason, "the server does not stream lists, listing in pages");
                    self.streams_lists.refuse();
                    continue;
                }
                Failure::UnknownField(reason) => {
                    info!(%kind, reason, "the server does not know the field selector, asking without it");
                    self.selects_by_field.refuse();
                    continue;
                }
                _ => {}
            }
            let wait = back_off.after(&failure);
            let (error, retry_in_seconds) = (chain(&failure), wait.as_secs_f32());
            self.doubtful = true;
            if failure.asks_for_a_list() {
                info!(%kind, reason = error, retry_in_seconds, "listing again");
                self.version = None;
            } else {
                warn!(%kind, error, retry_in_seconds, "lost the API server, the last state stays");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.connection.peers().until_freed() => back_off = BackOff::default(),
            }
            if failure.may_be_stale_credentials()
                && let Err(error) = self.connection.renew().await
            {
                warn!(%kind, error = chain(&error), "the credentials cannot be read again, the old ones are used");
            }
        }
    }

    async fn get(&self, pairs: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let by_field = self.selects_by_field.is_there();
        let uri = self.collection.uri(self.connection.node_name(), by_field, pairs);
        let sends_field = by_field && self.collection == Collection::Services;
        get(&self.connection, uri, JSON).await.map_err(|failure| match failure {
            // The sentence names the field, in every release. Asked without it, the same answer is any other failure.
            Failure::Status { code: 400, message, .. } if sends_field && message.contains(CLUSTER_IP_FIELD) => {
                Failure::UnknownField(message)
            }
            other => other,
        })
    }

    /// Looks which version the server is at, by a page of one object. A watch cannot tell: from a version that is to
    /// come it sends nothing, and no error, until that one is there again (seen with Kubernetes 1.37).
    async fn look(&mut self, ours: &str) -> Result<(), Failure> {
        let response = self.get(&[("limit", "1")]).await?;
        let body = read(response.into_body(), self.connection.patience().watch).await?;
        let page: Page<'_> = serde_json::from_slice(&body).map_err(Failure::Garbled)?;
        self.not_older(&page.metadata.resource_version)?;
        debug!(kind = %self.collection.kind(), version = ours, "the version is one of this server");
        self.doubtful = false;
        Ok(())
    }

    /// A version that the server is at: one before ours is that of a restored server.
    fn not_older(&self, server: &str) -> Result<(), Failure> {
        match &self.version {
            Some(ours) if is_older(server, ours) => Err(Failure::WentBack {
                server: server.to_owned(),
                ours: ours.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The model has exactly the server's objects at the end, and after it.
    async fn list(&mut self, back_off: &mut BackOff) -> Result<(), Failure> {
        let pause = self.connection.patience().ask_again;
        self.streams_lists.ask_again_after(pause);
        self.selects_by_field.ask_again_after(pause);
        self.doubtful = false;
        if self.streams_lists.is_there() {
            return self.stream_list(back_off).await;
        }
        self.list_pages().await?;
        back_off.listed();
        Ok(())
    }

    /// Lists in pages; the model has exactly these objects at the end.
    async fn list_pages(&mut self) -> Result<(), Failure> {
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
                listing.add(Item::decode(self.collection.kind(), item));
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
            Failure::Status { code, message, .. } if tells_that_lists_are_not_streamed(code, &message) => {
                Failure::NoStreamedLists(message)
            }
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
                // Lists that break off, one after the other, are a failure that goes on.
                match (&listing, list && !came) {
                    (Some(_), _) => {}
                    (None, true) => back_off.listed(),
                    (None, false) => back_off.watched(),
                }
                came |= listing.is_none();
            }
        }
    }

    async fn take(&mut self, event: &WatchEvent<'_>, listing: &mut Option<Listing>) -> Result<(), Failure> {
        let kind = self.collection.kind();
        match &*event.what {
            what @ ("ADDED" | "MODIFIED") => {
                let item = Item::decode(kind, event.object);
                match (listing, item) {
                    (Some(listing), item) => listing.add(item),
                    (None, Some(item)) => {
                        self.not_older(&item.version)?;
                        let is_new = self.known.insert(item.name.clone());
                        self.send(vec![item.event]).await?;
                        self.advance(item.version);
                        self.fits(is_new == (what == "ADDED"), what, &item.name)?;
                    }
                    (None, None) => {}
                }
            }
            "DELETED" => {
                let identity = decode::identity(kind, event.object).map_err(Failure::Garbled)?;
                match listing {
                    Some(listing) => listing.remove(kind, &identity.name),
                    None => {
                        self.not_older(&identity.resource_version)?;
                        let was_known = self.known.remove(&identity.name);
                        if was_known {
                            self.send(vec![decode::deletion(kind, identity.name.clone())]).await?;
                        }
                        self.advance(identity.resource_version);
                        self.fits(was_known, "DELETED", &identity.name)?;
                    }
                }
            }
            "BOOKMARK" => {
                let identity = decode::identity(kind, event.object).map_err(Failure::Garbled)?;
                match listing.take() {
                    Some(listing) if identity.initial_events_end => {
                        self.complete(listing, identity.resource_version).await?;
                    }
                    Some(_) => return Err(Failure::NoStreamedLists("a bookmark came that ends no list".to_owned())),
                    None => {
                        self.not_older(&identity.resource_version)?;
                        self.advance(identity.resource_version);
                    }
                }
            }
            "ERROR" => {
                let status = Status::deserialize(event.object).map_err(Failure::Garbled)?;
                return Err(match status.code {
                    410 => Failure::Expired,
                    code if listing.is_some() && tells_that_lists_are_not_streamed(code, &status.message) => {
                        Failure::NoStreamedLists(status.message)
                    }
                    code => Failure::Status {
                        code,
                        message: status.message,
                        retry_after: None,
                    },
                });
            }
            other => debug!(%kind, what = other, "unknown watch event"),
        }
        Ok(())
    }

    /// What is new is added, and what was listed is changed and deleted: else events are missing, as after a restored
    /// server has come past our version.
    fn fits(&mut self, yes: bool, what: &str, name: &ObjectName) -> Result<(), Failure> {
        let now = Instant::now();
        if yes || self.contradiction.is_some_and(|at| now - at < CONTRADICTION_PAUSE) {
            return Ok(());
        }
        self.contradiction = Some(now);
        Err(Failure::Contradiction(format!("{what} {name}")))
    }

    /// Where the next watch resumes. A list that is not complete is never resumed from.
    fn advance(&mut self, version: String) {
        if !version.is_empty() {
            self.version = Some(version);
        }
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
        batch.push(Event::Complete(kind));
        self.known = names;
        self.version = Some(version);
        info!(%kind, objects = self.known.len(), "listed");
        self.send(batch).await
    }

    async fn send(&self, batch: Batch) -> Result<(), Failure> {
        self.batches.send(batch).await.map_err(|_| Failure::Closed)
    }
}

fn seconds() -> String {
    fastrand::u32(WATCH_SECONDS).to_string()
}

/// A server without the feature refuses the parameter; with which code depends on its version. That of 1.30 with the
/// feature on, where it is alpha, waits for a version that its cache never hears of. 403, 429 and 5xx say something else:
/// so does any server that is just starting.
fn tells_that_lists_are_not_streamed(code: u16, message: &str) -> bool {
    match code {
        400 | 404 | 405 | 406 | 415 | 422 | 501 => true,
        504 => message.contains("Too large resource version"),
        _ => false,
    }
}
