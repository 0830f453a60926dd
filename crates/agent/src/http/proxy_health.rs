//! `/healthz` and `/livez`, port 10256: does the sync thread get on, and may load balancers use the node (KEP-3836).
//! Answers are those of Kubernetes 1.37 (pkg/proxy/healthcheck/proxy_health.go).

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::net::TcpListener;

use super::room::Room;
use super::{Answer, JSON, TEXT, answer, not_found, serve};
use crate::metrics::Metrics;
use crate::progress::Progress;

/// Where another process serves (L22).
const STANDBY: &str = "another kube-ipvs serves in this network namespace, this one waits until it ends\n";

/// Who is asked.
pub(crate) struct ProxyHealth {
    pub(crate) progress: Arc<Progress>,
    pub(crate) metrics: Arc<Metrics>,
    /// Work that waits for longer is a fault: two sync periods.
    pub(crate) timeout: Duration,
}

/// The body, in upstream's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Families,
}

/// One commit serves both.
#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: Family,
    #[serde(rename = "IPv6")]
    v6: Family,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    last_updated: String,
    healthy: bool,
}

impl ProxyHealth {
    /// Serves until it is dropped.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, room: Room) {
        let answer = move |request: http::Request<hyper::body::Incoming>| {
            let answer = self.answer(request.uri().path(), Timestamp::now());
            std::future::ready(answer)
        };
        serve(listener, room, answer).await;
    }

    fn answer(&self, path: &str, now: Timestamp) -> Answer {
        let counters = &self.metrics.kube_proxy;
        match path {
            // Alive, and not ready.
            "/healthz" if self.progress.is_standby() => {
                counters.healthz.at(1).inc();
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, STANDBY)
            }
            "/healthz" => {
                let eligible = self.progress.is_node_eligible();
                self.tell(counters.healthz.at(0), counters.healthz.at(1), Some(eligible), now)
            }
            "/livez" => self.tell(counters.livez.at(0), counters.livez.at(1), None, now),
            _ => not_found(),
        }
    }

    fn tell(&self, good: &Counter, bad: &Counter, node_eligible: Option<bool>, now: Timestamp) -> Answer {
        let health = self.progress.health(self.timeout);
        // Load balancers and rollouts go by /healthz: a node that serves nothing yet is not healthy (audit F5).
        let healthy = health.healthy && (health.serving || node_eligible.is_none());
        let well = healthy && node_eligible != Some(false);
        let last_updated = now.checked_sub(health.updated).unwrap_or(now).to_string();
        let family = Family {
            last_updated: last_updated.clone(),
            healthy,
        };
        let body = Body {
            // Who is well has updated just now, even where nothing was to be done.
            last_updated: if well { now.to_string() } else { last_updated },
            current_time: now.to_string(),
            node_eligible,
            healthy,
            status: Families {
                v4: family.clone(),
                v6: family,
            },
        };
        let (counter, status) = if well {
            (good, StatusCode::OK)
        } else {
            (bad, StatusCode::SERVICE_UNAVAILABLE)
        };
        counter.inc();
        // Strings and truth values alone: it can be written.
        answer(status, JSON, serde_json::to_string(&body).unwrap_or_default())
    }
}
