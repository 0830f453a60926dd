//! A fake API server: lists, pages, streamed lists, watches with history and bookmarks, and faults on demand.
//!
//! It knows nothing of Kubernetes but what get, list and watch need: objects are JSON by collection and name, and the
//! selectors that proxies send are applied to lists. The requests are kept, so that a test can look at them.

#![allow(
    clippy::indexing_slicing,
    reason = "objects come from tests, and an index into JSON creates the field"
)]

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::netns::Netns;

type Body = BoxBody<Bytes, std::io::Error>;

/// What goes wrong with a request, once.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with a Status object.
    Status(u16),
    /// This status with `Retry-After` in seconds.
    RetryAfter(u16, u64),
    /// No answer at all.
    Stall,
    /// A watch whose head comes, and nothing after it.
    Silence,
    /// A watch that begins with this line.
    Line(String),
    /// A watch that is cut in the middle of a line.
    Cut,
    /// A streamed list that is cut after so many objects.
    CutAfter(usize),
    /// A streamed list whose last bookmark never comes.
    NoBookmark,
    /// A streamed list that ends with a bookmark without the annotation, as older servers send it.
    PlainBookmark,
}

/// All objects at a version, as a backup of etcd has them.
pub struct Backup {
    version: u64,
    collections: BTreeMap<String, Collection>,
}

/// The server. It ends when this is dropped.
pub struct FakeApi {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
    server: JoinHandle<()>,
}

struct State {
    version: u64,
    /// History up to this version is forgotten.
    compacted: u64,
    collections: BTreeMap<String, Collection>,
    requests: Vec<String>,
    posted: Vec<(String, Value)>,
    /// For the next request that contains the text.
    faults: VecDeque<(String, Fault)>,
    streams_lists: bool,
    knows_cluster_ip: bool,
    makes_tables: bool,
    /// Who does not have it is answered 401.
    token: Option<String>,
    /// Objects of a page at most, whatever a request asks for.
    largest_page: usize,
    /// Running watches of an older number end.
    generation: u64,
}

