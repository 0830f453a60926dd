//! The page that Prometheus reads: names and help exactly as given, metrics without a series left out.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Labels that are known when the program is written.
pub(crate) type Labels = &'static [(&'static str, &'static str)];

/// `ip_family` of IPv4 and IPv6, in the order of [`service_model::Family`].
pub(crate) const IP_FAMILIES: [Labels; 2] = [&[("ip_family", "IPv4")], &[("ip_family", "IPv6")]];

/// One metric for each of some fixed label sets, reached without a lock.
#[derive(Debug)]
pub(crate) struct Each<M, const N: usize>([(Labels, M); N]);

impl<M, const N: usize> Each<M, N> {
    pub(crate) fn new(labels: [Labels; N], make: impl Fn() -> M) -> Self {
        Self(labels.map(|labels| (labels, make())))
    }

    /// The metric of the label set of this number.
    pub(crate) fn at(&self, number: usize) -> &M {
        &self.0.get(number).expect("a metric for each label set").1
    }

    pub(crate) fn metrics(&self) -> impl Iterator<Item = &M> {
        self.0.iter().map(|(_, metric)| metric)
    }
}

impl<M: EncodeMetric, const N: usize> EncodeMetric for Each<M, N> {
    fn encode(&self, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        self.at(0).metric_type()
    }
}

/// The page while it is written.
pub(crate) struct Page<'a>(pub(crate) DescriptorEncoder<'a>);

impl Page<'_> {
    /// A metric; a counter's name is given without `_total`, which it gets.
    pub(crate) fn put(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        if metric.is_empty() {
            return Ok(());
        }
        let name = match metric.metric_type() {
            MetricType::Counter => name.trim_end_matches("_total"),
            _ => name,
        };
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    /// Gauges whose labels are known when the page is asked for.
    pub(crate) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        series.try_for_each(|(labels, value)| encoder.encode_family(&labels)?.encode_gauge(&value))
    }

    /// Counters whose labels are known when the page is asked for.
    pub(crate) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let name = name.trim_end_matches("_total");
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        series.try_for_each(|(labels, value)| {
            encoder
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }
}
