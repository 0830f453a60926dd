//! Notifications: what others, and we, change in the kernel, told to who listens.

use netlink_sys::{Socket as Raw, SocketAddr};

use crate::error::TransportError;
use crate::socket::{DATAGRAM, Messages, force_buffer, receive, socket};

/// Bytes of notifications that may wait. A transaction of thousands of elements is told element by element.
const RECEIVE_BUFFER: i32 = 8 << 20;

/// A socket that hears multicast groups of a netlink protocol, in the network namespace of the thread that opened it.
pub struct Monitor {
    raw: Raw,
    datagram: Vec<u8>,
}

/// A notification.
#[derive(Clone, Copy, Debug)]
pub struct Notification<'a> {
    /// Message type.
    pub kind: u16,
    /// Port of the socket whose request it tells of; 0 = the kernel's own doing.
    pub originator: u32,
    /// What stands behind the header.
    pub payload: &'a [u8],
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the socket cannot be made or bound, or there is no such group.
    pub fn open(protocol: isize, groups: &[u32]) -> Result<Self, TransportError> {
        let mut raw = Raw::new(protocol).map_err(socket("open"))?;
        raw.bind(&SocketAddr::new(0, 0)).map_err(socket("bind"))?;
        for group in groups {
            raw.add_membership(*group).map_err(socket("join a group"))?;
        }
        // Without CAP_NET_ADMIN the buffer stays as it is, and an overrun is likelier.
        let _ = force_buffer(&raw, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER);
        Ok(Self {
            raw,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Waits for notifications and gives each to `each`.
    ///
    /// # Errors
    /// [`TransportError::Overrun`] where some were lost: the next ones come all the same. Any other error is the end.
    pub fn receive(&mut self, mut each: impl FnMut(Notification<'_>)) -> Result<(), TransportError> {
        receive(&self.raw, &mut self.datagram)?;
        for message in Messages(&self.datagram) {
            each(Notification {
                kind: message.kind,
                originator: message.port,
                payload: message.payload,
            });
        }
        Ok(())
    }
}
