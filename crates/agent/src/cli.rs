//! The command line. Flags keep kube-proxy's names; those that stand for a field of a configuration are in
//! [`config`](crate::config), row by row.
//!
//! Images have the program as `/usr/local/bin/kube-proxy`, too. The usage lines show the name by which it was called;
//! nothing else depends on that name. Version, log, events and user agent always say kube-ipvs.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{Flags, ForwardAccept, LogFlags, OwnFlags, ProxyFlags, RunFlags, ServiceFlags, parse_bool};

/// Exit status for every error, as kube-proxy's.
pub(crate) const EXIT_ERROR: u8 = 1;
/// Exit status where IPVS cannot be used and `--fallback=none`.
pub(crate) const EXIT_NO_IPVS: u8 = 3;
/// Exit status of `plan` where some objects were rejected.
pub(crate) const EXIT_REJECTED: u8 = 2;
/// Exit status where the reader of standard output went before the end: what a shell shows of a program that SIGPIPE
/// ended.
pub(crate) const EXIT_READER_GONE: u8 = 141;

/// Kubernetes Service proxy on IPVS: takes kube-proxy's place on a node.
///
/// Without a command it is the daemon.
#[derive(Debug, Parser)]
#[command(
    name = "kube-ipvs",
    version,
    args_conflicts_with_subcommands = true,
    // Of a flag that is given twice the last one stands, as in Go.
    args_override_self = true,
    after_help = "\
Exit status: 0 ended by SIGTERM or SIGINT, or did what was asked; 1 any error, printed as one chain; \
2 `plan` printed a plan but some objects or fields were rejected (named on standard error); \
3 the kernel lacks what the IPVS mode needs and --fallback=none; \
141 the reader of standard output went before the end, as in `kube-ipvs plan … | head`.\n\n\
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
    ///
    /// It takes the configuration of the daemon, by the same flags or the same file.
    #[command(args_override_self = true)]
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

impl Cli {
    /// Reads a command line by the rules of Go's pflag: `--flag=value`, `--flag value`, booleans with `=` only, and `_`
    /// for `-` in names.
    ///
    /// # Errors
    /// It is wrong, or asks for help or the version.
    pub(crate) fn parse_from_go(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(with_dashes(arguments))?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.daemon.all_flags = flag_values(&command, &matches);
        Ok(cli)
    }
}

/// `--proxy_mode=x` is `--proxy-mode=x`.
fn with_dashes(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut are_flags = true;
    arguments.map(move |argument| {
        are_flags &= argument != "--";
        match argument.to_str() {
            Some(text) if are_flags && text.starts_with("--") => {
                let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                format!("{}{value}", name.replace('_', "-")).into()
            }
            _ => argument,
        }
    })
}

/// Name and value of each flag, given or not.
fn flag_values(command: &clap::Command, matches: &ArgMatches) -> Vec<(String, String)> {
    let value = |id: &str| {
        let raw = matches.try_get_raw(id).ok().flatten().unwrap_or_default();
        let texts: Vec<_> = raw.map(|text| text.to_string_lossy()).collect();
        texts.join(",")
    };
    command
        .get_arguments()
        .filter_map(|argument| Some((argument.get_long()?.to_owned(), value(argument.get_id().as_str()))))
        .filter(|(name, _)| !["help", "version"].contains(&name.as_str()))
        .collect()
}

fn go_bool(text: &str) -> Result<bool, &'static str> {
    parse_bool(text).ok_or("must be true or false")
}

/// Where the configuration comes from: flags, or a file with a few flags beside it.
#[derive(Debug, Default, Args)]
pub(crate) struct ConfigurationArgs {
    /// File with a KubeProxyConfiguration, and perhaps a KubeIpvsConfiguration as its second document; the flags that it
    /// covers are then ignored, except --hostname-override and those of logging. When it changes the daemon ends.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Write the configuration with all its defaults to this file and exit.
    #[arg(long, value_name = "FILE")]
    pub(crate) write_config_to: Option<PathBuf>,
    /// Deprecated: port of --healthz-bind-address where that has none; 0 = not served.
    #[arg(long, value_name = "PORT", hide = true, allow_hyphen_values = true)]
    pub(crate) healthz_port: Option<i32>,
    /// Deprecated: port of --metrics-bind-address where that has none; 0 = not served.
    #[arg(long, value_name = "PORT", hide = true, allow_hyphen_values = true)]
    pub(crate) metrics_port: Option<i32>,
    /// Accepted without effect: a leftover in kube-proxy, too.
    #[arg(long, value_name = "FILES", hide = true)]
    pub(crate) boot_id_file: Option<String>,
    /// Accepted without effect: a leftover in kube-proxy, too.
    #[arg(long, value_name = "FILES", hide = true)]
    pub(crate) machine_id_file: Option<String>,
    #[command(flatten)]
    pub(crate) service: Flags<ServiceFlags>,
    #[command(flatten)]
    pub(crate) proxy: Flags<ProxyFlags>,
    #[command(flatten)]
    pub(crate) own: Flags<OwnFlags>,
    #[command(flatten)]
    pub(crate) run: Flags<RunFlags>,
    #[command(flatten)]
    pub(crate) log: Flags<LogFlags>,
}

/// Settings of the daemon.
#[derive(Debug, Default, Args)]
pub(crate) struct DaemonArgs {
    /// Remove all that kube-ipvs and kube-proxy made on this node and exit: `kube-ipvs cleanup --kube-proxy`.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = go_bool)]
    pub(crate) cleanup: bool,
    /// Do what needs full privileges and exit: the daemon needs CAP_NET_ADMIN only after that.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = go_bool)]
    pub(crate) init_only: bool,
    /// URL of the API server; overrides the one in the kubeconfig.
    #[arg(long, value_name = "URL")]
    pub(crate) master: Option<String>,
    /// Read Services, EndpointSlices and Nodes from a directory of YAML or JSON files and follow it, instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"])]
    pub(crate) manifests: Option<PathBuf>,
    /// Print each plan instead of executing it; nothing is written.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = go_bool)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    /// Name and value of each flag.
    #[arg(skip)]
    pub(crate) all_flags: Vec<(String, String)>,
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
    pub(crate) run: Flags<RunFlags>,
    #[command(flatten)]
    pub(crate) log: Flags<LogFlags>,
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
    pub(crate) log: Flags<LogFlags>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Directory of YAML or JSON files with Services, EndpointSlices and Nodes.
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: PathBuf,
    /// An address of the node's interfaces, for NodePorts; repeat or separate by commas. Default: the Node object's.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Form of the plan.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines that the standard tools take.
    #[default]
    Text,
    /// One JSON object with `ops` and `rejections`.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(called: &str, arguments: &[&str]) -> String {
        let words = std::iter::once(&called).chain(arguments).map(OsString::from);
        Cli::parse_from_go(words)
            .expect_err("help is no command line")
            .to_string()
    }

    /// As the image has it for kube-proxy's own DaemonSet.
    #[test]
    fn usage_shows_the_name_by_which_it_was_called() {
        for (called, name) in [("/usr/local/bin/kube-proxy", "kube-proxy"), ("kube-ipvs", "kube-ipvs")] {
            assert!(usage(called, &["--help"]).contains(&format!("Usage: {name} [OPTIONS]")));
            assert!(usage(called, &["plan", "--help"]).contains(&format!("Usage: {name} plan")));
            assert!(usage(called, &["--no-such-flag"]).contains(&format!("Usage: {name}")));
            let version = concat!("kube-ipvs ", env!("CARGO_PKG_VERSION"), "\n");
            assert_eq!(usage(called, &["--version"]), version);
        }
    }
}
