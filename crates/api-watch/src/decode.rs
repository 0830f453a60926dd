//! API objects as text → objects of the model. Transcription only: defaults of the API are filled in, a field that
//! cannot be read is named in `invalid`; what fields mean is decided in `service-model`.
//!
//! The structs borrow from the text where they can, carry the fields in use, and live for one object.

mod field;
mod metadata;
mod node;
mod service;
mod slice;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use service_model::{Change, Event, Kind, ObjectName, Rejection};

use metadata::Metadata;
use node::{NodeDoc, node};
use service::{ServiceDoc, service};
use slice::{SliceDoc, slice};

/// An object, ready for the model.
pub(crate) struct Decoded {
    pub(crate) name: ObjectName,
    pub(crate) resource_version: String,
    pub(crate) event: Event,
}

/// Name and version alone: what a deletion or a bad object is good for.
pub(crate) struct Identity {
    pub(crate) name: ObjectName,
    pub(crate) resource_version: String,
    /// Annotation `k8s.io/initial-events-end: "true"` of a bookmark.
    pub(crate) initial_events_end: bool,
}

/// Decodes an object of a kind.
///
/// # Errors
/// Where the text has another shape than the kind's. A value out of its range is no error, but `invalid`.
pub(crate) fn object<'a, D: Deserializer<'a>>(kind: Kind, from: D) -> Result<Decoded, D::Error> {
    Ok(match kind {
        Kind::Service => {
            let doc = ServiceDoc::deserialize(from)?;
            let name = doc.metadata.name(kind);
            let resource_version = doc.metadata.version();
            let event = Event::Service(Change::Applied(service(name.clone(), doc)));
            Decoded {
                name,
                resource_version,
                event,
            }
        }
        Kind::EndpointSlice => {
            let doc = SliceDoc::deserialize(from)?;
            let name = doc.metadata.name(kind);
            let resource_version = doc.metadata.version();
            let event = Event::EndpointSlice(Change::Applied(slice(name.clone(), doc)));
            Decoded {
                name,
                resource_version,
                event,
            }
        }
        Kind::Node => {
            let doc = NodeDoc::deserialize(from)?;
            let name = doc.metadata.name(kind);
            let resource_version = doc.metadata.version();
            let event = Event::Node(Change::Applied(node(name.clone(), doc)));
            Decoded {
                name,
                resource_version,
                event,
            }
        }
    })
}

/// A Node has more than one address of a type, or cannot be read.
pub(crate) fn has_several_addresses(object: &RawValue) -> bool {
    NodeDoc::deserialize(object).map_or(true, |doc| node::has_several_addresses(&doc))
}

/// Decodes only who an object is.
///
/// # Errors
/// Where it has no metadata.
pub(crate) fn identity<'a, D: Deserializer<'a>>(kind: Kind, from: D) -> Result<Identity, D::Error> {
    #[derive(Deserialize)]
    struct Doc<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
    }
    let Doc { metadata } = Doc::deserialize(from)?;
    Ok(Identity {
        name: metadata.name(kind),
        resource_version: metadata.version(),
        initial_events_end: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.initial_events_end.as_ref())
            .is_some_and(|text| text.0 == "true"),
    })
}

/// Why an object cannot be decoded: the field where that ended, and what is wrong there.
pub(crate) fn why_not(kind: Kind, name: ObjectName, from: &RawValue) -> Rejection {
    let mut track = serde_path_to_error::Track::new();
    let done = object(kind, serde_path_to_error::Deserializer::new(from, &mut track));
    let reason = done.err().map(|error| {
        // The place in the text is one of the object's JSON form, which is not what was written.
        let text = error.to_string();
        text.rsplit_once(" at line ")
            .map_or(text.as_str(), |(reason, _)| reason)
            .into()
    });
    let path = track.path().to_string();
    Rejection {
        kind,
        object: name,
        field: if path == "." { "".into() } else { path.into() },
        reason: reason.unwrap_or_default(),
    }
}

/// The deletion of an object of a kind.
pub(crate) fn deletion(kind: Kind, name: ObjectName) -> Event {
    match kind {
        Kind::Service => Event::Service(Change::Deleted(name)),
        Kind::EndpointSlice => Event::EndpointSlice(Change::Deleted(name)),
        Kind::Node => Event::Node(Change::Deleted(name)),
    }
}

#[cfg(test)]
mod tests;
