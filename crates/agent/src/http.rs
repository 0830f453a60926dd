//! HTTP for people and machines: health, health-check node ports, metrics. One connection loop with limits for all.
//!
//! Served by the runtime's one thread, beside the API side; what takes long goes to a thread of its own.

pub(crate) mod listen;
pub(crate) mod metrics_server;
mod profile;
pub(crate) mod proxy_health;
pub(crate) mod room;
pub(crate) mod service_health;
mod zpages;

use std::convert::Infallible;
use std::future::Future;
use std::io;
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
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tracing::debug;

use room::{Lost, Place, Room};

/// For the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// A whole connection; who reads too slowly is cut off.
const CONNECTION: Duration = Duration::from_secs(600);
/// Bytes of a request's head.
const HEAD_SIZE: usize = 16 * 1024;
/// Wait after connections cannot be accepted, and none of ours can make way.
const PAUSE: Duration = Duration::from_millis(100);

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Answers all that comes on a listener: one request a connection, since one that waits for its next request is idle.
/// Never ends by itself; dropped, it closes its connections.
///
/// # Panics
/// Where an answer panics.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    room: Room,
    answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) where
    F: Future<Output = Answer> + Send + 'static,
{
    let answer = Arc::new(answer);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => {
                    let (place, lost) = room.enter(source.ip());
                    connections.spawn(converse(stream, place, lost, Arc::clone(&answer)));
                }
                Err(error) => pause(&error, &room).await,
            },
            Some(ended) = connections.join_next() => pass_on(ended),
        }
    }
}

/// Goes on with the panic of a task that ended with one.
pub(crate) fn pass_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn pause(error: &io::Error, room: &Room) {
    debug!(%error, "a connection cannot be accepted");
    let of = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    // The client is gone already.
    if of(Errno::CONNABORTED) {
        return;
    }
    if (of(Errno::MFILE) || of(Errno::NFILE)) && room.make_way() {
        // Its task closes it.
        return tokio::task::yield_now().await;
    }
    tokio::time::sleep(PAUSE).await;
}

/// Serves a connection until its end, or until its place is lost.
async fn converse<F>(stream: TcpStream, place: Place, lost: Lost, answer: Arc<impl Fn(Request<Incoming>) -> F>)
where
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        place.asked();
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // A client that goes away in the middle is no event.
        _ = tokio::time::timeout(CONNECTION, connection) => {}
        _ = lost => {}
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[tokio::test]
    async fn f32_an_answer_that_panics_ends_its_server() {
        let listener = listen::open("127.0.0.1:0".parse().unwrap(), listen::Families::Own).unwrap();
        let to = listener.local_addr().unwrap();
        let answer = |_| async { panic!("a fault of ours") };
        let server = tokio::spawn(serve(listener, Room::new(Counter::default()), answer));
        let mut client = std::net::TcpStream::connect(to).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), server).await;
        assert!(ended.expect("the server ends").unwrap_err().is_panic());
    }
}
