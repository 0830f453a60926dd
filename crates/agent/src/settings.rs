//! What the daemon runs with: the configuration in the terms of the parts that it is for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use dataplane::iptables;
use ipvs::OldValues;
use service_model::{Capture, Config, DetectLocal};
use tracing::warn;

use crate::cli::DaemonArgs;
use crate::config::{
    ConfigFile, Configuration, Fallback, FeatureGate, ForwardAccept, GoDuration, KubeProxyConfiguration,
    NodePortAddress, SecondInstance, in_use, serves_flagz, serves_statusz, socket,
};
use crate::ip_family;
use crate::mode::{Mode, ModeOrigin};
use crate::server_settings::ServerSettings;
use crate::service_settings::{masquerade_bit, mode, model_config, redirect};
use crate::start_settings::{ConntrackSettings, StartSettings};
use crate::sync::Periods;

/// Settings, validated.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) model: Config,
    pub(crate) mode: Mode,
    pub(crate) mode_origin: ModeOrigin,
    pub(crate) fallback: Fallback,
    /// What the model is told in the iptables mode.
    pub(crate) redirect: Capture,
    /// What `nodePortAddresses` says about loopback.
    pub(crate) localhost: LocalhostNodePorts,
    /// Bit of the packet mark that stands for masquerading.
    pub(crate) masquerade_bit: u8,
    pub(crate) periods: Periods,
    /// The same where the iptables mode serves.
    pub(crate) iptables_periods: Periods,
    pub(crate) strict_arp: bool,
    pub(crate) timeouts: IpvsTimeouts,
    /// How long a TCP endpoint that is gone may keep its connections; zero = as long as they live.
    pub(crate) drain_timeout: Duration,
    pub(crate) dry_run: bool,
    pub(crate) vip_addresses: bool,
    pub(crate) forward_accept: ForwardAccept,
    /// No program is started in the IPVS mode.
    pub(crate) deny_exec: bool,
    /// Where another one serves.
    pub(crate) second_instance: SecondInstance,
    pub(crate) old_sysctls: OldValues,
    /// Ends the program when it changes.
    pub(crate) config_file: Option<ConfigFile>,
    pub(crate) servers: ServerSettings,
    /// Feature gates with an effect, for `/metrics`.
    pub(crate) gates: Vec<FeatureGate>,
    pub(crate) start: StartSettings,
}

/// Does `nodePortAddresses` have the keyword `localhost`?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalhostNodePorts {
    NotNamed,
    Named,
    /// And nothing else.
    Alone,
}

impl LocalhostNodePorts {
    fn of(list: &[String]) -> Self {
        let named = NodePortAddress::all_of(list).any(|entry| entry == NodePortAddress::Localhost);
        match (named, list) {
            (true, [_]) => Self::Alone,
            (true, _) => Self::Named,
            (false, _) => Self::NotNamed,
        }
    }
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
    /// # Errors
    /// The node has no name.
    pub(crate) fn new(configuration: Configuration, args: DaemonArgs) -> Result<Self> {
        let servers = ServerSettings {
            configuration: configuration.configz(),
            flags: serves_flagz(&configuration.kube_proxy.feature_gates).then_some(args.all_flags),
            ..server_settings(&configuration.kube_proxy)
        };
        let Configuration {
            kube_proxy: given,
            own,
            file,
            mode_origin,
            ..
        } = configuration;
        let model = Config {
            families: ip_family::of_node(),
            ..model_config(&given, &own)?
        };
        if model.detect_local == DetectLocal::default() {
            warn!(
                "detectLocalMode is ClusterCIDR and clusterCIDR is not set: traffic of pods is not told from other traffic"
            );
        }
        if let (Mode::Ipvs, Some(remark)) = (mode(&given), model.scheduler.at_equal_weights()) {
            warn!(scheduler = %model.scheduler, remark, "this scheduler needs weights that differ");
        }
        let source = match args.manifests {
            Some(directory) => Source::Directory(directory),
            None => Source::Api {
                kubeconfig: Some(&given.client_connection.kubeconfig)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
                master: args.master.filter(|url| !url.is_empty()),
            },
        };
        let periods = |sync: GoDuration, min_sync: GoDuration| Periods {
            min_sync: min_sync.to_std(),
            sync: sync.to_std(),
        };
        let iptables_periods = periods(given.iptables.sync_period, given.iptables.min_sync_period);
        let mode = mode(&given);
        let (sync, min_sync) = given.periods();
        Ok(Self {
            source,
            model,
            mode,
            mode_origin,
            localhost: LocalhostNodePorts::of(&given.node_port_addresses),
            fallback: own.fallback,
            redirect: redirect(&given),
            masquerade_bit: masquerade_bit(&given)?,
            periods: periods(sync, min_sync),
            iptables_periods,
            strict_arp: given.ipvs.strict_arp,
            timeouts: IpvsTimeouts {
                tcp: given.ipvs.tcp_timeout.to_std(),
                tcp_fin: given.ipvs.tcp_fin_timeout.to_std(),
                udp: given.ipvs.udp_timeout.to_std(),
            },
            drain_timeout: own.drain_timeout.to_std(),
            dry_run: args.dry_run,
            vip_addresses: own.vip_addresses,
            forward_accept: own.iptables_forward_accept,
            deny_exec: own.deny_exec,
            second_instance: own.second_instance,
            old_sysctls: own.old_sysctls(),
            config_file: file,
            servers,
            gates: in_use(&given.feature_gates),
            start: StartSettings {
                init_only: args.init_only,
                ..start_settings(&given)
            },
        })
    }

