//! What the sync thread says in words: the log, and events about objects.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use api_watch::{EventSink, EventType, ObjectEvent};
use dataplane::commit::Report;
use dataplane::{Drift, ObjectKind, Phase, Plane, Survey};
use foldhash::{HashMap, HashSet};
use service_model::{Kind, ObjectName, Program, Rejection, Scheduler};
use tracing::{debug, info, warn};

use super::minute::{Minute, Refusals, Summary};

/// Lines a minute about what the kernel refuses.
const REFUSALS: usize = 20;
/// Lines a minute about objects and fields that cannot be programmed.
const REJECTIONS: usize = 200;

/// Says what happened, each thing once.
pub(super) struct Voice {
    sink: EventSink,
    node: Box<str>,
    /// Of services, fields that cannot be programmed, and how many they are in all.
    rejections: HashMap<ObjectName, (Vec<Rejection>, usize)>,
    /// How many they are.
    rejected: usize,
    /// Objects that cannot be read.
    unreadable: Vec<Rejection>,
    /// Services with load-balancer addresses that are other nodes' own (T18).
    elsewhere: HashSet<ObjectName>,
    /// Such services and addresses that nothing was said of yet.
    unsaid: (usize, usize),
    /// Services whose own scheduler was remarked on.
    remarked: HashMap<ObjectName, Scheduler>,
    refusals: Refusals,
    minute: Minute,
}

impl Voice {
    pub(super) fn new(sink: EventSink, node_name: &str) -> Self {
        Self {
            sink,
            node: node_name.into(),
            rejections: HashMap::default(),
            rejected: 0,
            unreadable: Vec::new(),
            elsewhere: HashSet::default(),
            unsaid: (0, 0),
            remarked: HashMap::default(),
            refusals: Refusals::new(REFUSALS),
            minute: Minute::of(REJECTIONS),
        }
    }

    /// Somebody else changed objects of ours: once for all that was found together.
    pub(super) fn drift(&self, drift: Drift) {
        warn!(
            virtual_servers = drift.virtual_servers,
            real_servers = drift.real_servers,
            routes = drift.routes,
            addresses = drift.addresses,
            tables = drift.tables,
            elements = drift.elements,
            sysctls = drift.sysctls,
            "not as kube-ipvs programmed it, repairing"
        );
        self.sink.send(ObjectEvent::about_node(
            &self.node,
            EventType::Warning,
            "DriftRepaired",
            "Repair",
            format!("somebody else changed what kube-ipvs programmed: {drift}"),
        ));
    }

    /// The API server had been kept away by what was bound here (F1): told once it can be.
    pub(super) fn freed(&self, addresses: &[IpAddr]) {
        for address in addresses {
            self.sink.send(ObjectEvent::about_node(
                &self.node,
                EventType::Warning,
                "ApiServerFreed",
                "Free",
                format!("what was programmed here at {address}, an address of the API server, kept it away from this node, and was removed"),
            ));
        }
    }

    /// The first commit is made.
    pub(super) fn serving(survey: &Survey, written: usize, took: Duration) {
        let wanted = |kind| survey.of(kind).wanted;
        info!(
            virtual_servers = wanted(ObjectKind::VirtualServer),
            real_servers = wanted(ObjectKind::RealServer),
            vips = wanted(ObjectKind::Route),
            rules = survey.rules.iter().map(|(.., rules)| rules).sum::<usize>(),
            written,
            seconds = took.as_secs_f64(),
            "serving"
        );
    }

