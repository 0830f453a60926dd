//! The command line. Flags keep kube-proxy's names (its §"options"); those of ours are named as such.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipvs::OldValues;

use crate::duration::GoDuration;
use crate::mode::Fallback;

/// Exit status for every error, as kube-proxy's.
pub(crate) const EXIT_ERROR: u8 = 1;
/// Exit status where IPVS cannot be used and `--fallback=none`.
pub(crate) const EXIT_NO_IPVS: u8 = 3;
/// Exit status of `plan` where some objects were rejected.
pub(crate) const EXIT_REJECTED: u8 = 2;

/// Kubernetes Service proxy on IPVS: takes kube-proxy's place on a node.
///
/// Without a command it is the daemon.
#[derive(Debug, Parser)]
#[command(
    name = "kube-ipvs",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Exit status: 0 ended by SIGTERM or SIGINT, or did what was asked; 1 any error, printed as one chain; \
2 `plan` printed a plan but some objects or fields were rejected (named on standard error); \
3 the kernel lacks what the IPVS mode needs and --fallback=none.\n\n\
An API server that cannot be reached is no error: the last state stays, a warning tells, and the connection is tried again."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what an empty node would get: `ipvsadm -R` lines, then `ip` lines; in the mode iptables the input of
    /// `iptables-restore`, then that of `ip6tables-restore`. Needs neither root nor IPVS.
    Plan(Box<PlanArgs>),
    /// Remove all that kube-ipvs made on this node. Stop it first.
    ///
    /// VIPs, virtual servers, nf_tables tables and accepts in iptables go, sysctls get their old values. What is removed
    /// is printed, one line each, as the standard tools would be told. What others made stays. Nothing there is fine.
    /// Exit status: 0 nothing is left; 1 something is, listed on standard error.
    Cleanup(CleanupArgs),
    /// Put accepts into the host's iptables where its policies drop: what the daemon does at start.
    #[command(hide = true)]
    HostRules(HostRulesArgs),
}

