//! What the daemon runs with: flags and configuration file brought together and validated.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use ipvs::OldValues;
use service_model::{Capture, Config, DetectLocal};
use tracing::warn;

use crate::cli::{DaemonArgs, ForwardAccept};
use crate::config::{self, KubeProxyConfiguration};
use crate::duration::GoDuration;
use crate::mode::{Fallback, Mode};
use crate::server_settings::ServerSettings;
use crate::service_settings::{masquerade_bit, model_config, redirect, set_from_flags};
use crate::start_settings::StartSettings;

/// Default of `ipvs.syncPeriod`.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// Settings, validated.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) model: Config,
    pub(crate) mode: Mode,
    pub(crate) fallback: Fallback,
    /// What the model is told in the iptables mode.
    pub(crate) redirect: Capture,
    /// Bit of the packet mark that stands for masquerading.
    pub(crate) masquerade_bit: u8,
    pub(crate) min_sync_period: Duration,
    /// Between two audits.
    pub(crate) sync_period: Duration,
    pub(crate) strict_arp: bool,
    pub(crate) timeouts: IpvsTimeouts,
    /// How long a TCP endpoint that is gone may keep its connections; zero = as long as they live.
    pub(crate) drain_timeout: Duration,
    pub(crate) dry_run: bool,
    pub(crate) vip_addresses: bool,
    pub(crate) forward_accept: ForwardAccept,
    pub(crate) old_sysctls: OldValues,
    #[allow(dead_code, reason = "nothing is served yet")]
    pub(crate) servers: ServerSettings,
    pub(crate) start: StartSettings,
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
        let mut given = match &args.config {
            Some(path) => KubeProxyConfiguration::read(path)?,
            None => from_flags(&args)?,
        };
        if let Some(name) = args.service.hostname_override.as_deref().and_then(some_text) {
            name.clone_into(&mut given.hostname_override);
        }
        let mode = match given.mode.as_str() {
            "" | "ipvs" => Mode::Ipvs,
            "iptables" => Mode::Iptables,
            "nftables" => bail!("mode \"nftables\" is not of this program, which runs ipvs or iptables"),
            other => bail!("unknown mode {other:?}, must be ipvs, iptables, nftables or blank"),
        };
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
        let model = model_config(&given)?;
        if model.detect_local == DetectLocal::default() {
            warn!(
                "detectLocalMode is ClusterCIDR and clusterCIDR is not set: traffic of pods is not told from other traffic"
            );
        }
        let source = match args.own.manifests {
            Some(directory) => Source::Directory(directory),
            None => Source::Api {
                kubeconfig: some_text(&given.client_connection.kubeconfig).map(PathBuf::from),
                master: args.master.filter(|_| args.config.is_none()),
            },
        };
        Ok(Self {
            source,
            model,
            mode,
            fallback: args.own.fallback,
            redirect: redirect(&given),
            masquerade_bit: masquerade_bit(&given)?,
            min_sync_period: given.ipvs.min_sync_period.0,
            sync_period,
            strict_arp: given.ipvs.strict_arp,
            timeouts: IpvsTimeouts {
                tcp: given.ipvs.tcp_timeout.0,
                tcp_fin: given.ipvs.tcp_fin_timeout.0,
                udp: given.ipvs.udp_timeout.0,
            },
            drain_timeout: args.own.drain_timeout.0,
            dry_run: args.own.dry_run,
            vip_addresses: args.own.vip_addresses,
            forward_accept: args.own.iptables_forward_accept,
            old_sysctls: args.own.run.old_sysctls(),
            servers: ServerSettings::default(),
            start: StartSettings::default(),
        })
    }

    /// NodePorts are to answer on 127.0.0.1 in the mode iptables.
    pub(crate) fn localhost_node_ports(&self) -> bool {
        matches!(
            self.redirect,
            Capture::Redirect {
                localhost_node_ports: true
            }
        )
    }
}

/// The flags as the configuration that they stand for.
fn from_flags(args: &DaemonArgs) -> Result<KubeProxyConfiguration> {
    let time = |flag: Option<GoDuration>| flag.unwrap_or_default();
    let mut given = KubeProxyConfiguration {
        client_connection: config::ClientConnection {
            kubeconfig: args
                .kubeconfig
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
        },
        mode: args.proxy_mode.clone().unwrap_or_default(),
        ipvs: config::Ipvs {
            sync_period: time(args.ipvs_sync_period),
            min_sync_period: time(args.ipvs_min_sync_period),
            strict_arp: args.ipvs_strict_arp.unwrap_or_default(),
            tcp_timeout: time(args.ipvs_tcp_timeout),
            tcp_fin_timeout: time(args.ipvs_tcpfin_timeout),
            udp_timeout: time(args.ipvs_udp_timeout),
            ..config::Ipvs::default()
        },
        ..KubeProxyConfiguration::default()
    };
    set_from_flags(&mut given, &args.service)?;
    Ok(given)
}

pub(crate) fn some_text(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use service_model::{NodePortAddresses, Scheduler};

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
        assert_eq!(settings.masquerade_bit, 14);
    }

    /// With a file the flags that it covers are ignored; its values are the same settings.
    #[test]
    fn a_file_reaches_the_same_settings() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: other\n\
             featureGates: {AllowServiceExternalIPs: false, Other: true}\niptables: {masqueradeBit: 3, masqueradeAll: true}\n\
             detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n",
        )
        .unwrap();
        let config = format!("--config={}", file.path().display());
        let settings = settings(&[&config, "--iptables-masquerade-bit=7", "--detect-local-mode=NodeCIDR"]).unwrap();
        assert_eq!(settings.masquerade_bit, 3);
        assert_eq!(&*settings.model.node_name, "n1");
        assert!(settings.model.masquerade_all && !settings.model.allow_external_ips);
        assert_eq!(
            settings.model.detect_local,
            DetectLocal::InterfaceNamePrefix("veth".into())
        );
    }

    #[test]
    fn bad_input_is_named() {
        let check = |flag: &str, expect: &str| {
            let error = format!("{:#}", settings(&["--manifests=m", flag]).expect_err(flag));
            assert!(error.contains(expect), "{error}");
        };
        check("--proxy-mode=userspace", "unknown mode");
        check("--proxy-mode=nftables", "not of this program");
        check("--ipvs-min-sync-period=soon", "invalid duration");
        check("--kubeconfig=x", "cannot be used with");
    }
}
