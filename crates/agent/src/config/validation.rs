//! What kube-proxy refuses, found all at once, in its words: field, value, reason.

use std::fmt;

use serde_json::json;

use super::address;
use super::duration::GoDuration;
use super::feature_gate::{self, LOGGING_ALPHA_OPTIONS, LOGGING_BETA_OPTIONS};
use super::kube_proxy::KubeProxyConfiguration;
use super::node_port_address::NodePortAddress;
use super::own::KubeIpvsConfiguration;

/// Longest name of an interface, without its NUL (linux/if.h `IFNAMSIZ`).
const INTERFACE_NAME: usize = 15;

/// No metric is hidden here, so every release is as good as another; upstream takes the one before its own.
const MINOR_RELEASE: &str =
    "--show-hidden-metrics-for-version must be omitted or name a minor release of Kubernetes, such as '1.36'";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const CIDR_PAIR: &str =
    "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]";
const LOCAL_MODES: [&str; 5] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", ""];

/// A value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    field: String,
    /// Value and reason.
    complaint: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.complaint)
    }
}

/// The errors so far.
#[derive(Default)]
struct Errors(Vec<Invalid>);

impl Errors {
    fn add(&mut self, field: impl Into<String>, complaint: impl Into<String>) {
        self.0.push(Invalid {
            field: field.into(),
            complaint: complaint.into(),
        });
    }

    fn number(&mut self, field: &str, value: i64, reason: &str) {
        self.add(field, format!("Invalid value: {value}: {reason}"));
    }

    fn text(&mut self, field: impl Into<String>, value: impl fmt::Display, reason: &str) {
        self.add(field, format!("Invalid value: {:?}: {reason}", value.to_string()));
    }

    fn forbidden(&mut self, field: &str, reason: &str) {
        self.add(field, format!("Forbidden: {reason}"));
    }

    fn within(&mut self, field: &str, value: i32, least: i32, most: i32) {
        if !(least..=most).contains(&value) {
            self.number(
                field,
                value.into(),
                &format!("must be within the range [{least}, {most}]"),
            );
        }
    }

    fn not_negative(&mut self, field: &str, value: GoDuration) {
        if value.is_negative() {
            self.text(field, value, NOT_NEGATIVE);
        }
    }
}

/// All that is wrong, in a complete configuration.
pub(super) fn validate(config: &KubeProxyConfiguration, own: &KubeIpvsConfiguration) -> Vec<Invalid> {
    let mut errors = Errors::default();
    mode(&mut errors, config);
    periods(&mut errors, config);
    numbers(&mut errors, config);
    addresses(&mut errors, config);
    local_traffic(&mut errors, config);
    logging(&mut errors, config);
    let shown = &config.show_hidden_metrics_for_version;
    if !shown.is_empty() && !is_minor_release(shown) {
        errors.text("showHiddenMetricsForVersion", shown, MINOR_RELEASE);
    }
    own_fields(&mut errors, own);
    errors.0
}

fn own_fields(errors: &mut Errors, own: &KubeIpvsConfiguration) {
    errors.not_negative("drainTimeout", own.drain_timeout);
    let limits = &own.limits;
    errors.within(
        "limits.realServersPerService",
        limits.real_servers_per_service,
        1,
        i32::MAX,
    );
    errors.within(
        "limits.sourceRangesPerService",
        limits.source_ranges_per_service,
        1,
        i32::MAX,
    );
    for (at, name) in own.allowed_schedulers.iter().enumerate() {
        if let Err(error) = name.parse::<service_model::Scheduler>() {
            errors.add(format!("allowedSchedulers[{at}]"), error.to_string());
        }
    }
    for (field, ranges) in [
        ("externalIPRanges", &own.external_ip_ranges),
        ("loadBalancerIPRanges", &own.load_balancer_ip_ranges),
    ] {
        for (at, range) in ranges
            .iter()
            .enumerate()
            .filter(|(_, range)| address::cidr(range).is_none())
        {
            errors.text(format!("{field}[{at}]"), range, "must be a valid CIDR");
        }
    }
}

/// `MAJOR.MINOR`.
fn is_minor_release(text: &str) -> bool {
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u32>().is_ok();
    text.split_once('.')
        .is_some_and(|(major, minor)| number(major) && number(minor))
}

