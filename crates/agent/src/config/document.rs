//! The file of `--config`: its documents, decoded strictly and then leniently, as kube-proxy does.

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kube_proxy::{self, KubeProxyConfiguration};
use super::own::{self, KubeIpvsConfiguration};
use super::tree;

/// What a file says, and what is odd about it.
#[derive(Debug)]
pub(crate) struct Documents {
    pub(super) kube_proxy: KubeProxyConfiguration,
    pub(super) own: Option<KubeIpvsConfiguration>,
    pub(super) remarks: Vec<String>,
}

/// Reads YAML or JSON: a `KubeProxyConfiguration`, and after it perhaps a `KubeIpvsConfiguration`.
///
/// kube-proxy reads the first document of a file and does not look at the others, so the file that kubeadm was given runs
/// behind `--config`, with its other documents. Of those one of our group is read, and each of the others is a remark.
///
/// # Errors
/// It is neither YAML nor JSON, the first document is of another kind or version, one of our group is, or is there twice; a
/// field has the wrong type. An unknown or repeated field of kube-proxy's is none, but a remark; one of ours is an error.
pub(super) fn read(text: &str) -> Result<Documents> {
    let mut remarks = Vec::new();
    let (trees, unreadable) = trees(text, &mut remarks)?;
    let mut trees = trees.into_iter();
    let first = trees.next().unwrap_or_default();
    require(&first, kube_proxy::API_VERSION, kube_proxy::KIND)?;
    let mut unknown = Vec::new();
    let mut kube_proxy: KubeProxyConfiguration =
        decode(first, |field| unknown.push(format!("unknown field {field:?}")))?;
    kube_proxy.fill();
    if !unknown.is_empty() {
        remarks.push(lenient_remark(&unknown.join(", ")));
    }
    let mut own = None;
    // Empty documents are none.
    for tree in trees.filter(|tree| !tree.is_null()) {
        let named = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (named("apiVersion"), named("kind"));
        if version.split('/').next() != Some(own::GROUP) {
            remarks.push(format!(
                "a later document of the file, of kind {kind:?} and apiVersion {version:?}, is not read: kube-proxy reads the first document alone, and kube-ipvs one of {} beside it",
                own::GROUP
            ));
            continue;
        }
        let which = || format!("document of {}", own::GROUP);
        require(&tree, own::API_VERSION, own::KIND).with_context(which)?;
        ensure!(own.is_none(), "there is a second {} in it", own::KIND);
        own = Some(decode(tree, |_| ()).with_context(which)?);
    }
    remarks.extend(unreadable);
    Ok(Documents {
        kube_proxy,
        own,
        remarks,
    })
}

/// The documents, and a remark on what cannot be read after the first one.
///
/// # Errors
/// The first one cannot be read, or one that cannot be read may be ours.
fn trees(text: &str, remarks: &mut Vec<String>) -> Result<(Vec<Value>, Option<String>)> {
    let strict = match serde_saphyr::from_multiple(text) {
        Ok(trees) => return Ok((trees, None)),
        Err(strict) => strict,
    };
    let lenient = || serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    let unreadable = match serde_saphyr::from_multiple_with_options(text, lenient()) {
        Ok(trees) => {
            remarks.push(lenient_remark(&strict.without_snippet().to_string()));
            return Ok((trees, None));
        }
        Err(error) => error,
    };
    // Document by document, as far as they can be read.
    let mut input = text.as_bytes();
    let documents = serde_saphyr::read_with_options::<_, Value>(&mut input, lenient());
    let trees: Vec<_> = documents.map_while(Result::ok).collect();
    if trees.is_empty() || text.contains(own::GROUP) {
        return Err(unreadable.into());
    }
    let (last, error) = (trees.len(), unreadable.without_snippet());
    let remark = format!("what follows document {last} of the file is not read: {error}");
    Ok((trees, Some(remark)))
}

fn lenient_remark(why: &str) -> String {
    format!("using lenient decoding as strict decoding failed: {why}")
}

