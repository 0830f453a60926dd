//! What answers over HTTP: which servers there are, what each reads, and what their failure means.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, anyhow};
use api_watch::{EventSink, EventType, ObjectEvent};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::http::listen::{CannotListen, insist};
use crate::http::metrics_server::MetricsServer;
use crate::http::proxy_health::ProxyHealth;
use crate::http::room::Room;
use crate::http::service_health::{HealthChecks, ServiceHealth};
use crate::log::Verbosity;
use crate::metrics::slis::Slis;
use crate::mode::Mode;
use crate::server_settings::ServerSettings;
use crate::sync::Readers;

/// An event that ends the program has so long to be sent.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the servers need.
pub(crate) struct Servers {
    pub(crate) settings: ServerSettings,
    /// The mode in use.
    pub(crate) mode: Mode,
    pub(crate) readers: Readers,
    pub(crate) checks: watch::Receiver<Arc<HealthChecks>>,
    pub(crate) sink: EventSink,
    pub(crate) node_name: String,
    /// Work that waits for longer is a fault.
    pub(crate) health_timeout: Duration,
    pub(crate) verbosity: Verbosity,
}

impl Servers {
    /// Serves until one of them must end the program.
    pub(crate) async fn run(self) -> Error {
        allow_descriptors();
        let Self {
            settings,
            mode,
            readers,
            checks,
            sink,
            node_name,
            health_timeout: timeout,
            verbosity,
        } = self;
        let (progress, metrics, hard_fail) = (readers.progress, readers.metrics, settings.hard_fail);
        let tell = |failed: CannotListen, reason| {
            tell_failure(&sink, &node_name, reason, &failed);
            Error::from(failed)
        };
        let [health_room, metrics_room, check_room] =
            [0, 1, 2].map(|server| Room::new(metrics.own.evicted.at(server).clone()));
        let health = Arc::new(ProxyHealth {
            progress: Arc::clone(&progress),
            metrics: Arc::clone(&metrics),
            timeout,
        });
        let healthz = async {
            let Some(address) = settings.healthz else {
                return pending().await;
            };
            match insist("healthz", address, hard_fail).await {
                Ok(listener) => served("healthz", listener, |listener| health.serve(listener, health_room)).await,
                Err(failed) => tell(failed, "FailedToStartProxierHealthcheck"),
            }
        };
        let server = Arc::new(MetricsServer {
            settings: settings.clone(),
            mode,
            metrics,
            slis: Arc::new(Slis::new()),
            verbosity,
        });
        let metrics = async {
            let Some(address) = settings.metrics else {
                return pending().await;
            };
            match insist("metrics", address, hard_fail).await {
                Ok(listener) => served("metrics", listener, |listener| server.serve(listener, metrics_room)).await,
                Err(failed) => tell(failed, "FailedToStartMetricServer"),
            }
        };
        let services = ServiceHealth {
            checks,
            progress,
            timeout,
            sink: sink.clone(),
            node_name: node_name.clone(),
            room: check_room,
        };
        let error = tokio::select! {
            error = healthz => error,
            error = metrics => error,
            () = services.run() => anyhow!("the servers of health-check ports ended"),
        };
        if error.is::<CannotListen>() {
            tokio::time::sleep(LAST_WORDS).await;
        }
        error
    }
}

/// As many descriptors as the process may have, as Go's programs do: each health-check node port needs some, and 1,024 is
/// the usual number where nothing is said.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        debug!(%error, "the limit of descriptors stays");
    }
}

async fn served<F: Future<Output = ()>>(
    name: &str,
    listener: TcpListener,
    serve: impl FnOnce(TcpListener) -> F,
) -> Error {
    if let Ok(address) = listener.local_addr() {
        info!(server = name, %address, "listening");
    }
    serve(listener).await;
    anyhow!("the server {name} ended")
}

fn tell_failure(sink: &EventSink, node_name: &str, reason: &'static str, failed: &CannotListen) {
    sink.send(ObjectEvent::about_node(
        node_name,
        EventType::Warning,
        reason,
        "StartKubeProxy",
        failed.to_string(),
    ));
}

#[cfg(test)]
mod tests;
