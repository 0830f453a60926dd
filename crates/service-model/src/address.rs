//! Addresses and ranges as the API has taken them since its beginning, before it looked at them strictly (Kubernetes:
//! `ParseIPSloppy`, `ParseCIDRSloppy`; gate `StrictIPCIDRValidation`). Objects that are older keep these forms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits in front of the IPv4 address in an IPv4-mapped one, `::ffff:0:0/96`.
const MAPPED: u8 = 96;

/// An address. Numbers may have zeros in front, which mean nothing: octets are decimal. An IPv4-mapped address is the IPv4
/// one. Nothing around it is taken, no blanks and no zone.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    literal(text).map(|ip| ip.to_canonical())
}

/// A range, host bits cleared. The length may have zeros in front. An IPv4-mapped range is the IPv4 one, its length less by
/// 96; one that is shorter than 96 bits is none: it holds all of IPv4, which is never meant by this form. Go reads it as a range
/// of IPv6 alone, which no packet is in.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let net = parse_cidr_as_written(text)?;
    let short = matches!(net.addr(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    (!short).then(|| net.trunc())
}

/// The same with host bits, as Go reads it: an IPv4-mapped range that is shorter than 96 bits is one of IPv6.
pub fn parse_cidr_as_written(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = decimal(length)?;
    match literal(address)? {
        IpAddr::V4(ip) => Ipv4Net::new(ip, length).ok().map(IpNet::from),
        IpAddr::V6(ip) => match (ip.to_ipv4_mapped(), length.checked_sub(MAPPED)) {
            (Some(ip), Some(length)) => Ipv4Net::new(ip, length).ok().map(IpNet::from),
            _ => Ipv6Net::new(ip, length).ok().map(IpNet::from),
        },
    }
}

fn literal(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        ipv6(text).map(IpAddr::V6)
    } else {
        ipv4(text).map(IpAddr::V4)
    }
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = text.split('.').map(decimal::<u8>);
    let found = [octets.next()??, octets.next()??, octets.next()??, octets.next()??];
    octets.next().is_none().then(|| found.into())
}

/// Rust's parser wants four digits a group at most, and no zeros in front in a part that is written as an IPv4 address.
fn ipv6(text: &str) -> Option<Ipv6Addr> {
    let (groups, octets) = match text.rsplit_once(':') {
        Some((groups, last)) if last.contains('.') => (groups, format!(":{}", ipv4(last)?)),
        _ => (text, String::new()),
    };
    let short = |group: &str| match group.trim_start_matches('0') {
        "" if !group.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    };
    let groups: Vec<_> = groups.split(':').map(short).collect();
    (groups.join(":") + &octets).parse().ok()
}

/// Digits alone: no sign.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Kubernetes 1.37's parsers say of these texts; empty = they take none.
    #[test]
    fn addresses() {
        for (text, expect) in [
            ("192.0.2.1", "192.0.2.1"),
            ("010.001.2.03", "10.1.2.3"),
            ("0000010.0.0.1", "10.0.0.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::FFFF:c000:0201", "192.0.2.1"),
            ("::ffff:192.000.002.001", "192.0.2.1"),
            ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
            ("::192.0.2.1", "::c000:201"),
            ("FD00:0abc:0:0:0:0:0:1", "fd00:abc::1"),
            ("fd00::00001", "fd00::1"),
            ("000fd00::1", "fd00::1"),
            ("::", "::"),
            ("", ""),
            (" 192.0.2.1", ""),
            ("192.0.2", ""),
            ("192.0.2.", ""),
            ("192.0.2.1.1", ""),
            ("192.0.2.256", ""),
            ("+192.0.2.1", ""),
            ("192.0.2.0x1", ""),
            ("192.0.2.1/32", ""),
            ("fe80::1%eth0", ""),
            ("fd00::10000", ""),
            ("fd00:::1", ""),
            ("fd00::1::", ""),
            ("::ffff:192.0.2.1:1", ""),
            (":1", ""),
            ("1:", ""),
            ("a", ""),
        ] {
            assert_eq!(
                parse_ip(text).map_or(String::new(), |ip| ip.to_string()),
                expect,
                "{text:?}"
            );
        }
    }

    #[test]
    fn ranges() {
        for (text, expect) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.000.002.0/024", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("FD00::1/008", "fd00::/8"),
            ("::/0", "::/0"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:c000:207/128", "192.0.2.7/32"),
            ("::ffff:192.0.2.0/096", "0.0.0.0/0"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            // Kubernetes' parser takes these two: as ::ff00:0:0/88 and ::/24.
            ("::ffff:192.0.2.0/88", ""),
            ("::ffff:192.0.2.0/24", ""),
            ("::ffff:192.0.2.0/129", ""),
            ("192.0.2.0", ""),
            ("192.0.2.0/", ""),
            ("192.0.2.0/33", ""),
            ("192.0.2.0/+8", ""),
            ("192.0.2.0/-1", ""),
            ("192.0.2.0/255.255.255.0", ""),
            ("192.0.2.0/8/8", ""),
            (" 192.0.2.0/24", ""),
            ("192.0.2.0/24,10.0.0.0/8", ""),
            ("fd00::/129", ""),
            ("/8", ""),
            ("", ""),
        ] {
            assert_eq!(
                parse_cidr(text).map_or(String::new(), |net| net.to_string()),
                expect,
                "{text:?}"
            );
        }
    }
}
