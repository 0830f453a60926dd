//! A histogram without a lock: the sync thread must never wait for somebody who reads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Observations by their size.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Upper bounds and what came to each; the last one has no bound.
    buckets: Box<[(f64, AtomicU64)]>,
    /// Bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    /// Of these upper bounds, in order.
    pub(crate) fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let bounds = bounds.into_iter().chain([f64::MAX]);
        Self {
            buckets: bounds.map(|bound| (bound, AtomicU64::new(0))).collect(),
            sum: AtomicU64::new(0_f64.to_bits()),
        }
    }

    pub(crate) fn observe(&self, value: f64) {
        if let Some((_, count)) = self.buckets.iter().find(|(bound, _)| value <= *bound) {
            count.fetch_add(1, Ordering::Relaxed);
            let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
            // Never fails: `add` always has a value.
            let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let read = |(bound, count): &(f64, AtomicU64)| (*bound, count.load(Ordering::Relaxed));
        let buckets: Vec<_> = self.buckets.iter().map(read).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// `count` bounds, each `factor` times the one before.
pub(crate) fn exponential(start: f64, factor: f64, count: i32) -> impl Iterator<Item = f64> {
    (0..count).map(move |n| start * factor.powi(n))
}

/// `count` bounds, each `step` more than the one before.
pub(crate) fn linear(start: f64, step: f64, count: u8) -> impl Iterator<Item = f64> {
    (0..count).map(move |n| start + f64::from(n) * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_go_to_the_first_bound_that_holds_them() {
        let histogram = Histogram::new(linear(1.0, 1.0, 2).chain(exponential(4.0, 2.0, 2)));
        for value in [0.5, 1.0, 1.5, 7.0, 100.0] {
            histogram.observe(value);
        }
        let found: Vec<_> = histogram
            .buckets
            .iter()
            .map(|(bound, count)| (*bound, count.load(Ordering::Relaxed)))
            .collect();
        assert_eq!(found, [(1.0, 2), (2.0, 1), (4.0, 0), (8.0, 1), (f64::MAX, 1)]);
        assert!((f64::from_bits(histogram.sum.load(Ordering::Relaxed)) - 110.0).abs() < 1e-9);
    }
}
