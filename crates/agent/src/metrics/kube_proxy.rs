//! kube-proxy's own metrics: names, labels, buckets and help are those of Kubernetes 1.37 (pkg/proxy/metrics).

use std::fmt;
use std::sync::atomic::AtomicU64;

use dataplane::iptables::Table;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use service_model::{AddressKind, Family};

use super::histogram::{Histogram, exponential, linear};
use super::page::{Each, IP_FAMILIES, Labels, Page};
use crate::mode::Mode;

/// A gauge of any number.
pub(crate) type Number = Gauge<f64, AtomicU64>;

const CODES: [Labels; 2] = [&[("code", "200")], &[("code", "503")]];
/// By traffic policy, then family.
const LOCAL_POLICIES: [Labels; 4] = [
    &[("traffic_policy", "internal"), ("ip_family", "IPv4")],
    &[("traffic_policy", "internal"), ("ip_family", "IPv6")],
    &[("traffic_policy", "external"), ("ip_family", "IPv4")],
    &[("traffic_policy", "external"), ("ip_family", "IPv6")],
];
/// By family, then table.
const TABLES: [Labels; 4] = [
    &[("table", "filter"), ("ip_family", "IPv4")],
    &[("table", "nat"), ("ip_family", "IPv4")],
    &[("table", "filter"), ("ip_family", "IPv6")],
    &[("table", "nat"), ("ip_family", "IPv6")],
];

/// Metrics of every mode.
#[derive(Debug)]
pub(crate) struct KubeProxy {
    pub(crate) sync_duration: Each<Histogram, 2>,
    pub(crate) last_timestamp: Each<Number, 2>,
    pub(crate) last_queued_timestamp: Each<Number, 2>,
    pub(crate) network_programming: Each<Histogram, 2>,
    pub(crate) endpoint_changes_pending: Number,
    pub(crate) endpoint_changes: Counter,
    pub(crate) service_changes_pending: Number,
    pub(crate) service_changes: Counter,
    /// By [`local_policy`].
    pub(crate) no_local_endpoints: Each<Number, 4>,
    pub(crate) restore_failures: Each<Counter, 2>,
    pub(crate) conntrack_duration: Each<Histogram, 2>,
    pub(crate) conntrack_deleted: Each<Counter, 2>,
    /// 200, 503.
    pub(crate) healthz: Each<Counter, 2>,
    pub(crate) livez: Each<Counter, 2>,
    /// Of the iptables mode alone.
    pub(crate) iptables: Option<Iptables>,
}

/// Metrics of the iptables mode.
#[derive(Debug)]
pub(crate) struct Iptables {
    pub(crate) full_duration: Each<Histogram, 2>,
    pub(crate) partial_duration: Each<Histogram, 2>,
    pub(crate) partial_failures: Each<Counter, 2>,
    /// By [`table`].
    pub(crate) rules: Each<Number, 4>,
    pub(crate) rules_last: Each<Number, 4>,
}

/// Number of a series of `no_local_endpoints`: which policy holds at an address, and its family.
pub(crate) fn local_policy(kind: AddressKind, family: Family) -> usize {
    let policy = match kind {
        AddressKind::ClusterIp | AddressKind::Insiders => 0,
        AddressKind::NodePort | AddressKind::LoadBalancer | AddressKind::ExternalIp => 2,
    };
    policy + family as usize
}

/// Number of a series of rules.
pub(crate) fn table(family: Family, table: Table) -> usize {
    family as usize * 2 + table as usize
}

fn sync_seconds() -> Histogram {
    Histogram::new(exponential(0.001, 2.0, 15))
}

/// Up to five minutes, as the service level objective asks (kubernetes/community, network_programming_latency.md).
fn programming_seconds() -> Histogram {
    let bounds = linear(0.25, 0.25, 2).chain(linear(1.0, 1.0, 59));
    Histogram::new(bounds.chain(linear(60.0, 5.0, 12)).chain(linear(120.0, 30.0, 7)))
}

impl KubeProxy {
    pub(crate) fn new(mode: Mode) -> Self {
        let iptables = || Iptables {
            full_duration: Each::new(IP_FAMILIES, sync_seconds),
            partial_duration: Each::new(IP_FAMILIES, sync_seconds),
            partial_failures: Each::new(IP_FAMILIES, Counter::default),
            rules: Each::new(TABLES, Number::default),
            rules_last: Each::new(TABLES, Number::default),
        };
        Self {
            sync_duration: Each::new(IP_FAMILIES, sync_seconds),
            last_timestamp: Each::new(IP_FAMILIES, Number::default),
            last_queued_timestamp: Each::new(IP_FAMILIES, Number::default),
            network_programming: Each::new(IP_FAMILIES, programming_seconds),
            endpoint_changes_pending: Number::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Number::default(),
            service_changes: Counter::default(),
            no_local_endpoints: Each::new(LOCAL_POLICIES, Number::default),
            restore_failures: Each::new(IP_FAMILIES, Counter::default),
            conntrack_duration: Each::new(IP_FAMILIES, sync_seconds),
            conntrack_deleted: Each::new(IP_FAMILIES, Counter::default),
            healthz: Each::new(CODES, Counter::default),
            livez: Each::new(CODES, Counter::default),
            iptables: (mode == Mode::Iptables).then(iptables),
        }
    }

    pub(super) fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        page.put(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler",
            &self.conntrack_deleted,
        )?;
        page.put(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds",
            &self.conntrack_duration,
        )?;
        page.put(
            "kubeproxy_network_programming_duration_seconds",
            "[ALPHA] In Cluster Network Programming Latency in seconds",
            &self.network_programming,
        )?;
        page.put(
            "kubeproxy_proxy_healthz_total",
            "[ALPHA] Cumulative proxy healthz HTTP status",
            &self.healthz,
        )?;
        page.put(
            "kubeproxy_proxy_livez_total",
            "[ALPHA] Cumulative proxy livez HTTP status",
            &self.livez,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "[ALPHA] SyncProxyRules latency in seconds",
            &self.sync_duration,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "[ALPHA] Pending proxy rules Endpoint changes",
            &self.endpoint_changes_pending,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "[ALPHA] Cumulative proxy rules Endpoint changes",
            &self.endpoint_changes,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "[ALPHA] Cumulative proxy iptables restore failures",
            &self.restore_failures,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "[ALPHA] The last time a sync of proxy rules was queued",
            &self.last_queued_timestamp,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "[ALPHA] The last time proxy rules were successfully synced",
            &self.last_timestamp,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "[ALPHA] Number of services with a Local traffic policy and no endpoints",
            &self.no_local_endpoints,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "[ALPHA] Pending proxy rules Service changes",
            &self.service_changes_pending,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "[ALPHA] Cumulative proxy rules Service changes",
            &self.service_changes,
        )?;
        self.iptables.as_ref().map_or(Ok(()), |iptables| iptables.write(page))
    }
}

impl Iptables {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        page.put(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "[ALPHA] SyncProxyRules latency in seconds for full resyncs",
            &self.full_duration,
        )?;
        page.put(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "[ALPHA] SyncProxyRules latency in seconds for partial resyncs",
            &self.partial_duration,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_iptables_last",
            "[ALPHA] Number of iptables rules written by kube-proxy in last sync",
            &self.rules_last,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "[ALPHA] Cumulative proxy iptables partial restore failures",
            &self.partial_failures,
        )?;
        page.put(
            "kubeproxy_sync_proxy_rules_iptables_total",
            "[ALPHA] Total number of iptables rules owned by kube-proxy",
            &self.rules,
        )
    }
}
