//! A flow: what its first packet said, and who answers it.

use std::fmt;
use std::net::SocketAddr;

/// One entry of the connection tracker, with what is needed to judge and to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// As the first packet was sent, before any translation.
    pub original: Tuple,
    /// Where answers come from: whom the flow really goes to, an endpoint behind a VIP for instance.
    pub reply_source: SocketAddr,
    /// An answer has been seen.
    pub answered: bool,
    /// Source or destination were translated; what IPVS does is not told here.
    pub translated: bool,
    /// Where the original tuple is unique.
    pub zone: Zone,
    /// The kernel's name of this entry (`CTA_ID`): a hash of its place in memory and its original tuple
    /// (net/netfilter/nf_conntrack_core.c, `nf_ct_get_id`, Linux 5.3), so a later flow of the same tuple has another one
    /// unless it got the same place.
    pub id: u32,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// `IPPROTO_*`, one that has ports.
    pub protocol: u8,
}

/// A part of the connection tracker with tuples of its own; packets are put there by rules (`ct zone set`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Zone {
    /// Zone 0, at least for the original direction.
    #[default]
    Default,
    /// Both directions.
    Both(u16),
    /// The original direction only (`ct original zone set`).
    Original(u16),
}

impl fmt::Display for Flow {
    /// `10.0.0.1:4000 -> 10.96.0.10:53 protocol 17, answered by 10.244.1.2:5353`, with the zone behind it where there is
    /// one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            original:
                Tuple {
                    source,
                    destination,
                    protocol,
                },
            reply_source,
            ..
        } = self;
        write!(
            f,
            "{source} -> {destination} protocol {protocol}, answered by {reply_source}"
        )?;
        match self.zone {
            Zone::Default => Ok(()),
            Zone::Both(zone) => write!(f, ", zone {zone}"),
            Zone::Original(zone) => write!(f, ", original zone {zone}"),
        }
    }
}
