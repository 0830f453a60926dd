//! What clients may see of a change: before it, in the midst of it, after it.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use testbed::load::{Answer, Conversation, Place, Protocol, request};

use crate::scene::Scene;
use crate::sequence::{Sequence, State};

/// Where an answer must come: longer than any pause of a slow machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// Where silence is allowed, a late answer is taken for silence.
const HASTE: Duration = Duration::from_millis(150);

/// How long an answer is waited for where none serves: an unreachable VIP is told with the second SYN.
const LESSON: Duration = Duration::from_secs(2);

/// Questions of a new client in one check, at each place.
const QUESTIONS: usize = 2;

/// Connections until two are with each endpoint.
const TRIES: usize = 50;

/// Where in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    /// The process was stopped in the midst of it.
    Between,
    After,
}

/// What a place promises.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    pub(crate) place: Place,
    /// Answers of endpoints; empty: none serves it.
    before: BTreeSet<Answer>,
    after: BTreeSet<Answer>,
    /// What a client gets where none serves it, as an undisturbed run showed.
    unserved: BTreeSet<Answer>,
}

/// Conversations that began before the change.
pub(crate) struct Talks(Vec<Talk>);

struct Talk {
    conversation: Conversation,
    server: Answer,
    must_last: bool,
    /// Its endpoint takes no new clients after the change.
    drains: bool,
}

/// What went wrong, and how much was looked at.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) questions: usize,
    pub(crate) talks: usize,
    pub(crate) wrong: Vec<String>,
}

impl Promise {
    /// Every place that is served before or after the change.
    pub(crate) fn all(sequence: &Sequence) -> Vec<Self> {
        let none = State::default();
        let before = sequence.before.as_ref().unwrap_or(&none);
        let places: BTreeSet<_> = before.places().into_iter().chain(sequence.after.places()).collect();
        let promise = |place| Self {
            place,
            before: before.answers(place),
            after: sequence.after.answers(place),
            unserved: BTreeSet::new(),
        };
        places.into_iter().map(promise).collect()
    }

    fn served(&self, moment: Moment) -> bool {
        match moment {
            Moment::Before => !self.before.is_empty(),
            Moment::Between => !self.before.is_empty() && !self.after.is_empty(),
            Moment::After => !self.after.is_empty(),
        }
    }

    /// Silence is fine, but where an endpoint answers before and after; so is what a router says of an address that nobody
    /// has, and says at a limited rate.
    fn allowed(&self, moment: Moment) -> BTreeSet<Answer> {
        let mut allowed = match moment {
            Moment::Before => self.before.clone(),
            Moment::Between => &self.before | &self.after,
            Moment::After => self.after.clone(),
        };
        if !self.served(moment) {
            allowed.extend(self.unserved.iter().cloned());
            allowed.extend([Answer::Silent, Answer::Unreachable]);
        }
        allowed
    }

    /// From this thread's namespace.
    fn ask(&self, moment: Moment) -> Vec<Answer> {
        let patience = if self.served(moment) { PATIENCE } else { HASTE };
        let mut answers = Vec::new();
        // Silence would only be waited for once more.
        while answers.len() < QUESTIONS && answers.last() != Some(&Answer::Silent) {
            answers.push(request::ask_here(self.place, patience));
        }
        answers
    }
}

/// Learns from an undisturbed state what a client gets where none serves.
pub(crate) fn learn(scene: &Scene, promises: &mut [Promise], moment: Moment) {
    thread::scope(|scope| {
        for promise in promises.iter_mut().filter(|promise| !promise.served(moment)) {
            scope.spawn(|| {
                let answer = request::ask(scene.asker(promise.place), promise.place, LESSON);
                promise.unserved.insert(answer);
            });
        }
    });
}

/// Asks everywhere, all places at once.
pub(crate) fn ask(scene: &Scene, promises: &[Promise], moment: Moment, findings: &mut Findings) {
    let answers = thread::scope(|scope| {
        let asked: Vec<_> = promises
            .iter()
            .map(|promise| scope.spawn(|| scene.asker(promise.place).run(|| Ok(promise.ask(moment)))))
            .collect();
        let answers = asked.into_iter().map(|asked| match asked.join() {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => vec![Answer::Other(format!("{error:#}"))],
            Err(_) => vec![Answer::Other("a client panicked".to_owned())],
        });
        answers.collect::<Vec<_>>()
    });
    for (promise, answers) in promises.iter().zip(answers) {
        let allowed = promise.allowed(moment);
        findings.questions += answers.len();
        for answer in answers.iter().filter(|answer| !allowed.contains(*answer)) {
            let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let (place, allowed) = (promise.place, allowed.join(", "));
            findings
                .wrong
                .push(format!("{moment:?}: {place}: {answer}, not {allowed}"));
        }
    }
}

impl Talks {
    /// Begins two with each endpoint of each place that is served before the change.
    pub(crate) fn begin(scene: &Scene, promises: &[Promise]) -> Result<Self> {
        let mut talks = Vec::new();
        for promise in promises {
            let mut left: Vec<_> = promise.before.iter().flat_map(|server| [server; 2]).collect();
            // The clients that run all the time take turns, too.
            for _ in 0..TRIES {
                if left.is_empty() {
                    break;
                }
                let opened = Conversation::open(scene.asker(promise.place), promise.place, PATIENCE);
                let Ok(mut conversation) = opened else {
                    bail!("begin to talk with {}: {opened:?}", promise.place);
                };
                let server = conversation.ask();
                ensure!(promise.before.contains(&server), "{}: {server}", promise.place);
                let Some(at) = left.iter().position(|other| **other == server) else {
                    continue;
                };
                left.swap_remove(at);
                let drains = !promise.after.contains(&server);
                // A datagram to a server that is gone may be lost; a connection may not while its place is there.
                let must_last = !promise.after.is_empty() && (promise.place.protocol == Protocol::Tcp || !drains);
                talks.push(Talk {
                    conversation,
                    server,
                    must_last,
                    drains,
                });
            }
            ensure!(left.is_empty(), "{}: no answer of {left:?}", promise.place);
        }
        Ok(Self(talks))
    }

    /// Goes on with each; those that broke are over.
    pub(crate) fn go_on(&mut self, moment: Moment, findings: &mut Findings) {
        self.0.retain(|talk| talk.must_last);
        findings.talks += self.0.len();
        let answers: Vec<_> = thread::scope(|scope| {
            let asked: Vec<_> = self
                .0
                .iter_mut()
                .map(|talk| scope.spawn(|| talk.conversation.ask()))
                .collect();
            let answers = asked.into_iter().map(thread::ScopedJoinHandle::join);
            answers.map(Result::ok).collect()
        });
        let mut answers = answers.into_iter();
        self.0.retain(|talk| {
            let answer = answers.next().flatten();
            let lasts = answer.as_ref() == Some(&talk.server);
            if !lasts {
                let answer = answer.map_or_else(|| "panicked".to_owned(), |answer| answer.to_string());
                let what = if talk.drains {
                    "draining conversation"
                } else {
                    "conversation"
                };
                let (place, server) = (talk.conversation.place(), &talk.server);
                findings
                    .wrong
                    .push(format!("{moment:?}: a {what} with {server} by {place}: {answer}"));
            }
            lasts
        });
    }
}