#[derive(Clone, Default)]
struct Collection {
    objects: BTreeMap<String, Value>,
    history: Vec<(u64, &'static str, Value)>,
}

impl FakeApi {
    /// Starts one on a loopback port, with lists that can be streamed.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start() -> Result<Self> {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    /// Starts one at an address of a namespace, on a thread that serves as long as the process lives.
    ///
    /// # Errors
    /// The address is taken.
    pub fn start_on_a_thread(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let netns = netns.clone();
        std::thread::spawn(move || {
            netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let _ = sender.send(Self::start_at(address).await);
                    std::future::pending::<Result<()>>().await
                })
            })
        });
        receiver.recv().context("the API server's thread ended")?
    }

    /// Starts one at an address.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn start_at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            version: 1,
            compacted: 0,
            collections: BTreeMap::new(),
            requests: Vec::new(),
            posted: Vec::new(),
            faults: VecDeque::new(),
            streams_lists: true,
            knows_cluster_ip: true,
            makes_tables: true,
            token: None,
            largest_page: usize::MAX,
            generation: 0,
        }));
        let changes = Arc::new(watch::Sender::new(1));
        let server = tokio::spawn(accept(listener, Arc::clone(&state), Arc::clone(&changes)));
        Ok(Self {
            address,
            state,
            changes,
            server,
        })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates or changes an object. `collection` is the path of the list over all namespaces.
    pub fn put(&self, collection: &str, mut object: Value) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let place = state.collections.entry(collection.to_owned()).or_default();
        let before = place.objects.insert(key(&object), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        place.history.push((version, what, object));
        drop(state);
        self.changes.send_replace(version);
    }

    /// Deletes an object by `namespace/name`; nothing where it is not there.
    pub fn delete(&self, collection: &str, name: &str) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        let Some(place) = state.collections.get_mut(collection) else {
            return;
        };
        let Some(mut object) = place.objects.remove(name) else {
            return;
        };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        place.history.push((version, "DELETED", object));
        drop(state);
        self.changes.send_replace(version);
    }

    /// Forgets the history: older versions cannot be resumed from.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.compacted = state.version;
    }

    /// Everything as it is now.
    pub fn backup(&self) -> Backup {
        let state = self.lock();
        Backup {
            version: state.version,
            collections: state.collections.clone(),
        }
    }

    /// Puts everything back, the version too, and ends all running watches in order.
    pub fn restore(&self, backup: Backup) {
        let mut state = self.lock();
        state.version = backup.version;
        state.collections = backup.collections;
        drop(state);
        self.end_watches();
    }

    /// Ends all running watches in order.
    pub fn end_watches(&self) {
        let mut state = self.lock();
        state.generation += 1;
        let version = state.version;
        drop(state);
        self.changes.send_replace(version);
    }

    /// Whether lists can be streamed; where not, the parameter is refused with 422.
    pub fn set_streams_lists(&self, yes: bool) {
        self.lock().streams_lists = yes;
    }

    /// Whether `spec.clusterIP` of Services can be selected by; where not, as before Kubernetes 1.31, the selector is
    /// refused with 400.
    pub fn set_knows_cluster_ip(&self, yes: bool) {
        self.lock().knows_cluster_ip = yes;
    }

    /// The bearer token that requests need from now on.
    pub fn set_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Whether Nodes are listed as a table where a request wants that.
    pub fn set_makes_tables(&self, yes: bool) {
        self.lock().makes_tables = yes;
    }

    /// Sends no more objects in a page than so many.
    pub fn set_largest_page(&self, objects: usize) {
        self.lock().largest_page = objects;
    }

    /// Adds a fault for the next request whose path and query contain all these texts, separated by blanks.
    pub fn fault(&self, request: &str, fault: Fault) {
        self.lock().faults.push_back((request.to_owned(), fault));
    }

    /// Faults that no request has met yet.
    pub fn faults_left(&self) -> usize {
        self.lock().faults.len()
    }

    /// Paths and queries of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// What was created by POST: path and object.
    pub fn posted(&self) -> Vec<(String, Value)> {
        self.lock().posted.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.server.abort();
        // Connections have tasks of their own.
        self.end_watches();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(object: &Value) -> String {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    match field("namespace").as_str() {
        "" => field("name"),
        namespace => format!("{namespace}/{}", field("name")),
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, changes: Arc<watch::Sender<u64>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (state, changes) = (Arc::clone(&state), Arc::clone(&changes));
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&state), Arc::clone(&changes)));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
) -> Result<Response<Body>, Infallible> {
    let uri = request.uri().to_string();
    let path = request.uri().path().to_owned();
    let query = parameters(request.uri().query().unwrap_or_default());
    let accept = request.headers().get(http::header::ACCEPT);
    let wants_table = accept.is_some_and(|value| value.as_bytes().windows(8).any(|text| text == b"as=Table"));
    if let Some(token) = lock(&state).token.clone()
        && request
            .headers()
            .get(http::header::AUTHORIZATION)
            .is_none_or(|given| *given != format!("Bearer {token}"))
    {
        return Ok(status_with(401, "Unauthorized"));
    }
    let fault = {
        let mut state = lock(&state);
        if request.method() != Method::POST {
            state.requests.push(uri.clone());
        }
        let at = state
            .faults
            .iter()
            .position(|(texts, _)| texts.split(' ').all(|text| uri.contains(text)));
        at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
    };
    match &fault {
        Some(Fault::Status(code)) => return Ok(status(*code)),
        Some(Fault::RetryAfter(code, seconds)) => {
            let mut response = status(*code);
            response
                .headers_mut()
                .insert(http::header::RETRY_AFTER, (*seconds).into());
            return Ok(response);
        }
        Some(Fault::Stall) => std::future::pending().await,
        _ => {}
    }
    if request.method() == Method::POST {
        let body = request
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        lock(&state)
            .posted
            .push((path, serde_json::from_slice(&body).unwrap_or_default()));
        return Ok(whole(StatusCode::CREATED, &json!({})));
    }
    let selects_unknown = |state: &State| {
        let selector = query.get("fieldSelector").map_or("", String::as_str);
        !state.knows_cluster_ip && selector.contains("spec.clusterIP")
    };
    if query.get("watch").map(String::as_str) != Some("true") {
        let state = lock(&state);
        if selects_unknown(&state) {
            return Ok(unknown_field());
        }
        if wants_table && state.makes_tables && path.ends_with("/nodes") {
            return Ok(table(&state, &path));
        }
        return Ok(one(&state, &path).unwrap_or_else(|| list(&state, &path, &query)));
    }
    let streamed = query.contains_key("sendInitialEvents");
    let from = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .unwrap_or_default();
    {
        let state = lock(&state);
        if streamed && !state.streams_lists {
            return Ok(status(422));
        }
        if selects_unknown(&state) {
            return Ok(unknown_field());
        }
        if !streamed && from < state.compacted {
            return Ok(status(410));
        }
    }
    let (sender, receiver) = mpsc::channel(16);
    let watched = Watched { path, query, streamed };
    tokio::spawn(stream(watched, from, fault, state, changes.subscribe(), sender));
    let frames = futures_stream(receiver);
    Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))))
}

