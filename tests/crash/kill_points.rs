//! The process is stopped after each message of a change, with clients running, and started again.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use dataplane::plane::Plane;
use ipvs::{OldValues, Vips, sysctl};
use testbed::load::{Client, Habit, Load, Protocol};

use crate::kernel_state::{FOREIGN_PORT, differences, forget_drained, look, wipe};
use crate::mode::Mode;
use crate::scene::{NODE_ADDRESSES, Scene, Service};
use crate::sequence::{OTHER_ADDRESSES, Sequence, config, pods, sequences, stable};
use crate::stopping::{self, Budget, Process};
use crate::witness::{Findings, Moment, Promise, Talks, ask, learn};
use crate::{Options, Verdict};

/// Of the short form: every so many messages, where there are more. Prime, so that it does not follow the kinds of
/// objects.
const STRIDE: usize = 11;
/// Violations of one kill point that are told in words.
const TOLD: usize = 6;

pub(crate) fn run(options: &Options) -> Result<Verdict> {
    match options.mode {
        Mode::Ipvs => run_on(options, stopping::ipvs),
        Mode::Iptables => run_on(options, stopping::iptables),
    }
}

/// Opens a data plane in this thread's namespace.
type Open<P> = fn(&Budget) -> Result<P>;

fn run_on<P: Plane>(options: &Options, open: Open<P>) -> Result<Verdict> {
    let mut scene = Scene::new(options.mode)?;
    let [v4, v6] = OTHER_ADDRESSES[1];
    scene.world.node.sh(&format!("ip addr add {v4}/32 dev to-client"))?;
    scene
        .world
        .node
        .sh(&format!("ip addr add {v6}/128 dev to-client nodad"))?;
    for (service, pods) in pods() {
        scene.start_servers(&service, &pods)?;
    }
    scene.start_servers(&foreign(), &[40])?;
    let node = scene.world.node.clone();
    node.run(|| {
        if options.mode == Mode::Ipvs {
            prepare_ipvs()?;
        }
        let mut verdict = Verdict::default();
        let mut points = 0;
        let wanted = |sequence: &Sequence| {
            options
                .filter
                .as_ref()
                .is_none_or(|text| sequence.name.contains(text.as_str()))
        };
        let concerned = sequences()
            .into_iter()
            .filter(|sequence| sequence.concerns(options.mode));
        for sequence in concerned.filter(wanted) {
            let start = Instant::now();
            let outcome = Stage::new(&scene, &sequence, open).run(options)?;
            points += outcome.points;
            let seconds = start.elapsed().as_secs_f64();
            println!("kill points: {:25} {seconds:5.1} s, {outcome}", sequence.name);
            verdict.failures += outcome.findings.wrong.len();
        }
        ensure!(points > 0, "no sequence has this name");
        println!("kill points: {points} in all, {} violations", verdict.failures);
        Ok(verdict)
    })
}

/// As the start of the program does.
fn prepare_ipvs() -> Result<()> {
    Vips::open()?.ensure_device()?;
    let old = tempfile::tempdir()?;
    let ensured = sysctl::ensure(
        &sysctl::required(false),
        Some(&OldValues::at(old.path().join("sysctls"))),
    );
    ensured.changed.into_iter().try_for_each(|change| Ok(change.result?))
}

/// A sequence on its kernel.
struct Stage<'a, P> {
    scene: &'a Scene,
    sequence: &'a Sequence,
    open: Open<P>,
    budget: Budget,
    promises: Vec<Promise>,
}

/// What a sequence came to.
struct Outcome {
    messages: usize,
    points: usize,
    findings: Findings,
    load: String,
}

impl<'a, P: Plane> Stage<'a, P> {
    fn new(scene: &'a Scene, sequence: &'a Sequence, open: Open<P>) -> Self {
        Self {
            scene,
            sequence,
            open,
            budget: Budget::unlimited(),
            promises: Promise::all(sequence),
        }
    }

    fn process(&self) -> Result<Process<P>> {
        Ok(Process::new(config(self.scene.mode)?, (self.open)(&self.budget)?))
    }

    fn run(mut self, options: &Options) -> Result<Outcome> {
        wipe(self.scene.mode)?;
        if self.sequence.others {
            self.add_foreign()?;
        }
        let mut findings = Findings::default();
        let (before, after, messages) = self.undisturbed(&mut findings)?;
        self.reset(&before)?;
        let load = Load::start(&self.clients());
        let stride = if options.short && messages > STRIDE { STRIDE } else { 1 };
        let points: Vec<_> = (0..=messages).rev().step_by(stride).collect();
        for point in &points {
            let known = findings.wrong.len();
            self.stop_after(*point, &before, &after, &mut findings)?;
            let new = findings.wrong.get(known..).unwrap_or_default();
            if !new.is_empty() {
                let name = self.sequence.name;
                println!("{name} stopped after {point} of {messages}: {} violations", new.len());
                new.iter().take(TOLD).for_each(|wrong| println!("  {wrong}"));
            }
        }
        let seen = load.finish();
        findings.wrong.extend(seen.faults.iter().cloned());
        if self.sequence.others {
            self.remove_foreign()?;
        }
        Ok(Outcome {
            messages,
            points: points.len(),
            findings,
            load: seen.to_string(),
        })
    }

