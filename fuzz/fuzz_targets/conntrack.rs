//! A flow in a list of the connection tracker. Its deletion names it: one that names no flow would delete them all.

#![no_main]

use conntrack::fuzzing::{decode, deletion};
use libfuzzer_sys::fuzz_target;
use netlink::Attributes;

/// linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_FILTER: u16 = 25;

fuzz_target!(init: fuzz::attempt::prepare(), |payload: &[u8]| {
    let Some(flow) = decode(payload) else { return };
    drop(flow.to_string());
    let bytes = deletion(&flow);
    let mut named = Attributes(&bytes[4..]);
    assert!(named.any(|attribute| attribute.kind == CTA_TUPLE_ORIG && attribute.nested().count() >= 2));
    assert!(Attributes(&bytes[4..]).all(|attribute| attribute.kind != CTA_FILTER));
    // With what a list has beside it, it is read as the same flow.
    let mut listed = bytes;
    let rest = Attributes(&payload[4..]).filter(|one| [CTA_TUPLE_REPLY, CTA_STATUS].contains(&one.kind));
    for attribute in rest {
        netlink::attribute::put(&mut listed, attribute.kind, attribute.payload);
    }
    assert_eq!(decode(&listed), Some(flow));
});
