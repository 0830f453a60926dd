//! What Linux 6.18 lists, byte by byte, and what we ask it for.

use proptest::prelude::*;

use super::*;

const PLAIN: &str = "020000003400018014000180080001007f000001080002000a60000a1c0002800500010011000000060002000fa0000006000300003500\
                     003400028014000180080001007f000002080002007f0000011c00028005000100110000000600020014e90000060003000fa000000800\
                     0300000001a8080008000000000008000c00db23667508000b0000000001080007000000001d";
const ZONED: &str = "020000003400018014000180080001007f000001080002000a60000a1c0002800500010011000000060002000fa1000006000300003500\
                     003400028014000180080001007f000002080002007f0000011c00028005000100110000000600020014e90000060003000fa100000600\
                     12000007000008000300000001a8080008000000000008000c00528d3e7008000b0000000001080007000000001d";
const HALF_ZONED: &str = "020000003c00018014000180080001007f000001080002000a60000a1c0002800500010011000000060002000fa20000060003000035\
                          000006000300000800003400028014000180080001007f000002080002007f0000011c00028005000100110000000600020014e900\
                          00060003000fa2000008000300000001a8080008000000000008000c003172907008000b0000000001080007000000001d";
const SIX: &str = "0a0000004c0001802c00018014000300fd00000100000000000000000000000114000400fd0000960000000000000000000000101c0002800500\
                   010011000000060002000fa0000006000300003500004c0002802c00018014000300fd00000100000000000000000000000114000400fd00\
                   00010000000000000000000000011c00028005000100110000000600020014e90000060003000fa0000008000300000001a8080008000000\
                   000008000c005d5892a508000b0000000001080007000000001d";
const ECHO: &str = "020000003c00018014000180080001007f000001080002007f0000012400028005000100010000000600040016960000050005000800000005\
                    000600000000003c00028014000180080001007f000001080002007f000001240002800500010001000000060004001696000005000500\
                    000000000500060000000000080003000000018a080008000000000008000c0053df8ec508000b0000000001080007000000001d";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap())
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn listed_flows_are_read() {
    let check = |listed: &str, id: u32, expect: &str| {
        let flow = decode(&bytes(listed)).unwrap();
        assert_eq!((flow.to_string().as_str(), flow.id), (expect, id));
    };
    // The numbers are those that `conntrack -L -o id` printed.
    check(
        PLAIN,
        3_676_530_293,
        "127.0.0.1:4000 -> 10.96.0.10:53 protocol 17, answered by 127.0.0.2:5353",
    );
    check(
        ZONED,
        1_384_988_272,
        "127.0.0.1:4001 -> 10.96.0.10:53 protocol 17, answered by 127.0.0.2:5353, zone 7",
    );
    check(
        HALF_ZONED,
        829_591_664,
        "127.0.0.1:4002 -> 10.96.0.10:53 protocol 17, answered by 127.0.0.2:5353, original zone 8",
    );
    check(
        SIX,
        1_566_085_797,
        "[fd00:1::1]:4000 -> [fd00:96::10]:53 protocol 17, answered by [fd00:1::1]:5353",
    );
    // Its destination was translated, nothing came back (`CTA_STATUS`, 0x1a8); then something had.
    let status = |text: &str| decode(&bytes(text)).map(|flow| (flow.translated, flow.answered));
    assert_eq!(status(PLAIN), Some((true, false)));
    assert_eq!(status(&PLAIN.replace("00000001a8", "000000018a")), Some((false, true)));
    assert_eq!(decode(&bytes(ECHO)), None);
    // A family of another world.
    assert_eq!(decode(&[&[1], &bytes(PLAIN)[1..]].concat()), None);
}

/// Every message cut at every place, and with every bit turned.
#[test]
fn damaged_lists_are_survived() {
    for whole in [PLAIN, ZONED, HALF_ZONED, SIX, ECHO].map(bytes) {
        for end in 0..whole.len() {
            let _ = decode(&whole[..end]);
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[end] ^= 1 << bit;
                let _ = decode(&damaged);
            }
        }
        // Without its number a flow is not ours to delete.
        let id = whole.windows(4).position(|header| header == [8, 0, 12, 0]).unwrap();
        assert_eq!(decode(&whole[..id]), None);
    }
}

#[test]
fn a_deletion_is_the_tuple_the_zone_and_the_number() {
    let check = |listed: &str, expect: &str| {
        let mut buffer = Vec::new();
        let kind = encode_delete(&decode(&bytes(listed)).unwrap(), &mut buffer);
        assert_eq!(kind, 0x102);
        assert_eq!(hex(&buffer), expect);
    };
    let tuple = |listed: &str, end: usize| listed[..2 * end].to_owned();
    // Header and CTA_TUPLE_ORIG as they were listed, CTA_ZONE, CTA_ID.
    check(PLAIN, &(tuple(PLAIN, 56) + "08000c00db236675"));
    check(ZONED, &(tuple(ZONED, 56) + "0600120000070000" + "08000c00528d3e70"));
    check(HALF_ZONED, &(tuple(HALF_ZONED, 64) + "08000c0031729070"));
    check(SIX, &(tuple(SIX, 80) + "08000c005d5892a5"));
}