    /// Pictures of both states, and the messages between them. Learns what clients get.
    fn undisturbed(&mut self, findings: &mut Findings) -> Result<(BTreeSet<String>, BTreeSet<String>, usize)> {
        let mut process = self.start()?;
        let before = look(self.scene.mode)?;
        learn(self.scene, &mut self.promises, Moment::Before);
        ask(self.scene, &self.promises, Moment::Before, findings);
        self.budget.allow(usize::MAX);
        ensure!(self.change(&mut process)?, "the change was not written");
        let messages = self.budget.sent();
        let after = look(self.scene.mode)?;
        learn(self.scene, &mut self.promises, Moment::After);
        ask(self.scene, &self.promises, Moment::After, findings);
        ensure!(findings.wrong.is_empty(), "undisturbed: {:#?}", findings.wrong);
        ensure!(
            messages > 0 && before != after,
            "{} changes nothing",
            self.sequence.name
        );
        Ok((before, after, messages))
    }

    /// The process of the state before the change; a cold start has none yet that wrote.
    fn start(&self) -> Result<Process<P>> {
        let mut process = self.process()?;
        if let Some(before) = &self.sequence.before {
            ensure!(process.apply(&before.events()?)?, "the first state was not written");
        }
        Ok(process)
    }

    fn change(&self, process: &mut Process<P>) -> Result<bool> {
        let after = &self.sequence.after;
        process.apply(&match &self.sequence.before {
            Some(before) => after.events_after(before)?,
            None => after.events()?,
        })
    }

    /// Brings the kernel back to the state before.
    fn reset(&self, before: &BTreeSet<String>) -> Result<()> {
        self.budget.allow(usize::MAX);
        match self.sequence.before {
            None => wipe(self.scene.mode)?,
            Some(_) => {
                drop(self.start()?);
                forget_drained(self.scene.mode)?;
            }
        }
        let found = differences(before, &look(self.scene.mode)?);
        ensure!(found.is_empty(), "the state before is not there again: {found:#?}");
        Ok(())
    }

    fn stop_after(
        &self,
        point: usize,
        before: &BTreeSet<String>,
        after: &BTreeSet<String>,
        findings: &mut Findings,
    ) -> Result<()> {
        self.reset(before)?;
        let mut process = self.start()?;
        let mut talks = Talks::begin(self.scene, &self.promises)?;
        self.budget.allow(point);
        self.change(&mut process)?;
        ensure!(
            self.budget.sent() == point,
            "the change has {} messages",
            self.budget.sent()
        );
        drop(process);
        talks.go_on(Moment::Between, findings);
        ask(self.scene, &self.promises, Moment::Between, findings);

        self.budget.allow(usize::MAX);
        let mut again = self.process()?;
        ensure!(
            again.apply(&self.sequence.after.events()?)?,
            "the start was not written"
        );
        drop(again);
        let found = differences(after, &look(self.scene.mode)?);
        findings
            .wrong
            .extend(found.into_iter().map(|line| format!("started again: {line}")));
        talks.go_on(Moment::After, findings);
        ask(self.scene, &self.promises, Moment::After, findings);
        Ok(())
    }

    /// Clients that run through all stops: of what is there before and after.
    fn clients(&self) -> Vec<Client> {
        let service = if self.sequence.others { foreign() } else { stable() };
        let mut places = service.node_places(&NODE_ADDRESSES.map(|text| text.parse().unwrap()));
        if self.sequence.others {
            places.retain(|place| place.protocol == Protocol::Tcp);
        } else if self.sequence.before.is_none() {
            places.clear();
        } else {
            places.extend(service.cluster_places());
        }
        let habits = [Habit::Constant, Habit::Short];
        let client = |(place, habit)| Client {
            netns: self.scene.asker(place).clone(),
            name: format!("{habit:?}"),
            place,
            habit,
            servers: format!("{}-", service.name),
        };
        let all = places.iter().flat_map(|place| habits.map(|habit| (*place, habit)));
        all.map(client).collect()
    }

    fn add_foreign(&self) -> Result<()> {
        for (address, pod) in foreign_places() {
            self.scene.world.node.sh(&format!("ipvsadm -A -t {address} -s wlc"))?;
            self.scene
                .world
                .node
                .sh(&format!("ipvsadm -a -t {address} -r {pod} -m -w 7"))?;
        }
        Ok(())
    }

    fn remove_foreign(&self) -> Result<()> {
        for (address, _) in foreign_places() {
            self.scene.world.node.sh(&format!("ipvsadm -D -t {address}"))?;
        }
        Ok(())
    }
}

/// What others serve: no Service, but with a pod like one.
fn foreign() -> Service {
    Service::new("foreign", 9, FOREIGN_PORT, &[40])
}

/// Virtual and real servers of others, as ipvsadm takes them.
fn foreign_places() -> [(String, String); 2] {
    let [v4, v6] = NODE_ADDRESSES;
    let [pod_v4, pod_v6] = testbed::load::pods::addresses(40);
    [
        (format!("{v4}:{FOREIGN_PORT}"), format!("{pod_v4}:8080")),
        (format!("[{v6}]:{FOREIGN_PORT}"), format!("[{pod_v6}]:8080")),
    ]
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Findings {
            questions,
            talks,
            wrong,
        } = &self.findings;
        write!(
            f,
            "{:3} messages, {:3} kill points, {questions} questions, {talks} conversations gone on with: {} violations; {}",
            self.messages,
            self.points,
            wrong.len(),
            self.load
        )
    }
}
