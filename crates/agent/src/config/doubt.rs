//! Settings that are valid and probably not meant: kube-proxy's `checkBadConfig` and `checkBadIPConfig`.
//!
//! Limit: which family is the node's first is known here only where `bindAddress` names an address of it.

use std::net::IpAddr;

use service_model::Family;

use super::address::{cidr, ip, socket};
use super::kube_proxy::KubeProxyConfiguration;
use super::node_port_address::NodePortAddress;

/// Something that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    Harmless(String),
    /// It cannot work.
    Fatal(String),
}

/// What is doubtful on a node of these families.
pub(super) fn doubts(config: &KubeProxyConfiguration, families: &[Family]) -> Vec<Doubt> {
    let dual_stack_node = families == Family::BOTH;
    let primary = ip(&config.bind_address).filter(|ip| !ip.is_unspecified());
    let mut doubts: Vec<_> = node_ports(config, primary).map(Doubt::Harmless).into_iter().collect();
    let Some(primary) = primary else {
        return doubts;
    };
    if primary.is_ipv6() && !families.contains(&Family::V6) {
        let text = format!("this node has no IPv6, and bindAddress is {primary}");
        doubts.push(Doubt::Fatal(text));
    }
    let (ours, other) = if primary.is_ipv4() {
        ("IPv4", "IPv6")
    } else {
        ("IPv6", "IPv4")
    };
    let cluster = format!("cluster is {ours}-{}", if dual_stack_node { "primary" } else { "only" });
    let wrong = |ip: IpAddr| ip.is_ipv4() != primary.is_ipv4();
    let all_wrong = |cidrs: &mut dyn Iterator<Item = &str>| {
        let families: Vec<_> = cidrs
            .map(|text| cidr(text).is_some_and(|cidr| wrong(cidr.addr())))
            .collect();
        !families.is_empty() && families.iter().all(|wrong| *wrong)
    };
    let cluster_cidrs = &mut config.cluster_cidr.split(',').filter(|text| !text.is_empty());
    if all_wrong(cluster_cidrs) {
        let text = format!("{cluster} but clusterCIDR contains only {other} addresses");
        doubts.push(if config.detect_local_mode == "ClusterCIDR" && !dual_stack_node {
            Doubt::Fatal(text)
        } else {
            Doubt::Harmless(text)
        });
    }
    if !dual_stack_node {
        for (field, value) in [
            ("healthzBindAddress", &config.healthz_bind_address),
            ("metricsBindAddress", &config.metrics_bind_address),
        ] {
            let address = socket(value).map(|socket| socket.ip());
            if address.is_some_and(|ip| !ip.is_unspecified() && wrong(ip)) {
                doubts.push(Doubt::Harmless(format!("{cluster} but {field} is {other}")));
            }
        }
    }
    doubts
}

