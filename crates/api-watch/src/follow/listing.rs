//! A list that comes in, and the parts of the API's answers.

use std::borrow::Cow;

use foldhash::HashSet;
use serde::Deserialize;
use serde_json::value::RawValue;
use service_model::{Batch, Event, Kind, ObjectName};
use tracing::warn;

use crate::decode;

/// An object of a list or a watch.
pub(super) struct Item {
    pub(super) name: ObjectName,
    pub(super) version: String,
    /// What the model hears of it.
    pub(super) event: Event,
}

impl Item {
    /// Decodes an object. A bad one is unreadable for the model, which keeps what it has of it (L18); `None` where not
    /// even its name can be read.
    pub(super) fn decode(kind: Kind, object: &RawValue) -> Option<Self> {
        let (name, version, event) = match decode::object(kind, object) {
            Ok(decoded) => (decoded.name, decoded.resource_version, decoded.event),
            Err(_) => match decode::identity(kind, object) {
                Ok(identity) => {
                    let rejection = decode::why_not(kind, identity.name.clone(), object);
                    (identity.name, identity.resource_version, Event::Unreadable(rejection))
                }
                Err(error) => {
                    warn!(%kind, %error, "an object whose name cannot be read, skipped");
                    return None;
                }
            },
        };
        Some(Self { name, version, event })
    }
}

/// A list that comes in.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) batch: Batch,
    pub(super) names: HashSet<ObjectName>,
    /// It has an object whose name cannot be read: which ones are gone is not known.
    pub(super) nameless: bool,
}

impl Listing {
    pub(super) fn add(&mut self, item: Option<Item>) {
        match item {
            Some(item) => {
                self.names.insert(item.name);
                self.batch.push(item.event);
            }
            None => self.nameless = true,
        }
    }

    /// It went while the list came in.
    pub(super) fn remove(&mut self, kind: Kind, name: &ObjectName) {
        if self.names.remove(name) {
            self.batch.push(decode::deletion(kind, name.clone()));
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WatchEvent<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) what: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

#[derive(Deserialize)]
pub(super) struct Page<'a> {
    pub(super) metadata: PageMetadata,
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}
