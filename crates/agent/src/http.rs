//! HTTP for people and machines: health, health-check node ports, metrics. One connection loop with limits for all.
//!
//! Served by the runtime's one thread, beside the API side; what takes long goes to a thread of its own.

pub(crate) mod listen;
pub(crate) mod metrics_server;
mod profile;
pub(crate) mod proxy_health;
pub(crate) mod service_health;
mod zpages;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

/// Connections of one listener at a time; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// For the head of a request, on a connection that waits for its next one, too.
const HEAD: Duration = Duration::from_secs(30);
/// A whole connection; who reads too slowly is cut off.
const CONNECTION: Duration = Duration::from_secs(600);
/// Bytes of a request's head.
const HEAD_SIZE: usize = 16 * 1024;
/// Wait after connections cannot be accepted: there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Answers all that comes on a listener. Never ends by itself; dropped, it closes its connections.
pub(crate) async fn serve<F>(listener: TcpListener, answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static)
where
    F: Future<Output = Answer> + Send + 'static,
{
    let answer = Arc::new(answer);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let answer = Arc::clone(&answer);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(HEAD_SIZE)
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away in the middle is no event.
            let _ = tokio::time::timeout(CONNECTION, connection).await;
            drop(place);
        });
    }
}

const NOSNIFF: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-content-type-options"),
    HeaderValue::from_static("nosniff"),
);

/// An answer of a content type that the client must not guess anew.
fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let (name, value) = NOSNIFF;
    headers.insert(name, value);
    answer
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// As Go's server says it.
fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}
