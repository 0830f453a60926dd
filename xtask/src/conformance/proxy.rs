//! The Service proxies that are compared.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A program in one of its modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::enum_variant_names, reason = "the names of both programs begin alike")]
pub(crate) enum Proxy {
    KubeIpvs,
    KubeIpvsIptables,
    KubeProxyIpvs,
    KubeProxyIptables,
    KubeProxyNftables,
}

impl Proxy {
    /// As on the command line, and as a file is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KubeIpvs => "kube-ipvs",
            Self::KubeIpvsIptables => "kube-ipvs-iptables",
            Self::KubeProxyIpvs => "kube-proxy-ipvs",
            Self::KubeProxyIptables => "kube-proxy-iptables",
            Self::KubeProxyNftables => "kube-proxy-nftables",
        }
    }

    /// The field `mode` of its configuration.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Self::KubeIpvs | Self::KubeProxyIpvs => "ipvs",
            Self::KubeIpvsIptables | Self::KubeProxyIptables => "iptables",
            Self::KubeProxyNftables => "nftables",
        }
    }

    /// It is kube-ipvs, not upstream's.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::KubeIpvs | Self::KubeIpvsIptables)
    }

    /// Program and first arguments.
    pub(crate) fn command(self, kube_ipvs: &Path, control_plane: &Path) -> Vec<String> {
        if self.is_ours() {
            vec![kube_ipvs.display().to_string()]
        } else {
            vec![control_plane.display().to_string(), "kube-proxy".to_owned()]
        }
    }
}
