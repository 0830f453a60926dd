//! Notifications of nf_tables: somebody else has changed a table.

use netlink::attribute::Attributes;
use netlink::{Notification, TransportError};

use crate::error::{Error, transport};
use crate::message::HEADER;
use crate::uapi::{
    NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, NFPROTO_IPV4, NFPROTO_IPV6, NFT_MSG_NEWGEN,
    NFTA_TABLE_NAME,
};

/// Hears of changes of the tables `ip` and `ip6` of one name.
#[derive(Debug)]
pub struct Monitor {
    inner: netlink::Monitor,
    table: String,
    own: u32,
}

impl Monitor {
    /// Listens from now on. What the socket with the port `own` does ([`Nftables::port`](crate::Nftables::port)) is
    /// passed over.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn open(table: &str, own: u32) -> Result<Self, Error> {
        let inner = netlink::Monitor::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
            .map_err(transport("listen to changes of tables"))?;
        Ok(Self {
            inner,
            table: table.to_owned(),
            own,
        })
    }

    /// Waits until somebody else has changed the table, or may have: notifications may be lost.
    ///
    /// # Errors
    /// Where the transport broke.
    pub fn wait(&mut self) -> Result<(), Error> {
        loop {
            let mut foreign = false;
            match self
                .inner
                .receive(|message| foreign |= is_foreign(&self.table, self.own, &message))
            {
                Ok(()) if foreign => return Ok(()),
                Ok(()) => {}
                Err(TransportError::Overrun) => return Ok(()),
                Err(error) => return Err(transport("listen to changes of tables")(error)),
            }
        }
    }
}

/// Every message about a table, or something in it, names the table in the same attribute; that of a new generation
/// has another meaning there.
pub(crate) fn is_foreign(table: &str, own: u32, message: &Notification<'_>) -> bool {
    let family = message.payload.first().copied();
    message.originator != own
        && message.kind >> 8 == NFNL_SUBSYS_NFTABLES
        && message.kind & 0xff != NFT_MSG_NEWGEN
        && [Some(NFPROTO_IPV4), Some(NFPROTO_IPV6)].contains(&family)
        && Attributes(message.payload.get(HEADER..).unwrap_or_default())
            .any(|attribute| attribute.kind == NFTA_TABLE_NAME && attribute.str() == Some(table))
}
