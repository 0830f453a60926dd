//! Health-check node ports (`spec.healthCheckNodePort`): a load balancer asks whether this node has endpoints of a service.
//!
//! Each family has sockets of its own and tells its own count, as kube-proxy does from 1.36 (kubernetes/kubernetes#137370).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api_watch::{EventSink, EventType, ObjectEvent};
use http::header::HeaderValue;
use http::{HeaderName, StatusCode};
use rustc_hash::FxHashMap;
use service_model::{Family, HealthCheck, Kind, NodePortPlaces, ObjectName};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::listen::{self, Families};
use super::{Answer, JSON, answer, serve};
use crate::progress::Progress;

/// What the sync thread tells after a commit that changed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthChecks {
    pub(crate) services: BTreeMap<ObjectName, HealthCheck>,
    /// On which addresses NodePorts of IPv4 and IPv6 answer (`nodePortAddresses`).
    pub(crate) places: [Option<NodePortPlaces>; 2],
}

/// A port of a service at an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    service: ObjectName,
    address: SocketAddr,
}

/// The servers of all services.
pub(crate) struct ServiceHealth {
    pub(crate) checks: watch::Receiver<Arc<HealthChecks>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) timeout: Duration,
    pub(crate) sink: EventSink,
    pub(crate) node_name: String,
}

/// A server that ends when this is dropped.
struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HealthChecks {
    fn count(&self, service: &ObjectName, family: Family) -> usize {
        let check = self.services.get(service);
        check.and_then(|check| count(check, family)).unwrap_or(0)
    }

    /// Where somebody must listen.
    fn wanted(&self) -> Vec<Place> {
        let mut all = Vec::new();
        for (service, check) in &self.services {
            for (family, any, places) in [
                (Family::V4, IpAddr::from(Ipv4Addr::UNSPECIFIED), &self.places[0]),
                (Family::V6, IpAddr::from(Ipv6Addr::UNSPECIFIED), &self.places[1]),
            ] {
                if count(check, family).is_none() {
                    continue;
                }
                let addresses = match places {
                    None => Vec::new(),
                    Some(NodePortPlaces::EveryLocal { .. }) => vec![any],
                    Some(NodePortPlaces::At(addresses)) => addresses.clone(),
                };
                all.extend(addresses.into_iter().map(|address| Place {
                    service: service.clone(),
                    address: SocketAddr::new(address, check.port),
                }));
            }
        }
        all
    }
}

fn count(check: &HealthCheck, family: Family) -> Option<usize> {
    match family {
        Family::V4 => check.v4,
        Family::V6 => check.v6,
    }
}

impl ServiceHealth {
    /// Opens and closes ports as services come and go; what cannot be opened is tried again. Ends with the sync thread.
    pub(crate) async fn run(mut self) {
        let mut servers: FxHashMap<Place, Server> = FxHashMap::default();
        let mut failed = FxHashMap::default();
        loop {
            let wanted = self.checks.borrow_and_update().wanted();
            servers.retain(|place, _| {
                let stays = wanted.contains(place);
                if !stays {
                    info!(service = %place.service, address = %place.address, "health-check port closed");
                }
                stays
            });
            failed.retain(|place, _| wanted.contains(place));
            for place in wanted {
                if servers.contains_key(&place) {
                    continue;
                }
                match listen::open(place.address, Families::Own) {
                    Ok(listener) => {
                        info!(service = %place.service, address = %place.address, "health-check port opened");
                        failed.remove(&place);
                        servers.insert(place.clone(), self.start(listener, place));
                    }
                    Err(error) => {
                        let error = error.to_string();
                        if failed.get(&place) != Some(&error) {
                            self.tell_failure(&place, &error);
                            failed.insert(place, error);
                        }
                    }
                }
            }
            let changed = self.checks.changed();
            let ended = if failed.is_empty() {
                changed.await.is_err()
            } else {
                matches!(tokio::time::timeout(listen::RETRY, changed).await, Ok(Err(_)))
            };
            if ended {
                return;
            }
        }
    }

    fn start(&self, listener: tokio::net::TcpListener, place: Place) -> Server {
        let (checks, progress, timeout) = (self.checks.clone(), Arc::clone(&self.progress), self.timeout);
        let family = match place.address {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        };
        let answer = move |_| {
            let local = checks.borrow().count(&place.service, family);
            let healthy = progress.health(timeout).healthy;
            std::future::ready(told(&place.service, local, healthy))
        };
        Server(tokio::spawn(serve(listener, answer)).abort_handle())
    }

    fn tell_failure(&self, place: &Place, error: &str) {
        let Place { service, address } = place;
        warn!(%service, %address, error, "cannot listen on a health-check port, trying again");
        let (node, port) = (&self.node_name, address.port());
        self.sink.send(ObjectEvent {
            kind: Kind::Service,
            object: service.clone(),
            event_type: EventType::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}"),
        });
    }
}

/// Upstream's text, whatever the method and path.
fn told(service: &ObjectName, local: usize, healthy: bool) -> Answer {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace(),
        service.name(),
    );
    let status = if local > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut answer = answer(status, JSON, body);
    let weight = HeaderName::from_static("x-load-balancing-endpoint-weight");
    answer.headers_mut().insert(weight, HeaderValue::from(local));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_where() {
        let every = || Some(NodePortPlaces::EveryLocal { loopback: false });
        let check = |v4, v6, places: [Option<NodePortPlaces>; 2], expect: &[&str]| {
            let check = HealthCheck { port: 31_000, v4, v6 };
            let services = [(ObjectName::new("shop", "web"), check)].into();
            let checks = HealthChecks { services, places };
            let found: Vec<_> = checks.wanted().iter().map(|place| place.address.to_string()).collect();
            assert_eq!(found, expect);
        };
        check(Some(1), None, [every(), every()], &["0.0.0.0:31000"]);
        check(Some(0), Some(2), [every(), every()], &["0.0.0.0:31000", "[::]:31000"]);
        let at = || Some(NodePortPlaces::At(vec![[192, 0, 2, 10].into(), [192, 0, 2, 11].into()]));
        check(
            Some(1),
            Some(1),
            [at(), every()],
            &["192.0.2.10:31000", "192.0.2.11:31000", "[::]:31000"],
        );
        check(Some(1), Some(1), [None, None], &[]);
    }
}
