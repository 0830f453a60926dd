//! `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1) as kube-proxy reads it: strict first, then lenient.
//!
//! Field names and defaults are kube-proxy's. Fields that nothing here uses yet are accepted and named in a warning.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tracing::warn;

use crate::duration::GoDuration;

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// The fields in use.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct KubeProxyConfiguration {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) client_connection: ClientConnection,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) feature_gates: BTreeMap<String, bool>,
    pub(crate) hostname_override: String,
    pub(crate) detect_local_mode: String,
    pub(crate) detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub(crate) cluster_cidr: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) mode: String,
    pub(crate) iptables: Iptables,
    pub(crate) ipvs: Ipvs,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientConnection {
    pub(crate) kubeconfig: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DetectLocal {
    pub(crate) bridge_interface: String,
    pub(crate) interface_name_prefix: String,
}

/// What kube-proxy's IPVS mode takes from here, too, but for `localhostNodePorts`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Iptables {
    pub(crate) masquerade_bit: Option<i32>,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_node_ports: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipvs {
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
    pub(crate) scheduler: String,
    #[serde(rename = "excludeCIDRs", deserialize_with = "null_is_empty")]
    pub(crate) exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub(crate) strict_arp: bool,
    pub(crate) tcp_timeout: GoDuration,
    pub(crate) tcp_fin_timeout: GoDuration,
    pub(crate) udp_timeout: GoDuration,
}

/// Every field of v1alpha1: a path is known, or its parent is opaque to us (`*`).
const KNOWN: &[&str] = &[
    "apiVersion",
    "kind",
    "featureGates.*",
    "clientConnection.kubeconfig",
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "clientConnection.qps",
    "clientConnection.burst",
    "logging.*",
    "hostnameOverride",
    "bindAddress",
    "healthzBindAddress",
    "metricsBindAddress",
    "bindAddressHardFail",
    "enableProfiling",
    "showHiddenMetricsForVersion",
    "mode",
    "iptables.masqueradeBit",
    "iptables.masqueradeAll",
    "iptables.localhostNodePorts",
    "iptables.syncPeriod",
    "iptables.minSyncPeriod",
    "ipvs.syncPeriod",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.excludeCIDRs",
    "ipvs.strictARP",
    "ipvs.tcpTimeout",
    "ipvs.tcpFinTimeout",
    "ipvs.udpTimeout",
    "nftables.masqueradeBit",
    "nftables.masqueradeAll",
    "nftables.syncPeriod",
    "nftables.minSyncPeriod",
    "winkernel.*",
    "detectLocalMode",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "clusterCIDR",
    "nodePortAddresses",
    "oomScoreAdj",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpBeLiberal",
    "conntrack.udpTimeout",
    "conntrack.udpStreamTimeout",
    "configSyncPeriod",
    "portRange",
    "windowsRunAsService",
];

/// Those of them that have an effect.
const USED: &[&str] = &[
    "apiVersion",
    "kind",
    "featureGates.AllowServiceExternalIPs",
    "clientConnection.kubeconfig",
    "hostnameOverride",
    "detectLocalMode",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "clusterCIDR",
    "nodePortAddresses",
    "mode",
    "iptables.masqueradeBit",
    "iptables.masqueradeAll",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.tcpTimeout",
    "ipvs.tcpFinTimeout",
    "ipvs.udpTimeout",
];

impl KubeProxyConfiguration {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, is neither YAML nor JSON, is of another kind or version, or a field has the wrong type.
    /// Unknown and repeated fields are no error: they are named in a warning, as kube-proxy's lenient decoding does.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let tree: serde_json::Value = match serde_saphyr::from_str(text) {
            Ok(tree) => tree,
            Err(strict) => {
                let lenient = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
                let tree = serde_saphyr::from_str_with_options(text, lenient)?;
                warn!(error = %strict, "using lenient decoding as strict decoding failed");
                tree
            }
        };
        let mut unknown = Vec::new();
        let mut unused = Vec::new();
        for path in leaves(&tree) {
            if !matches_any(&path, KNOWN) {
                unknown.push(path);
            } else if !matches_any(&path, USED) {
                unused.push(path);
            }
        }
        if !unknown.is_empty() {
            let fields = unknown.join(", ");
            warn!(
                fields,
                "using lenient decoding as strict decoding failed: unknown fields"
            );
        }
        if !unused.is_empty() {
            warn!(
                fields = unused.join(", "),
                "configuration fields without effect in this version"
            );
        }
        let config: Self = serde_json::from_value(tree)?;
        if (config.api_version.as_str(), config.kind.as_str()) != (API_VERSION, "KubeProxyConfiguration") {
            bail!(
                "want apiVersion {API_VERSION} and kind KubeProxyConfiguration, found {:?} and {:?}",
                config.api_version,
                config.kind
            );
        }
        Ok(config)
    }
}