    /// Settings of the IPVS mode's data plane.
    pub(crate) fn data_plane(&self) -> dataplane::Settings {
        dataplane::Settings {
            with_addresses: self.vip_addresses,
            masquerade_bit: self.masquerade_bit,
            drain_timeout: self.drain_timeout,
            families: self.model.families,
        }
    }

    /// Settings of the iptables mode's tables, on a node whose connection tracker is liberal or not
    /// (`nf_conntrack_tcp_be_liberal`).
    pub(crate) fn iptables(&self, tcp_be_liberal: bool) -> iptables::Settings {
        iptables::Settings {
            masquerade_bit: self.masquerade_bit,
            drop_invalid: !tcp_be_liberal,
            families: self.model.families,
        }
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

    /// The same where the iptables mode serves, asked for or as the fallback.
    pub(crate) fn for_iptables(mut self) -> Self {
        self.model.capture = self.redirect;
        self.periods = self.iptables_periods;
        self
    }
}

fn server_settings(given: &KubeProxyConfiguration) -> ServerSettings {
    ServerSettings {
        healthz: socket(&given.healthz_bind_address),
        metrics: socket(&given.metrics_bind_address),
        hard_fail: given.bind_address_hard_fail,
        profiling: given.enable_profiling,
        status: serves_statusz(&given.feature_gates),
        ..ServerSettings::default()
    }
}

fn start_settings(given: &KubeProxyConfiguration) -> StartSettings {
    let conntrack = &given.conntrack;
    // Negative ones are not valid.
    let entries = |number: i32| u32::try_from(number).unwrap_or_default();
    StartSettings {
        conntrack: ConntrackSettings {
            max_per_core: entries(conntrack.max_per_core),
            min: entries(conntrack.min),
            tcp_established_timeout: conntrack.tcp_established_timeout.to_std(),
            tcp_close_wait_timeout: conntrack.tcp_close_wait_timeout.to_std(),
            tcp_be_liberal: conntrack.tcp_be_liberal,
            udp_timeout: conntrack.udp_timeout.to_std(),
            udp_stream_timeout: conntrack.udp_stream_timeout.to_std(),
        },
        oom_score_adj: Some(given.oom_score_adj),
        init_only: false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use service_model::{NodePortAddresses, Scheduler};

    use super::*;
    use crate::cli::Cli;

    fn settings(flags: &[&str]) -> Result<Settings> {
        let arguments = ["kube-ipvs", "--hostname-override=n1"].iter().chain(flags);
        let args = Cli::try_parse_from(arguments)?.daemon;
        Settings::new(Configuration::load(&args.configuration)?, args)
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
        assert_eq!(settings.periods.min_sync.as_secs(), 60);
        assert!(settings.strict_arp);
        let primary = NodePortAddresses::Among {
            primary: true,
            cidrs: Vec::new(),
        };
        assert_eq!(settings.model.node_port_addresses, primary);
        assert!(matches!(settings.source, Source::Directory(_)));
        assert_eq!(settings.masquerade_bit, 14);
    }

    /// With a file the flags that it covers are ignored; its values are the same settings. `--master` is no such flag.
    #[test]
    fn a_file_reaches_the_same_settings() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: other\n\
             featureGates: {AllowServiceExternalIPs: false}\niptables: {masqueradeBit: 3, masqueradeAll: true}\n\
             detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n",
        )
        .unwrap();
        let config = format!("--config={}", file.path().display());
        let flags = [
            &config,
            "--iptables-masquerade-bit=7",
            "--detect-local-mode=NodeCIDR",
            "--master=https://a",
        ];
        let settings = settings(&flags).unwrap();
        assert_eq!(settings.masquerade_bit, 3);
        assert_eq!(&*settings.model.node_name, "n1");
        assert!(settings.model.masquerade_all && !settings.model.allow_external_ips);
        assert_eq!(
            settings.model.detect_local,
            DetectLocal::InterfaceNamePrefix("veth".into())
        );
        assert!(matches!(settings.source, Source::Api { master: Some(url), .. } if url == "https://a"));
        assert!(settings.config_file.is_some());
    }