fn mode(errors: &mut Errors, config: &KubeProxyConfiguration) {
    match config.mode.as_str() {
        "iptables" => {}
        "ipvs" => {
            errors.not_negative("ipvs.tcpTimeout", config.ipvs.tcp_timeout);
            errors.not_negative("ipvs.tcpFinTimeout", config.ipvs.tcp_fin_timeout);
            errors.not_negative("ipvs.udpTimeout", config.ipvs.udp_timeout);
            for (at, cidr) in config.ipvs.exclude_cidrs.iter().enumerate() {
                if address::cidr(cidr).is_none() {
                    errors.text(format!("ipvs.excludeCIDRs[{at}]"), cidr, "must be a valid CIDR");
                }
            }
            // Upstream finds out at the first Service.
            let name = config.ipvs.scheduler.trim();
            if let Some(Err(error)) = (!name.is_empty()).then(|| name.parse::<service_model::Scheduler>()) {
                errors.add("ipvs.scheduler", error.to_string());
            }
        }
        "nftables" => errors.text(
            "mode",
            "nftables",
            "this program has the modes ipvs and iptables, kube-proxy has nftables",
        ),
        other => errors.text(
            "mode",
            other,
            "must be iptables, ipvs, nftables or blank (blank means ipvs; nftables is kube-proxy's only)",
        ),
    }
}

fn periods(errors: &mut Errors, config: &KubeProxyConfiguration) {
    if config.config_sync_period <= GoDuration::default() {
        errors.text("configSyncPeriod", config.config_sync_period, "must be greater than 0");
    }
    let of = if config.mode == "ipvs" { "ipvs" } else { "iptables" };
    let (sync, least) = config.periods();
    if sync <= GoDuration::default() {
        errors.text(format!("{of}.syncPeriod"), sync, "must be greater than 0");
    }
    errors.not_negative(&format!("{of}.minSyncPeriod"), least);
    if least > sync {
        // The value is the other one, as upstream has it.
        let reason = format!("must be greater than or equal to {of}.minSyncPeriod");
        errors.text(format!("{of}.syncPeriod"), least, &reason);
    }
}