/// `null`, as kubeadm writes empty lists.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Paths of all fields that are not objects. Empty objects and nulls are no fields.
fn leaves(tree: &serde_json::Value) -> Vec<String> {
    let serde_json::Value::Object(fields) = tree else {
        return Vec::new();
    };
    fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .flat_map(|(name, value)| match value {
            serde_json::Value::Object(_) => leaves(value).into_iter().map(|rest| format!("{name}.{rest}")).collect(),
            _ => vec![name.clone()],
        })
        .collect()
}

fn matches_any(path: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parse(body: &str) -> Result<KubeProxyConfiguration> {
        KubeProxyConfiguration::parse(&format!("{HEAD}{body}"))
    }

    #[test]
    fn a_kubeadm_like_file() {
        let config = parse(
            "mode: ipvs\nclusterCIDR: 10.244.0.0/16,fd00:10::/64\nhostnameOverride: n1\nconfigSyncPeriod: 0s\n\
             detectLocalMode: BridgeInterface\ndetectLocal:\n  bridgeInterface: cni0\n  interfaceNamePrefix: \"\"\n\
             featureGates: null\niptables:\n  masqueradeAll: true\n  masqueradeBit: null\n\
             clientConnection:\n  kubeconfig: /etc/k.conf\n  qps: 0\nconntrack:\n  maxPerCore: null\n\
             ipvs:\n  scheduler: wlc\n  minSyncPeriod: 1s\n  excludeCIDRs: null\n  strictARP: true\n  tcpTimeout: 15m\n",
        );
        // `excludeCIDRs: null` is what kubeadm writes.
        let config = config.unwrap();
        assert_eq!(config.mode, "ipvs");
        assert_eq!(config.client_connection.kubeconfig, "/etc/k.conf");
        assert_eq!(config.ipvs.scheduler, "wlc");
        assert!(config.ipvs.strict_arp);
        assert_eq!(config.ipvs.tcp_timeout.0.as_secs(), 900);
        assert_eq!(config.ipvs.min_sync_period.0.as_secs(), 1);
        assert_eq!(config.detect_local.bridge_interface, "cni0");
        assert_eq!(
            (config.iptables.masquerade_bit, config.iptables.masquerade_all),
            (None, true)
        );
    }

    #[test]
    fn feature_gates_are_a_map() {
        let gates = |text: &str| parse(&format!("featureGates: {text}\n")).map(|config| config.feature_gates);
        assert_eq!(
            gates("{A: true, B: false}").unwrap(),
            [("A".to_owned(), true), ("B".to_owned(), false)].into()
        );
        assert!(gates("{A: maybe}").is_err());
    }

    #[test]
    fn unknown_and_repeated_fields_are_tolerated() {
        assert_eq!(parse("mode: iptables\nmode: ipvs\nnonsense: 1\n").unwrap().mode, "ipvs");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expect: &str| {
            let error = format!("{:#}", KubeProxyConfiguration::parse(text).unwrap_err());
            assert!(error.contains(expect), "{error}");
        };
        check("kind: Pod\napiVersion: v1\n", "want apiVersion");
        check("{", "");
        check(&format!("{HEAD}ipvs: {{minSyncPeriod: soon}}"), "invalid duration");
        check(&format!("{HEAD}ipvs: {{strictARP: 7}}"), "bool");
        check(&format!("{HEAD}iptables: {{masqueradeBit: many}}"), "i32");
    }
}
