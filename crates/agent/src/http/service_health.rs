//! Health-check node ports (`spec.healthCheckNodePort`): a load balancer asks whether this node has endpoints of a service.
//!
//! Each family has sockets of its own and tells its own count, as kube-proxy does from 1.36 (kubernetes/kubernetes#137370).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api_watch::{EventSink, EventType, ObjectEvent};
use http::header::HeaderValue;
use http::{HeaderName, StatusCode};
use service_model::{Family, HealthCheck, Kind, NodePortPlaces, ObjectName};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use super::listen::{self, Families};
use super::room::Room;
use super::{Answer, JSON, answer, pass_on, serve};
use crate::progress::Progress;

/// What the sync thread tells after a commit that changed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthChecks {
    pub(crate) services: BTreeMap<ObjectName, HealthCheck>,
    /// On which addresses NodePorts of IPv4 and IPv6 answer (`nodePortAddresses`).
    pub(crate) places: [Option<NodePortPlaces>; 2],
}

/// A port of a service at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Of all ports together.
    pub(crate) room: Room,
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
    fn wanted(&self) -> BTreeSet<Place> {
        let mut all = BTreeSet::new();
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
    ///
    /// # Panics
    /// Where the server of a port panics.
    pub(crate) async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut servers: BTreeMap<Place, Server> = BTreeMap::new();
        let mut failed = BTreeMap::new();
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
                        let task = tasks.spawn(self.serve(listener, place.clone()));
                        servers.insert(place, Server(task));
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
            tokio::select! {
                changed = self.checks.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(listen::RETRY), if !failed.is_empty() => {}
                // One that was closed, or one that panicked.
                Some(ended) = tasks.join_next() => pass_on(ended),
            }
        }
    }

    fn serve(&self, listener: tokio::net::TcpListener, place: Place) -> impl Future<Output = ()> + use<> {
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
        serve(listener, self.room.clone(), answer)
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
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use prometheus_client::metrics::counter::Counter;
    use rustix::time::{ClockId, clock_gettime};

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

    /// Processor time for a change among so many places of which none can be opened, so that none takes a descriptor.
    async fn work_of_a_change(ports: u16) -> Duration {
        let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let addresses: Vec<_> = (0..30).map(|number| IpAddr::from([192, 0, 2, number])).collect();
        let checks = |ports: u16| {
            let check = |port| HealthCheck {
                port,
                v4: Some(1),
                v6: None,
            };
            let service = |port| (ObjectName::new("shop", &format!("s{port}")), check(port));
            Arc::new(HealthChecks {
                services: (30_000..30_000 + ports).map(service).collect(),
                places: [Some(NodePortPlaces::At(addresses.clone())), None],
            })
        };
        let (tell, told) = watch::channel(checks(ports));
        let servers = ServiceHealth {
            checks: told,
            progress: Arc::new(Progress::new()),
            timeout: Duration::from_secs(60),
            sink: EventSink::null(),
            node_name: "n1".to_owned(),
            room: Room::new(Counter::default()),
        };
        let mut run = pin!(servers.run());
        let first = poll_fn(|context| Poll::Ready(run.as_mut().poll(context).is_pending()));
        assert!(first.await);
        tell.send(checks(ports - 1)).unwrap();
        drop(tell);
        let before = now();
        run.await;
        now() - before
    }

    #[tokio::test]
    async fn f30_a_change_walks_the_ports_once() {
        let (few, many) = (work_of_a_change(100).await, work_of_a_change(2000).await);
        // Twenty times as much; where each place is looked for among all, some two hundred times.
        assert!(many < few * 60, "{few:?}, then {many:?}");
    }
}