fn node_ports(config: &KubeProxyConfiguration, primary: Option<IpAddr>) -> Option<String> {
    if config.node_port_addresses.is_empty() {
        return Some(
            "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. Consider using `--nodeport-addresses primary`"
                .to_owned(),
        );
    }
    let mut cidrs = Vec::new();
    for entry in NodePortAddress::all_of(&config.node_port_addresses) {
        match entry {
            NodePortAddress::Cidr(cidr) => cidrs.push(cidr),
            // They say something about both families.
            NodePortAddress::Primary | NodePortAddress::Localhost | NodePortAddress::All => return None,
        }
    }
    let has = |v4: bool| cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == v4);
    let dual_stack_cluster = {
        let pair = |list: &mut dyn Iterator<Item = &str>| {
            let families: Vec<_> = list.filter_map(cidr).map(|cidr| cidr.addr().is_ipv4()).collect();
            families.contains(&true) && families.contains(&false)
        };
        pair(&mut config.cluster_cidr.split(','))
            || pair(&mut config.node_port_addresses.iter().map(String::as_str))
            || pair(&mut config.ipvs.exclude_cidrs.iter().map(String::as_str))
    };
    let (given, missing) = match (has(true), has(false)) {
        (true, false) => ("IPv4", "IPv6"),
        (false, true) => ("IPv6", "IPv4"),
        _ => return None,
    };
    let wrong_family = primary.is_some_and(|ip| !has(ip.is_ipv4()));
    let cluster = if dual_stack_cluster {
        "dual-stack".to_owned()
    } else if wrong_family {
        format!("{missing}-primary")
    } else {
        return None;
    };
    Some(format!(
        "cluster appears to be {cluster} but nodePortAddresses contains only {given} addresses; NodePort connections will be accepted on all local {missing} IPs"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dual_stack_node: bool, change: impl FnOnce(&mut KubeProxyConfiguration), expect: &[(&str, &str)]) {
        let mut config = KubeProxyConfiguration::defaults();
        config.choose();
        config.node_port_addresses = vec!["primary".to_owned()];
        change(&mut config);
        let families = if dual_stack_node {
            Family::BOTH
        } else {
            Family::V4_ALONE
        };
        let found: Vec<_> = doubts(&config, families)
            .into_iter()
            .map(|doubt| match doubt {
                Doubt::Harmless(text) => ("harmless", text),
                Doubt::Fatal(text) => ("fatal", text),
            })
            .collect();
        assert_eq!(found.len(), expect.len(), "{found:?}");
        for ((how, text), (expect_how, expect_text)) in found.iter().zip(expect) {
            assert!(how == expect_how && text.contains(expect_text), "{found:?}");
        }
    }

    #[test]
    fn node_port_addresses() {
        let set = |config: &mut KubeProxyConfiguration, list: &[&str]| {
            config.node_port_addresses = list.iter().map(|text| (*text).to_owned()).collect();
        };
        check(true, |_| {}, &[]);
        check(
            true,
            |config| set(config, &[]),
            &[("harmless", "nodePortAddresses is unset")],
        );
        check(true, |config| set(config, &["10.0.0.0/8"]), &[]);
        check(
            true,
            |config| {
                set(config, &["10.0.0.0/8"]);
                config.cluster_cidr = "10.244.0.0/16,fd00::/64".to_owned();
            },
            &[(
                "harmless",
                "appears to be dual-stack but nodePortAddresses contains only IPv4",
            )],
        );
        check(
            true,
            |config| {
                set(config, &["10.0.0.0/8"]);
                config.bind_address = "fd00::1".to_owned();
            },
            &[("harmless", "appears to be IPv6-primary")],
        );
        check(true, |config| set(config, &["10.0.0.0/8", "fd00::/8"]), &[]);
        // A keyword leaves no family out.
        for keyword in ["primary", "localhost", "all"] {
            check(
                true,
                |config| {
                    set(config, &["10.0.0.0/8", keyword]);
                    config.cluster_cidr = "10.244.0.0/16,fd00::/64".to_owned();
                },
                &[],
            );
        }
    }

    #[test]
    fn families_beside_that_of_the_node() {
        let wrong = |config: &mut KubeProxyConfiguration| {
            config.bind_address = "10.0.0.1".to_owned();
            config.cluster_cidr = "fd00::/64".to_owned();
            config.healthz_bind_address = "[fd00::1]:10256".to_owned();
        };
        check(
            true,
            wrong,
            &[("harmless", "cluster is IPv4-primary but clusterCIDR contains only IPv6")],
        );
        check(
            false,
            wrong,
            &[
                ("fatal", "cluster is IPv4-only but clusterCIDR"),
                ("harmless", "but healthzBindAddress is IPv6"),
            ],
        );
        check(
            false,
            |config| {
                wrong(config);
                config.detect_local_mode = "NodeCIDR".to_owned();
                config.healthz_bind_address = "[::]:10256".to_owned();
            },
            &[("harmless", "clusterCIDR")],
        );
        // kube-proxy: "no support for primary IP family".
        check(
            false,
            |config| {
                config.bind_address = "fd00::1".to_owned();
                config.metrics_bind_address = "[::1]:10249".to_owned();
            },
            &[("fatal", "this node has no IPv6, and bindAddress is fd00::1")],
        );
        // The family is not known.
        check(false, |config| config.cluster_cidr = "fd00::/64".to_owned(), &[]);
    }
}