fn futures_stream(
    receiver: mpsc::Receiver<Bytes>,
) -> impl futures::Stream<Item = Result<Frame<Bytes>, std::io::Error>> {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        // An empty piece stands for a connection that breaks.
        let frame = if bytes.is_empty() {
            Err(std::io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(Frame::data(bytes))
        };
        Some((frame, receiver))
    })
}

/// The object of a path that ends with its name, of a collection without namespaces.
fn one(state: &State, path: &str) -> Option<Response<Body>> {
    let (collection, name) = path.rsplit_once('/')?;
    let object = state.collections.get(collection)?.objects.get(name)?;
    Some(whole(StatusCode::OK, object))
}

/// `fieldSelector` and `labelSelector`, of the forms that proxies send: `path=value`, `path!=value`, `key`, `!key`.
fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let terms = |name: &str| {
        query
            .get(name)
            .map_or("", String::as_str)
            .split(',')
            .filter(|term| !term.is_empty())
    };
    let field = |path: &str| {
        let value = path.split('.').try_fold(object, |at, name| at.get(name));
        value.and_then(Value::as_str).unwrap_or_default()
    };
    let by_field = terms("fieldSelector").all(|term| match term.split_once("!=") {
        Some((path, value)) => field(path) != value,
        None => term
            .split_once('=')
            .is_none_or(|(path, value)| field(path) == value.trim_start_matches('=')),
    });
    let labelled = |key: &str| object["metadata"]["labels"].get(key).is_some();
    let by_label = terms("labelSelector").all(|term| match term.strip_prefix('!') {
        Some(key) => !labelled(key),
        None => term.contains('=') || labelled(term),
    });
    by_field && by_label
}

fn list(state: &State, path: &str, query: &BTreeMap<String, String>) -> Response<Body> {
    let empty = Collection::default();
    let objects = state.collections.get(path).unwrap_or(&empty).objects.values();
    let all: Vec<_> = objects.filter(|object| selected(object, query)).collect();
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let from = number("continue").unwrap_or(0);
    let page = number("limit").map_or(usize::MAX, |limit| limit.min(state.largest_page));
    let items: Vec<_> = all.iter().skip(from).take(page).collect();
    let next = from + items.len();
    let token = if next < all.len() {
        next.to_string()
    } else {
        String::new()
    };
    whole(
        StatusCode::OK,
        &json!({"metadata": {"resourceVersion": state.version.to_string(), "continue": token}, "items": items}),
    )
}

/// Nodes as `kubectl get nodes -o wide` prints them (pkg/printers/internalversion/printers.go).
fn table(state: &State, path: &str) -> Response<Body> {
    let columns = [
        "Name",
        "Status",
        "Roles",
        "Age",
        "Version",
        "Internal-IP",
        "External-IP",
        "OS-Image",
        "Kernel-Version",
        "Container-Runtime",
    ];
    let row = |object: &Value| {
        let of_type = |kind: &str| {
            let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
            let mut of_type = addresses.filter(|address| address["type"] == kind);
            of_type
                .next()
                .map_or(json!("<none>"), |address| address["address"].clone())
        };
        json!({"object": null, "cells": [
            object["metadata"]["name"], "Ready", "<none>", "5d", "v1.37.2", of_type("InternalIP"), of_type("ExternalIP"),
            "Debian GNU/Linux 13 (trixie)", "6.12.48+deb13-amd64", "containerd://2.1.4",
        ]})
    };
    let objects = state
        .collections
        .get(path)
        .into_iter()
        .flat_map(|place| place.objects.values());
    let definition = |name| json!({"name": name, "type": "string", "format": "", "description": "", "priority": 0});
    let body = json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": state.version.to_string()},
        "columnDefinitions": columns.map(definition), "rows": objects.map(row).collect::<Vec<_>>(),
    });
    whole(StatusCode::OK, &body)
}

