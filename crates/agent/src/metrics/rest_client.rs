//! Requests to the API server, under the names of Kubernetes' client library (component-base, metrics/prometheus/restclient).

use std::fmt;

use api_watch::Call;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::histogram::Histogram;
use super::page::Page;

type ByHost = Family<[(&'static str, String); 2], Histogram, fn() -> Histogram>;

/// What is told of requests.
#[derive(Debug)]
pub(crate) struct RestClient {
    requests: Family<[(&'static str, String); 3], Counter>,
    duration: ByHost,
    request_size: ByHost,
    response_size: ByHost,
}

const SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const BYTES: [f64; 11] = [
    64.0,
    256.0,
    512.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn bytes() -> Histogram {
    Histogram::new(BYTES)
}

impl Default for RestClient {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(seconds),
            request_size: Family::new_with_constructor(bytes),
            response_size: Family::new_with_constructor(bytes),
        }
    }
}

impl RestClient {
    /// One more.
    pub(crate) fn take(&self, call: &Call<'_>) {
        let code = call.status.map_or("<error>".to_owned(), |status| status.to_string());
        let (method, host) = (call.method.to_owned(), call.host.to_owned());
        let by_verb = [("verb", method.clone()), ("host", host.clone())];
        let counter = [("code", code), ("method", method), ("host", host)];
        self.requests.get_or_create(&counter).inc();
        self.duration.get_or_create(&by_verb).observe(call.took.as_secs_f64());
        let observe = |sizes: &ByHost, size: Option<u64>| {
            if let Some(size) = size {
                #[allow(clippy::cast_precision_loss, reason = "a size of many gigabytes may be inexact")]
                sizes.get_or_create(&by_verb).observe(size as f64);
            }
        };
        observe(&self.request_size, call.request_size);
        observe(&self.response_size, call.response_size);
    }

    pub(super) fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        page.put(
            "rest_client_request_duration_seconds",
            "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
            &self.duration,
        )?;
        page.put(
            "rest_client_request_size_bytes",
            "[ALPHA] Request size in bytes. Broken down by verb and host.",
            &self.request_size,
        )?;
        page.put(
            "rest_client_requests_total",
            "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
            &self.requests,
        )?;
        page.put(
            "rest_client_response_size_bytes",
            "[ALPHA] Response size in bytes. Broken down by verb and host.",
            &self.response_size,
        )
    }
}
