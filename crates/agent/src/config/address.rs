//! Addresses as Go's and Kubernetes' parsers take them: those of `service-model`, and what `net.SplitHostPort` takes.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use service_model::{parse_cidr_as_written, parse_ip};

/// An address ([`parse_ip`]).
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    parse_ip(text)
}

/// A CIDR, with bits of a host or without ([`parse_cidr_as_written`]).
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    parse_cidr_as_written(text)
}

/// Host and port of `host:port` or `[host]:port`, neither of which is looked at.
pub(crate) fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.contains(['[', ']']) && !port.contains(']')).then_some((host, port))
}

/// `IP:port` with a port that can be bound.
pub(crate) fn socket(text: &str) -> Option<SocketAddr> {
    let (host, port) = split_host_port(text)?;
    Some(SocketAddr::new(ip(host)?, port_number(port)?))
}

/// 1 to 65535.
pub(crate) fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// An address without a port gets one; everything else is left to validation.
pub(crate) fn with_port(text: &str, port: i32) -> String {
    match (split_host_port(text), ip(text)) {
        (None, Some(_)) if text.contains(':') => format!("[{text}]:{port}"),
        (None, Some(_)) => format!("{text}:{port}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_zeros_in_front() {
        assert_eq!(ip("010.000.0.09"), "10.0.0.9".parse().ok());
        assert_eq!(ip("fd00::1"), "fd00::1".parse().ok());
        // Of two parsers one took neither of these, where kube-proxy does.
        assert_eq!(ip("fd00::00001"), "fd00::1".parse().ok());
        assert_eq!(ip("::ffff:010.0.0.1"), "10.0.0.1".parse().ok());
        for wrong in ["", "10.0.0", "10.0.0.", "10.0.0.256", "fe80::1%lo", "a"] {
            assert_eq!(ip(wrong), None, "{wrong}");
        }
        assert_eq!(cidr("010.1.2.3/8"), "10.1.2.3/8".parse().ok());
        assert_eq!(ip("::ffff:10.0.0.1"), "10.0.0.1".parse().ok());
        assert_eq!(cidr("::ffff:10.0.0.0/104"), "10.0.0.0/8".parse().ok());
        assert_eq!(cidr("::ffff:10.0.0.0/96"), "10.0.0.0/0".parse().ok());
        assert_eq!(cidr("::ffff:0:0/90"), "::ffff:0:0/90".parse().ok());
        assert_eq!(cidr("fd00::/96"), "fd00::/96".parse().ok());
        for wrong in [
            "10.0.0.0",
            "10.0.0.0/33",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/+8",
            "/8",
        ] {
            assert_eq!(cidr(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        assert_eq!(split_host_port("1.2.3.4:5"), Some(("1.2.3.4", "5")));
        assert_eq!(split_host_port("[::1]:5"), Some(("::1", "5")));
        for wrong in ["::1", "[::1]", "1.2.3.4", "", "[::1", "[[::1]]:5"] {
            assert_eq!(split_host_port(wrong), None, "{wrong}");
        }
        assert_eq!(socket("[::]:10256"), "[::]:10256".parse().ok());
        for wrong in ["localhost:1", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:"] {
            assert_eq!(socket(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_port_is_added_where_none_is() {
        assert_eq!(with_port("1.2.3.4", 7), "1.2.3.4:7");
        assert_eq!(with_port("fd00::1", 7), "[fd00::1]:7");
        assert_eq!(with_port("::ffff:1.2.3.4", 7), "[::ffff:1.2.3.4]:7");
        assert_eq!(with_port("1.2.3.4:5", 7), "1.2.3.4:5");
        assert_eq!(with_port("host", 7), "host");
    }
}
