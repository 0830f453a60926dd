//! `KubeIpvsConfiguration`, `kube-ipvs.io/v1alpha1`: settings that kube-proxy does not have.
//!
//! They may stand in the file of `--config` as a document after the first. kube-proxy reads the first one of a file and
//! does not look at what follows (seen with 1.34 and 1.37: even broken YAML is no error there), so one file serves both as
//! long as this order is kept. The other way round kube-proxy refuses the file, and so does this program.

use std::path::PathBuf;

use clap::ValueEnum;
use ipvs::OldValues;
use serde::{Deserialize, Serialize};

use super::duration::GoDuration;
use super::flag::Flags;
use super::flag_table::RunFlags;

pub(crate) const GROUP: &str = "kube-ipvs.io";
pub(crate) const API_VERSION: &str = "kube-ipvs.io/v1alpha1";
pub(crate) const KIND: &str = "KubeIpvsConfiguration";

/// Every field is a flag, too, which holds before it. A field that is not known is an error.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct KubeIpvsConfiguration {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) vip_addresses: bool,
    pub(crate) fallback: Fallback,
    pub(crate) drain_timeout: GoDuration,
    pub(crate) iptables_forward_accept: ForwardAccept,
    pub(crate) deny_exec: bool,
    pub(crate) run_dir: PathBuf,
}

impl Default for KubeIpvsConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            vip_addresses: true,
            fallback: Fallback::default(),
            drain_timeout: GoDuration::seconds(15 * 60),
            iptables_forward_accept: ForwardAccept::default(),
            deny_exec: false,
            run_dir: PathBuf::from("/run/kube-ipvs"),
        }
    }
}

impl KubeIpvsConfiguration {
    /// What flags say, where no file says anything.
    pub(crate) fn from_run_flags(flags: &Flags<RunFlags>) -> Self {
        flags.over(&Self::default())
    }

    pub(crate) fn old_sysctls(&self) -> OldValues {
        OldValues::at(self.run_dir.join("sysctls"))
    }
}

/// What is done where IPVS cannot be used (`--fallback`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Fallback {
    /// The iptables mode.
    #[default]
    Iptables,
    /// Nothing: the process ends with exit status 3.
    None,
}

pub(super) const FALLBACKS: &[&str] = &["iptables", "none"];

/// When the host's iptables get accepts of ours (T28).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ForwardAccept {
    /// Where the policy is DROP.
    #[default]
    Auto,
    Always,
    Never,
}

pub(super) const FORWARD_ACCEPTS: &[&str] = &["auto", "always", "never"];
