//! Round trips, and bytes that ipvsadm sent.

use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn server() -> impl Strategy<Value = VirtualServer> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    prop_oneof![
        (address(), any::<u16>(), protocol).prop_map(|(address, port, protocol)| VirtualServer::Address {
            address,
            port,
            protocol
        }),
        (1..u32::MAX, family).prop_map(|(mark, family)| VirtualServer::Mark { mark, family }),
    ]
}

fn config() -> impl Strategy<Value = VirtualServerConfig> {
    let persistence = proptest::option::of((any::<u32>(), 1..=32u8));
    ("[a-z]{1,15}", 0..0x40u32, persistence).prop_map(|(scheduler, flags, persistence)| VirtualServerConfig {
        scheduler: SchedulerName::new(&scheduler).unwrap(),
        flags: Flags(flags & !(IP_VS_SVC_F_PERSISTENT | IP_VS_SVC_F_HASHED)),
        persistence: persistence.map(|(timeout, prefix_len)| Persistence { timeout, prefix_len }),
    })
}

fn real() -> impl Strategy<Value = (RealServer, RealServerConfig)> {
    let forward = prop_oneof![Just(Forward::Masquerade), Just(Forward::Tunnel), Just(Forward::Route)];
    (
        address(),
        any::<u16>(),
        forward,
        any::<u16>(),
        any::<u32>(),
        any::<u32>(),
    )
        .prop_map(|(address, port, forward, weight, upper_threshold, lower_threshold)| {
            let server = RealServer {
                address: SocketAddr::new(address, port),
            };
            (
                server,
                RealServerConfig {
                    forward,
                    weight,
                    upper_threshold,
                    lower_threshold,
                },
            )
        })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (server(), config()).prop_map(|(server, config)| Command::NewService(server, config)),
        (server(), config()).prop_map(|(server, config)| Command::SetService(server, config)),
        server().prop_map(Command::DelService),
        (server(), real()).prop_map(|(server, (real, config))| Command::NewDest(server, real, config)),
        (server(), real()).prop_map(|(server, (real, config))| Command::SetDest(server, real, config)),
        (server(), real()).prop_map(|(server, (real, _))| Command::DelDest(server, real)),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(command in command()) {
        let mut buffer = Vec::new();
        let number = encode(&command, &mut buffer);
        prop_assert_eq!(decode_command(number, &buffer), Some(command));
    }

    #[test]
    fn any_bytes_are_decoded_without_panic(number in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_command(number, &bytes);
        let _ = (decode_service(&bytes), decode_destination(&bytes, Family::V6), decode_timeouts(&bytes), decode_info(&bytes));
    }

    /// Damaged messages: a byte changed anywhere.
    #[test]
    fn damage_is_decoded_without_panic(command in command(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut buffer = Vec::new();
        let number = encode(&command, &mut buffer);
        let at = at.index(buffer.len());
        buffer[at] = byte;
        let _ = (decode_command(number, &buffer), decode_service(&buffer));
    }
}

/// Lines of a file of captured messages: text, a tab, and the bytes after the generic netlink header.
fn captured(file: &str) -> impl Iterator<Item = (&str, u8, Vec<u8>)> {
    file.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (text, hex) = line.split_once('\t').unwrap();
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        (text, bytes[0], bytes[4..].to_vec())
    })
}

#[test]
fn what_ipvsadm_sends_is_understood_and_said_again() {
    let mut count = 0;
    for (text, number, payload) in captured(include_str!("captured/requests")) {
        let command = decode_command(number, &payload).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(command.to_string(), text);
        let mut buffer = Vec::new();
        let again = encode(&command, &mut buffer);
        assert_eq!(
            (again, decode_command(again, &buffer)),
            (number, Some(command)),
            "{text}"
        );
        count += 1;
    }
    assert_eq!(count, 16);
}

#[test]
fn what_the_kernel_says_is_understood() {
    let (mut servers, mut reals) = (0, 0);
    for (text, number, payload) in captured(include_str!("captured/replies")) {
        let place = text.split(" -r ").next().unwrap();
        let said = if number == IPVS_CMD_NEW_SERVICE {
            let state = decode_service(&payload).unwrap();
            servers += 1;
            Command::NewService(state.server, state.config).to_string()
        } else {
            let family = if place.contains('[') || place.contains("-6") {
                Family::V6
            } else {
                Family::V4
            };
            let state = decode_destination(&payload, family).unwrap();
            reals += 1;
            let (_, rest) = text.split_once(" -r ").unwrap();
            assert_eq!(state.server.to_string(), rest.split(' ').next().unwrap());
            let server = VirtualServer::Mark {
                mark: 1,
                family: Family::V4,
            };
            Command::NewDest(server, state.server, state.config)
                .to_string()
                .replace("-a -f 1", place)
        };
        assert_eq!(said, text);
    }
    assert_eq!((servers, reals), (6, 4));
}