    /// A commit of so many services was made.
    pub(super) fn commit(&mut self, plane: &impl Plane, services: usize, report: &Report, took: Duration) {
        // `refused` logs what is refused again and again.
        if report.total() > 0 {
            let count = |phase| {
                let of_phase = report.done.iter().filter(|(p, _)| *p == phase);
                of_phase.map(|(_, n)| n).sum::<usize>()
            };
            info!(
                services,
                ops = report.total(),
                policies = count(Phase::Policies),
                virtual_servers = count(Phase::VirtualServers),
                real_servers = count(Phase::RealServers),
                routes = count(Phase::Routes),
                real_servers_out = count(Phase::RealServersOut),
                vips_out = count(Phase::VipsOut),
                virtual_servers_out = count(Phase::VirtualServersOut),
                policies_out = count(Phase::PoliciesOut),
                flows = count(Phase::Flows),
                draining = plane.draining(),
                refused = report.refused.len(),
                microseconds = took.as_micros(),
                "commit"
            );
        }
        let (services, addresses) = std::mem::take(&mut self.unsaid);
        if services > 0 {
            info!(
                services,
                addresses, "load-balancer addresses of other nodes are left to these"
            );
        }
        self.refused(plane, report);
        for (server, scheduler) in &report.fallen_back {
            warn!(%server, %scheduler, "the kernel lacks this scheduler, rr is used");
            if let Some(service) = plane.owner(server) {
                let note = format!("{server}: this node's kernel lacks the scheduler {scheduler}, rr is used");
                self.warn_about(Kind::Service, service, "FailedToProgram", "Program", note);
            }
        }
    }

    /// A share of the background work was done.
    pub(super) fn background(&mut self, plane: &impl Plane, report: &Report) {
        if !report.is_empty() {
            debug!(ops = report.total(), "addresses added to kube-ipvs0");
        }
        self.refused(plane, report);
    }

    /// Each object's refusal when it is new or has another reason, and a line a minute for all that stays.
    fn refused(&mut self, plane: &impl Plane, report: &Report) {
        let now = Instant::now();
        if let Some(Summary { objects, refusals }) = self.refusals.summary(now) {
            warn!(
                objects,
                refusals, "the kernel goes on refusing ops, they will be tried again"
            );
        }
        for (op, refusal) in &report.refused {
            if !self.refusals.take(op.key(), &refusal.reason, now) {
                continue;
            }
            warn!(op = %op, error = %refusal, "the kernel refused an op, it will be tried again");
            if let Some(service) = op.key().virtual_server().and_then(|server| plane.owner(&server)) {
                self.warn_about(
                    Kind::Service,
                    service,
                    "FailedToProgram",
                    "Program",
                    format!("{op}: {refusal}"),
                );
            }
        }
    }

    /// Each rejection when it first appears. The model makes few of one service.
    pub(super) fn rejections(&mut self, service: &ObjectName, program: &Program) {
        let (before, number) = self.rejections.remove(service).unwrap_or_default();
        let now = &program.rejections;
        self.rejected = self.rejected + program.rejected() - number;
        for rejection in now.iter().filter(|rejection| !before.contains(rejection)) {
            self.rejection(Kind::Service, service, rejection);
        }
        if !now.is_empty() {
            let now = (now.clone(), program.rejected());
            self.rejections.insert(service.clone(), now);
        }
    }

    /// A line about what cannot be programmed may be written: those that may not are a number a minute.
    fn may_say(&mut self) -> bool {
        let now = Instant::now();
        if let Some(lines) = self.minute.end(now) {
            warn!(lines, "rejected, and more than a log takes: kube-ipvs plan shows all");
        }
        self.minute.allows(now)
    }

    /// The objects that cannot be read now (L18), each when it first appears.
    pub(super) fn unreadable(&mut self, now: Vec<Rejection>) {
        let before = std::mem::take(&mut self.unreadable);
        for rejection in now.iter().filter(|rejection| before.binary_search(rejection).is_err()) {
            self.rejection(rejection.kind, &rejection.object, rejection);
        }
        self.unreadable = now;
    }

    /// An object that concerns another one, or itself.
    fn rejection(&mut self, about: Kind, name: &ObjectName, rejection: &Rejection) {
        let (kind, object) = (rejection.kind, &rejection.object);
        if self.may_say() {
            warn!(%kind, %object, field = %rejection.field, reason = %rejection.reason, "rejected");
        }
        let note = match &*rejection.field {
            "" => rejection.reason.to_string(),
            field => format!("{field}: {}", rejection.reason),
        };
        self.warn_about(about, name, "CannotProgram", "Compute", note);
    }

    /// Where load balancers run on the nodes, every service's status has the addresses of all of them (k3s-io/k3s#2804): one
    /// line for all services that have such addresses now and had none before, and no event.
    pub(super) fn elsewhere(&mut self, service: &ObjectName, addresses: usize) {
        if addresses == 0 {
            self.elsewhere.remove(service);
        } else if self.elsewhere.insert(service.clone()) {
            self.unsaid.0 += 1;
            self.unsaid.1 += addresses;
        }
    }

