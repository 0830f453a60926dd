//! kube-proxy's NodePort ipsets: which virtual servers at a node's addresses were its own (L10, at a take-over).

use ipvs::{Error, Family, Ipsets, Protocol};

/// A NodePort that kube-proxy served in IPVS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FormerNodePort {
    /// Family of its virtual servers.
    pub family: Family,
    /// Protocol.
    pub protocol: Protocol,
    /// Port, on whatever address of the node.
    pub port: u16,
}

/// Names that kube-proxy gives them (pkg/proxy/ipvs/proxier.go, ipset.go): 31 characters at most.
const SETS: [(&str, Family, Protocol); 6] = [
    ("KUBE-NODE-PORT-TCP", Family::V4, Protocol::Tcp),
    ("KUBE-NODE-PORT-UDP", Family::V4, Protocol::Udp),
    ("KUBE-NODE-PORT-SCTP-HASH", Family::V4, Protocol::Sctp),
    ("KUBE-6-NODE-PORT-TCP", Family::V6, Protocol::Tcp),
    ("KUBE-6-NODE-PORT-UDP", Family::V6, Protocol::Udp),
    ("KUBE-6-NODE-PORT-SCTP-HASH", Family::V6, Protocol::Sctp),
];

/// Reads them; nothing where there are none.
///
/// # Errors
/// Where the kernel refuses or the transport breaks.
pub fn former_node_ports() -> Result<Vec<FormerNodePort>, Error> {
    let mut ipsets = Ipsets::open()?;
    let names = ipsets.names()?;
    let mut found = Vec::new();
    for (name, family, protocol) in SETS.into_iter().filter(|(name, ..)| names.iter().any(|n| n == name)) {
        let ports = match ipsets.ports(name) {
            // Removed since.
            Err(error) if error.is_not_found() => continue,
            ports => ports?,
        };
        found.extend(ports.into_iter().map(|port| FormerNodePort { family, protocol, port }));
    }
    Ok(found)
}
