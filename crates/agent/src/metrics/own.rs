//! What kube-proxy has no name for: objects, ops, drift, the mode. Prefix `kube_ipvs_`.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use dataplane::{Drift, ObjectKind, Survey};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;

use super::histogram::{Histogram, exponential};
use super::kube_proxy::Number;
use super::page::{Each, Labels, Page};
use crate::mode::Choice;

const DRIFTED: [Labels; 7] = [
    &[("kind", "virtual_server")],
    &[("kind", "real_server")],
    &[("kind", "route")],
    &[("kind", "address")],
    &[("kind", "table")],
    &[("kind", "element")],
    &[("kind", "sysctl")],
];

/// Servers, in the order of [`Own::evicted`].
const SERVERS: [Labels; 3] = [
    &[("server", "healthz")],
    &[("server", "metrics")],
    &[("server", "health_check")],
];

/// Our own metrics.
#[derive(Debug)]
pub(crate) struct Own {
    choice: Choice,
    /// By op and errno, 0 = executed.
    pub(crate) ops: Family<[(&'static str, String); 2], Counter>,
    pub(crate) commit_ops: Histogram,
    /// From the oldest event of a commit to its end.
    pub(crate) commit_age: Histogram,
    pub(crate) audit_duration: Histogram,
    drift: Each<Counter, 7>,
    pub(crate) disturbances: Counter,
    pub(crate) kernel_broken: Counter,
    /// Connections that had to make way, of `/healthz`, `/metrics` and health-check node ports.
    pub(crate) evicted: Each<Counter, 3>,
    pub(crate) rejections: Number,
    /// What the sync thread counted last.
    pub(crate) survey: ArcSwap<Survey>,
}

impl Own {
    pub(crate) fn new(choice: Choice) -> Self {
        let seconds = || Histogram::new(exponential(0.001, 2.0, 15));
        Self {
            choice,
            ops: Family::default(),
            commit_ops: Histogram::new(exponential(1.0, 4.0, 10)),
            commit_age: seconds(),
            audit_duration: seconds(),
            drift: Each::new(DRIFTED, Counter::default),
            disturbances: Counter::default(),
            kernel_broken: Counter::default(),
            evicted: Each::new(SERVERS, Counter::default),
            rejections: Number::default(),
            survey: ArcSwap::default(),
        }
    }

    /// What somebody else changed, and we repair.
    pub(crate) fn drifted(&self, drift: Drift) {
        let counts = [
            drift.virtual_servers,
            drift.real_servers,
            drift.routes,
            drift.addresses,
            drift.tables,
            drift.elements,
            drift.sysctls,
        ];
        for (counter, count) in self.drift.metrics().zip(counts) {
            counter.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn write(&self, page: &mut Page<'_>, queue_age: f64) -> fmt::Result {
        let survey = self.survey.load();
        page.put(
            "kube_ipvs_audit_duration_seconds",
            "How long an audit read the kernel.",
            &self.audit_duration,
        )?;
        page.put(
            "kube_ipvs_commit_age_seconds",
            "From the arrival of the oldest change of a commit to the end of the commit.",
            &self.commit_age,
        )?;
        page.put(
            "kube_ipvs_commit_ops",
            "Ops of a commit that wrote something.",
            &self.commit_ops,
        )?;
        page.put(
            "kube_ipvs_disturbances_total",
            "How often a change by others to what kube-ipvs programmed was told at once by the kernel.",
            &self.disturbances,
        )?;
        page.put(
            "kube_ipvs_draining_real_servers",
            "Real servers of weight 0 that wait until their connections end.",
            &ConstGauge::new(survey.draining),
        )?;
        page.put(
            "kube_ipvs_drift_repaired_total",
            "Objects of kube-ipvs that somebody else removed, changed or added, by kind.",
            &self.drift,
        )?;
        page.put(
            "kube_ipvs_http_connections_evicted_total",
            "Connections that were ended, since their server, or their source's share of it, was full.",
            &self.evicted,
        )?;
        page.put(
            "kube_ipvs_kernel_broken_total",
            "How often the way to the kernel broke and everything was read again.",
            &self.kernel_broken,
        )?;
        page.gauges(
            "kube_ipvs_objects",
            "Objects in the kernel by kind and state: wanted, present, or refused and waiting for the next try.",
            states(&survey),
        )?;
        page.put(
            "kube_ipvs_ops_total",
            "Changes sent to the kernel, by what they change and the errno that answered; 0 = executed.",
            &self.ops,
        )?;
        let mode = [
            ("requested", self.choice.requested.to_string()),
            ("effective", self.choice.effective.to_string()),
        ];
        page.gauges(
            "kube_ipvs_proxy_mode",
            "A constant '1' labeled by the mode that was asked for and the mode in use.",
            [(mode, 1.0)],
        )?;
        page.put(
            "kube_ipvs_queue_age_seconds",
            "Age of the oldest change that is not programmed yet; 0 = none waits.",
            &ConstGauge::new(queue_age),
        )?;
        page.put(
            "kube_ipvs_rejections",
            "Objects and fields of the API that cannot be programmed.",
            &self.rejections,
        )
    }
}

#[allow(clippy::cast_precision_loss, reason = "no node has 2^52 objects")]
fn states(survey: &Arc<Survey>) -> impl Iterator<Item = ([(&'static str, &'static str); 2], f64)> {
    let has_objects = survey.rules.is_empty();
    let kinds = ObjectKind::ALL.into_iter().filter(move |_| has_objects);
    kinds.flat_map(|kind| {
        let counts = survey.of(kind);
        let states = [
            ("wanted", counts.wanted),
            ("present", counts.present),
            ("refused", counts.refused),
        ];
        states.map(|(state, count)| ([("kind", kind.as_str()), ("state", state)], count as f64))
    })
}