    /// A service's own scheduler that cannot do here what its name says (T21), when the service first has it.
    pub(super) fn scheduler(&mut self, service: &ObjectName, own: Option<Scheduler>) {
        let Some((scheduler, remark)) = own.and_then(|own| Some((own, own.at_equal_weights()?))) else {
            self.remarked.remove(service);
            return;
        };
        if self.remarked.insert(service.clone(), scheduler) != Some(scheduler) {
            warn!(%service, %scheduler, remark, "this scheduler needs weights that differ");
            let note = format!("scheduler {scheduler}: {remark}");
            self.warn_about(Kind::Service, service, "SchedulerNeedsWeights", "Compute", note);
        }
    }

    /// Rejections that stand.
    pub(super) fn rejected(&self) -> usize {
        self.rejected + self.unreadable.len()
    }

    fn warn_about(&self, kind: Kind, object: &ObjectName, reason: &'static str, action: &'static str, note: String) {
        self.sink.send(ObjectEvent {
            kind,
            object: object.clone(),
            event_type: EventType::Warning,
            reason,
            action,
            note,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// Counts the lines of a log.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Lines {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A cluster full of Services with more than can be programmed.
    #[test]
    fn f16_rejections_have_a_bound_in_the_log() {
        let name = |number: usize| ObjectName::new("d", &format!("s{number}"));
        let program = |service: usize, of: std::ops::Range<usize>, more_rejections| {
            let one = |number| Rejection {
                kind: Kind::Service,
                object: name(service),
                field: format!("spec.externalIPs[{number}]").into(),
                reason: "multicast".into(),
            };
            Program {
                rejections: of.map(one).collect(),
                more_rejections,
                ..Program::default()
            }
        };
        let lines = Lines::default();
        let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        let said = || lines.0.swap(0, Ordering::Relaxed);
        let mut voice = Voice::new(EventSink::null(), "n1");
        voice.rejections(&name(0), &program(0, 0..11, 49_990));
        assert_eq!((said(), voice.rejected()), (11, 50_000));
        voice.rejections(&name(0), &program(0, 1..12, 49_990));
        assert_eq!((said(), voice.rejected()), (1, 50_000), "the new one");
        for service in 1..1000 {
            voice.rejections(&name(service), &program(service, 0..10, 0));
        }
        assert_eq!(said(), REJECTIONS - 12);
        voice.rejections(&name(0), &Program::default());
        assert_eq!((said(), voice.rejected()), (0, 9990));
    }

    #[test]
    fn t21_a_scheduler_that_needs_weights_is_remarked_on_once() {
        let lines = Lines::default();
        let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        let mut voice = Voice::new(EventSink::null(), "n1");
        let service = ObjectName::new("d", "s");
        let mut said = |own| {
            voice.scheduler(&service, own);
            lines.0.swap(0, Ordering::Relaxed)
        };
        let [fo, ovf, rr] = [Scheduler::FailOver, Scheduler::Overflow, Scheduler::RoundRobin].map(Some);
        let turns = [fo, fo, ovf, rr, fo, None, ovf];
        assert_eq!(turns.map(&mut said), [1, 0, 1, 0, 1, 0, 1]);
    }

    /// k3s-io/k3s#2804: said once for a service, however its addresses change, and for all services of a commit together.
    #[test]
    fn t18_addresses_of_other_nodes_are_said_once() {
        let mut voice = Voice::new(EventSink::null(), "n1");
        let name = |number: usize| ObjectName::new("d", &format!("s{number}"));
        let mut said = |of: &[(usize, usize)]| {
            for (number, addresses) in of {
                voice.elsewhere(&name(*number), *addresses);
            }
            std::mem::take(&mut voice.unsaid)
        };
        assert_eq!(said(&[(1, 2), (2, 3), (3, 0)]), (2, 5));
        // A node came, one went; nothing at all.
        assert_eq!(said(&[(1, 3), (2, 2), (3, 0)]), (0, 0));
        assert_eq!(said(&[(1, 0)]), (0, 0));
        assert_eq!(said(&[(1, 1), (3, 1)]), (2, 2));
    }
}
