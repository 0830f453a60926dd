//! Ports on which this network namespace listens (T41), as `/proc/net` tells.
//!
//! Of `tcp` and `tcp6` no more is read than the listening sockets, which the kernel lists first (net/ipv4/tcp_ipv4.c,
//! `tcp_seq_start`): a node with a million of connections pays nothing for these. `udp` and `udp6` are whole.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::error::Error;
use crate::virtual_server::Protocol;

// include/net/tcp_states.h. A UDP socket that is connected is ESTABLISHED.
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// A socket that somebody out of this node can send to. IPv6's unspecified address takes IPv4, too, but for sockets that
/// say otherwise, which `/proc` does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listening {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address, or the unspecified one, and port.
    pub at: SocketAddr,
}

/// Sockets that listen, those on loopback left out; of UDP those that are bound and not connected. Sorted.
///
/// # Errors
/// A file of `/proc/net` cannot be read. One that is missing has no sockets.
pub fn listening() -> Result<Vec<Listening>, Error> {
    let mut all = Vec::new();
    for (name, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        let path = format!("/proc/net/{name}");
        let done = match File::open(&path) {
            Ok(file) => read(BufReader::new(file), protocol, &mut all),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        done.map_err(|source| Error::File {
            operation: "read",
            path: path.into(),
            source,
        })?;
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Ports that the kernel gives to sockets that ask for none (`net.ipv4.ip_local_port_range`); its default where it cannot
/// be read.
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32_768..=60_999,
    }
}

fn read(text: impl BufRead, protocol: Protocol, all: &mut Vec<Listening>) -> std::io::Result<()> {
    // The first line names the fields.
    for line in text.lines().skip(1) {
        let Some((at, state)) = socket(&line?) else { continue };
        let listens = match protocol {
            Protocol::Tcp => state == TCP_LISTEN,
            _ => state == TCP_CLOSE,
        };
        if !listens && protocol == Protocol::Tcp {
            // Connections come behind all that listens.
            break;
        }
        if listens && !at.ip().is_loopback() && at.port() != 0 {
            all.push(Listening { protocol, at });
        }
    }
    Ok(())
}

/// `  sl: LOCAL:PORT REMOTE:PORT STATE …`, in hexadecimal digits.
fn socket(line: &str) -> Option<(SocketAddr, u8)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    let state = u8::from_str_radix(words.nth(1)?, 16).ok()?;
    let at = SocketAddr::new(ip(address)?.to_canonical(), u16::from_str_radix(port, 16).ok()?);
    Some((at, state))
}

/// Words of 32 bits, each written as a number of this machine.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(word(0)?.into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            Some(bytes.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use proptest::prelude::*;

    use super::*;

    /// As Linux 7.2 prints it on a little-endian machine.
    #[cfg(target_endian = "little")]
    #[test]
    fn f06_what_listens_is_read_and_nothing_else() {
        let check = |protocol, text: &str, expect: &[&str]| {
            let mut found = Vec::new();
            read(text.as_bytes(), protocol, &mut found).unwrap();
            let found: Vec<_> = found.iter().map(|socket| socket.at.to_string()).collect();
            assert_eq!(found, expect);
        };
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:1771 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0A0200C0:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0A0200C0:0016 140200C0:C001 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
   4: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
";
        check(Protocol::Tcp, tcp, &["0.0.0.0:6001", "192.0.2.10:22"]);
        let tcp6 = "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:280A 00000000000000000000000000000000:0000 0A 0:0
   1: 00000000000000000000000001000000:280B 00000000000000000000000000000000:0000 0A 0:0
   2: 0000000000000000FFFF00000A0200C0:01BB 00000000000000000000000000000000:0000 0A 0:0
   3: B80D0120000000000000000010000000:01BB 00000000000000000000000000000000:0000 0A 0:0
";
        check(
            Protocol::Tcp,
            tcp6,
            &["[::]:10250", "192.0.2.10:443", "[2001:db8::10]:443"],
        );
        let udp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer
  1: 00000000:0000 00000000:0000 07 0:0
  2: 0A0200C0:C001 08080808:0035 01 0:0
  3: 00000000:12B5 00000000:0000 07 0:0
";
        check(Protocol::Udp, udp, &["0.0.0.0:4789"]);
    }

    #[test]
    fn f06_sockets_of_this_process_are_found() {
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::]:0")
            .or_else(|_| UdpSocket::bind("0.0.0.0:0"))
            .unwrap();
        let found = listening().unwrap();
        let has = |protocol, at| found.contains(&Listening { protocol, at });
        assert!(has(Protocol::Tcp, tcp.local_addr().unwrap()));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap()));
        assert!(!has(Protocol::Tcp, loopback.local_addr().unwrap()));
        assert!(ephemeral_ports().contains(&tcp.local_addr().unwrap().port()));
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line in ".{0,80}", hex in "[0-9A-F]{0,40}") {
            let _ = socket(&line);
            let _ = socket(&format!("0: {hex}:0016 {hex}:0000 0A"));
        }
    }
}
