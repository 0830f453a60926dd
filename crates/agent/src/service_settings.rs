//! What decides what is programmed for a Service, out of flags or file, validated as kube-proxy does.

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use service_model::{Capture, Config, DetectLocal, NodePortAddresses, Scheduler};

use crate::cli::ServiceArgs;
use crate::config::KubeProxyConfiguration;
use crate::feature_gate;
use crate::node_name::node_name;
use crate::settings::some_text;

/// Default of `iptables.masqueradeBit`.
const MASQUERADE_BIT: u8 = 14;
/// Longest name of an interface, without its NUL (linux/if.h `IFNAMSIZ`).
const INTERFACE_NAME: usize = 15;

/// The flags as the fields that they stand for; the other fields stay.
///
/// # Errors
/// `--feature-gates` is not a list of `Name=bool`.
pub(crate) fn set_from_flags(given: &mut KubeProxyConfiguration, flags: &ServiceArgs) -> Result<()> {
    let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
    given.hostname_override = text(&flags.hostname_override);
    given.ipvs.scheduler = text(&flags.ipvs_scheduler);
    given.node_port_addresses.clone_from(&flags.nodeport_addresses);
    given.iptables.masquerade_bit = flags.iptables_masquerade_bit;
    given.iptables.masquerade_all = flags.masquerade_all.unwrap_or_default();
    given.iptables.localhost_node_ports = flags.iptables_localhost_nodeports;
    given.detect_local_mode = text(&flags.detect_local_mode);
    given.detect_local.bridge_interface = text(&flags.pod_bridge_interface);
    given.detect_local.interface_name_prefix = text(&flags.pod_interface_name_prefix);
    given.cluster_cidr = text(&flags.cluster_cidr);
    given.feature_gates = feature_gate::parse(&flags.feature_gates)?;
    Ok(())
}

/// What the model needs to know.
///
/// # Errors
/// A field has a value that kube-proxy refuses, too; the scheduler is unknown; the node has no name.
pub(crate) fn model_config(given: &KubeProxyConfiguration) -> Result<Config> {
    let cluster_cidrs = cluster_cidrs(&given.cluster_cidr)?;
    Ok(Config {
        node_name: node_name(Some(&given.hostname_override))?.into(),
        scheduler: match some_text(&given.ipvs.scheduler) {
            None => Scheduler::default(),
            Some(name) => name.parse().context("ipvs.scheduler")?,
        },
        node_port_addresses: node_port_addresses_of(&given.node_port_addresses)?,
        allow_external_ips: feature_gate::allow_service_external_ips(&given.feature_gates),
        masquerade_all: given.iptables.masquerade_all,
        detect_local: detect_local(given, cluster_cidrs)?,
        capture: capture(given),
    })
}

fn capture(given: &KubeProxyConfiguration) -> Capture {
    match given.mode.as_str() {
        "iptables" => redirect(given),
        _ => Capture::Bind,
    }
}

/// How the iptables mode gets hold of what is sent to a service.
pub(crate) fn redirect(given: &KubeProxyConfiguration) -> Capture {
    Capture::Redirect {
        localhost_node_ports: given.iptables.localhost_node_ports.unwrap_or(true),
    }
}

/// # Errors
/// It is no bit of a mark.
pub(crate) fn masquerade_bit(given: &KubeProxyConfiguration) -> Result<u8> {
    let bit = given.iptables.masquerade_bit.unwrap_or(MASQUERADE_BIT.into());
    u8::try_from(bit)
        .ok()
        .filter(|bit| *bit < 32)
        .with_context(|| format!("iptables.masqueradeBit must be within 0 to 31, not {bit}"))
}

fn node_port_addresses_of(given: &[String]) -> Result<NodePortAddresses> {
    match given {
        [] => Ok(NodePortAddresses::All),
        [only] if only == "primary" => Ok(NodePortAddresses::Primary),
        cidrs => {
            let parse = |text: &String| {
                text.trim()
                    .parse::<IpNet>()
                    .with_context(|| format!("nodePortAddresses: invalid CIDR {text:?}"))
            };
            Ok(NodePortAddresses::Cidrs(
                cidrs.iter().map(parse).collect::<Result<_>>()?,
            ))
        }
    }
}