    #[test]
    fn servers_and_the_start_are_told() {
        let told = settings(&[]).unwrap();
        assert_eq!(told.servers.healthz, ServerSettings::default().healthz);
        assert_eq!(told.servers.metrics, ServerSettings::default().metrics);
        assert_eq!(told.start.oom_score_adj, Some(-999));
        assert_eq!(
            told.start.conntrack,
            ConntrackSettings {
                max_per_core: 32_768,
                min: 131_072,
                tcp_established_timeout: Duration::from_secs(86_400),
                tcp_close_wait_timeout: Duration::from_secs(3_600),
                ..ConntrackSettings::default()
            }
        );
        assert_eq!((told.model.node_ip, told.start.init_only), (None, false));
        let told = settings(&[
            "--healthz-bind-address=[fd00::1]:1",
            "--metrics-port=0",
            "--bind-address-hard-fail",
            "--profiling",
            "--init-only",
            "--bind-address=10.0.0.1",
            "--conntrack-tcp-be-liberal",
            "--oom-score-adj=0",
        ])
        .unwrap();
        assert_eq!(told.servers.healthz, "[fd00::1]:1".parse().ok());
        assert_eq!(told.servers.metrics, None);
        assert!(told.servers.hard_fail && told.servers.profiling);
        assert_eq!(told.model.node_ip, "10.0.0.1".parse().ok());
        assert!(told.start.init_only && told.start.conntrack.tcp_be_liberal);
        assert_eq!(told.start.oom_score_adj, Some(0));
        assert!(told.servers.status && told.servers.flags.is_some());
        let configz = told.servers.configuration.pointer("/kubeproxy.config.k8s.io/mode");
        assert_eq!(configz.and_then(serde_json::Value::as_str), Some("ipvs"));
    }

    #[test]
    fn localhost_among_the_addresses_of_node_ports_is_noticed() {
        let check = |list: &str, expect| {
            let flag = format!("--nodeport-addresses={list}");
            assert_eq!(settings(&[&flag]).unwrap().localhost, expect, "{list}");
        };
        check("", LocalhostNodePorts::NotNamed);
        check("primary,127.0.0.0/8", LocalhostNodePorts::NotNamed);
        check("primary,localhost", LocalhostNodePorts::Named);
        check("localhost", LocalhostNodePorts::Alone);
    }

    #[test]
    fn pages_go_with_their_feature_gates() {
        let told = settings(&["--feature-gates=ComponentFlagz=false"]).unwrap();
        assert!(told.servers.status && told.servers.flags.is_none());
        let told = settings(&["--feature-gates=ComponentStatusz=false"]).unwrap();
        assert!(!told.servers.status && told.servers.flags.is_some());
        assert_eq!(told.gates.len(), 5);
    }

