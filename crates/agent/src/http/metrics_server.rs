//! The server of port 10249: metrics, mode, configuration, and what helps to debug. Paths are kube-proxy's.

use std::fmt::Write;
use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;

use super::profile::answer_pprof;
use super::{Answer, JSON, TEXT, answer, not_found, serve};
use crate::log::Verbosity;
use crate::metrics::slis::Slis;
use crate::metrics::{CONTENT_TYPE, Metrics, process};
use crate::mode::Mode;
use crate::server_settings::ServerSettings;

/// Bytes of a request's body, which is a number.
const BODY: usize = 1024;
const NAME: &str = "kube-proxy";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// What is served.
pub(crate) struct MetricsServer {
    pub(crate) settings: ServerSettings,
    pub(crate) mode: Mode,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) slis: Arc<Slis>,
    pub(crate) verbosity: Verbosity,
}

impl MetricsServer {
    /// Serves until it is dropped.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let answer = move |request| {
            let server = Arc::clone(&self);
            async move { server.answer(request).await }
        };
        serve(listener, answer).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        match path {
            "/healthz" | "/healthz/ping" => {
                self.slis.answered();
                let verbose =
                    path == "/healthz" && form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "verbose");
                let text = if verbose {
                    "[+]ping ok\nhealthz check passed\n"
                } else {
                    "ok"
                };
                answer(StatusCode::OK, TEXT, text)
            }
            "/metrics" => {
                let metrics = Arc::clone(&self.metrics);
                // IPVS is asked, and the page of a large cluster is long.
                match tokio::task::spawn_blocking(move || metrics.render()).await {
                    Ok(page) => answer(StatusCode::OK, CONTENT_TYPE, page),
                    Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
                }
            }
            "/metrics/slis" if request.method() == Method::DELETE => {
                self.slis.reset();
                answer(StatusCode::OK, TEXT, "metrics reset\n")
            }
            "/metrics/slis" => answer(StatusCode::OK, CONTENT_TYPE, self.slis.render()),
            "/proxyMode" => answer(StatusCode::OK, TEXT, self.mode.to_string()),
            "/configz" => {
                let configurations = json!({ "kubeproxy.config.k8s.io": self.settings.configuration });
                answer(StatusCode::OK, JSON, configurations.to_string())
            }
            "/flagz" => for_people(request.headers(), || self.flags()),
            "/statusz" => for_people(request.headers(), status),
            "/debug/flags/v" if self.settings.profiling => self.set_verbosity(request).await,
            _ => match path.strip_prefix("/debug/pprof/") {
                Some(rest) if self.settings.profiling => answer_pprof(rest, query).await.unwrap_or_else(not_found),
                _ => not_found(),
            },
        }
    }

    async fn set_verbosity(&self, request: Request<Incoming>) -> Answer {
        let plain = |status, text: String| answer(status, "text/plain", text + "\n");
        if request.method() != Method::PUT {
            return plain(StatusCode::NOT_ACCEPTABLE, "unsupported http method".to_owned());
        }
        let body = match Limited::new(request.into_body(), BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return plain(StatusCode::BAD_REQUEST, "error reading request body".to_owned()),
        };
        let text = String::from_utf8_lossy(&body);
        let set = || self.verbosity.set(text.parse()?);
        match set() {
            Ok(()) => plain(
                StatusCode::OK,
                format!("successfully set klog.logging.verbosity to {text}"),
            ),
            Err(error) => plain(
                StatusCode::BAD_REQUEST,
                format!("failed set klog.logging.verbosity {text}: {error:#}"),
            ),
        }
    }

    fn flags(&self) -> String {
        let mut text = format!("\n{NAME} flags\n{WARNING}\n\n");
        let mut flags: Vec<_> = self.settings.flags.iter().collect();
        flags.sort_unstable();
        for (name, value) in flags {
            // Writing into a String does not fail.
            let _ = writeln!(text, "{name}={value}");
        }
        text
    }
}

/// Text that no program should read: who asks for another type gets none.
fn for_people(headers: &HeaderMap, text: impl Fn() -> String) -> Answer {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let takes = |kind: &str| {
        matches!(
            kind.split(';').next().unwrap_or_default().trim(),
            "*/*" | "text/*" | "text/plain"
        )
    };
    if accepts.is_some_and(|accepts| !accepts.split(',').any(takes)) {
        let error = "media type not acceptable, must be: text/plain\n";
        return answer(StatusCode::NOT_ACCEPTABLE, TEXT, error);
    }
    answer(StatusCode::OK, TEXT, text())
}

fn status() -> String {
    let now = Timestamp::now();
    let start = Timestamp::from_second(whole(process::start_seconds())).unwrap_or(now);
    let up = now.as_second().saturating_sub(start.as_second());
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "\n{NAME} statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary: kube-ipvs\nBinary version: {version}\n\nPaths: /configz /debug /flagz /healthz /metrics /proxyMode /statusz\n",
        start.strftime("%a %b %e %H:%M:%S UTC %Y"),
        up / 3600,
        up / 60 % 60,
        up % 60,
    )
}

#[allow(clippy::cast_possible_truncation, reason = "seconds since 1970")]
fn whole(seconds: f64) -> i64 {
    seconds as i64
}
