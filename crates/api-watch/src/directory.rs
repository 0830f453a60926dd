//! Objects from a directory of manifests, read once or followed for changes.
//!
//! Files ending in `.yaml`, `.yml`, `.json` of the directory itself, in the order of their names; hidden ones and
//! sub-directories are left out. What a file holds is `manifest`'s to tell; here files become a picture, and two pictures
//! a batch. What cannot be read is said, and takes nothing away: while a directory is followed, what it was before stays.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use service_model::{Batch, Event, Kind, Rejection};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::decode;
use crate::error::Error;
use crate::manifest::{Content, Object, PassedOver, content};

/// How often the directory is looked at where no notification came: some file systems send none.
const LOOK: Duration = Duration::from_secs(2);
/// How often a directory that changes while it is read is read at once again.
const TRIES: usize = 8;

/// What follows on the objects of the first reading: they are all there, those of other nodes, too.
const COMPLETE: [Event; 4] = [
    Event::Complete(Kind::Service),
    Event::Complete(Kind::EndpointSlice),
    Event::Complete(Kind::Node),
    Event::OtherNodesComplete,
];

type Files = BTreeMap<PathBuf, File>;
/// A file's look; `None` where it is there and cannot be looked at, as a link that leads nowhere.
type Listing = BTreeMap<PathBuf, Option<Fingerprint>>;
/// What the model is to know of each object: itself, or why it cannot be read, or both where a second one differs.
type Picture = BTreeMap<Object, Vec<Event>>;

/// A file as it was read last.
#[derive(Clone)]
struct File {
    seen: Option<Fingerprint>,
    content: Content,
}

/// Differs when a file was written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

/// A directory of manifests as it was when it was read.
pub struct Directory {
    path: PathBuf,
    files: Files,
    picture: Picture,
    faults: BTreeSet<String>,
}

impl Directory {
    /// Reads a directory: all its files, as they were at one time. An empty directory has no objects. What of it cannot be
    /// read is among the events ([`Event::Unreadable`]) and the [`faults`](Self::faults); what is not ours is counted in
    /// one line of the log.
    ///
    /// # Errors
    /// [`Error::Directory`]: it cannot be listed.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let reading = read(path, list(path)?, &Files::new())?;
        let mut directory = Self {
            path: path.to_owned(),
            files: reading.files,
            picture: Picture::new(),
            faults: BTreeSet::new(),
        };
        directory.picture = picture(&directory.files);
        directory.faults = faults(&directory.files);
        if !reading.steady {
            directory
                .faults
                .insert(format!("{}: it changed while it was read", path.display()));
        }
        say_passed_over(&passed_over(&directory.files));
        Ok(directory)
    }

    /// All its objects, then [`Event::Complete`] for each kind and [`Event::OtherNodesComplete`].
    pub fn batch(&self) -> Batch {
        self.picture.values().flatten().cloned().chain(COMPLETE).collect()
    }

    /// What cannot be read and is no object with a name: `FILE: why`, or `FILE: document N (line L): why`.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(String::as_str)
    }

    /// Sends what was read, then what changes: a batch for each reading that brought something. A file that cannot be read
    /// any more keeps the objects that it had, as does a document or an object of it.
    ///
    /// Ends with [`Error::Closed`].
    pub async fn follow(mut self, batches: mpsc::Sender<Batch>) -> Error {
        match self.run(&batches).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn run(&mut self, batches: &mpsc::Sender<Batch>) -> Result<Infallible, Error> {
        let notifications = notifications(&self.path)
            .inspect_err(|error| debug!(%error, "no notifications of changes, looking every 2 s"))
            .ok();
        self.faults.iter().for_each(|fault| say_fault(fault));
        send(batches, self.batch()).await?;
        info!(files = self.files.len(), objects = self.picture.len(), "manifests read");
        let mut trouble = None;
        loop {
            // Before the first wait, too: there were no notifications while the first reading was made.
            let error = match self.read_again() {
                Ok(batch) if batch.is_empty() => None,
                Ok(batch) => send(batches, batch).await.map(|()| None)?,
                Err(error) => Some(with_cause(&error)),
            };
            if let Some(error) = error.as_ref().filter(|error| trouble.as_ref() != Some(*error)) {
                warn!(error, "the last good state stays");
            }
            trouble = error;
            changed(notifications.as_ref()).await;
            if batches.is_closed() {
                return Err(Error::Closed);
            }
        }
    }

    /// What changed since the last reading.
    fn read_again(&mut self) -> Result<Batch, Error> {
        let listed = list(&self.path)?;
        if listed
            .iter()
            .map(|(path, seen)| (path, *seen))
            .eq(self.files.iter().map(|(path, file)| (path, file.seen)))
        {
            return Ok(Batch::new());
        }
        let reading = read(&self.path, listed, &self.files)?;
        if !reading.steady {
            info!("the directory changes while it is read, reading it again");
            return Ok(Batch::new());
        }
        let faults = faults(&reading.files);
        faults.difference(&self.faults).for_each(|fault| say_fault(fault));
        let passed_over = passed_over(&reading.files);
        if passed_over != self::passed_over(&self.files) {
            say_passed_over(&passed_over);
        }
        let picture = picture(&reading.files);
        let batch = differences(&self.picture, &picture);
        (self.files, self.picture, self.faults) = (reading.files, picture, faults);
        Ok(batch)
    }
}

struct Reading {
    files: Files,
    /// The directory stood still: all files were as they are at one time.
    steady: bool,
}

