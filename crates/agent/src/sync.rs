//! The sync thread: owns everything that ends in the kernel. Batches of events in; plans committed; one line of log a
//! commit. A batch is taken in as a whole: no commit is made in the midst of one.
//!
//! No locks, no clock but its own, and no other thread writes to the kernel. What it says in words is in [`voice`], what
//! it tells in numbers in [`telemetry`].

mod minute;
mod pace;
mod rescue;
mod surroundings;
mod telemetry;
mod upkeep;
mod voice;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use api_watch::EventSink;
use dataplane::commit::Report;
use dataplane::kernel::chain;
use dataplane::{Drift, KernelBroken, Plane};
use service_model::{Backlog, Batch, Cluster, Config, Family, Kind, ObjectName};
use tokio::sync::mpsc::Receiver;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, error, warn};

use crate::listeners::{Disturbance, Heard, Look};
use pace::Pace;
pub(crate) use rescue::Rescue;
pub(crate) use surroundings::Surroundings;
pub(crate) use telemetry::Readers;
use telemetry::Telemetry;
pub(crate) use upkeep::Upkeep;
use voice::Voice;

/// How long a missing Node object, or those of other nodes, hold up the first commit (L2).
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// Wait before the kernel is read again after the way to it broke.
const BROKEN_PAUSE: Duration = Duration::from_secs(1);

/// Least time between two countings of everything, which is a walk over the ledger: after something changed, when nothing
/// else waits.
const SURVEY_PAUSE: Duration = Duration::from_secs(5);

/// Least time between two looks at the kernel because somebody else changes the policy tables.
const DISTURBED_PAUSE: Duration = Duration::from_millis(500);
/// Wait from the first notification of a change by others to the look.
const DISTURBED_SETTLE: Duration = Duration::from_millis(20);

/// What wakes the thread.
enum Input<P> {
    /// Something in the cluster, or in this node's addresses, changed.
    Batch(Batch),
    /// Somebody changed what we programmed.
    Disturbance(Disturbance),
    /// The audit has looked.
    Look(Look<P>),
    /// It is time, or what surrounds this node changed.
    Nothing,
}

/// What the thread hears, and whom it tells.
pub(crate) struct Channels<P> {
    pub(crate) batches: Receiver<Batch>,
    pub(crate) heard: Heard<P>,
    pub(crate) surroundings: Surroundings,
    pub(crate) sink: EventSink,
    pub(crate) readers: Readers,
    /// Whether other nodes are to be followed (T18).
    pub(crate) other_nodes: watch::Sender<bool>,
    /// Told once, after the first commit.
    pub(crate) serving: oneshot::Sender<()>,
}

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    /// Least time between two commits (`minSyncPeriod`).
    pub(crate) min_sync: Duration,
    /// Between two audits (`syncPeriod`).
    pub(crate) sync: Duration,
}

/// Where the audit is (L9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audit {
    /// Nobody looks.
    Never,
    /// The next one begins then.
    At(Instant),
    /// Somebody looks; `false` = the kernel was read otherwise meanwhile, so what he sees is not taken.
    Looking(bool),
}

/// An audit costs at most one part in so many of a processor's time.
const AUDIT_SHARE: u32 = 33;

/// Looks for UDP flows to be ended walk the whole connection tracker, and cost at most one part in so many (audit F18).
const FLOWS_SHARE: u32 = 10;

/// The thread's state.
pub(crate) struct Sync<P: Plane> {
    cluster: Cluster,
    plane: P,
    upkeep: Upkeep,
    batches: Receiver<Batch>,
    heard: Heard<P::Picture>,
    surroundings: Surroundings,
    rescue: Rescue,
    voice: Voice,
    telemetry: Telemetry,
    other_nodes: watch::Sender<bool>,
    periods: Periods,
    started: Instant,
    audit: Audit,
    /// How often others changed what we programmed and it was told at once, and when last.
    disturbed_times: u64,
    disturbed_at: Option<Instant>,
    /// The first commit has been made.
    serving: bool,
    /// Who is to hear of it.
    tell_serving: Option<oneshot::Sender<()>>,
    /// The ledger does not know what the kernel has.
    must_adopt: bool,
    /// The audit staged something.
    must_repair: bool,
    /// The last commit was a share, and more is to be written.
    more: bool,
    /// When all of that was wanted that the next report of having caught up is about.
    marked: Instant,
    pace: Pace,
    /// No commit before this.
    not_before: Instant,
    /// Services whose programs may have changed since the last commit.
    touched: BTreeSet<ObjectName>,
    /// When all is to be counted again; `None` = nothing changed since it was.
    survey_at: Option<Instant>,
}

