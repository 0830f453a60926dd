//! What decides what is programmed for a Service, in the terms of the model.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use service_model::{Capture, Config, DetectLocal, Family, Limits, NodePortAddresses, Scheduler};

use crate::config::{
    KubeIpvsConfiguration, KubeProxyConfiguration, NodePortAddress, allow_service_external_ips, cidr, ip,
};
use crate::mode::Mode;
use crate::node_name::node_name;

/// What the model needs to know, out of a valid configuration.
///
/// # Errors
/// The node has no name.
pub(crate) fn model_config(given: &KubeProxyConfiguration, own: &KubeIpvsConfiguration) -> Result<Config> {
    Ok(Config {
        node_name: node_name(Some(&given.hostname_override))?.into(),
        families: Family::BOTH,
        scheduler: match given.ipvs.scheduler.trim() {
            "" => Scheduler::default(),
            // Of the iptables mode nobody asks for one, so it was not validated.
            name => name.parse().unwrap_or_default(),
        },
        node_port_addresses: node_port_addresses(given),
        node_ip: ip(&given.bind_address).filter(|ip| !ip.is_unspecified()),
        allow_external_ips: allow_service_external_ips(&given.feature_gates),
        masquerade_all: given.iptables.masquerade_all,
        detect_local: detect_local(given),
        capture: match mode(given) {
            Mode::Ipvs => Capture::Bind,
            Mode::Iptables => redirect(given),
        },
        limits: Limits {
            real_servers: limit(own.limits.real_servers_per_service),
            source_ranges: limit(own.limits.source_ranges_per_service),
        },
        allowed_schedulers: own
            .allowed_schedulers
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        external_ip_ranges: ranges(&own.external_ip_ranges),
        load_balancer_ip_ranges: ranges(&own.load_balancer_ip_ranges),
    })
}

/// Validated: it is greater than zero.
fn limit(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Validated: all of them can be read.
fn ranges(texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| cidr(text)).collect()
}

/// Keywords but `primary` do not depend on the node (Kubernetes 1.37, `expandNodePortAddressKeywords`).
fn node_port_addresses(given: &KubeProxyConfiguration) -> NodePortAddresses {
    const LOCALHOST: [IpNet; 2] = [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    ];
    if given.node_port_addresses.is_empty() {
        return NodePortAddresses::All;
    }
    let (mut primary, mut cidrs) = (false, Vec::new());
    for entry in NodePortAddress::all_of(&given.node_port_addresses) {
        match entry {
            NodePortAddress::Primary => primary = true,
            NodePortAddress::Localhost => cidrs.extend(LOCALHOST),
            NodePortAddress::All => return NodePortAddresses::All,
            NodePortAddress::Cidr(cidr) => cidrs.push(cidr),
        }
    }
    NodePortAddresses::Among { primary, cidrs }
}

/// The mode that is asked for.
pub(crate) fn mode(given: &KubeProxyConfiguration) -> Mode {
    if given.mode == "iptables" {
        Mode::Iptables
    } else {
        Mode::Ipvs
    }
}

/// How the iptables mode gets hold of what is sent to a service.
pub(crate) fn redirect(given: &KubeProxyConfiguration) -> Capture {
    Capture::Redirect {
        localhost_node_ports: given.iptables.localhost_node_ports,
    }
}

/// # Errors
/// It is no bit of a mark.
pub(crate) fn masquerade_bit(given: &KubeProxyConfiguration) -> Result<u8> {
    u8::try_from(given.iptables.masquerade_bit).context("iptables.masqueradeBit")
}

