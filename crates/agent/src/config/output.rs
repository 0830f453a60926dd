//! The configuration as kube-proxy writes it: YAML for `--write-config-to`, JSON for `/configz`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::duration::GoDuration;
use super::kube_proxy::{self, KubeProxyConfiguration};
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

/// What `/configz` answers: the same under the group's name, once, as kube-proxy from 1.36 (kubernetes/kubernetes#136044).
pub(super) fn configz(config: &KubeProxyConfiguration) -> Value {
    json!({ kube_proxy::GROUP: tree::of(&as_upstream_keeps_it(config)) })
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
            let ours = configz(&config);
            assert_eq!(ours, expect, "{}", folder.display());
            let inner = &ours["kubeproxy.config.k8s.io"];
            assert_eq!(
                (&inner["kind"], &inner["mode"]),
                (&json!("KubeProxyConfiguration"), &json!(config.mode))
            );
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