impl<P: Plane> Sync<P> {
    pub(crate) fn new(config: Config, plane: P, channels: Channels<P::Picture>, periods: Periods) -> Self {
        let now = Instant::now();
        let Channels {
            batches,
            heard,
            surroundings,
            sink,
            readers,
            other_nodes,
            serving,
        } = channels;
        let audit = match heard.ask {
            Some(_) => Audit::At(now + periods.sync),
            None => Audit::Never,
        };
        Self {
            voice: Voice::new(sink, &config.node_name),
            telemetry: Telemetry::new(readers),
            cluster: Cluster::new(config),
            plane,
            upkeep: Upkeep::of_nothing(),
            batches,
            heard,
            surroundings,
            rescue: Rescue::of_nothing(),
            other_nodes,
            periods,
            started: now,
            audit,
            disturbed_times: 0,
            disturbed_at: None,
            serving: false,
            tell_serving: Some(serving),
            must_adopt: true,
            must_repair: false,
            more: false,
            marked: now,
            pace: Pace::default(),
            not_before: now,
            touched: BTreeSet::new(),
            survey_at: None,
        }
    }

    /// Has sysctls looked at with every audit.
    pub(crate) fn with_upkeep(self, upkeep: Upkeep) -> Self {
        Self { upkeep, ..self }
    }

    /// Has the way to the API server freed before anything else is written.
    pub(crate) fn with_rescue(self, rescue: Rescue) -> Self {
        Self { rescue, ..self }
    }

