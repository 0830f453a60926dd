//! What the daemon runs with: flags and configuration file brought together and validated.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use service_model::{Config, NodePortAddresses, Scheduler};
use tracing::warn;

use crate::cli::DaemonArgs;
use crate::config::{self, KubeProxyConfiguration};
use crate::duration::GoDuration;
use crate::node_name::node_name;

/// Default of `ipvs.syncPeriod`.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// Settings, validated.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) model: Config,
    pub(crate) min_sync_period: Duration,
    pub(crate) strict_arp: bool,
    pub(crate) timeouts: IpvsTimeouts,
    pub(crate) dry_run: bool,
    pub(crate) vip_addresses: bool,
}

/// Where objects come from.
#[derive(Debug)]
pub(crate) enum Source {
    Directory(PathBuf),
    Api {
        kubeconfig: Option<PathBuf>,
        master: Option<String>,
    },
}

/// Idle times after which IPVS forgets a connection; zero = leave the kernel's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IpvsTimeouts {
    pub(crate) tcp: Duration,
    pub(crate) tcp_fin: Duration,
    pub(crate) udp: Duration,
}

impl Settings {
    /// With a configuration file the flags that it covers are ignored, except `--hostname-override`, as kube-proxy does.
    pub(crate) fn new(args: DaemonArgs) -> Result<Self> {
        let given = match &args.config {
            Some(path) => KubeProxyConfiguration::read(path)?,
            None => from_flags(&args),
        };
        match given.mode.as_str() {
            "" | "ipvs" => {}
            "iptables" | "nftables" => {
                bail!(
                    "mode {:?} is not built into this version, which runs ipvs only",
                    given.mode
                )
            }
            other => bail!("unknown mode {other:?}, must be ipvs, iptables, nftables or blank"),
        }
        check_cluster_cidr(&given.cluster_cidr)?;
        if !given.ipvs.exclude_cidrs.is_empty() {
            for cidr in &given.ipvs.exclude_cidrs {
                cidr.parse::<IpNet>()
                    .with_context(|| format!("ipvs.excludeCIDRs: invalid CIDR {cidr:?}"))?;
            }
            warn!("ipvs.excludeCIDRs is not needed: virtual servers of others are never touched");
        }
        // 0, as kubeadm writes it, means the default.
        let sync_period = Some(given.ipvs.sync_period.0)
            .filter(|period| !period.is_zero())
            .unwrap_or(SYNC_PERIOD);
        ensure!(
            given.ipvs.min_sync_period.0 <= sync_period,
            "ipvs.minSyncPeriod must not exceed ipvs.syncPeriod"
        );
        let name = args
            .hostname_override
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(&given.hostname_override);
        let source = match args.own.manifests {
            Some(directory) => Source::Directory(directory),
            None => Source::Api {
                kubeconfig: some_text(&given.client_connection.kubeconfig).map(PathBuf::from),
                master: args.master.filter(|_| args.config.is_none()),
            },
        };
        Ok(Self {
            source,
            model: model_config(Some(name), &given.ipvs.scheduler, &given.node_port_addresses)?,
            min_sync_period: given.ipvs.min_sync_period.0,
            strict_arp: given.ipvs.strict_arp,
            timeouts: IpvsTimeouts {
                tcp: given.ipvs.tcp_timeout.0,
                tcp_fin: given.ipvs.tcp_fin_timeout.0,
                udp: given.ipvs.udp_timeout.0,
            },
            dry_run: args.own.dry_run,
            vip_addresses: args.own.vip_addresses,
        })
    }
}

