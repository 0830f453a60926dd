//! What is under test: one of the two modes of kube-ipvs.

use std::str::FromStr;

use service_model::Capture;

/// A mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Ipvs,
    Iptables,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ipvs" => Ok(Self::Ipvs),
            "iptables" => Ok(Self::Iptables),
            _ => Err(format!("unknown mode {text:?}")),
        }
    }
}

impl Mode {
    /// Asks for it on the command line.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Ipvs => "--proxy-mode=ipvs",
            Self::Iptables => "--proxy-mode=iptables",
        }
    }

    pub(crate) fn capture(self) -> Capture {
        match self {
            Self::Ipvs => Capture::Bind,
            Self::Iptables => Capture::Redirect {
                localhost_node_ports: true,
            },
        }
    }

    /// How a node is prepared for it, and for clients whose ports come round soon: one that knows flows of UDP for
    /// minutes would take a new question for an old one's next packet.
    pub(crate) fn preparation(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvsadm --set 0 0 10",
            // As the network plugin does; IPVS mode sets it itself.
            Self::Iptables => {
                "sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_udp_timeout=10 \
                 net.netfilter.nf_conntrack_udp_timeout_stream=10"
            }
        }
    }
}
