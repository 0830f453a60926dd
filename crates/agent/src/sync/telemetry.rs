//! What the sync thread tells in numbers: to metrics, to health, to the health-check node ports. Atomics and, where a
//! health check changed, a new snapshot; no lock that a reader holds while it works.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use conntrack::Passes;
use dataplane::commit::Report;
use dataplane::iptables::{Restored, Scope, Table};
use dataplane::{Drift, Survey};
use foldhash::HashMap;
use prometheus_client::metrics::counter::Counter;
use service_model::{Arrivals, Family, NodePortPlaces, ObjectName, Pending, Program, Refusal, TrafficPolicy};
use tokio::sync::watch;

use crate::http::service_health::HealthChecks;
use crate::metrics::Metrics;
use crate::metrics::kube_proxy::{local_policy, table};
use crate::progress::Progress;

/// Who is told.
#[derive(Clone)]
pub(crate) struct Readers {
    pub(crate) progress: Arc<Progress>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health_checks: watch::Sender<Arc<HealthChecks>>,
}

/// What is remembered to tell the difference.
pub(super) struct Telemetry {
    readers: Readers,
    /// In nanoseconds since 1970: what was triggered before is not timed.
    started: i64,
    /// Events of Services and EndpointSlices that were told.
    told: (u64, u64),
    /// Changes that wait, as they were told.
    waiting: u64,
    passes: [Passes; 2],
    /// Services without a local endpoint that a Local policy needs, and which series count them.
    lacking: HashMap<ObjectName, [bool; 4]>,
    lacking_counts: [u32; 4],
    checks: HealthChecks,
    checks_changed: bool,
    /// Counters of ops by name and errno, so that none is looked up under a lock.
    ops: HashMap<(&'static str, i32), Counter>,
}

impl Telemetry {
    pub(super) fn new(readers: Readers) -> Self {
        let telemetry = Self {
            readers,
            started: nanoseconds(),
            told: (0, 0),
            waiting: 0,
            passes: [Passes::default(); 2],
            lacking: HashMap::default(),
            lacking_counts: [0; 4],
            checks: HealthChecks::default(),
            checks_changed: false,
            ops: HashMap::default(),
        };
        telemetry.queued();
        telemetry
    }

    /// Something is to be done from now on, or is done already.
    pub(super) fn begin(&self) {
        self.readers.progress.begin();
    }

    /// The thread has something to do.
    pub(super) fn begin_round(&self) {
        self.readers.progress.begin_round();
    }

    /// The thread waits for something to do.
    pub(super) fn end_round(&self) {
        self.readers.progress.end_round();
    }

    /// Something came while the round went on.
    pub(super) fn begin_with_round(&self) {
        self.readers.progress.begin_with_round();
    }

    /// A share of what waits was written.
    pub(super) fn moved(&self) {
        self.readers.progress.moved();
    }

    /// All that came before is done, and more is to be done.
    pub(super) fn served_until(&self, since: Instant) {
        self.readers.progress.served_until(since);
    }

    /// Everything was programmed once.
    pub(super) fn serving(&self) {
        self.readers.progress.set_serving();
    }

    /// Nothing is left to be done. Returns how long the oldest of it took.
    pub(super) fn served(&self) -> Duration {
        self.readers.progress.served()
    }

    /// These came in so far.
    pub(super) fn arrived(&mut self, arrivals: &Arrivals, node_eligible: bool) {
        self.readers.progress.set_node_eligible(node_eligible);
        let (services, endpoint_slices) =
            std::mem::replace(&mut self.told, (arrivals.services, arrivals.endpoint_slices));
        let metrics = &self.readers.metrics.kube_proxy;
        metrics.service_changes.inc_by(arrivals.services - services);
        metrics
            .endpoint_changes
            .inc_by(arrivals.endpoint_slices - endpoint_slices);
        let Pending {
            services,
            endpoint_slices,
            ..
        } = &arrivals.pending;
        let waiting = services + endpoint_slices;
        if waiting != std::mem::replace(&mut self.waiting, waiting) {
            metrics.service_changes_pending.set(float(*services));
            metrics.endpoint_changes_pending.set(float(*endpoint_slices));
            self.queued();
        }
    }

    fn queued(&self) {
        let now = unix_seconds();
        for timestamp in self.readers.metrics.kube_proxy.last_queued_timestamp.metrics() {
            timestamp.set(now);
        }
    }

    /// What a service is from now on.
    pub(super) fn programmed(&mut self, service: &ObjectName, program: &Program) {
        let mut now = [false; 4];
        for frontend in &program.frontends {
            let lacks = frontend.policy == TrafficPolicy::Local
                && frontend.endpoints.is_empty()
                && frontend.refusal == Refusal::Drop;
            let family = if frontend.key.address.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            };
            if let Some(series) = now.get_mut(local_policy(frontend.kind, family)) {
                *series |= lacks;
            }
        }
        let before = if now == [false; 4] {
            self.lacking.remove(service)
        } else {
            self.lacking.insert(service.clone(), now)
        };
        for ((count, was), is) in self.lacking_counts.iter_mut().zip(before.unwrap_or_default()).zip(now) {
            *count = *count + u32::from(is) - u32::from(was);
        }
        if self.checks.services.get(service) != program.health_check.as_ref() {
            match program.health_check {
                Some(check) => drop(self.checks.services.insert(service.clone(), check)),
                None => drop(self.checks.services.remove(service)),
            }
            self.checks_changed = true;
        }
    }