/// Settings of the daemon.
#[derive(Debug, Default, Args)]
pub(crate) struct DaemonArgs {
    /// Remove all that kube-ipvs and kube-proxy made on this node and exit: `kube-ipvs cleanup --kube-proxy`.
    #[arg(long)]
    pub(crate) cleanup: bool,
    /// File with a KubeProxyConfiguration; the flags it covers are then ignored, except --hostname-override.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// kubeconfig of the API server; neither this nor --master = the pod's own service account.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// URL of the API server; overrides the one in the kubeconfig.
    #[arg(long, value_name = "URL")]
    pub(crate) master: Option<String>,
    /// Proxy mode: ipvs (what "" means here, too) or iptables.
    #[arg(long, value_name = "MODE")]
    pub(crate) proxy_mode: Option<String>,
    /// Between two audits of what the kernel holds; not less than --ipvs-min-sync-period; 0 = 30s.
    #[arg(long, value_name = "DURATION")]
    pub(crate) ipvs_sync_period: Option<GoDuration>,
    /// Smallest gap between two commits, such as 1s; changes meanwhile are folded together. 0 = none.
    #[arg(long, value_name = "DURATION")]
    pub(crate) ipvs_min_sync_period: Option<GoDuration>,
    /// Answer ARP only on the interface that has the address (arp_ignore=1, arp_announce=2).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ipvs_strict_arp: Option<bool>,
    /// Idle time after which IPVS forgets a TCP connection; 0 = leave the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(crate) ipvs_tcp_timeout: Option<GoDuration>,
    /// The same after a FIN; 0 = leave the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(crate) ipvs_tcpfin_timeout: Option<GoDuration>,
    /// The same for UDP; 0 = leave the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(crate) ipvs_udp_timeout: Option<GoDuration>,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// What decides what is programmed for a Service: the daemon and `plan` take the same.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Services")]
pub(crate) struct ServiceArgs {
    /// Name of the node, instead of the host's name.
    #[arg(long, value_name = "NODE")]
    pub(crate) hostname_override: Option<String>,
    /// Scheduler of services that name none: rr lc dh sh sed nq wrr wlc lblc lblcr mh fo ovf twos; "" = rr.
    #[arg(long, value_name = "NAME")]
    pub(crate) ipvs_scheduler: Option<String>,
    /// CIDRs of the node's addresses on which NodePorts answer, or `primary`; empty = all.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub(crate) nodeport_addresses: Vec<String>,
    /// Bit of the packet mark that stands for masquerading, 0 to 31 [default: 14].
    #[arg(long, value_name = "BIT")]
    pub(crate) iptables_masquerade_bit: Option<i32>,
    /// Masquerade every client of a cluster IP.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) masquerade_all: Option<bool>,
    /// NodePorts answer on 127.0.0.1 in the mode iptables [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) iptables_localhost_nodeports: Option<bool>,
    /// How pods of this node are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix;
    /// "" = ClusterCIDR.
    #[arg(long, value_name = "MODE")]
    pub(crate) detect_local_mode: Option<String>,
    /// Pod address range, one CIDR or one of each family, separated by a comma.
    #[arg(long, value_name = "CIDRS")]
    pub(crate) cluster_cidr: Option<String>,
    /// Bridge of this node's pods, for the mode BridgeInterface.
    #[arg(long, value_name = "NAME")]
    pub(crate) pod_bridge_interface: Option<String>,
    /// First letters of the interfaces of this node's pods, for the mode InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) pod_interface_name_prefix: Option<String>,
    /// Feature gates, as Name=true or Name=false; AllowServiceExternalIPs has an effect [default: true].
    #[arg(long, value_name = "GATES", value_delimiter = ',')]
    pub(crate) feature_gates: Vec<String>,
}

/// Settings that kube-proxy does not have; they stand beside --config.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Beyond kube-proxy")]
pub(crate) struct OwnArgs {
    /// Read Services, EndpointSlices and Nodes from a directory of YAML or JSON files and follow it, instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"])]
    pub(crate) manifests: Option<PathBuf>,
    /// Print each plan instead of executing it; nothing is written.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// VIPs are addresses on kube-ipvs0 as well as local routes. false: routes only.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) vip_addresses: bool,
    /// What is done where the kernel lacks what the IPVS mode needs: iptables = its mode, none = exit status 3.
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) fallback: Fallback,
    /// How long a TCP endpoint that is gone may keep its connections before it is removed; 0 = as long as they live. A
    /// Service says otherwise by the annotation kube-ipvs.io/drain-timeout.
    #[arg(long, value_name = "DURATION", default_value = "15m")]
    pub(crate) drain_timeout: GoDuration,
    /// Accept replies of services in iptables' FORWARD chain: auto = where its policy is DROP.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) iptables_forward_accept: ForwardAccept,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Where the daemon keeps what cleanup needs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Beyond kube-proxy")]
pub(crate) struct RunArgs {
    /// Directory of the host in which the old values of sysctls are kept, for cleanup; one that goes with a reboot.
    #[arg(long, value_name = "DIR", default_value = "/run/kube-ipvs")]
    pub(crate) run_dir: PathBuf,
}

impl Default for RunArgs {
    fn default() -> Self {
        Self {
            run_dir: PathBuf::from("/run/kube-ipvs"),
        }
    }
}

impl RunArgs {
    pub(crate) fn old_sysctls(&self) -> OldValues {
        OldValues::at(self.run_dir.join("sysctls"))
    }
}

/// When the host's iptables get accepts of ours (T28).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ForwardAccept {
    /// Where the policy is DROP.
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Also what kube-proxy left: virtual servers of NodePorts, chains of iptables, ipsets, its nf_tables tables. What
    /// the kubelet and network policies have there stays.
    #[arg(long)]
    pub(crate) kube_proxy: bool,
    /// Print what would be removed; nothing is.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

impl From<DaemonArgs> for CleanupArgs {
    /// `--cleanup`: who calls it knows it from kube-proxy, and expects kube-proxy's to go.
    fn from(args: DaemonArgs) -> Self {
        Self {
            kube_proxy: true,
            dry_run: args.own.dry_run,
            run: args.own.run,
            log: args.log,
        }
    }
}

/// Settings of the helper, which knows nothing but these.
#[derive(Debug, Args)]
pub(crate) struct HostRulesArgs {
    /// Remove kube-proxy's chains and ipsets, but for what the other settings want.
    #[arg(long)]
    pub(crate) kube_proxy_leftovers: bool,
    /// As the daemon's.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) iptables_forward_accept: ForwardAccept,
    /// As the daemon's.
    #[arg(long, value_name = "BIT", default_value_t = 14, value_parser = clap::value_parser!(u8).range(..32))]
    pub(crate) iptables_masquerade_bit: u8,
    /// A health-check node port to accept in INPUT, by the same rule; repeat or separate by commas.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub(crate) health_port: Vec<u16>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Verbosity: below 4 one line a commit, 4 every op, 6 and more everything. RUST_LOG overrides it.
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0)]
    pub(crate) verbosity: u8,
    /// Format of the log on standard error.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) logging_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Directory of YAML or JSON files with Services, EndpointSlices and Nodes.
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: PathBuf,
    /// Proxy mode: ipvs (what "" means here, too) or iptables.
    #[arg(long, value_name = "MODE", default_value_t)]
    pub(crate) proxy_mode: String,
    /// An address of the node's interfaces, for NodePorts; repeat or separate by commas. Default: the Node object's.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
    /// As the daemon's.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) vip_addresses: bool,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    /// Form of the plan.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines that the standard tools take.
    #[default]
    Text,
    /// One JSON object with `ops` and `rejections`.
    Json,
}
