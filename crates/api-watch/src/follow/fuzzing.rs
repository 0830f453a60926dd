//! What a follower makes of the bytes of a watch, without a follower.

use serde::Deserialize;
use service_model::{Event, Kind};

use super::listing::{Item, WatchEvent};
use crate::decode;
use crate::failure::Status;
use crate::lines::Lines;

/// The events in the bytes, which come in these pieces. They end where the stream would: at a line that is none.
pub(crate) fn watch<'a>(kind: Kind, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Event> {
    let (mut lines, mut events) = (Lines::default(), Vec::new());
    for piece in pieces {
        lines.push(piece);
        while let Some(line) = lines.next() {
            let Ok(event) = serde_json::from_slice::<WatchEvent<'_>>(&line) else {
                return events;
            };
            match &*event.what {
                "ADDED" | "MODIFIED" => events.extend(Item::decode(kind, event.object).map(|item| item.event)),
                "DELETED" => match decode::identity(kind, event.object) {
                    Ok(identity) => events.push(decode::deletion(kind, identity.name)),
                    Err(_) => return events,
                },
                "BOOKMARK" => drop(decode::identity(kind, event.object)),
                _ => drop(Status::deserialize(event.object)),
            }
        }
    }
    events
}
