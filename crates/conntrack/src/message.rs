//! Requests as bytes, and flows from bytes. Decoding never panics; what is no flow with ports is passed over.
//!
//! **A deletion that names no flow deletes them all**: the kernel takes `IPCTNL_MSG_CT_DELETE` for a flush where it finds
//! no tuple, and since Linux 5.8 also where it finds `CTA_FILTER` beside one (net/netfilter/nf_conntrack_netlink.c,
//! `ctnetlink_del_conntrack`). So [`encode_delete`] is the only place that names that message, it is made of a whole
//! [`Flow`], whose tuple cannot be missing, and it knows no filter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink::attribute::{Attribute, Attributes, put, put_be16, put_nested, put_u32};

use crate::filter::{Family, Filter};
use crate::flow::{Flow, Tuple, Zone};
use crate::uapi::{
    CTA_FILTER, CTA_FILTER_F_CTA_IP_DST, CTA_FILTER_F_CTA_PROTO_DST_PORT, CTA_FILTER_F_CTA_PROTO_NUM,
    CTA_FILTER_F_CTA_PROTO_SRC_PORT, CTA_FILTER_ORIG_FLAGS, CTA_ID, CTA_IP_V4_DST, CTA_IP_V4_SRC, CTA_IP_V6_DST,
    CTA_IP_V6_SRC, CTA_PROTO_DST_PORT, CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_STATUS, CTA_TUPLE_IP, CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO, CTA_TUPLE_REPLY, CTA_TUPLE_ZONE, CTA_ZONE, IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_NEW, IPS_NAT_MASK, IPS_SEEN_REPLY, NFNL_SUBSYS_CTNETLINK, NFPROTO_IPV4, NFPROTO_IPV6,
};

/// Type of the messages that a list is made of.
pub(crate) const LISTED: u16 = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;

/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;

/// Who leaves out of a list what the filter does not match. The answers are checked against it in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// The kernel, as far as it can.
    Kernel,
    /// We alone.
    Process,
}

/// `struct nfgenmsg`: family, version, resource id.
fn put_header(buffer: &mut Vec<u8>, family: Family) {
    buffer.extend_from_slice(&[family.number(), 0, 0, 0]);
}

/// Appends the payload of a request for a list, and returns its type.
///
/// The kernel filters by family always, and since Linux 5.8 by what the flags name of the tuple beside them (`CTA_FILTER`,
/// `ctnetlink_filter_match`); older ones pass over the attribute and list the whole family. It is not asked for an IPv6
/// address: its comparison is the wrong way round, and leaves out just those that are wanted
/// (`ctnetlink_filter_match_tuple`, since 5.8; measured on 6.18 and 7.2).
pub(crate) fn encode_list(filter: &Filter, filtering: Filtering, buffer: &mut Vec<u8>) -> u16 {
    put_header(buffer, filter.family);
    if filtering == Filtering::Kernel {
        let mut flags = CTA_FILTER_F_CTA_PROTO_NUM;
        put_nested(buffer, CTA_TUPLE_ORIG, |buffer| {
            if let Some(IpAddr::V4(address)) = filter.destination.map(|destination| destination.ip()) {
                flags |= CTA_FILTER_F_CTA_IP_DST;
                put_nested(buffer, CTA_TUPLE_IP, |buffer| {
                    put(buffer, CTA_IP_V4_DST, &address.octets());
                });
            }
            put_nested(buffer, CTA_TUPLE_PROTO, |buffer| {
                put(buffer, CTA_PROTO_NUM, &[filter.protocol]);
                if let Some(port) = filter.source_port {
                    flags |= CTA_FILTER_F_CTA_PROTO_SRC_PORT;
                    put_be16(buffer, CTA_PROTO_SRC_PORT, port);
                }
                if let Some(destination) = filter.destination {
                    flags |= CTA_FILTER_F_CTA_PROTO_DST_PORT;
                    put_be16(buffer, CTA_PROTO_DST_PORT, destination.port());
                }
            });
        });
        put_nested(buffer, CTA_FILTER, |buffer| {
            put_u32(buffer, CTA_FILTER_ORIG_FLAGS, flags);
        });
    }
    NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
}