/// Reads the files that are not as before. A directory that changes meanwhile is read again: of files that are turned
/// over together, as those of a ConfigMap are, some must not be the old and some the new ones.
fn read(directory: &Path, mut listed: Listing, before: &Files) -> Result<Reading, Error> {
    let mut files = before.clone();
    for _ in 0..TRIES {
        files = listed
            .iter()
            .filter_map(|(path, seen)| {
                let content = match files.get(path) {
                    Some(known) if known.seen == *seen => known.content.clone(),
                    _ => read_file(path, before.get(path))?,
                };
                Some((path.clone(), File { seen: *seen, content }))
            })
            .collect();
        let now = list(directory)?;
        if now == listed {
            return Ok(Reading { files, steady: true });
        }
        listed = now;
    }
    Ok(Reading { files, steady: false })
}

/// `None` for a file that went since it was listed.
fn read_file(path: &Path, before: Option<&File>) -> Option<Content> {
    let mut now = match fs::read(path) {
        Ok(bytes) => content(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => return None,
        Err(error) => Content {
            faults: vec![error.to_string()],
            ..Content::default()
        },
    };
    // What is not found in a text that cannot be read may be in what cannot be read.
    if let (false, Some(before)) = (now.faults.is_empty(), before) {
        let found: BTreeSet<_> = now.objects.iter().map(|(object, _)| object.clone()).collect();
        let missing = before
            .content
            .objects
            .iter()
            .filter(|(object, _)| !found.contains(object));
        now.objects.extend(missing.cloned());
    }
    Some(now)
}

fn faults(files: &Files) -> BTreeSet<String> {
    let of_file = |(path, file): (&PathBuf, &File)| {
        let name = path.display().to_string();
        let faults = file.content.faults.clone();
        faults.into_iter().map(move |fault| format!("{name}: {fault}"))
    };
    files.iter().flat_map(of_file).collect()
}

fn say_fault(fault: &str) {
    warn!(fault, "cannot be read; what it held before, if anything, stays");
}

fn passed_over(files: &Files) -> PassedOver {
    let mut all = PassedOver::default();
    files.values().for_each(|file| all.add(&file.content.passed_over));
    all
}

/// One line for all that is not ours.
fn say_passed_over(all: &PassedOver) {
    let (kinds, without_kind) = (all.to_string(), all.without_kind);
    if without_kind > 0 {
        warn!(
            without_kind,
            kinds, "passed over: neither Services, EndpointSlices nor Nodes"
        );
    } else if !kinds.is_empty() {
        info!(kinds, "passed over: neither Services, EndpointSlices nor Nodes");
    }
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

async fn send(batches: &mpsc::Sender<Batch>, batch: Batch) -> Result<(), Error> {
    batches.send(batch).await.map_err(|_| Error::Closed)
}

fn differences(before: &Picture, now: &Picture) -> Batch {
    let gone = before.keys().filter(|object| !now.contains_key(*object));
    let gone = gone.map(|(kind, name)| decode::deletion(*kind, name.clone()));
    let applied = now
        .iter()
        .filter(|(object, events)| before.get(*object) != Some(*events));
    gone.chain(applied.flat_map(|(_, events)| events.iter().cloned()))
        .collect()
}

/// All objects of all files. Of an object that is there more than once the first that can be read counts, in the order of
/// the files' names and within a file; one that says the same again is nothing, one that differs is a rejection.
fn picture(files: &Files) -> Picture {
    let mut copies: BTreeMap<&Object, Vec<(&Path, &Event)>> = BTreeMap::new();
    for (path, file) in files {
        for (object, event) in &file.content.objects {
            copies.entry(object).or_default().push((path, event));
        }
    }
    let of_object = |(object, copies): (&Object, Vec<(&Path, &Event)>)| {
        let readable = |(_, event): &&(&Path, &Event)| !matches!(event, Event::Unreadable(_));
        let first = copies.iter().find(readable);
        let mut wrong: Vec<Rejection> = Vec::new();
        for (path, event) in &copies {
            match (event, first) {
                (Event::Unreadable(rejection), _) => wrong.push(Rejection {
                    reason: format!("{} ({})", rejection.reason, path.display()).into(),
                    ..rejection.clone()
                }),
                (event, Some((first, counts))) if event != counts => wrong.push(Rejection {
                    kind: object.0,
                    object: object.1.clone(),
                    field: "".into(),
                    reason: format!(
                        "is in {} and, otherwise, in {}: the first counts",
                        first.display(),
                        path.display()
                    )
                    .into(),
                }),
                _ => {}
            }
        }
        let counts = first.map(|(_, event)| (*event).clone());
        let events = counts
            .into_iter()
            .chain(together(wrong).map(Event::Unreadable))
            .collect();
        (object.clone(), events)
    };
    copies.into_iter().map(of_object).collect()
}

/// An object has one rejection: the first, with the reasons of the others behind its own.
fn together(rejections: Vec<Rejection>) -> Option<Rejection> {
    let mut all = rejections.into_iter();
    let first = all.next()?;
    Some(all.fold(first, |first, next| Rejection {
        reason: format!("{}; {}", first.reason, next.reason).into(),
        ..first
    }))
}

fn list(directory: &Path) -> Result<Listing, Error> {
    let wrong = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    let mut files = Listing::new();
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
        // Through links: a ConfigMap's files are links that are turned over.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                let seen = Fingerprint {
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                    changed: (metadata.ctime(), metadata.ctime_nsec()),
                    size: metadata.len(),
                    inode: metadata.ino(),
                };
                files.insert(path, Some(seen));
            }
            Ok(_) => {}
            Err(_) if fs::symlink_metadata(&path).is_ok() => drop(files.insert(path, None)),
            // It vanished just now.
            Err(_) => {}
        }
    }
    Ok(files)
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