    /// Each mode has its own periods, also where it is the fallback of the other.
    #[test]
    fn periods_are_those_of_the_mode_that_serves() {
        let periods = |flags: &[&str]| {
            let settings = settings(flags).unwrap();
            let fallback = settings.iptables_periods.min_sync.as_secs();
            (settings.periods.min_sync.as_secs(), fallback)
        };
        // kube-proxy's flags would give the IPVS mode the iptables mode's second.
        assert_eq!(periods(&[]), (0, 1));
        let flags = ["--ipvs-min-sync-period=2s", "--iptables-min-sync-period=3s"];
        assert_eq!(periods(&flags), (2, 3));
        assert_eq!(periods(&[&flags[..], &["--proxy-mode=iptables"]].concat()), (3, 3));
        let served = settings(&flags).unwrap().for_iptables();
        assert_eq!(served.periods.min_sync.as_secs(), 3);
        assert_eq!(served.model.capture, served.redirect);
    }

    /// Invariant 8: `plan` and the daemon are compared by `tests/kernel` with each of these command lines. Each setting
    /// that decides what is programmed is another one in some of them. A new field stops this from compiling: it is to
    /// be named among the facts and varied there, or among what has no effect on a plan.
    #[test]
    fn plan_is_tried_with_every_setting() {
        let facts = |line: &str| {
            let flags: Vec<_> = ["--manifests=m"].into_iter().chain(line.split_whitespace()).collect();
            let Settings {
                model:
                    Config {
                        node_name,
                        scheduler,
                        node_port_addresses,
                        node_ip,
                        allow_external_ips,
                        masquerade_all,
                        detect_local,
                        capture,
                        limits,
                        allowed_schedulers,
                        external_ip_ranges,
                        load_balancer_ip_ranges,
                        // Of the node, not of the configuration.
                        families: _,
                    },
                mode,
                mode_origin: _,
                // A warning; the addresses themselves are in the model.
                localhost: _,
                gates: _,
                masquerade_bit,
                vip_addresses,
                start:
                    StartSettings {
                        conntrack:
                            ConntrackSettings {
                                tcp_be_liberal,
                                max_per_core: _,
                                min: _,
                                tcp_established_timeout: _,
                                tcp_close_wait_timeout: _,
                                udp_timeout: _,
                                udp_stream_timeout: _,
                            },
                        oom_score_adj: _,
                        init_only: _,
                    },
                // `capture` of the fallback; that of the iptables mode is among the facts.
                redirect: _,
                // A plan is of an empty node, where nothing drains.
                drain_timeout: _,
                source: _,
                fallback: _,
                periods: _,
                iptables_periods: _,
                strict_arp: _,
                timeouts: _,
                dry_run: _,
                forward_accept: _,
                deny_exec: _,
                second_instance: _,
                old_sysctls: _,
                config_file: _,
                servers: _,
            } = settings(&flags).unwrap();
            [
                ("node_name", node_name.to_string()),
                ("scheduler", scheduler.to_string()),
                ("node_port_addresses", format!("{node_port_addresses:?}")),
                ("node_ip", format!("{node_ip:?}")),
                ("allow_external_ips", allow_external_ips.to_string()),
                ("masquerade_all", masquerade_all.to_string()),
                ("detect_local", format!("{detect_local:?}")),
                ("capture", format!("{capture:?}")),
                ("limits", format!("{limits:?}")),
                ("allowed_schedulers", format!("{allowed_schedulers:?}")),
                ("external_ip_ranges", format!("{external_ip_ranges:?}")),
                ("load_balancer_ip_ranges", format!("{load_balancer_ip_ranges:?}")),
                ("mode", mode.to_string()),
                ("masquerade_bit", masquerade_bit.to_string()),
                ("vip_addresses", vip_addresses.to_string()),
                ("tcp_be_liberal", tcp_be_liberal.to_string()),
            ]
        };
        let lines = include_str!("../../../tests/kernel/plan-settings.txt").lines();
        let varied: Vec<_> = lines.filter(|line| !line.starts_with('#')).map(facts).collect();
        for default in facts("") {
            assert!(
                varied.iter().any(|facts| !facts.contains(&default)),
                "no line of tests/kernel/plan-settings.txt has another {}",
                default.0
            );
        }
    }

    #[test]
    fn bad_input_is_named() {
        let check = |flag: &str, expect: &str| {
            let error = format!("{:#}", settings(&["--manifests=m", flag]).expect_err(flag));
            assert!(error.contains(expect), "{error}");
        };
        check("--proxy-mode=userspace", "must be iptables, ipvs");
        check("--proxy-mode=nftables", "kube-proxy has nftables");
        check("--ipvs-min-sync-period=soon", "invalid duration");
        check("--kubeconfig=x", "cannot be used with");
    }
}
