//! For fuzz targets alone: what a socket and a monitor make of a datagram.

use crate::monitor::Notification;
use crate::socket::Messages;

/// Takes a datagram apart as both do: each message as a notification, and as an acknowledgement.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Notification<'_>> {
    Messages(datagram).map(|message| {
        let _ = message
            .acknowledgement()
            .map(|answer| answer.map_err(|error| error.to_string()));
        Notification {
            kind: message.kind,
            originator: message.port,
            payload: message.payload,
        }
    })
}
