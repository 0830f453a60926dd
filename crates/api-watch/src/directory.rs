//! Objects from a directory of manifests, followed for changes.
//!
//! Files ending in `.yaml`, `.yml`, `.json` of the directory itself, in the order of their names; hidden ones and
//! sub-directories are left out. A file holds any number of documents, and lists of objects. Kinds other than
//! Service, EndpointSlice and Node are passed over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::Value;
use service_model::{Change, Event, Kind, ObjectName};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::decode;
use crate::error::Error;

/// How often the directory is looked at where no notification came: some file systems send none.
const LOOK: Duration = Duration::from_secs(2);

type Object = (Kind, ObjectName);

/// A file as it was read last.
struct File {
    seen: Fingerprint,
    objects: Vec<(Object, Event)>,
}

/// Differs when a file was written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    modified: Option<SystemTime>,
    size: u64,
    inode: u64,
}

/// What follows on the objects of the first reading: they are all there, those of other nodes, too.
const COMPLETE: [Event; 4] = [
    Event::Complete(Kind::Service),
    Event::Complete(Kind::EndpointSlice),
    Event::Complete(Kind::Node),
    Event::OtherNodesComplete,
];

/// Reads a directory once: all its objects, then [`Event::Complete`] for each kind and [`Event::OtherNodesComplete`].
/// An empty directory has no objects.
///
/// # Errors
/// [`Error::Directory`], [`Error::File`], [`Error::Manifest`], [`Error::Duplicate`].
pub fn read_directory(directory: &Path) -> Result<Vec<Event>, Error> {
    let files = list(directory)?
        .into_iter()
        .map(|(path, seen)| {
            Ok((
                path.clone(),
                File {
                    seen,
                    objects: read(&path)?,
                },
            ))
        })
        .collect::<Result<BTreeMap<_, _>, Error>>()?;
    let objects = merge(&files)?;
    Ok(objects.into_values().chain(COMPLETE).collect())
}