/// The flags as the configuration that they stand for.
fn from_flags(args: &DaemonArgs) -> KubeProxyConfiguration {
    let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
    let time = |flag: Option<GoDuration>| flag.unwrap_or_default();
    KubeProxyConfiguration {
        client_connection: config::ClientConnection {
            kubeconfig: args
                .kubeconfig
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
        },
        cluster_cidr: text(&args.cluster_cidr),
        node_port_addresses: args.nodeport_addresses.clone(),
        mode: text(&args.proxy_mode),
        ipvs: config::Ipvs {
            sync_period: time(args.ipvs_sync_period),
            min_sync_period: time(args.ipvs_min_sync_period),
            scheduler: text(&args.ipvs_scheduler),
            strict_arp: args.ipvs_strict_arp.unwrap_or_default(),
            tcp_timeout: time(args.ipvs_tcp_timeout),
            tcp_fin_timeout: time(args.ipvs_tcpfin_timeout),
            udp_timeout: time(args.ipvs_udp_timeout),
            ..config::Ipvs::default()
        },
        ..KubeProxyConfiguration::default()
    }
}

/// What the model needs to know: the daemon and `plan` ask the same.
pub(crate) fn model_config(
    hostname_override: Option<&str>,
    scheduler: &str,
    node_port_addresses: &[String],
) -> Result<Config> {
    Ok(Config {
        node_name: node_name(hostname_override)?.into(),
        scheduler: match some_text(scheduler) {
            None => Scheduler::default(),
            Some(name) => name.parse().context("ipvs.scheduler")?,
        },
        node_port_addresses: node_port_addresses_of(node_port_addresses)?,
        allow_external_ips: true,
        masquerade_all: false,
        detect_local: service_model::DetectLocal::default(),
    })
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

/// One CIDR, or one of each family. Its use (what is local traffic) comes with the policy tables.
fn check_cluster_cidr(text: &str) -> Result<()> {
    let Some(text) = some_text(text) else { return Ok(()) };
    let mut cidrs = Vec::new();
    for cidr in text.split(',') {
        cidrs.push(
            cidr.trim()
                .parse::<IpNet>()
                .with_context(|| format!("clusterCIDR: invalid CIDR {cidr:?}"))?,
        );
    }
    match cidrs.as_slice() {
        [_] => Ok(()),
        [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(()),
        [_, _] => bail!("clusterCIDR: two CIDRs must be of different families: {text}"),
        _ => bail!("clusterCIDR: at most two CIDRs, one of each family: {text}"),
    }
}

fn some_text(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn settings(flags: &[&str]) -> Result<Settings> {
        let arguments = ["kube-ipvs", "--hostname-override=n1"].iter().chain(flags);
        Settings::new(Cli::try_parse_from(arguments)?.daemon)
    }

    #[test]
    fn flags_reach_their_settings() {
        let settings = settings(&[
            "--manifests=objects",
            "--ipvs-scheduler=mh",
            "--ipvs-min-sync-period=1m",
            "--ipvs-sync-period=2m",
            "--ipvs-strict-arp",
            "--nodeport-addresses=primary",
            "--cluster-cidr=10.0.0.0/8,fd00::/64",
        ])
        .unwrap();
        assert_eq!(settings.model.scheduler, Scheduler::Maglev);
        assert_eq!(settings.min_sync_period.as_secs(), 60);
        assert!(settings.strict_arp);
        assert_eq!(settings.model.node_port_addresses, NodePortAddresses::Primary);
        assert!(matches!(settings.source, Source::Directory(_)));
    }

    #[test]
    fn bad_input_is_named() {
        let check = |flag: &str, expect: &str| {
            let error = format!("{:#}", settings(&["--manifests=m", flag]).expect_err(flag));
            assert!(error.contains(expect), "{error}");
        };
        check("--ipvs-scheduler=best", "unknown scheduler \"best\"");
        check("--proxy-mode=userspace", "unknown mode");
        check("--proxy-mode=iptables", "not built");
        check("--cluster-cidr=10.0.0.0/8,10.1.0.0/16", "different families");
        check("--cluster-cidr=10.0.0.0/40", "invalid CIDR");
        check("--nodeport-addresses=eth0", "invalid CIDR");
        check("--ipvs-min-sync-period=soon", "invalid duration");
        check("--kubeconfig=x", "cannot be used with");
    }
}
