//! `KubeIpvsConfiguration`, `kube-ipvs.io/v1alpha1`: settings that kube-proxy does not have.
//!
//! They may stand in the file of `--config` as a document after the first. kube-proxy reads the first one of a file and
//! does not look at what follows (seen with 1.34 and 1.37: even broken YAML is no error there), so one file serves both as
//! long as this order is kept. The other way round kube-proxy refuses the file, and so does this program.

use std::path::PathBuf;

use clap::ValueEnum;
use ipvs::OldValues;
use serde::{Deserialize, Serialize};
use service_model::Limits;

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
    pub(crate) second_instance: SecondInstance,
    pub(crate) run_dir: PathBuf,
    pub(crate) limits: LimitsConfiguration,
    /// Schedulers that an annotation may name (T40); empty = every one.
    pub(crate) allowed_schedulers: Vec<String>,
    /// Where external IPs may be (T41); empty = anywhere.
    #[serde(rename = "externalIPRanges")]
    pub(crate) external_ip_ranges: Vec<String>,
    /// Where load-balancer addresses may be (T41); empty = anywhere.
    #[serde(rename = "loadBalancerIPRanges")]
    pub(crate) load_balancer_ip_ranges: Vec<String>,
}

/// What one Service may ask for (T39).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct LimitsConfiguration {
    pub(crate) real_servers_per_service: i32,
    pub(crate) source_ranges_per_service: i32,
}

impl Default for LimitsConfiguration {
    fn default() -> Self {
        let Limits {
            real_servers,
            source_ranges,
        } = Limits::default();
        let number = |limit: usize| i32::try_from(limit).unwrap_or(i32::MAX);
        Self {
            real_servers_per_service: number(real_servers),
            source_ranges_per_service: number(source_ranges),
        }
    }
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
            second_instance: SecondInstance::default(),
            run_dir: PathBuf::from("/run/kube-ipvs"),
            limits: LimitsConfiguration::default(),
            allowed_schedulers: Vec::new(),
            external_ip_ranges: Vec::new(),
            load_balancer_ip_ranges: Vec::new(),
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

/// What a process does that finds another one serving in its network namespace (`--second-instance`, L22).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum SecondInstance {
    /// It takes over when the other one ends.
    #[default]
    Wait,
    /// It ends with an error.
    Exit,
}

pub(super) const SECOND_INSTANCES: &[&str] = &["wait", "exit"];
