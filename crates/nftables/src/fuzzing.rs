//! For fuzz targets alone: what the monitor looks for.

use netlink::Notification;

use crate::monitor::is_foreign;

/// Somebody else changed something of a table of this name.
pub fn is_of_others(table: &str, own: u32, message: &Notification<'_>) -> bool {
    is_foreign(table, own, message)
}