/// What a watch asked for.
struct Watched {
    path: String,
    query: BTreeMap<String, String>,
    streamed: bool,
}

impl Watched {
    /// An object that only tells a version, of the kind that a client expects.
    fn bookmark(&self, version: u64) -> Value {
        let (api_version, kind) = match self.path.rsplit('/').next() {
            Some("services") => ("v1", "Service"),
            Some("nodes") => ("v1", "Node"),
            Some("endpointslices") => ("discovery.k8s.io/v1", "EndpointSlice"),
            Some("servicecidrs") => ("networking.k8s.io/v1", "ServiceCIDR"),
            _ => ("v1", "x"),
        };
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"resourceVersion": version.to_string()}})
    }
}

/// Sends a watch's lines until its generation ends or nobody listens.
async fn stream(
    watched: Watched,
    from: u64,
    fault: Option<Fault>,
    state: Arc<Mutex<State>>,
    mut changes: watch::Receiver<u64>,
    sender: mpsc::Sender<Bytes>,
) {
    let Watched { path, query, streamed } = &watched;
    let generation = lock(&state).generation;
    let mut at = from;
    match &fault {
        Some(Fault::Silence) => {
            // The head goes with the first piece of the body.
            let _ = sender.send(Bytes::from_static(b"\n")).await;
            sender.closed().await;
            return;
        }
        Some(Fault::Line(line)) => {
            let _ = sender.send(Bytes::from(format!("{line}\n"))).await;
        }
        Some(Fault::Cut) => {
            let _ = sender.send(Bytes::from_static(b"{\"type\":\"ADDED\",\"obj")).await;
            let _ = sender.send(Bytes::new()).await;
            return;
        }
        _ => {}
    }
    if *streamed {
        let (lines, version) = {
            let state = lock(&state);
            let objects = state
                .collections
                .get(path)
                .map(|place| place.objects.values().filter(|object| selected(object, query)))
                .map(|objects| objects.cloned().collect::<Vec<_>>());
            (objects.unwrap_or_default(), state.version)
        };
        for (number, object) in lines.into_iter().enumerate() {
            if matches!(fault, Some(Fault::CutAfter(objects)) if objects == number) {
                let _ = sender.send(Bytes::new()).await;
                return;
            }
            if sender.send(event("ADDED", &object)).await.is_err() {
                return;
            }
        }
        let mut bookmark = watched.bookmark(version);
        if !matches!(fault, Some(Fault::PlainBookmark)) {
            bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if !matches!(fault, Some(Fault::NoBookmark)) && sender.send(event("BOOKMARK", &bookmark)).await.is_err() {
            return;
        }
        at = version;
    }
    loop {
        let (lines, over) = {
            let state = lock(&state);
            let history = state
                .collections
                .get(path)
                .map(|place| place.history.as_slice())
                .unwrap_or_default();
            let lines: Vec<_> = history
                .iter()
                .filter(|(version, _, object)| *version > at && selected(object, query))
                .map(|(_, what, object)| event(what, object))
                .collect();
            at = at.max(state.version);
            (lines, state.generation != generation)
        };
        for line in lines {
            // In two pieces, as the network may deliver it.
            let (first, second) = line.split_at(line.len() / 2);
            for piece in [first, second] {
                if sender.send(Bytes::copy_from_slice(piece)).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if over {
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

fn event(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": what, "object": object})))
}

fn status(code: u16) -> Response<Body> {
    status_with(code, "a fault was asked for")
}

/// In the words of API servers before 1.31 (apimachinery/pkg/runtime/conversion.go).
fn unknown_field() -> Response<Body> {
    let message = r#""spec.clusterIP" is not a known field selector: only "metadata.name", "metadata.namespace""#;
    status_with(400, message)
}

fn status_with(code: u16, message: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message});
    whole(
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        &body,
    )
}

fn whole(status: StatusCode, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string()))
        .map_err(|never: Infallible| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// Decoded as far as the tests need it: `%XX` and `+`.
fn parameters(query: &str) -> BTreeMap<String, String> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