fn numbers(errors: &mut Errors, config: &KubeProxyConfiguration) {
    errors.within("iptables.masqueradeBit", config.iptables.masquerade_bit, 0, 31);
    errors.within("oomScoreAdj", config.oom_score_adj, -1000, 1000);
    let conntrack = &config.conntrack;
    for (field, value) in [
        ("conntrack.maxPerCore", conntrack.max_per_core),
        ("conntrack.min", conntrack.min),
        ("clientConnection.burst", config.client_connection.burst),
    ] {
        if value < 0 {
            errors.number(field, value.into(), NOT_NEGATIVE);
        }
    }
    errors.not_negative("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout);
    errors.not_negative("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout);
    errors.not_negative("conntrack.udpTimeout", conntrack.udp_timeout);
    errors.not_negative("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout);
}

fn addresses(errors: &mut Errors, config: &KubeProxyConfiguration) {
    if address::ip(&config.bind_address).is_none() {
        let reason = "not a valid textual representation of an IP address";
        errors.text("bindAddress", &config.bind_address, reason);
    }
    // Blank = not served.
    for (field, value) in [
        ("healthzBindAddress", &config.healthz_bind_address),
        ("metricsBindAddress", &config.metrics_bind_address),
    ] {
        match address::split_host_port(value) {
            None if value.is_empty() => {}
            None => errors.text(field, value, "must be IP:port"),
            Some((host, port)) => {
                if address::ip(host).is_none() {
                    errors.text(field, host, "must be a valid IP");
                }
                if address::port_number(port).is_none() {
                    errors.text(field, port, "must be a valid port");
                }
            }
        }
    }
    node_port_addresses(errors, &config.node_port_addresses);
}

fn node_port_addresses(errors: &mut Errors, list: &[String]) {
    for (at, text) in list.iter().enumerate() {
        let field = format!("nodePortAddresses[{at}]");
        match NodePortAddress::read(text) {
            None => {
                let reason = format!(
                    "must be a valid CIDR or one of the keywords {}",
                    NodePortAddress::KEYWORDS
                        .map(|(word, _)| format!("'{word}'"))
                        .join(", ")
                );
                errors.text(field, text, &reason);
            }
            Some(NodePortAddress::Cidr(_)) => {}
            Some(_) if list.iter().take(at).any(|before| before == text) => {
                errors.add(field, format!("Duplicate value: {text:?}"));
            }
            Some(_) => {}
        }
    }
}

fn local_traffic(errors: &mut Errors, config: &KubeProxyConfiguration) {
    let mut interface = |field: &str, name: &str| {
        if name.is_empty() {
            errors.text(field, name, "must not be empty");
        } else if name.len() > INTERFACE_NAME {
            errors.text(field, name, "is longer than 15 bytes, which no interface name is");
        }
    };
    match config.detect_local_mode.as_str() {
        "BridgeInterface" => interface("detectLocal.bridgeInterface", &config.detect_local.bridge_interface),
        "InterfaceNamePrefix" => {
            interface(
                "detectLocal.interfaceNamePrefix",
                &config.detect_local.interface_name_prefix,
            );
        }
        "NodeCIDR" => {}
        "ClusterCIDR" => cluster_cidrs(errors, &config.cluster_cidr),
        other => {
            let modes = LOCAL_MODES.map(|mode| format!("{mode:?}")).join(", ");
            errors.add(
                "detectLocalMode",
                format!("Unsupported value: {other:?}: supported values: {modes}"),
            );
        }
    }
}

/// Empty, one CIDR, or one of each family.
fn cluster_cidrs(errors: &mut Errors, text: &str) {
    if text.is_empty() {
        return;
    }
    let cidrs: Vec<_> = text.split(',').collect();
    if cidrs.len() > 2 {
        errors.add("clusterCIDR", format!("Invalid value: {}: {CIDR_PAIR}", json!(cidrs)));
        return;
    }
    let mut families = Vec::new();
    for (at, cidr) in cidrs.iter().enumerate() {
        match address::cidr(cidr) {
            Some(cidr) => families.push(cidr.addr().is_ipv4()),
            None => errors.text(
                format!("clusterCIDR[{at}]"),
                cidr,
                "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
            ),
        }
    }
    if let [first, second] = families.as_slice()
        && first == second
    {
        errors.add("clusterCIDR", format!("Invalid value: {}: {CIDR_PAIR}", json!(cidrs)));
    }
}

fn logging(errors: &mut Errors, config: &KubeProxyConfiguration) {
    let logging = &config.logging;
    let gates = &config.feature_gates;
    match logging.format.as_str() {
        "text" => {}
        "json" => {
            if !feature_gate::enabled(gates, LOGGING_BETA_OPTIONS) {
                let reason = format!("Log format json is disabled, see {LOGGING_BETA_OPTIONS} feature");
                errors.forbidden("logging.format", &reason);
            }
        }
        other => errors.text("logging.format", other, "Unsupported log format"),
    }
    if logging.format != "text" && !logging.vmodule.is_empty() {
        errors.forbidden("logging.vmodule", "Only supported for text log format");
    }
    let too_verbose = format!("Must be <= {}", i32::MAX);
    if i32::try_from(logging.verbosity).is_err() {
        errors.number("logging.verbosity", logging.verbosity.into(), &too_verbose);
    }
    for (at, item) in logging.vmodule.iter().enumerate() {
        let field = format!("logging.vmodule[{at}]");
        if item.file_pattern.is_empty() {
            errors.add(&field, "Required value: File pattern must not be empty");
        }
        if item.file_pattern.contains(['=', ',']) {
            let reason = "File pattern must not contain equal sign or comma";
            errors.text(&field, &item.file_pattern, reason);
        }
        if i32::try_from(item.verbosity).is_err() {
            errors.number(&field, item.verbosity.into(), &too_verbose);
        }
    }
    if !feature_gate::enabled(gates, LOGGING_ALPHA_OPTIONS) {
        let reason = format!("Feature {LOGGING_ALPHA_OPTIONS} is disabled");
        for (format, options) in [("text", &logging.options.text), ("json", &logging.options.json)] {
            if options.split_stream {
                errors.forbidden(&format!("logging.options.{format}.splitStream"), &reason);
            }
            if !options.info_buffer_size.is_zero() {
                errors.forbidden(&format!("logging.options.{format}.infoBufferSize"), &reason);
            }
        }
    }
}

#[cfg(test)]
mod tests;