#[test]
fn a_list_is_filtered_by_what_the_kernel_compares_rightly() {
    let check = |filter: Filter, filtering, expect: &str| {
        let mut buffer = Vec::new();
        assert_eq!(encode_list(&filter, filtering, &mut buffer), 0x101);
        assert_eq!(hex(&buffer), expect, "{filter}");
    };
    let vip: SocketAddr = "10.96.0.10:53".parse().unwrap();
    check(Filter::udp_to(vip), Filtering::Process, "02000000");
    check(
        Filter::udp(Family::V4),
        Filtering::Kernel,
        "02000000 1000_0180 0c00_0280 0500010011000000 0c00_1980 0800010008000000"
            .replace([' ', '_'], "")
            .as_str(),
    );
    check(
        Filter::udp_to(vip),
        Filtering::Kernel,
        "02000000 2400_0180 0c00_0180 080002000a60000a 1400_0280 0500010011000000 0600030000350000 0c00_1980 080001002a000000"
            .replace([' ', '_'], "")
            .as_str(),
    );
    check(
        Filter::udp_from_port(Family::V6, 5353),
        Filtering::Kernel,
        "0a000000 1800_0180 1400_0280 0500010011000000 06000200 14e90000 0c00_1980 0800010018000000"
            .replace([' ', '_'], "")
            .as_str(),
    );
    // No address.
    check(
        Filter::udp_to("[fd00:96::10]:53".parse().unwrap()),
        Filtering::Kernel,
        "0a000000 1800_0180 1400_0280 0500010011000000 0600030000350000 0c00_1980 0800010028000000"
            .replace([' ', '_'], "")
            .as_str(),
    );
}

#[test]
fn a_filter_matches_its_family_protocol_and_ends() {
    let flow = decode(&bytes(PLAIN)).unwrap();
    let six = decode(&bytes(SIX)).unwrap();
    let to = |place: &str| Filter::udp_to(place.parse().unwrap());
    assert!(Filter::udp(Family::V4).matches(&flow) && !Filter::udp(Family::V6).matches(&flow));
    assert!(!Filter::udp(Family::V4).matches(&six) && Filter::udp(Family::V6).matches(&six));
    assert!(to("10.96.0.10:53").matches(&flow) && to("[fd00:96::10%3]:53").matches(&six));
    assert!(!to("10.96.0.10:54").matches(&flow) && !to("10.96.0.11:53").matches(&flow));
    // Not the source, not who answers.
    assert!(!to("127.0.0.1:4000").matches(&flow) && !to("127.0.0.2:5353").matches(&flow));
    let from = |port| Filter::udp_from_port(Family::V4, port).matches(&flow);
    assert!(from(4000) && !from(53));
    let tcp = Flow {
        original: Tuple {
            protocol: 6,
            ..flow.original
        },
        ..flow
    };
    assert!(!Filter::udp(Family::V4).matches(&tcp) && !to("10.96.0.10:53").matches(&tcp));
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let zone = prop_oneof![
        Just(Zone::Default),
        any::<u16>().prop_map(Zone::Both),
        any::<u16>().prop_map(Zone::Original)
    ];
    let four = any::<[[u8; 4]; 2]>().prop_map(|both| both.map(IpAddr::from));
    let six = any::<[[u8; 16]; 2]>().prop_map(|both| both.map(IpAddr::from));
    let addresses = prop_oneof![four, six];
    (addresses, any::<[u16; 2]>(), any::<u8>(), zone, any::<u32>()).prop_map(
        |([source, destination], ports, protocol, zone, id)| Flow {
            original: Tuple {
                source: SocketAddr::new(source, ports[0]),
                destination: SocketAddr::new(destination, ports[1]),
                protocol,
            },
            reply_source: SocketAddr::new(destination, ports[1]),
            answered: false,
            translated: false,
            zone,
            id,
        },
    )
}

proptest! {
    /// What the kernel looks at before it flushes (`ctnetlink_del_conntrack`): whatever the flow, its tuple is there and
    /// whole, its number too, and no filter.
    #[test]
    fn no_deletion_is_a_flush(flow in any_flow()) {
        let mut buffer = Vec::new();
        encode_delete(&flow, &mut buffer);
        let kinds: Vec<_> = Attributes(&buffer[HEADER..]).map(|attribute| attribute.kind).collect();
        let expect = match flow.zone {
            Zone::Both(_) => vec![CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID],
            _ => vec![CTA_TUPLE_ORIG, CTA_ID],
        };
        prop_assert_eq!(kinds, expect);
        prop_assert_eq!(buffer[0], Family::of(flow.original.destination.ip()).number());
        prop_assert_eq!(&buffer[1..HEADER], &[0; 3]);
        let tuple = find(Attributes(&buffer[HEADER..]), CTA_TUPLE_ORIG).unwrap();
        // The kernel reads it as we do, without an answer beside it.
        let family = Family::of(flow.original.destination.ip());
        prop_assert_eq!(decode_tuple(family, tuple), Some(flow.original));
        // No attribute is cut off: the walk ends at the last byte.
        let length: usize = Attributes(&buffer[HEADER..]).map(|attribute| 4 + attribute.payload.len().next_multiple_of(4)).sum();
        prop_assert_eq!(HEADER + length, buffer.len());
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }
}
