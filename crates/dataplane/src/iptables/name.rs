//! Names of chains: fixed ones, and those of a service port or an endpoint, which are hashes. The same as upstream's.

use std::fmt;
use std::net::SocketAddr;

use data_encoding::BASE32_NOPAD;
use service_model::{ObjectName, Protocol};
use sha2::{Digest, Sha256};

/// Digits of a hash that a name keeps.
const DIGITS: usize = 16;

/// A chain that belongs to one service port, or one endpoint of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// `KUBE-SVC-`: to the endpoints of the whole cluster.
    Cluster,
    /// `KUBE-SVL-`: to the endpoints of this node.
    Local,
    /// `KUBE-EXT-`: what comes for an address of the outside.
    External,
    /// `KUBE-FW-`: who may come for a load balancer's address.
    Firewall,
    /// `KUBE-SEP-`: to one endpoint.
    Endpoint,
}

impl Prefix {
    const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Local,
        Self::External,
        Self::Firewall,
        Self::Endpoint,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
            Self::Endpoint => "KUBE-SEP-",
        }
    }
}

/// Name of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainName {
    /// One that is always there.
    Base(&'static str),
    /// One of a service port.
    Service(Prefix, [u8; DIGITS]),
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(name) => f.write_str(name),
            Self::Service(prefix, hash) => {
                f.write_str(prefix.as_str())?;
                f.write_str(str::from_utf8(hash).unwrap_or_default())
            }
        }
    }
}

/// A chain's name that only a proxy with these rules gives: ours, or kube-proxy's.
pub fn is_of_a_service(name: &str) -> bool {
    Prefix::ALL.iter().any(|prefix| name.starts_with(prefix.as_str()))
}

/// A service port, as comments name it and hashes begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`; without the colon where the port has no name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    hash: [u8; DIGITS],
}

impl ServicePort {
    /// Of a service, a port's name and its protocol.
    pub fn new(service: &ObjectName, port_name: &str, protocol: Protocol) -> Self {
        let name = match port_name {
            "" => service.as_str().to_owned(),
            port => format!("{service}:{port}"),
        };
        Self {
            hash: hash(&[&name, protocol_name(protocol)]),
            name,
            protocol,
        }
    }

    /// One of its own chains.
    pub fn chain(&self, prefix: Prefix) -> ChainName {
        ChainName::Service(prefix, self.hash)
    }

    /// The chain of one of its endpoints.
    pub fn endpoint_chain(&self, endpoint: SocketAddr) -> ChainName {
        let parts = [&self.name, protocol_name(self.protocol), &endpoint.to_string()];
        ChainName::Service(Prefix::Endpoint, hash(&parts))
    }
}

/// As `iptables -p` takes it.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The first digits of the parts' SHA-256, in base 32.
fn hash(parts: &[&str]) -> [u8; DIGITS] {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let text = BASE32_NOPAD.encode(&digest.finalize());
    let mut digits = [b'A'; DIGITS];
    digits.iter_mut().zip(text.bytes()).for_each(|(to, digit)| *to = digit);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen in kube-proxy 1.34's own tables.
    #[test]
    fn names_are_those_of_upstream() {
        let kubernetes = ServicePort::new(&ObjectName::new("default", "kubernetes"), "https", Protocol::Tcp);
        assert_eq!(kubernetes.name, "default/kubernetes:https");
        let names = [Prefix::Cluster, Prefix::Local, Prefix::External, Prefix::Firewall];
        assert_eq!(
            names.map(|prefix| kubernetes.chain(prefix).to_string()),
            [
                "KUBE-SVC-NPX46M4PTMTKRN6Y",
                "KUBE-SVL-NPX46M4PTMTKRN6Y",
                "KUBE-EXT-NPX46M4PTMTKRN6Y",
                "KUBE-FW-NPX46M4PTMTKRN6Y"
            ]
        );
        let dns = ServicePort::new(&ObjectName::new("kube-system", "kube-dns"), "dns", Protocol::Udp);
        assert_eq!(dns.chain(Prefix::Cluster).to_string(), "KUBE-SVC-TCOU7JCQXEZGVUNU");
        let plain = ServicePort::new(&ObjectName::new("a", "b"), "", Protocol::Tcp);
        assert_eq!(plain.name, "a/b");
        let endpoint = plain.endpoint_chain("[fd00::1]:80".parse().unwrap()).to_string();
        assert!(endpoint.starts_with("KUBE-SEP-") && endpoint.len() == 25, "{endpoint}");
        assert!(is_of_a_service(&endpoint) && !is_of_a_service("KUBE-SERVICES"));
    }
}
