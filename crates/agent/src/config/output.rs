//! The configuration as kube-proxy writes it: YAML for `--write-config-to`, JSON for `/configz`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::duration::GoDuration;
use super::kube_proxy::KubeProxyConfiguration;
use super::own::KubeIpvsConfiguration;
use super::tree;

/// Two documents at most: kube-proxy's, and ours where it says something.
pub(super) fn yaml(config: &KubeProxyConfiguration, own: &KubeIpvsConfiguration) -> Result<String> {
    let document = |tree: &Value| serde_saphyr::to_string(tree).context("write YAML");
    let mut text = document(&tree::of(&as_upstream_keeps_it(config)))?;
    if *own != KubeIpvsConfiguration::default() {
        text.push_str("---\n");
        text.push_str(&document(&tree::of(own))?);
    }
    Ok(text)
}

/// kube-proxy keeps the periods of the mode in use only, forgets those of the others, and what is of no use at all.
fn as_upstream_keeps_it(config: &KubeProxyConfiguration) -> KubeProxyConfiguration {
    let mut kept = config.clone();
    kept.nftables.masquerade_all = false;
    kept.port_range.clear();
    for (mode, sync, least) in [
        (
            "iptables",
            &mut kept.iptables.sync_period,
            &mut kept.iptables.min_sync_period,
        ),
        ("ipvs", &mut kept.ipvs.sync_period, &mut kept.ipvs.min_sync_period),
        (
            "nftables",
            &mut kept.nftables.sync_period,
            &mut kept.nftables.min_sync_period,
        ),
    ] {
        if mode != config.mode {
            (*sync, *least) = (GoDuration::default(), GoDuration::default());
        }
    }
    kept
}

/// What kube-proxy's `/configz` shows under the group's name: not the documented form but its internal one, with the
/// names that the fields have in Go.
pub(super) fn configz(config: &KubeProxyConfiguration) -> Value {
    let (sync_period, min_sync_period) = config.periods();
    let tree = tree::of(config);
    let cidrs: Vec<_> = config.cluster_cidr.split(',').filter(|cidr| !cidr.is_empty()).collect();
    let list_or_null = |list: Value| if list == json!([]) { Value::Null } else { list };
    json!({"kubeproxy.config.k8s.io": {
        "Linux": {
            "Conntrack": {
                "MaxPerCore": config.conntrack.max_per_core,
                "Min": config.conntrack.min,
                "TCPEstablishedTimeout": config.conntrack.tcp_established_timeout,
                "TCPCloseWaitTimeout": config.conntrack.tcp_close_wait_timeout,
                "TCPBeLiberal": config.conntrack.tcp_be_liberal,
                "UDPTimeout": config.conntrack.udp_timeout,
                "UDPStreamTimeout": config.conntrack.udp_stream_timeout,
            },
            "MasqueradeAll": config.iptables.masquerade_all,
            "OOMScoreAdj": config.oom_score_adj,
        },
        "Windows": { "RunAsService": config.windows_run_as_service },
        "FeatureGates": config.feature_gates,
        "ClientConnection": {
            "Kubeconfig": config.client_connection.kubeconfig,
            "AcceptContentTypes": config.client_connection.accept_content_types,
            "ContentType": config.client_connection.content_type,
            "QPS": tree::get(&tree, "clientConnection.qps"),
            "Burst": config.client_connection.burst,
        },
        "Logging": tree::get(&tree, "logging"),
        "HostnameOverride": config.hostname_override,
        "BindAddress": config.bind_address,
        "HealthzBindAddress": config.healthz_bind_address,
        "MetricsBindAddress": config.metrics_bind_address,
        "BindAddressHardFail": config.bind_address_hard_fail,
        "EnableProfiling": config.enable_profiling,
        "ShowHiddenMetricsForVersion": config.show_hidden_metrics_for_version,
        "Mode": config.mode,
        "IPTables": {
            "MasqueradeBit": config.iptables.masquerade_bit,
            "LocalhostNodePorts": config.iptables.localhost_node_ports,
        },
        "IPVS": {
            "Scheduler": config.ipvs.scheduler,
            "ExcludeCIDRs": list_or_null(json!(config.ipvs.exclude_cidrs)),
            "StrictARP": config.ipvs.strict_arp,
            "TCPTimeout": config.ipvs.tcp_timeout,
            "TCPFinTimeout": config.ipvs.tcp_fin_timeout,
            "UDPTimeout": config.ipvs.udp_timeout,
        },
        "Winkernel": {
            "NetworkName": config.winkernel.network_name,
            "SourceVip": config.winkernel.source_vip,
            "EnableDSR": config.winkernel.enable_dsr,
            "RootHnsEndpointName": config.winkernel.root_hns_endpoint_name,
            "ForwardHealthCheckVip": config.winkernel.forward_health_check_vip,
        },
        "NFTables": { "MasqueradeBit": config.nftables.masquerade_bit },
        "DetectLocalMode": config.detect_local_mode,
        "DetectLocal": {
            "BridgeInterface": config.detect_local.bridge_interface,
            "ClusterCIDRs": list_or_null(json!(cidrs)),
            "InterfaceNamePrefix": config.detect_local.interface_name_prefix,
        },
        "NodePortAddresses": list_or_null(json!(config.node_port_addresses)),
        "SyncPeriod": sync_period,
        "MinSyncPeriod": min_sync_period,
        "ConfigSyncPeriod": config.config_sync_period,
    }})
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::*;

    /// Made by upstream's own types: the corpus test compares the same files with them.
    #[test]
    fn configz_is_that_of_kube_proxy() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/config_corpus/cases");
        let mut checked = 0;
        for case in std::fs::read_dir(corpus).unwrap() {
            let folder = case.unwrap().path();
            let Ok(expect) = std::fs::read_to_string(folder.join("configz.json")) else {
                continue;
            };
            let text = std::fs::read_to_string(folder.join("config.yaml")).unwrap();
            let mut config = document::read(&text).unwrap().kube_proxy;
            config.choose();
            let expect: Value = serde_json::from_str(&expect).unwrap();
            assert_eq!(configz(&config), expect, "{}", folder.display());
            checked += 1;
        }
        assert!(checked >= 2, "{checked}");
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        let mut config = KubeProxyConfiguration::defaults();
        config.choose();
        config.ipvs.scheduler = "wlc".to_owned();
        config.client_connection.qps = 0.1;
        let own = KubeIpvsConfiguration {
            vip_addresses: false,
            ..KubeIpvsConfiguration::default()
        };
        let text = yaml(&config, &own).unwrap();
        let read = document::read(&text).unwrap();
        assert_eq!((read.kube_proxy, read.own), (config.clone(), Some(own)), "{text}");
        assert!(read.remarks.is_empty(), "{:?}", read.remarks);
        let default = yaml(&config, &KubeIpvsConfiguration::default()).unwrap();
        assert!(!default.contains("---") && text.starts_with(&default), "{default}");
    }
}