    /// Where NodePorts of the families answer.
    pub(super) fn node_ports(&mut self, places: [NodePortPlaces; 2]) {
        let places = places.map(Some);
        if self.checks.places != places {
            self.checks.places = places;
            self.checks_changed = true;
        }
    }

    /// A commit took so long, whether or not it came to an end.
    pub(super) fn tried(&mut self, took: Duration, passes: [Passes; 2], restores: &[Restored]) {
        self.tell_passes(passes);
        restores.iter().for_each(|restored| self.tell_restore(restored));
        let durations = self.readers.metrics.kube_proxy.sync_duration.metrics();
        durations.for_each(|duration| duration.observe(took.as_secs_f64()));
    }

    /// A commit was made of what waited. Returns the ports of health checks, where these changed.
    pub(super) fn committed(&mut self, report: &Report) -> Option<Vec<u16>> {
        self.executed(report);
        let metrics = Arc::clone(&self.readers.metrics);
        let ops: u64 = report.answers.iter().map(|(.., count)| count).sum();
        if ops > 0 {
            metrics.own.commit_ops.observe(float(ops));
        }
        let now = unix_seconds();
        for timestamp in metrics.kube_proxy.last_timestamp.metrics() {
            timestamp.set(now);
        }
        for (series, count) in self.lacking_counts.iter().enumerate() {
            metrics.kube_proxy.no_local_endpoints.at(series).set(f64::from(*count));
        }
        std::mem::take(&mut self.checks_changed).then(|| {
            self.readers.health_checks.send_replace(Arc::new(self.checks.clone()));
            self.checks.services.values().map(|check| check.port).collect()
        })
    }

    /// Nothing is left of what had come: these changes were among it.
    pub(super) fn programmed_all(&mut self, pending: Pending) {
        let metrics = &self.readers.metrics.kube_proxy;
        self.waiting = 0;
        metrics.service_changes_pending.set(0.0);
        metrics.endpoint_changes_pending.set(0.0);
        self.tell_triggers(pending);
    }

    /// Ops were sent, in a commit or in the background.
    pub(super) fn executed(&mut self, report: &Report) {
        let family = &self.readers.metrics.own.ops;
        for (op, errno, count) in &report.answers {
            let make = || family.get_or_create_owned(&[("op", (*op).to_owned()), ("errno", errno.to_string())]);
            self.ops.entry((op, *errno)).or_insert_with(make).inc_by(*count);
        }
    }

    fn tell_triggers(&self, pending: Pending) {
        for (family, trigger) in pending.triggers.into_values().flatten() {
            if trigger > self.started {
                let latency = u64::try_from(nanoseconds().saturating_sub(trigger)).unwrap_or(0);
                let histograms = &self.readers.metrics.kube_proxy.network_programming;
                let histogram = histograms.at(family as usize);
                histogram.observe(Duration::from_nanos(latency).as_secs_f64());
            }
        }
    }

    fn tell_passes(&mut self, now: [Passes; 2]) {
        let before = std::mem::replace(&mut self.passes, now);
        let metrics = &self.readers.metrics.kube_proxy;
        for (family, (before, now)) in before.iter().zip(now).enumerate() {
            let count = now.count.saturating_sub(before.count);
            let took = now.took.saturating_sub(before.took).as_secs_f64();
            // One a commit and family; of more each is told as their mean.
            (0..count).for_each(|_| metrics.conntrack_duration.at(family).observe(took / float(count)));
            let deleted = now.deleted.saturating_sub(before.deleted);
            metrics.conntrack_deleted.at(family).inc_by(deleted);
        }
    }

    fn tell_restore(&self, restored: &Restored) {
        let metrics = &self.readers.metrics.kube_proxy;
        let Some(iptables) = &metrics.iptables else { return };
        let family = restored.family as usize;
        let (durations, failures) = match restored.scope {
            Scope::Full => (&iptables.full_duration, &metrics.restore_failures),
            Scope::Partial => (&iptables.partial_duration, &iptables.partial_failures),
        };
        durations.at(family).observe(restored.took.as_secs_f64());
        if restored.failed {
            failures.at(family).inc();
            return;
        }
        for (name, rules) in [(Table::Filter, restored.rules.filter), (Table::Nat, restored.rules.nat)] {
            iptables.rules_last.at(table(restored.family, name)).set(count(rules));
        }
    }

    /// All was counted.
    pub(super) fn surveyed(&self, survey: Arc<Survey>) {
        if let Some(iptables) = &self.readers.metrics.kube_proxy.iptables {
            for (family, name, rules) in &survey.rules {
                iptables.rules.at(table(*family, *name)).set(count(*rules));
            }
        }
        self.readers.metrics.own.survey.store(survey);
    }

