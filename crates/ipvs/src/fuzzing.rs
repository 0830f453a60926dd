//! For fuzz targets alone: decoders that are private to their sockets.

use netlink::Notification;

use crate::{ipset, vip_monitor};

/// What is gone, by a notification.
pub fn gone(message: &Notification<'_>) -> Option<vip_monitor::Gone> {
    vip_monitor::gone(message)
}

/// The ports in a message of an ipset's list.
pub fn ports_of_ipset(payload: &[u8]) -> Vec<u16> {
    ipset::decode_ports(payload)
}