fn require(tree: &Value, version: &str, kind: &str) -> Result<()> {
    let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
    let (found_version, found_kind) = (text("apiVersion"), text("kind"));
    if (found_version, found_kind) != (version, kind) {
        bail!("want apiVersion {version} and kind {kind}, found {found_version:?} and {found_kind:?}");
    }
    Ok(())
}

/// Decodes a tree; `unknown` hears of each field that there is no place for.
fn decode<T: DeserializeOwned>(mut tree: Value, mut unknown: impl FnMut(String)) -> Result<T> {
    tree::remove_nulls(&mut tree);
    let mut track = serde_path_to_error::Track::new();
    let with_path = serde_path_to_error::Deserializer::new(tree, &mut track);
    serde_ignored::deserialize(with_path, |path| unknown(path.to_string()))
        .map_err(|error| anyhow::Error::from(error).context(track.path().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::own::Fallback;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parse(body: &str) -> Result<Documents> {
        read(&format!("{HEAD}{body}"))
    }

    #[test]
    fn a_kubeadm_like_file() {
        let config = parse(
            "mode: ipvs\nclusterCIDR: 10.244.0.0/16,fd00:10::/64\nhostnameOverride: n1\nconfigSyncPeriod: 0s\n\
             detectLocalMode: BridgeInterface\ndetectLocal:\n  bridgeInterface: cni0\n  interfaceNamePrefix: \"\"\n\
             featureGates: null\niptables:\n  masqueradeAll: true\n  masqueradeBit: null\nwinkernel: null\n\
             clientConnection:\n  kubeconfig: /etc/k.conf\n  qps: 0\nconntrack:\n  maxPerCore: null\n  min: 0\n\
             ipvs:\n  scheduler: wlc\n  minSyncPeriod: 1s\n  excludeCIDRs: null\n  strictARP: yes\n  tcpTimeout: 15m\n",
        );
        let Documents {
            kube_proxy: config,
            own,
            remarks,
        } = config.unwrap();
        assert_eq!((own, remarks), (None, Vec::new()));
        assert_eq!(config.client_connection.kubeconfig, "/etc/k.conf");
        assert_eq!(
            (config.client_connection.qps, config.client_connection.burst),
            (5.0, 10)
        );
        assert_eq!(config.ipvs.scheduler, "wlc");
        assert!(config.ipvs.strict_arp);
        assert_eq!(config.ipvs.tcp_timeout.to_string(), "15m0s");
        assert_eq!(config.ipvs.sync_period.to_string(), "30s");
        assert_eq!(config.detect_local.bridge_interface, "cni0");
        assert_eq!((config.conntrack.max_per_core, config.conntrack.min), (32_768, 0));
        assert_eq!(
            (config.iptables.masquerade_bit, config.iptables.masquerade_all),
            (14, true)
        );
        assert_eq!(config.healthz_bind_address, "0.0.0.0:10256");
        assert_eq!(config.config_sync_period.to_string(), "15m0s");
    }

    /// Defaults of the servers follow the family of `bindAddress`; ports are added.
    #[test]
    fn addresses_of_the_servers() {
        let check = |body: &str, healthz: &str, metrics: &str| {
            let config = parse(body).unwrap().kube_proxy;
            assert_eq!(
                (
                    config.healthz_bind_address.as_str(),
                    config.metrics_bind_address.as_str()
                ),
                (healthz, metrics)
            );
        };
        check("bindAddress: \"::\"", "[::]:10256", "[::1]:10249");
        check("bindAddress: 10.0.0.1", "0.0.0.0:10256", "127.0.0.1:10249");
        check(
            "healthzBindAddress: fd00::1\nmetricsBindAddress: 0.0.0.0",
            "[fd00::1]:10256",
            "0.0.0.0:10249",
        );
    }

    #[test]
    fn unknown_and_repeated_fields_of_kube_proxy_are_remarks() {
        let read = parse("mode: iptables\nmode: ipvs\nnonsense: 1\nipvs: {masqueradeAll: true}\n").unwrap();
        assert_eq!(read.kube_proxy.mode, "ipvs");
        let [repeated, unknown] = read.remarks.as_slice() else {
            panic!("{:?}", read.remarks)
        };
        assert!(repeated.contains("mode"), "{repeated}");
        assert!(
            unknown.ends_with("failed: unknown field \"ipvs.masqueradeAll\", unknown field \"nonsense\""),
            "{unknown}"
        );
    }

    #[test]
    fn a_second_document_is_ours() {
        let own = |body: &str| {
            let head = "---\napiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIpvsConfiguration\n";
            parse(&format!("{head}{body}")).map(|read| read.own.unwrap())
        };
        let read = own("fallback: none\ndrainTimeout: 1h\nvipAddresses: null\n").unwrap();
        assert_eq!(
            read,
            KubeIpvsConfiguration {
                fallback: Fallback::None,
                drain_timeout: "1h".parse().unwrap(),
                ..KubeIpvsConfiguration::default()
            }
        );
        let error = |body: &str| format!("{:#}", own(body).unwrap_err());
        assert!(error("fallbacks: none").contains("document of kube-ipvs.io: fallbacks: unknown field"));
        assert!(error("fallback: maybe").contains("unknown variant"));
        let again = "---\napiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIpvsConfiguration\n";
        assert!(error(again).contains("there is a second KubeIpvsConfiguration"));
        assert!(error(&again.replace("v1alpha1", "v2")).contains("document of kube-ipvs.io: want apiVersion"));
        // What cannot be read may be a restriction of ours.
        assert!(error("fallback: {none").contains("line"));
    }

    /// kubernetes/kubernetes#76267: the file that kubeadm was given, behind `--config`.
    #[test]
    fn documents_of_others_after_the_first_are_remarks() {
        let kubeadm = "---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n";
        let own = "---\napiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIpvsConfiguration\nfallback: none\n";
        let read = parse(&format!(
            "mode: ipvs\n{kubeadm}{own}---\n---\n- a\n---\n{HEAD}mode: iptables\n"
        ))
        .unwrap();
        assert_eq!(read.kube_proxy.mode, "ipvs");
        assert_eq!(read.own.unwrap().fallback, Fallback::None);
        let [cluster, list, again] = read.remarks.as_slice() else {
            panic!("{:?}", read.remarks)
        };
        let expect = "a later document of the file, of kind \"ClusterConfiguration\" and apiVersion \"kubeadm.k8s.io/v1beta4\", is not read";
        assert!(cluster.starts_with(expect), "{cluster}");
        assert!(list.starts_with("a later document of the file, of kind \"\""), "{list}");
        assert!(
            again.starts_with("a later document of the file, of kind \"KubeProxyConfiguration\""),
            "{again}"
        );
        assert!(parse("---\n").unwrap().remarks.is_empty());
    }

    /// Upstream does not see it at all.
    #[test]
    fn what_cannot_be_read_after_the_first_document_is_a_remark() {
        let read = parse("mode: ipvs\n---\na: {b\nc: ]\n").unwrap();
        assert_eq!(read.kube_proxy.mode, "ipvs");
        let [remark] = read.remarks.as_slice() else {
            panic!("{:?}", read.remarks)
        };
        assert!(
            remark.starts_with("what follows document 1 of the file is not read: "),
            "{remark}"
        );
        assert!(parse("mode: {ipvs\n---\na: b\n").is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expect: &str| {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(expect), "{error}");
        };
        check("kind: Pod\napiVersion: v1\n", "want apiVersion");
        check("kind: KubeProxyConfiguration\n", "found \"\"");
        check("- a", "want apiVersion");
        check("", "want apiVersion");
        check("{", "");
        check(
            &format!("{HEAD}ipvs: {{minSyncPeriod: soon}}"),
            "ipvs.minSyncPeriod: invalid duration",
        );
        check(
            &format!("{HEAD}ipvs: {{minSyncPeriod: 5}}"),
            "ipvs.minSyncPeriod: invalid type: integer",
        );
        check(
            &format!("{HEAD}ipvs: {{strictARP: 7}}"),
            "ipvs.strictARP: invalid type: integer `7`, expected a boolean",
        );
        check(&format!("{HEAD}iptables: {{masqueradeBit: many}}"), "i32");
        check(
            &format!("{HEAD}featureGates: {{A: maybe}}"),
            "featureGates.A: invalid type",
        );
    }
}
