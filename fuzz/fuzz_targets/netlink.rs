//! A datagram of netlink: its messages, and what the decoders of IPVS, ipsets and rtnetlink make of them. What is read of
//! an IPVS command is written and read as the same.

#![no_main]

use ipvs::message::{decode_command, decode_destination, decode_info, decode_service, decode_timeouts, encode};
use ipvs::{Command, Family};
use libfuzzer_sys::fuzz_target;
use netlink::Attributes;

fuzz_target!(init: fuzz::attempt::prepare(), |datagram: &[u8]| {
    for message in netlink::fuzzing::messages(datagram) {
        assert!(message.payload.len() < datagram.len());
        let _ = ipvs::fuzzing::gone(&message);
        decode(message.payload);
    }
    // And without headers, so that an input need not find them first.
    decode(datagram);
});

fn decode(payload: &[u8]) {
    assert!(Attributes(payload).count() <= payload.len() / 4);
    for attribute in Attributes(payload) {
        let _ = (
            attribute.u8(),
            attribute.be16(),
            attribute.u16(),
            attribute.u32(),
            attribute.u64(),
            attribute.str(),
        );
        assert!(attribute.nested().count() <= attribute.payload.len() / 4);
    }
    let _ = decode_service(payload);
    let _ = (decode_timeouts(payload), decode_info(payload));
    for family in [Family::V4, Family::V6] {
        let _ = decode_destination(payload, family);
    }
    let _ = ipvs::fuzzing::ports_of_ipset(payload);
    for number in 0..=16 {
        if let Some(command) = decode_command(number, payload) {
            written_and_read(number, &command);
        }
    }
}

fn written_and_read(number: u8, command: &Command) {
    let mut bytes = Vec::new();
    assert_eq!(encode(command, &mut bytes), number, "{command}");
    assert_eq!(decode_command(number, &bytes).as_ref(), Some(command));
    let mut again = Vec::new();
    encode(command, &mut again);
    assert_eq!(again, bytes, "{command}");
}
