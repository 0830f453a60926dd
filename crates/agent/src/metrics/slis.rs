//! `/metrics/slis`: how often `/healthz` of the metrics server was asked, and what it said (component-base,
//! metrics/prometheus/slis).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::page::Page;
use super::{process, render};

/// Answers of the check `ping`, which succeeds as long as somebody answers.
#[derive(Debug, Default)]
pub(crate) struct Slis {
    asked: AtomicU64,
    start_seconds: f64,
}

impl Slis {
    pub(crate) fn new() -> Self {
        Self {
            asked: AtomicU64::new(0),
            start_seconds: process::start_seconds(),
        }
    }

    /// One more answer.
    pub(crate) fn answered(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    pub(crate) fn render(self: &Arc<Self>) -> String {
        render(Arc::clone(self))
    }
}

impl Collector for Slis {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let asked = self.asked.load(Ordering::Relaxed);
        if asked > 0 {
            page.gauges(
                "kubernetes_healthcheck",
                "[STABLE] This metric records the result of a single healthcheck.",
                [([("name", "ping"), ("type", "healthz")], 1.0)],
            )?;
            page.counters(
                "kubernetes_healthchecks_total",
                "[STABLE] This metric records the results of all healthcheck.",
                [([("name", "ping"), ("status", "success"), ("type", "healthz")], asked)],
            )?;
        }
        process::write_start(&mut page, self.start_seconds)
    }
}