/// Appends the payload of a deletion of this flow and no other, and returns its type.
pub(crate) fn encode_delete(flow: &Flow, buffer: &mut Vec<u8>) -> u16 {
    let Tuple {
        source,
        destination,
        protocol,
    } = flow.original;
    put_header(buffer, Family::of(destination.ip()));
    put_nested(buffer, CTA_TUPLE_ORIG, |buffer| {
        put_nested(buffer, CTA_TUPLE_IP, |buffer| {
            put_address(buffer, source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC);
            put_address(buffer, destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST);
        });
        put_nested(buffer, CTA_TUPLE_PROTO, |buffer| {
            put(buffer, CTA_PROTO_NUM, &[protocol]);
            put_be16(buffer, CTA_PROTO_SRC_PORT, source.port());
            put_be16(buffer, CTA_PROTO_DST_PORT, destination.port());
        });
        if let Zone::Original(zone) = flow.zone {
            put_be16(buffer, CTA_TUPLE_ZONE, zone);
        }
    });
    if let Zone::Both(zone) = flow.zone {
        put_be16(buffer, CTA_ZONE, zone);
    }
    put(buffer, CTA_ID, &flow.id.to_be_bytes());
    NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
}

fn put_address(buffer: &mut Vec<u8>, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => put(buffer, v4, &address.octets()),
        IpAddr::V6(address) => put(buffer, v6, &address.octets()),
    }
}

/// A flow of a list; `None` where it has no ports (ICMP), or is nothing that we know.
pub(crate) fn decode(payload: &[u8]) -> Option<Flow> {
    let family = match *payload.first()? {
        NFPROTO_IPV4 => Family::V4,
        NFPROTO_IPV6 => Family::V6,
        _ => return None,
    };
    let attributes = Attributes(payload.get(HEADER..)?);
    let original = find(attributes, CTA_TUPLE_ORIG)?;
    let reply = find(attributes, CTA_TUPLE_REPLY)?;
    let both = find(attributes, CTA_ZONE).and_then(|zone| zone.be16());
    let one = find(original.nested(), CTA_TUPLE_ZONE).and_then(|zone| zone.be16());
    let status = find(attributes, CTA_STATUS)?.payload.try_into().ok();
    let status = status.map(u32::from_be_bytes)?;
    Some(Flow {
        original: decode_tuple(family, original)?,
        reply_source: decode_tuple(family, reply)?.source,
        answered: status & IPS_SEEN_REPLY != 0,
        translated: status & IPS_NAT_MASK != 0,
        zone: match (both, one) {
            (Some(zone), _) => Zone::Both(zone),
            (None, Some(zone)) => Zone::Original(zone),
            (None, None) => Zone::Default,
        },
        id: find(attributes, CTA_ID)?
            .payload
            .try_into()
            .ok()
            .map(u32::from_be_bytes)?,
    })
}

fn decode_tuple(family: Family, tuple: Attribute<'_>) -> Option<Tuple> {
    let addresses = find(tuple.nested(), CTA_TUPLE_IP)?.nested();
    let address = |v4, v6| -> Option<IpAddr> {
        Some(match family {
            Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(find(addresses, v4)?.payload).ok()?).into(),
            Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(find(addresses, v6)?.payload).ok()?).into(),
        })
    };
    let protocol = find(tuple.nested(), CTA_TUPLE_PROTO)?.nested();
    let port = |kind| find(protocol, kind)?.be16();
    Some(Tuple {
        source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
        protocol: find(protocol, CTA_PROTO_NUM)?.u8()?,
    })
}

fn find(mut attributes: Attributes<'_>, kind: u16) -> Option<Attribute<'_>> {
    attributes.find(|attribute| attribute.kind == kind)
}

#[cfg(test)]
mod tests;