    /// The oldest change of a commit waited so long for its end.
    pub(super) fn commit_age(&self, age: Duration) {
        self.readers.metrics.own.commit_age.observe(age.as_secs_f64());
    }

    pub(super) fn audited(&self, took: Duration) {
        self.readers.metrics.own.audit_duration.observe(took.as_secs_f64());
    }

    pub(super) fn drifted(&self, drift: Drift) {
        self.readers.metrics.own.drifted(drift);
    }

    pub(super) fn disturbed(&self) {
        self.readers.metrics.own.disturbances.inc();
    }

    pub(super) fn broken(&self) {
        self.readers.metrics.own.kernel_broken.inc();
    }

    pub(super) fn rejections(&self, number: usize) {
        self.readers.metrics.own.rejections.set(count(number));
    }
}

/// Nanoseconds since 1970.
fn nanoseconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn count(number: usize) -> f64 {
    float(u64::try_from(number).unwrap_or(u64::MAX))
}

#[allow(clippy::cast_precision_loss, reason = "what is counted here is far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use service_model::{Frontend, FrontendKey, HealthCheck, Masquerade, Protocol, Scheduler, Target};

    use super::*;
    use crate::mode::{Choice, Mode};

    fn telemetry() -> (Telemetry, watch::Receiver<Arc<HealthChecks>>) {
        let progress = Arc::new(Progress::new());
        let choice = Choice::as_requested(Mode::Ipvs);
        let (health_checks, checks) = watch::channel(Arc::default());
        let readers = Readers {
            metrics: Arc::new(Metrics::new(choice, Arc::clone(&progress), Vec::new())),
            progress,
            health_checks,
        };
        (Telemetry::new(readers), checks)
    }

    fn frontend(kind: service_model::AddressKind, policy: TrafficPolicy, refusal: Refusal, served: bool) -> Frontend {
        let address = "10.244.1.11:80".parse().unwrap();
        Frontend {
            key: FrontendKey {
                address: [10, 96, 0, 1].into(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            kind,
            port_name: "".into(),
            node_address: false,
            scheduler: Scheduler::default(),
            affinity: None,
            policy,
            endpoints: served.then_some(Target { address, local: true }).into_iter().collect(),
            insiders: None,
            insider_endpoints: Vec::new(),
            refusal,
            masquerade: Masquerade::Never,
            source_ranges: None,
        }
    }

    #[test]
    fn services_without_a_local_endpoint_are_counted_by_policy() {
        use service_model::AddressKind::{ClusterIp, LoadBalancer, NodePort};
        let (mut telemetry, _checks) = telemetry();
        let mut check = |name: &str, frontends: Vec<Frontend>, expect: [f64; 4]| {
            let program = Program {
                frontends,
                ..Program::default()
            };
            telemetry.programmed(&ObjectName::new("d", name), &program);
            telemetry.committed(&Report::default());
            let series = &telemetry.readers.metrics.kube_proxy.no_local_endpoints;
            assert_eq!(std::array::from_fn(|n| series.at(n).get()), expect);
        };
        let (local, cluster) = (TrafficPolicy::Local, TrafficPolicy::Cluster);
        let outside = |served| frontend(LoadBalancer, local, Refusal::Drop, served);
        // Two addresses are one service.
        let both = vec![outside(false), frontend(NodePort, local, Refusal::Drop, false)];
        check("a", both, [0.0, 0.0, 1.0, 0.0]);
        check(
            "b",
            vec![frontend(ClusterIp, local, Refusal::Drop, false)],
            [1.0, 0.0, 1.0, 0.0],
        );
        // No endpoint at all, and a policy that asks for none, are others' matter.
        check(
            "c",
            vec![frontend(ClusterIp, local, Refusal::Reject, false)],
            [1.0, 0.0, 1.0, 0.0],
        );
        check(
            "d",
            vec![frontend(LoadBalancer, cluster, Refusal::Drop, false)],
            [1.0, 0.0, 1.0, 0.0],
        );
        check("a", vec![outside(true)], [1.0, 0.0, 0.0, 0.0]);
        check("b", Vec::new(), [0.0; 4]);
    }

    #[test]
    fn health_checks_are_told_after_a_commit_and_where_they_changed() {
        let (mut telemetry, mut checks) = telemetry();
        let service = ObjectName::new("d", "s");
        let check = HealthCheck {
            port: 31_000,
            v4: Some(1),
            v6: None,
        };
        let program = Program {
            health_check: Some(check),
            ..Program::default()
        };
        telemetry.programmed(&service, &program);
        assert!(!checks.has_changed().unwrap());
        telemetry.committed(&Report::default());
        assert_eq!(checks.borrow_and_update().services.get(&service), Some(&check));
        telemetry.programmed(&service, &program);
        telemetry.committed(&Report::default());
        assert!(!checks.has_changed().unwrap());
        telemetry.programmed(&service, &Program::default());
        telemetry.committed(&Report::default());
        assert!(checks.borrow_and_update().services.is_empty());
    }
}