    /// Runs until the senders of batches are gone.
    ///
    /// # Errors
    /// Where the thread's timer cannot be made.
    pub(crate) fn run(mut self) -> Result<()> {
        // A runtime with a clock alone parks the thread on a condition variable: no descriptor, no poll.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            while self.wait().await {
                self.step();
            }
        });
        Ok(())
    }

    /// Waits for something to do, and takes in what waits. False at the end of the batches.
    async fn wait(&mut self) -> bool {
        self.telemetry.end_round();
        let input = match self.pause(Instant::now()) {
            Some(pause) => timeout(pause, self.input()).await.unwrap_or(Some(Input::Nothing)),
            None => self.input().await,
        };
        self.telemetry.begin_round();
        match input {
            None => return false,
            Some(Input::Nothing) => {}
            Some(Input::Batch(batch)) => self.take_in(batch),
            Some(Input::Disturbance(what)) => self.disturbed(what, Instant::now()),
            Some(Input::Look(look)) => self.looked(look, Instant::now()),
        }
        // What others hear must not wait for a pause of the batches.
        for _ in 0..self.heard.disturbances.max_capacity() {
            let Ok(what) = self.heard.disturbances.try_recv() else {
                break;
            };
            self.disturbed(what, Instant::now());
        }
        if let Ok(look) = self.heard.looks.try_recv() {
            self.looked(look, Instant::now());
        }
        true
    }

    /// Takes in a batch and those that wait behind it, no more of them than the channel holds: a source that never pauses
    /// must not keep the thread from its commits. Each object is computed once, whatever was told of it (F3).
    fn take_in(&mut self, first: Batch) {
        // Before the picture is complete nothing can be done, and nothing waits.
        if self.serving {
            self.telemetry.begin();
        }
        let mut backlog = Backlog::default();
        backlog.push(first);
        for _ in 0..self.batches.max_capacity() {
            let Ok(batch) = self.batches.try_recv() else { break };
            backlog.push(batch);
        }
        self.cluster.catch_up(&mut backlog);
    }

    /// `None` at the end of the batches.
    async fn input(&mut self) -> Option<Input<P::Picture>> {
        tokio::select! {
            biased;
            batch = self.batches.recv() => batch.map(Input::Batch),
            Some(what) = self.heard.disturbances.recv() => Some(Input::Disturbance(what)),
            Some(look) = self.heard.looks.recv() => Some(Input::Look(look)),
            () = self.surroundings.changed() => Some(Input::Nothing),
        }
    }

    /// Somebody else changed what we programmed: what the kernel has is read again, and what is missing written. Who does
    /// so all the time must not keep this thread busy.
    fn disturbed(&mut self, what: Disturbance, now: Instant) {
        let others = match what {
            Disturbance::Tables => true,
            // What we remove ourselves is told as well.
            Disturbance::Vips(gone) => self.plane.misses(gone),
        };
        // One transaction is told in several pieces: counted once, and looked at when it is over.
        if self.must_adopt || !others {
            return;
        }
        self.disturbed_times = self.disturbed_times.saturating_add(1);
        let times = self.disturbed_times;
        warn!(
            times,
            ?what,
            "somebody else changed what kube-ipvs programmed, reading the kernel again"
        );
        self.telemetry.disturbed();
        self.must_adopt = true;
        self.not_before = self
            .not_before
            .max(now + DISTURBED_SETTLE)
            .max(self.disturbed_at.map_or(now, |at| at + DISTURBED_PAUSE));
        self.disturbed_at = Some(now);
    }

    /// What the audit saw goes into the ledger; what is to be repaired is written with the next commit.
    fn looked(&mut self, look: Look<P::Picture>, now: Instant) {
        let taken = self.audit == Audit::Looking(true);
        self.audit = Audit::At(now + self.periods.sync.max(look.took * AUDIT_SHARE));
        debug!(microseconds = look.took.as_micros(), "audit");
        self.telemetry.audited(look.took);
        let mut drift = Drift::default();
        if let (Some(picture), true) = (look.picture, taken) {
            drift = self.plane.audited(&picture);
            debug!(microseconds = now.elapsed().as_micros(), "audit compared");
            self.must_repair |= !drift.is_empty();
        }
        drift.sysctls = self.upkeep.repair();
        self.surroundings.ask();
        self.tell_drift(drift);
    }

    fn tell_drift(&self, drift: Drift) {
        if !drift.is_empty() {
            self.telemetry.drifted(drift);
            self.voice.drift(drift);
        }
    }

    /// How long nothing has to be done; `None` = until the next event.
    fn pause(&self, now: Instant) -> Option<Duration> {
        let node = (!self.serving)
            .then_some(self.started + NODE_PATIENCE)
            .filter(|at| *at > now);
        let background = match self.serving && !self.must_adopt {
            true => self.plane.next_background(now),
            false => None,
        };
        // The first commit, too, may be of several shares, or be tried again.
        let staged = (self.is_due() && (self.serving || self.may_start(now))).then_some(self.not_before);
        let when_allowed = |at: Option<Instant>| at.filter(|_| self.serving).map(|at| at.max(self.not_before));
        let retry = when_allowed(self.plane.next_retry());
        let look = when_allowed(self.plane.next_look());
        let audit = match self.audit {
            Audit::At(at) if self.serving && !self.must_adopt => Some(at),
            _ => None,
        };
        let survey = self.survey_at.filter(|_| self.serving);
        let rescue = self.rescue.next().filter(|_| !self.serving);
        [node, background, staged, retry, look, audit, survey, rescue]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now))
    }

    fn is_due(&self) -> bool {
        self.must_adopt || self.must_repair || self.more || !self.touched.is_empty()
    }

    /// Has somebody look, where the time has come.
    fn begin_audit(&mut self, now: Instant) {
        if let (Audit::At(at), Some(ask)) = (self.audit, &self.heard.ask)
            && at <= now
            && !self.must_adopt
        {
            self.plane.begin_audit();
            // Nobody hears it where the listener ended, and with it this process.
            let _ = ask.send(());
            self.audit = Audit::Looking(true);
        }
    }

    /// One round: what was touched is computed anew and, where the time has come, written.
    fn step(&mut self) {
        let now = Instant::now();
        self.telemetry
            .arrived(self.cluster.arrivals(), self.cluster.is_node_eligible());
        self.protect();
        self.touched.extend(self.cluster.take_touched());
        if let Some(unreadable) = self.cluster.take_unreadable() {
            self.voice.unreadable(unreadable);
            self.telemetry.rejections(self.voice.rejected());
        }
        let wanted = self.cluster.wants_other_nodes();
        self.other_nodes
            .send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        if !self.serving && self.rescue.look(&self.surroundings.api_server(), now) {
            self.surroundings.api_server_is_free();
        }
        if !self.serving && !self.may_start(now) {
            return;
        }
        self.telemetry.begin();
        if now < self.not_before {
            return;
        }
        self.begin_audit(now);
        let done = self.look_and_write(now);
        match done {
            // What is refused is tried again, and is no lack of progress (L11).
            Ok(committed) if !self.is_due() => {
                let age = self.telemetry.served();
                if committed {
                    self.telemetry.commit_age(age);
                }
                if !self.batches.is_empty() {
                    self.telemetry.begin_with_round();
                }
                self.survey(now);
            }
            Ok(_) => {}
            Err(broken) => {
                error!(error = chain(&broken), "the way to the kernel broke, reading it again");
                self.telemetry.broken();
                self.must_adopt = true;
                self.not_before = now + BROKEN_PAUSE;
            }
        }
    }

    /// Tells the model what must not be taken, where that changed.
    fn protect(&mut self) {
        if let Some(protected) = self.surroundings.take() {
            self.cluster.set_protected(protected);
        }
    }

    /// Counts everything, where the time has come.
    fn survey(&mut self, now: Instant) {
        if self.survey_at.is_some_and(|at| at <= now) {
            self.survey_at = None;
            self.telemetry.surveyed(self.plane.survey().into());
            debug!(microseconds = now.elapsed().as_micros(), "everything counted");
        }
    }

    /// Looks at what only waits, where the time has come, and writes what is due, or else a share of the background work.
    /// True where a commit was made.
    fn look_and_write(&mut self, now: Instant) -> Result<bool, KernelBroken> {
        let has_come = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let retry = has_come(self.plane.next_retry());
        let look = !self.must_adopt && has_come(self.plane.next_look());
        let over = look && self.plane.look(now)?;
        if over || retry || self.is_due() {
            self.not_before = now + self.periods.min_sync;
            return self.commit(now).map(|()| true);
        }
        let report = self.plane.background(now)?;
        self.telemetry.executed(&report);
        self.voice.background(&self.plane, &report);
        self.changed(&report, now);
        Ok(false)
    }

    fn changed(&mut self, report: &Report, now: Instant) {
        if !report.is_empty() {
            self.survey_at.get_or_insert(now + SURVEY_PAUSE);
        }
    }

    /// Nothing is written before the picture is complete (L2).
    fn may_start(&self, now: Instant) -> bool {
        // What a former process bound stays bound only where the other nodes are known (T18).
        let others = !self.cluster.wants_other_nodes() || self.cluster.knows_other_nodes();
        let nodes = self.cluster.is_complete(Kind::Node) && others || now >= self.started + NODE_PATIENCE;
        self.cluster.is_complete(Kind::Service)
            && self.cluster.is_complete(Kind::EndpointSlice)
            && self.cluster.has_node_addresses()
            && self.surroundings.is_known()
            && nodes
    }

    fn commit(&mut self, now: Instant) -> Result<(), KernelBroken> {
        let touched = std::mem::take(&mut self.touched);
        let places = [Family::V4, Family::V6].map(|family| self.cluster.node_port_places(family));
        for (family, places) in [Family::V4, Family::V6].into_iter().zip(places.clone()) {
            self.plane
                .want_local_traffic(family, self.cluster.local_traffic(family));
            self.plane.want_node_ports(family, places);
        }
        self.plane.want_node_addresses(self.cluster.node_addresses());
        self.telemetry.node_ports(places);
        for service in &touched {
            let program = self.cluster.program(service);
            self.plane.want(service, &program);
            self.telemetry.programmed(service, &program);
            self.voice.rejections(service, &program);
            self.voice.elsewhere(service, program.elsewhere);
            self.voice.scheduler(service, program.own_scheduler);
        }
        let done = self.write(now);
        self.telemetry
            .tried(now.elapsed(), self.plane.passes(), &self.plane.take_restores());
        let report = done?;
        if let Some(ports) = self.telemetry.committed(&report) {
            self.surroundings.set_health_checks(ports);
            self.protect();
            self.touched.extend(self.cluster.take_touched());
        }
        self.telemetry.rejections(self.voice.rejected());
        self.voice.commit(&self.plane, touched.len(), &report, now.elapsed());
        self.changed(&report, now);
        if report.more && report.total() > 0 {
            self.telemetry.moved();
        }
        if report.caught_up {
            self.telemetry.served_until(self.marked);
            self.marked = now;
        }
        self.more = report.more;
        if self.more {
            // A share is a part of a commit: the next one does not wait.
            self.not_before = now;
            return Ok(());
        }
        self.telemetry.programmed_all(self.cluster.take_pending());
        if !self.serving {
            self.serving = true;
            if self.cluster.wants_other_nodes() && !self.cluster.knows_other_nodes() {
                warn!("the list of Nodes has not come, load-balancer and external IPs wait for it");
            }
            let survey = Arc::new(self.plane.survey());
            self.telemetry.surveyed(Arc::clone(&survey));
            self.telemetry.serving();
            Voice::serving(&survey, report.total(), self.started.elapsed());
            self.voice.freed(&self.rescue.take_freed());
            let _ = self.tell_serving.take().map(|tell| tell.send(()));
        }
        Ok(())
    }

    /// Reads the kernel where it is not known, and writes what differs.
    fn write(&mut self, now: Instant) -> Result<Report, KernelBroken> {
        if self.must_adopt {
            let drift = self.plane.adopt()?;
            self.must_adopt = false;
            if self.audit == Audit::Looking(true) {
                self.audit = Audit::Looking(false);
            }
            if self.serving {
                self.tell_drift(drift);
            }
        }
        self.must_repair = false;
        let walks = |plane: &P| plane.passes().iter().map(|passes| passes.took).sum::<Duration>();
        let (begin, before) = (Instant::now(), walks(&self.plane));
        let report = self.plane.commit(now, self.pace.ops())?;
        let (took, walked) = (begin.elapsed(), walks(&self.plane).saturating_sub(before));
        self.pace.learn(report.total(), took.saturating_sub(walked));
        if !walked.is_zero() {
            self.plane.rest_flows(Instant::now() + walked * FLOWS_SHARE);
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests;
