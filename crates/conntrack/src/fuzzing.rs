//! For fuzz targets alone: the bytes that the client reads and writes.

use crate::flow::Flow;
use crate::message;

/// The flow in a message of a list.
pub fn decode(payload: &[u8]) -> Option<Flow> {
    message::decode(payload)
}

/// The payload of a flow's deletion.
pub fn deletion(flow: &Flow) -> Vec<u8> {
    let mut buffer = Vec::new();
    message::encode_delete(flow, &mut buffer);
    buffer
}
