//! The server of port 10249: metrics, mode, configuration, and what helps to debug. Paths are kube-proxy's.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::net::TcpListener;

use super::profile::answer_pprof;
use super::room::Room;
use super::zpages::{Flagz, Statusz, answer_page};
use super::{Answer, JSON, TEXT, answer, not_found, serve};
use crate::log::Verbosity;
use crate::metrics::slis::Slis;
use crate::metrics::{CONTENT_TYPE, Metrics, process};
use crate::mode::Mode;
use crate::server_settings::ServerSettings;

/// Bytes of a request's body, which is a number.
const BODY: usize = 1024;

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
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, room: Room) {
        let answer = move |request| {
            let server = Arc::clone(&self);
            async move { server.answer(request).await }
        };
        serve(listener, room, answer).await;
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
            "/configz" => answer(StatusCode::OK, JSON, self.settings.configuration.to_string()),
            "/flagz" => match &self.settings.flags {
                Some(flags) => answer_page(request.headers(), &Flagz(flags)),
                None => not_found(),
            },
            "/statusz" if self.settings.status => answer_page(request.headers(), &self.status()),
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

    fn status(&self) -> Statusz {
        let now = Timestamp::now();
        Statusz {
            start: Timestamp::from_second(whole(process::start_seconds())).unwrap_or(now),
            now,
            paths: self.paths(),
        }
    }

    /// What is listed at `/statusz`, sorted: the first parts of paths, without its own, as upstream's.
    fn paths(&self) -> Vec<&'static str> {
        [
            ("/configz", true),
            ("/debug", self.settings.profiling),
            ("/flagz", self.settings.flags.is_some()),
            ("/healthz", true),
            ("/metrics", true),
            ("/proxyMode", true),
        ]
        .into_iter()
        .filter_map(|(path, served)| served.then_some(path))
        .collect()
    }
}

#[allow(clippy::cast_possible_truncation, reason = "seconds since 1970")]
fn whole(seconds: f64) -> i64 {
    seconds as i64
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    use pprof::protos::{Message, Profile};
    use prometheus_client::metrics::counter::Counter;

    use super::*;
    use crate::http::listen::{Families, insist, open};
    use crate::mode::Choice;
    use crate::progress::Progress;

    async fn ask(to: SocketAddr, request: &str, body: &str) -> (u16, Vec<u8>) {
        let length = body.len();
        let text = format!("{request} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
        let ask = move || {
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(text.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).map(|_| answer)
        };
        let mut answer = tokio::task::spawn_blocking(ask).await.unwrap().unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            answer.split_off(end + 4),
        )
    }

    #[tokio::test]
    async fn with_profiling_there_are_profiles_and_verbosity() {
        let (_log, verbosity) = Verbosity::of_nobody();
        let choice = Choice::as_requested(Mode::Iptables);
        let metrics = Metrics::new(choice, Arc::new(Progress::new()), Vec::new());
        let server = MetricsServer {
            settings: ServerSettings {
                profiling: true,
                flags: Some(vec![
                    ("v".to_owned(), "2".to_owned()),
                    ("config".to_owned(), "x".to_owned()),
                ]),
                configuration: serde_json::json!({"group": {"mode": "iptables"}}),
                ..ServerSettings::default()
            },
            mode: Mode::Iptables,
            metrics: Arc::new(metrics),
            slis: Arc::new(Slis::new()),
            verbosity: verbosity.clone(),
        };
        let listener = open("127.0.0.1:0".parse().unwrap(), Families::Both).unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(Arc::new(server).serve(listener, Room::new(Counter::default())));
        let text = |answer: (u16, Vec<u8>)| (answer.0, String::from_utf8(answer.1).unwrap());

        let set = ask(at, "PUT /debug/flags/v", "4").await;
        assert_eq!(
            text(set),
            (200, "successfully set klog.logging.verbosity to 4\n".to_owned())
        );
        assert_eq!(verbosity.filter(), "debug");
        let (status, said) = text(ask(at, "PUT /debug/flags/v", "much").await);
        assert!(
            status == 400 && said.starts_with("failed set klog.logging.verbosity much: "),
            "{said}"
        );
        assert_eq!(ask(at, "PUT /debug/flags/v", &"4".repeat(2000)).await.0, 400);
        assert_eq!(
            text(ask(at, "GET /debug/flags/v", "").await),
            (406, "unsupported http method\n".to_owned())
        );
        assert_eq!(verbosity.filter(), "debug");
        let flags = text(ask(at, "GET /flagz", "").await).1;
        assert!(flags.ends_with("\nconfig=x\nv=2\n"), "{flags}");
        let status = text(ask(at, "GET /statusz", "").await).1;
        let paths = "\nPaths: /configz /debug /flagz /healthz /metrics /proxyMode\n";
        assert!(status.ends_with(paths), "{status}");
        let configz = text(ask(at, "GET /configz", "").await).1;
        assert_eq!(configz, r#"{"group":{"mode":"iptables"}}"#);

        assert!(
            text(ask(at, "GET /debug/pprof/", "").await)
                .1
                .contains("profile?seconds=")
        );
        assert_eq!(ask(at, "GET /debug/pprof/heap", "").await.0, 404);
        // Something to see: the clock is asked rarely, since no sample is taken in it.
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let sum = (0..1_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n.wrapping_mul(31)));
                std::hint::black_box(sum);
            }
        });
        // On a machine with too much to do a second may go by without a sample.
        let mut samples = 0;
        for _ in 0..20 {
            let (status, profile) = ask(at, "GET /debug/pprof/profile?seconds=1", "").await;
            assert_eq!(status, 200);
            let profile = Profile::decode(&*profile).unwrap();
            samples = profile
                .sample
                .iter()
                .filter_map(|sample| sample.value.first())
                .sum::<i64>();
            if samples > 0 {
                assert!(profile.function.len() > 3);
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(samples > 0);
        work.join().unwrap();
    }

    /// Gates `ComponentFlagz` and `ComponentStatusz`.
    #[tokio::test]
    async fn pages_that_are_turned_off_are_not_there() {
        let (_log, verbosity) = Verbosity::of_nobody();
        let choice = Choice::as_requested(Mode::Ipvs);
        let server = MetricsServer {
            settings: ServerSettings {
                status: false,
                flags: None,
                ..ServerSettings::default()
            },
            mode: Mode::Ipvs,
            metrics: Arc::new(Metrics::new(choice, Arc::new(Progress::new()), Vec::new())),
            slis: Arc::new(Slis::new()),
            verbosity,
        };
        assert_eq!(server.paths(), ["/configz", "/healthz", "/metrics", "/proxyMode"]);
        let listener = open("127.0.0.1:0".parse().unwrap(), Families::Both).unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(Arc::new(server).serve(listener, Room::new(Counter::default())));
        for path in ["/flagz", "/statusz"] {
            assert_eq!(ask(at, &format!("GET {path}"), "").await.0, 404, "{path}");
        }
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_where_it_must_be() {
        let taken = open("127.0.0.1:0".parse().unwrap(), Families::Own).unwrap();
        let address = taken.local_addr().unwrap();
        let error = insist("metrics", address, true).await.unwrap_err();
        assert_eq!(error.to_string(), format!("listen on {address}"));
    }
}
