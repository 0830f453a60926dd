//! `/proc/net/ip_vs`: the one list of all real servers, as text. 10,000 × 5 take 0.12 s, against seconds by netlink.
//!
//! It does not tell the flags of schedulers, nor the family of a virtual server that is found by mark (IPv4 is said
//! unless a real server is IPv6). Format: net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_info_seq_show`, Linux 7.2.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::Error;
use crate::scheduler::SchedulerName;
use crate::virtual_server::{Family, Forward, Protocol, RealServer, VirtualServer};

const PATH: &str = "/proc/net/ip_vs";

/// A virtual server with its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcVirtualServer {
    /// Identity.
    pub server: VirtualServer,
    /// Scheduler.
    pub scheduler: SchedulerName,
    /// One-packet scheduling.
    pub one_packet: bool,
    /// Persistent. (Its timeout is told in ticks of the kernel's clock, so netlink is asked for it.)
    pub persistent: bool,
    /// Its real servers.
    pub real_servers: Vec<ProcRealServer>,
}

/// A real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcRealServer {
    /// Identity.
    pub server: RealServer,
    /// Forwarding method.
    pub forward: Forward,
    /// Weight; more than 65,535 is told as that.
    pub weight: u16,
    /// Connections in an established state.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
}

/// Reads the table of this thread's network namespace.
///
/// # Errors
/// Where the file cannot be read or has a line that is none.
pub fn read() -> Result<Vec<ProcVirtualServer>, Error> {
    // "thread-self": the namespace is the thread's, /proc/net is that of the process's first thread.
    let path = "/proc/thread-self/net/ip_vs";
    let text = fs::read_to_string(path).or_else(|_| fs::read_to_string(PATH));
    parse(&text.map_err(|source| Error::File {
        operation: "read",
        path: PATH.into(),
        source,
    })?)
}

/// Parses the file's text.
///
/// # Errors
/// [`Error::ProcLine`] names the first line that is none, counted from 1.
pub fn parse(text: &str) -> Result<Vec<ProcVirtualServer>, Error> {
    let mut all: Vec<ProcVirtualServer> = Vec::new();
    // Three lines of headings.
    for (number, line) in text.lines().enumerate().skip(3) {
        let unreadable = || Error::ProcLine(number + 1);
        if let Some(real) = line.trim_start().strip_prefix("->") {
            let last = all.last_mut().ok_or_else(unreadable)?;
            let real = real_server(real).ok_or_else(unreadable)?;
            if let (VirtualServer::Mark { family, .. }, true) = (&mut last.server, real.server.address.is_ipv6()) {
                *family = Family::V6;
            }
            last.real_servers.push(real);
        } else if !line.trim().is_empty() {
            all.push(virtual_server(line).ok_or_else(unreadable)?);
        }
    }
    Ok(all)
}

/// `TCP  0A600001:01BB rr persistent 1080000 FFFFFFFF`, `UDP  [fd00:…:0001]:0035 rr ops`, `FWM  0000004D wlc`.
fn virtual_server(line: &str) -> Option<ProcVirtualServer> {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next()?;
    let place = words.next()?;
    let server = match kind {
        "FWM" => VirtualServer::Mark {
            mark: u32::from_str_radix(place, 16).ok()?,
            family: Family::V4,
        },
        _ => {
            let protocol = match kind {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                _ => return None,
            };
            let address = socket_address(place)?;
            VirtualServer::Address {
                address: address.ip(),
                port: address.port(),
                protocol,
            }
        }
    };
    let scheduler = SchedulerName::new(words.next()?)?;
    let mut entry = ProcVirtualServer {
        server,
        scheduler,
        one_packet: false,
        persistent: false,
        real_servers: Vec::new(),
    };
    for word in words {
        entry.one_packet |= word == "ops";
        entry.persistent |= word == "persistent";
    }
    Some(entry)
}

/// ` 0A010101:1F90      Masq    2      0          0`.
fn real_server(line: &str) -> Option<ProcRealServer> {
    let mut words = line.split_ascii_whitespace();
    let address = socket_address(words.next()?)?;
    let forward = match words.next()? {
        "Masq" => Forward::Masquerade,
        "Local" => Forward::Local,
        "Tunnel" => Forward::Tunnel,
        "Route" => Forward::Route,
        "Bypass" => Forward::Bypass,
        _ => return None,
    };
    let weight: i64 = words.next()?.parse().ok()?;
    Some(ProcRealServer {
        server: RealServer { address },
        forward,
        weight: u16::try_from(weight.max(0)).unwrap_or(u16::MAX),
        active: words.next()?.parse().ok()?,
        inactive: words.next()?.parse().ok()?,
    })
}

/// Hexadecimal IPv4 and port, or IPv6 in brackets and hexadecimal port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address: IpAddr = match address.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Linux 7.2 printed it.
    const TEXT: &str = "\
IP Virtual Server version 1.2.1 (size=256)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
UDP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 rr 
  -> [fd01:0000:0000:0000:0000:0000:0000:0001]:0035      Masq    1      0          0         
FWM  0000004D wlc 
FWM  0000004E wlc persistent 3000 40000000
TCP  0A000001:0050 mh  persistent 10000 FFFFFFFF
  -> 0A010101:1F90      Masq    2      3          4         
";

    #[test]
    fn the_kernels_own_text() {
        let all = parse(TEXT).unwrap();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].server.to_string(), "[fd00::1]:53/UDP");
        assert_eq!(all[0].real_servers[0].server.to_string(), "[fd01::1]:53");
        assert_eq!(all[1].server.to_string(), "FWM 77");
        assert!(all[2].persistent);
        let web = &all[3];
        assert_eq!(
            (web.server.to_string().as_str(), web.scheduler.as_str()),
            ("10.0.0.1:80/TCP", "mh")
        );
        let real = web.real_servers[0];
        assert_eq!(
            (
                real.server.to_string().as_str(),
                real.weight,
                real.active,
                real.inactive
            ),
            ("10.1.1.1:8080", 2, 3, 4)
        );
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let check = |line: &str| match parse(&format!("a\nb\nc\n{line}\n")) {
            Err(Error::ProcLine(4)) => {}
            other => panic!("{line}: {other:?}"),
        };
        check("TCP");
        check("IPX  0A000001:0050 rr");
        check("TCP  0A000001 rr");
        check("  -> 0A010101:1F90      Masq    2      3          4");
        assert_eq!(parse("").unwrap(), []);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\PC|\n){0,200}") {
            let _ = parse(&format!("a\nb\nc\n{text}"));
        }
    }
}
