//! What can be asked of routes and addresses to change, as values.

use std::fmt;
use std::net::IpAddr;

/// The dummy device that carries the VIPs' addresses; kube-proxy's name for it.
pub const DEVICE: &str = "kube-ipvs0";

/// Protocol number of our routes. linux/rtnetlink.h and iproute2's rt_protos assign 0–4, 8–18, 42, 99 and 186–192;
/// those below 4 are the kernel's own, the rest is free to choose.
pub const RTPROT_KUBE_IPVS: u8 = 163;

/// One change of a VIP: one netlink message, one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VipCommand {
    /// Adds the local route. There already: EEXIST.
    AddRoute(IpAddr),
    /// Removes it. Missing: ESRCH.
    DelRoute(IpAddr),
    /// Adds the address to `kube-ipvs0`. There already: EEXIST.
    AddAddress(IpAddr),
    /// Removes it. Missing: EADDRNOTAVAIL.
    DelAddress(IpAddr),
}

impl fmt::Display for VipCommand {
    /// The line that `ip -batch -` takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
        match self {
            Self::AddRoute(ip) => {
                write!(
                    f,
                    "route add local {ip}/{} dev lo table local scope host proto {RTPROT_KUBE_IPVS}",
                    prefix(ip)
                )
            }
            Self::DelRoute(ip) => {
                write!(
                    f,
                    "route del local {ip}/{} dev lo table local scope host proto {RTPROT_KUBE_IPVS}",
                    prefix(ip)
                )
            }
            Self::AddAddress(ip) if ip.is_ipv6() => write!(f, "address add {ip}/128 dev {DEVICE} nodad"),
            Self::AddAddress(ip) => write!(f, "address add {ip}/32 dev {DEVICE}"),
            Self::DelAddress(ip) => write!(f, "address del {ip}/{} dev {DEVICE}", prefix(ip)),
        }
    }
}