/// Reads a directory and follows it. Later a file that cannot be read is named in a warning, and what it held before
/// stays until it can be read again.
///
/// Ends with an error of the first reading (as [`read_directory`]), or with [`Error::Closed`].
pub async fn watch_directory(directory: PathBuf, events: mpsc::Sender<Event>) -> Error {
    match follow(&directory, &events).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn follow(directory: &Path, events: &mpsc::Sender<Event>) -> Result<std::convert::Infallible, Error> {
    let notifications = notifications(directory)
        .inspect_err(|error| debug!(%error, "no notifications of changes, looking every 2 s"))
        .ok();
    let mut files = BTreeMap::new();
    for (path, seen) in list(directory)? {
        let objects = read(&path)?;
        files.insert(path, File { seen, objects });
    }
    let mut objects = merge(&files)?;
    for event in objects.values().cloned().chain(COMPLETE) {
        send(events, event).await?;
    }
    info!(files = files.len(), objects = objects.len(), "manifests read");
    loop {
        changed(notifications.as_ref()).await;
        if events.is_closed() {
            return Err(Error::Closed);
        }
        let Some(now) = read_again(directory, &files) else {
            continue;
        };
        match merge(&now) {
            Ok(merged) => {
                for event in differences(&objects, &merged) {
                    send(events, event).await?;
                }
                objects = merged;
            }
            Err(error) => warn!(%error, "the last good state stays"),
        }
        files = now;
    }
}

/// The files as they are now; `None` where none changed.
fn read_again(directory: &Path, before: &BTreeMap<PathBuf, File>) -> Option<BTreeMap<PathBuf, File>> {
    let listed = match list(directory) {
        Ok(listed) => listed,
        Err(error) => {
            warn!(error = with_cause(&error), "the last good state stays");
            return None;
        }
    };
    let same = listed.len() == before.len()
        && listed
            .iter()
            .all(|(path, seen)| before.get(path).is_some_and(|file| file.seen == *seen));
    if same {
        return None;
    }
    let read_one = |(path, seen): (PathBuf, Fingerprint)| {
        let old = before.get(&path);
        let objects = match old {
            Some(old) if old.seen == seen => old.objects.clone(),
            _ => read(&path).unwrap_or_else(|error| {
                warn!(error = with_cause(&error), "unreadable, its last good state stays");
                old.map(|old| old.objects.clone()).unwrap_or_default()
            }),
        };
        (path, File { seen, objects })
    };
    Some(listed.into_iter().map(read_one).collect())
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Error> {
    events.send(event).await.map_err(|_| Error::Closed)
}

fn differences(before: &BTreeMap<Object, Event>, now: &BTreeMap<Object, Event>) -> Vec<Event> {
    let gone = before.keys().filter(|object| !now.contains_key(*object));
    let gone = gone.map(|(kind, name)| decode::deletion(*kind, name.clone()));
    let applied = now.iter().filter(|(object, event)| before.get(*object) != Some(*event));
    gone.chain(applied.map(|(_, event)| event.clone())).collect()
}

/// All objects of all files.
fn merge(files: &BTreeMap<PathBuf, File>) -> Result<BTreeMap<Object, Event>, Error> {
    let mut from: BTreeMap<&Object, &PathBuf> = BTreeMap::new();
    for (path, (object, _)) in files
        .iter()
        .flat_map(|(path, file)| file.objects.iter().map(move |o| (path, o)))
    {
        if let Some(first) = from.insert(object, path) {
            let (kind, object) = object.clone();
            return Err(Error::Duplicate {
                kind,
                object,
                first: first.clone(),
                second: path.clone(),
            });
        }
    }
    Ok(files.values().flat_map(|file| file.objects.iter().cloned()).collect())
}

fn list(directory: &Path) -> Result<BTreeMap<PathBuf, Fingerprint>, Error> {
    let wrong = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let ours = path
            .extension()
            .is_some_and(|end| ["yaml", "yml", "json"].iter().any(|ours| end == *ours));
        if hidden || !ours {
            continue;
        }
        // Through links: a ConfigMap's files are links that are turned over. One that vanished just now is not there.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                use std::os::unix::fs::MetadataExt;
                let (modified, size, inode) = (metadata.modified().ok(), metadata.len(), metadata.ino());
                files.insert(path, Fingerprint { modified, size, inode });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { path, source }),
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<(Object, Event)>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |reason| Error::Manifest {
        path: path.to_owned(),
        reason,
    };
    let json = path.extension().is_some_and(|end| end == "json");
    let documents = if json {
        json_documents(&text)
    } else {
        yaml_documents(&text)
    }
    .map_err(wrong)?;
    let mut objects = Vec::new();
    for (number, document) in documents.iter().enumerate() {
        collect(document, &mut objects).map_err(|reason| {
            wrong(if documents.len() == 1 {
                reason
            } else {
                format!("document {}: {reason}", number + 1)
            })
        })?;
    }
    Ok(objects)
}

fn json_documents(text: &str) -> Result<Vec<Value>, String> {
    serde_json::Deserializer::from_str(text)
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

fn yaml_documents(text: &str) -> Result<Vec<Value>, String> {
    // The budget guards against hostile input; these files are the operator's own, and may be large.
    let options = serde_saphyr::options! { budget: None };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())
}

/// The objects of a document: it, or the items of a list.
fn collect(document: &Value, objects: &mut Vec<(Object, Event)>) -> Result<(), String> {
    if document.is_null() {
        return Ok(());
    }
    let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (field("apiVersion"), field("kind"));
    let kind = match (api_version, kind) {
        (_, "") => return Err("an object without a kind".to_owned()),
        (_, "List" | "ServiceList" | "EndpointSliceList" | "NodeList") => {
            let items = document.get("items").and_then(Value::as_array);
            for (number, item) in items.into_iter().flatten().enumerate() {
                collect(item, objects).map_err(|reason| format!("items[{number}]: {reason}"))?;
            }
            return Ok(());
        }
        ("v1", "Service") => Kind::Service,
        ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
        ("v1", "Node") => Kind::Node,
        (version, "Service" | "EndpointSlice" | "Node") => {
            return Err(format!(
                "{kind} of apiVersion {version:?}, want v1 or discovery.k8s.io/v1"
            ));
        }
        (_, other) => {
            debug!(kind = other, "passed over");
            return Ok(());
        }
    };
    let decoded = decode::object(kind, document).map_err(|error| format!("{kind}: {error}"))?;
    if decoded.name.name().is_empty() {
        return Err(format!("a {kind} without a name"));
    }
    if let Event::Service(Change::Applied(service)) = &decoded.event
        && service.cluster_ips.is_empty()
    {
        debug!(object = %service.name, "no cluster IP: nothing is programmed");
    }
    objects.push(((kind, decoded.name), decoded.event));
    Ok(())
}

fn notifications(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let notifications = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    inotify::add_watch(&notifications, directory, what)?;
    #[expect(
        deprecated,
        reason = "its successor is an unsafe fn; an OwnedFd that is moved in stays open as long as it must"
    )]
    AsyncFd::new(notifications)
}

/// Waits for a notification, or for the time to look.
async fn changed(notifications: Option<&AsyncFd<OwnedFd>>) {
    let notified = async {
        match notifications {
            Some(notifications) => drain(notifications).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = notified => {}
        () = tokio::time::sleep(LOOK) => {}
    }
}

async fn drain(notifications: &AsyncFd<OwnedFd>) {
    let Ok(mut ready) = notifications.readable().await else {
        return std::future::pending().await;
    };
    let mut buffer = [0; 4096];
    while rustix::io::read(notifications.get_ref(), &mut buffer).is_ok_and(|length| length != 0) {}
    ready.clear_ready();
}

#[cfg(test)]
mod tests;