fn detect_local(given: &KubeProxyConfiguration) -> DetectLocal {
    let names = &given.detect_local;
    match given.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => DetectLocal::BridgeInterface(names.bridge_interface.as_str().into()),
        "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(names.interface_name_prefix.as_str().into()),
        _ => DetectLocal::ClusterCidr(given.cluster_cidr.split(',').filter_map(cidr).collect()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::config::Configuration;

    fn model(flags: &[&str]) -> Config {
        let arguments = ["kube-ipvs", "--hostname-override=n1"].iter().chain(flags);
        let configuration = Configuration::load(&Cli::try_parse_from(arguments).unwrap().daemon.configuration).unwrap();
        assert!(masquerade_bit(&configuration.kube_proxy).is_ok());
        model_config(&configuration.kube_proxy, &configuration.own).unwrap()
    }

    #[test]
    fn defaults_are_those_of_kube_proxy() {
        let model = model(&[]);
        assert_eq!((model.masquerade_all, model.allow_external_ips), (false, true));
        assert_eq!(model.detect_local, DetectLocal::ClusterCidr(Vec::new()));
        assert_eq!(model.node_port_addresses, NodePortAddresses::All);
    }

    #[test]
    fn keywords_of_node_port_addresses() {
        let check = |list: &str, expect: Option<(bool, &[&str])>| {
            let flag = format!("--nodeport-addresses={list}");
            let expect = match expect {
                None => NodePortAddresses::All,
                Some((primary, cidrs)) => NodePortAddresses::Among {
                    primary,
                    cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                },
            };
            assert_eq!(model(&[&flag]).node_port_addresses, expect, "{list}");
        };
        check("", None);
        check("primary", Some((true, &[])));
        check("localhost", Some((false, &["127.0.0.0/8", "::1/128"])));
        check(
            "primary,10.0.0.0/8,localhost",
            Some((true, &["10.0.0.0/8", "127.0.0.0/8", "::1/128"])),
        );
        check("10.0.0.0/8,all", None);
        check("primary,all", None);
    }

    #[test]
    fn each_way_to_detect_local_traffic() {
        let check = |flags: &[&str], expect: DetectLocal| assert_eq!(model(flags).detect_local, expect);
        let cidrs = "--cluster-cidr=10.0.0.0/8,fd00::/64";
        let both = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()];
        check(&[cidrs], DetectLocal::ClusterCidr(both.clone()));
        check(
            &[cidrs, "--detect-local-mode=ClusterCIDR"],
            DetectLocal::ClusterCidr(both),
        );
        check(&[cidrs, "--detect-local-mode=NodeCIDR"], DetectLocal::NodeCidr);
        check(
            &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"],
            DetectLocal::BridgeInterface("cni0".into()),
        );
        check(
            &[
                "--detect-local-mode=InterfaceNamePrefix",
                "--pod-interface-name-prefix=veth",
            ],
            DetectLocal::InterfaceNamePrefix("veth".into()),
        );
    }

    #[test]
    fn masquerading_and_gates() {
        let model = model(&["--masquerade-all", "--feature-gates=AllowServiceExternalIPs=false"]);
        assert_eq!((model.masquerade_all, model.allow_external_ips), (true, false));
    }

    #[test]
    fn f09_f17_what_services_may_ask_for() {
        let nothing = model(&[]);
        assert_eq!(nothing.limits, Limits::default());
        assert!(nothing.allowed_schedulers.is_empty() && nothing.external_ip_ranges.is_empty());
        let model = model(&[
            "--real-servers-per-service=7",
            "--source-ranges-per-service=8",
            "--allowed-schedulers=rr,mh",
            "--external-ip-ranges=198.51.100.0/24,2001:db8::/64",
            "--load-balancer-ip-ranges=203.0.113.0/24",
        ]);
        let limits = Limits {
            real_servers: 7,
            source_ranges: 8,
        };
        assert_eq!(model.limits, limits);
        assert_eq!(model.allowed_schedulers, [Scheduler::RoundRobin, Scheduler::Maglev]);
        let external: [IpNet; 2] = ["198.51.100.0/24", "2001:db8::/64"].map(|range| range.parse().unwrap());
        assert_eq!(model.external_ip_ranges, external);
        assert_eq!(model.load_balancer_ip_ranges, ["203.0.113.0/24".parse().unwrap()]);
    }

    #[test]
    fn modes_and_what_does_not_concern_them() {
        let capture = |flags: &[&str]| model(flags).capture;
        assert_eq!(capture(&[]), Capture::Bind);
        assert_eq!(
            capture(&[
                "--proxy-mode=iptables",
                "--ipvs-scheduler=best",
                "--iptables-localhost-nodeports=false"
            ]),
            Capture::Redirect {
                localhost_node_ports: false
            }
        );
    }
}