/// Empty, one CIDR, or one of each family. Checked in every mode, used in the mode ClusterCIDR.
fn cluster_cidrs(text: &str) -> Result<Vec<IpNet>> {
    let Some(text) = some_text(text) else {
        return Ok(Vec::new());
    };
    let parse = |cidr: &str| {
        let invalid = || format!("clusterCIDR: invalid CIDR {cidr:?}");
        cidr.trim().parse::<IpNet>().with_context(invalid)
    };
    let cidrs = text.split(',').map(parse).collect::<Result<Vec<_>>>()?;
    match cidrs.as_slice() {
        [_] => Ok(cidrs),
        [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(cidrs),
        [_, _] => bail!("clusterCIDR: two CIDRs must be of different families: {text}"),
        _ => bail!("clusterCIDR: at most two CIDRs, one of each family: {text}"),
    }
}

fn detect_local(given: &KubeProxyConfiguration, cluster_cidrs: Vec<IpNet>) -> Result<DetectLocal> {
    let name = |field: &str, text: &str| -> Result<Box<str>> {
        let mode = &given.detect_local_mode;
        let text = some_text(text).with_context(|| format!("detectLocalMode {mode} needs detectLocal.{field}"))?;
        ensure!(
            text.len() <= INTERFACE_NAME,
            "detectLocal.{field}: {text:?} is longer than {INTERFACE_NAME} bytes, which no interface name is"
        );
        Ok(text.into())
    };
    Ok(match given.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => DetectLocal::ClusterCidr(cluster_cidrs),
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            DetectLocal::BridgeInterface(name("bridgeInterface", &given.detect_local.bridge_interface)?)
        }
        "InterfaceNamePrefix" => {
            DetectLocal::InterfaceNamePrefix(name("interfaceNamePrefix", &given.detect_local.interface_name_prefix)?)
        }
        other => bail!(
            "unknown detectLocalMode {other:?}, must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix or blank"
        ),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        service: ServiceArgs,
    }

    fn given(flags: &[&str]) -> Result<(Config, u8)> {
        let flags = Flags::try_parse_from(["test", "--hostname-override=n1"].iter().chain(flags))?;
        let mut given = KubeProxyConfiguration::default();
        set_from_flags(&mut given, &flags.service)?;
        Ok((model_config(&given)?, masquerade_bit(&given)?))
    }

    fn model(flags: &[&str]) -> Config {
        given(flags).unwrap().0
    }

    #[test]
    fn defaults_are_those_of_kube_proxy() {
        let (model, bit) = given(&[]).unwrap();
        assert_eq!((bit, model.masquerade_all, model.allow_external_ips), (14, false, true));
        assert_eq!(model.detect_local, DetectLocal::ClusterCidr(Vec::new()));
        assert_eq!(model.node_port_addresses, NodePortAddresses::All);
    }

    #[test]
    fn each_way_to_detect_local_traffic() {
        let check = |flags: &[&str], expect: DetectLocal| assert_eq!(model(flags).detect_local, expect);
        let cidrs = "--cluster-cidr=10.0.0.0/8, fd00::/64";
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
        let (model, bit) = given(&[
            "--iptables-masquerade-bit=31",
            "--masquerade-all",
            "--feature-gates=Other=true,AllowServiceExternalIPs=false",
        ])
        .unwrap();
        assert_eq!((bit, model.masquerade_all, model.allow_external_ips), (31, true, false));
    }

    #[test]
    fn bad_input_is_named() {
        let check = |flags: &[&str], expect: &str| {
            let error = format!("{:#}", given(flags).expect_err(expect));
            assert!(error.contains(expect), "{error}");
        };
        check(&["--ipvs-scheduler=best"], "unknown scheduler \"best\"");
        check(&["--cluster-cidr=10.0.0.0/8,10.1.0.0/16"], "different families");
        check(&["--cluster-cidr=10.0.0.0/8,fd00::/64,fd01::/64"], "at most two");
        check(
            &["--cluster-cidr=10.0.0.0/40", "--detect-local-mode=NodeCIDR"],
            "invalid CIDR",
        );
        check(&["--nodeport-addresses=eth0"], "invalid CIDR");
        check(&["--iptables-masquerade-bit=32"], "0 to 31, not 32");
        check(&["--iptables-masquerade-bit=-1"], "0 to 31, not -1");
        check(&["--detect-local-mode=Guess"], "unknown detectLocalMode \"Guess\"");
        check(
            &["--detect-local-mode=BridgeInterface"],
            "needs detectLocal.bridgeInterface",
        );
        check(
            &["--detect-local-mode=InterfaceNamePrefix"],
            "needs detectLocal.interfaceNamePrefix",
        );
        let long = "--pod-bridge-interface=a-name-of-16-chr";
        check(&["--detect-local-mode=BridgeInterface", long], "longer than 15 bytes");
        check(&["--feature-gates=AllowServiceExternalIPs"], "missing bool value");
    }
}
