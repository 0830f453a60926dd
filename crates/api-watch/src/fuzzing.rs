//! For fuzz targets alone: text of the API as events of the model.

use serde_json::value::RawValue;
use service_model::{Event, Kind};

use crate::{decode, follow, manifest};

/// An object of a kind; `None` where it cannot be decoded. What else is asked of its text is asked, too.
pub fn object(kind: Kind, text: &[u8]) -> Option<Event> {
    let object: &RawValue = serde_json::from_slice(text).ok()?;
    let _ = decode::has_several_addresses(object);
    let name = decode::identity(kind, object).ok()?.name;
    match decode::object(kind, object) {
        Ok(decoded) => {
            assert_eq!(decoded.name, name, "an object and its identity have one name");
            Some(decoded.event)
        }
        Err(_) => {
            let why = decode::why_not(kind, name, object);
            assert!(!why.reason.is_empty(), "what cannot be decoded has a reason");
            None
        }
    }
}

/// The events of a watch, whose bytes come in these pieces.
pub fn watch<'a>(kind: Kind, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Event> {
    follow::fuzzing::watch(kind, pieces)
}

/// The events of a file of manifests.
pub fn manifests(bytes: &[u8]) -> Vec<Event> {
    let content = manifest::content(bytes);
    for fault in &content.faults {
        assert!(!fault.contains('\n'), "a fault is one line: {fault:?}");
    }
    let _ = content.passed_over.to_string();
    content.objects.into_iter().map(|(_, event)| event).collect()
}
