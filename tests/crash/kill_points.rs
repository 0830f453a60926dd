//! The process is stopped after each message of a change, with clients running, and started again.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use ipvs::{OldValues, Vips, sysctl};
use testbed::load::{Client, Habit, Load, Protocol};

use crate::kernel_state::{FOREIGN_PORT, differences, forget_drained, look, wipe};
use crate::scene::{NODE_ADDRESSES, Scene, Service};
use crate::sequence::{OTHER_ADDRESSES, Sequence, config, pods, sequences, stable};
use crate::stopping::{Budget, Process};
use crate::witness::{Findings, Moment, Promise, Talks, ask, learn};
use crate::{Options, Verdict};

/// Of the short form: every so many messages. Prime, so that it does not follow the kinds of objects.
const STRIDE: usize = 11;
/// Violations of one kill point that are told in words.
const TOLD: usize = 6;

pub(crate) fn run(options: &Options) -> Result<Verdict> {
    let mut scene = Scene::new()?;
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
        Vips::open()?.ensure_device()?;
        let old = tempfile::tempdir()?;
        let ensured = sysctl::ensure(
            &sysctl::required(false),
            Some(&OldValues::at(old.path().join("sysctls"))),
        );
        for change in ensured.changed {
            change.result?;
        }
        let mut verdict = Verdict::default();
        let mut points = 0;
        let wanted = |sequence: &Sequence| {
            options
                .filter
                .as_ref()
                .is_none_or(|text| sequence.name.contains(text.as_str()))
        };
        for sequence in sequences().into_iter().filter(wanted) {
            let start = Instant::now();
            let outcome = Stage::new(&scene, &sequence)?.run(options)?;
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

/// A sequence on its kernel.
struct Stage<'a> {
    scene: &'a Scene,
    sequence: &'a Sequence,
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

impl<'a> Stage<'a> {
    fn new(scene: &'a Scene, sequence: &'a Sequence) -> Result<Self> {
        Ok(Self {
            scene,
            sequence,
            budget: Budget::unlimited(),
            promises: Promise::all(sequence),
        })
    }

    fn run(mut self, options: &Options) -> Result<Outcome> {
        wipe()?;
        if self.sequence.others {
            self.add_foreign()?;
        }
        let mut findings = Findings::default();
        let (before, after, messages) = self.undisturbed(&mut findings)?;
        self.reset(&before)?;
        let load = Load::start(&self.clients());
        let stride = if options.short { STRIDE } else { 1 };
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
        let before = look()?;
        learn(self.scene, &mut self.promises, Moment::Before);
        ask(self.scene, &self.promises, Moment::Before, findings);
        self.budget.allow(usize::MAX);
        ensure!(self.change(&mut process)?, "the change was not written");
        let messages = self.budget.sent();
        let after = look()?;
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
    fn start(&self) -> Result<Process> {
        let mut process = Process::new(config()?, &self.budget)?;
        if let Some(before) = &self.sequence.before {
            ensure!(process.apply(&before.events()?)?, "the first state was not written");
        }
        Ok(process)
    }

    fn change(&self, process: &mut Process) -> Result<bool> {
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
            None => wipe()?,
            Some(_) => {
                drop(self.start()?);
                forget_drained()?;
            }
        }
        let found = differences(before, &look()?);
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
        let mut again = Process::new(config()?, &self.budget)?;
        ensure!(
            again.apply(&self.sequence.after.events()?)?,
            "the start was not written"
        );
        drop(again);
        let found = differences(after, &look()?);
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
