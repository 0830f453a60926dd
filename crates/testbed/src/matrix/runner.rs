//! Asks all cells of one world and compares.
//!
//! Cells that expect an answer come first; then those that expect none, after which no endpoint may have seen a packet
//! of theirs. Between them the kernel's limit of ICMP errors is lifted, but not for refused TCP (T5: every time).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use serde::Serialize;

use super::asker::{By, Came, ask};
use super::capture;
use super::cell::{Cell, Plan};
use super::cluster::Cluster;
use super::question::{Ask, Expectation, Question, Source, Spread};
use super::service::{Place, Protocol};
use super::site::{Client, Node, NodeAddress};
use crate::netns::Netns;

/// How long a client waits for an answer that is promised.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many promised answers that never came, a client of the world waits no longer than for silence.
const DISAPPOINTED: usize = 100;
/// How long silence lasts: one retransmission of TCP is in it.
const SILENCE: Duration = Duration::from_millis(1500);
/// Questions until each of several endpoints must have answered: one of four is missed once in ten million times.
const QUESTIONS: usize = 60;
/// Questions without a pause. Two clients in step on one round robin get always the same endpoint each.
const REGULAR: usize = 6;
/// Questions of a cell with one possible answer, or none.
const REPEATED: usize = 3;
/// Questions on their way at a time, of each client.
const AT_ONCE: usize = 12;
const AT_ONCE_SILENT: usize = 150;

/// How a cell ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The cell's name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// The decisions that it shows.
    pub decisions: Vec<&'static str>,
    /// The promise.
    pub expected: String,
    /// What came.
    pub seen: String,
    /// They are the same.
    pub agrees: bool,
    /// Name of the service.
    pub service: String,
    /// What the client asked.
    pub question: String,
}

/// How long clients wait for promised answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Long enough for a slow machine.
    None,
    /// No longer than for silence: where the answer that never comes is what is looked for.
    Impatient,
}

/// Asks cells in a cluster whose proxies serve.
///
/// # Errors
/// The world breaks; a cell that differs is none.
pub fn run(plan: &Plan, cells: &[&Cell], cluster: &Cluster, haste: Haste) -> Result<Vec<Outcome>> {
    let runner = Runner {
        plan,
        cluster,
        disappointments: AtomicUsize::new(match haste {
            Haste::None => 0,
            Haste::Impatient => DISAPPOINTED,
        }),
    };
    let kind = |cell: &Cell| -> usize {
        match (&cell.promise.expectation, cell.protocol) {
            (Expectation::Answer(..) | Expectation::Echo, _) => 0,
            (Expectation::Refused, Protocol::Tcp) => 1,
            _ => 2,
        }
    };
    let of = |wanted: usize| {
        cells
            .iter()
            .copied()
            .filter(|cell| kind(cell) == wanted)
            .collect::<Vec<_>>()
    };
    let mut outcomes = runner.phase(&of(0), AT_ONCE)?;
    let differ = outcomes.iter().filter(|outcome| !outcome.agrees).count();
    eprintln!("  {} that expect an answer asked; {differ} differ", outcomes.len());
    runner.forget()?;
    let mut quiet = runner.phase(&of(1), AT_ONCE)?;
    cluster.on_nodes(
        "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000 \
             net.ipv4.icmp_msgs_burst=100000",
    )?;
    quiet.extend(runner.phase(&of(2), AT_ONCE_SILENT)?);
    cluster.on_nodes(
        "sysctl -qw net.ipv4.icmp_ratelimit=1000 net.ipv6.icmp.ratelimit=1000 net.ipv4.icmp_msgs_per_sec=10000 \
         net.ipv4.icmp_msgs_burst=50",
    )?;
    let differ = outcomes.iter().chain(&quiet).filter(|outcome| !outcome.agrees).count();
    eprintln!("  asked; {differ} differ; looking for packets that arrived at endpoints");
    runner.find_leaks(cells, &mut quiet)?;
    outcomes.extend(quiet);
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(outcomes)
}

/// The outcomes of cells whose world has no proxy that serves.
pub fn unserved(plan: &Plan, cells: &[&Cell], why: &str) -> Vec<Outcome> {
    let service = |cell: &Cell| {
        plan.services
            .get(cell.service)
            .map_or("", |service| &service.name)
            .to_owned()
    };
    cells
        .iter()
        .map(|cell| outcome(cell, &service(cell), "", why, false))
        .collect()
}

struct Runner<'a> {
    plan: &'a Plan,
    cluster: &'a Cluster,
    disappointments: AtomicUsize,
}

impl Runner<'_> {
    /// All clients at a time, each some cells at a time.
    fn phase(&self, cells: &[&Cell], at_once: usize) -> Result<Vec<Outcome>> {
        let mut by_client: BTreeMap<Client, Vec<&Cell>> = BTreeMap::new();
        for cell in cells {
            by_client.entry(cell.client).or_default().push(cell);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = by_client
                .into_iter()
                .map(|(client, cells)| scope.spawn(move || self.client(client, &cells, at_once)))
                .collect();
            let mut all = Vec::new();
            for thread in threads {
                let outcomes = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                all.extend(outcomes);
            }
            Ok(all)
        })
    }

    fn client(&self, client: Client, cells: &[&Cell], at_once: usize) -> Result<Vec<Outcome>> {
        let netns: &Netns = self
            .cluster
            .clients
            .get(&client)
            .context("a client without namespace")?;
        netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let asked = futures::stream::iter(cells.iter().map(|cell| self.cell(cell)));
            Ok(runtime.block_on(asked.buffer_unordered(at_once).collect::<Vec<_>>()))
        })
    }

    async fn cell(&self, cell: &Cell) -> Outcome {
        let Some(service) = self.plan.services.get(cell.service) else {
            return outcome(cell, "", "", "there is no such service", false);
        };
        let question = Question {
            setting: &self.plan.setting,
            mode: super::question::Mode::Ipvs,
            services: &self.plan.services,
            service,
            client: cell.client,
            address: cell.address,
            ask: cell.ask,
            family: cell.family,
            protocol: cell.protocol,
        };
        let to = question.destination();
        let by = match cell.ask {
            Ask::Echo => By::Echo,
            _ => By::Transport(cell.protocol),
        };
        let (times, patience) = match &cell.promise.expectation {
            Expectation::Answer(by, Spread::All) if by.len() > 1 => (QUESTIONS, PATIENCE),
            Expectation::Answer(..) | Expectation::Echo => (REPEATED, PATIENCE),
            Expectation::Refused => (REPEATED, PATIENCE),
            Expectation::Silence | Expectation::NoAnswer => (1, SILENCE),
        };
        let mut came = Vec::new();
        for time in 0..times {
            if time >= REGULAR {
                tokio::time::sleep(irregular(&cell.name, time)).await;
            }
            let tired = self.disappointments.load(Ordering::Relaxed) >= DISAPPOINTED;
            let one = ask(by, to, if tired { SILENCE } else { patience }).await;
            if one == Came::Silence && patience != SILENCE {
                self.disappointments.fetch_add(1, Ordering::Relaxed);
            }
            came.push(one);
            match verdict(cell, to.ip(), &came) {
                Verdict::Complete | Verdict::Wrong => break,
                Verdict::Incomplete => {}
            }
        }
        let agrees = !matches!(verdict(cell, to.ip(), &came), Verdict::Wrong)
            && (came.len() < QUESTIONS || matches!(verdict(cell, to.ip(), &came), Verdict::Complete));
        let asked = match by {
            By::Echo => format!("echo {}", to.ip()),
            By::Transport(protocol) => format!("{} {to}", protocol.name()),
        };
        outcome(cell, &service.name, &asked, &tally(&came), agrees)
    }

    fn forget(&self) -> Result<()> {
        self.cluster
            .endpoints()
            .try_for_each(|(_, netns)| capture::clear(netns))
    }

    /// A packet of a cell that expects none to arrive is found by its target port, which tells the service; which cell's
    /// it was, by asking again one cell of each service at a time.
    fn find_leaks(&self, cells: &[&Cell], outcomes: &mut [Outcome]) -> Result<()> {
        let seen = capture::seen(self.cluster.endpoints())?;
        let by_name: BTreeMap<&str, &Cell> = cells.iter().map(|cell| (cell.name.as_str(), *cell)).collect();
        let mut suspects: BTreeMap<BTreeSet<u16>, Vec<&Cell>> = BTreeMap::new();
        for outcome in &*outcomes {
            let Some(cell) = by_name.get(outcome.name.as_str()) else {
                continue;
            };
            let ports = self.target_ports(cell);
            if ports.iter().any(|port| seen.contains_key(port)) {
                suspects.entry(ports).or_default().push(*cell);
            }
        }
        let mut leaks: BTreeMap<String, String> = BTreeMap::new();
        while !suspects.is_empty() {
            // No two of a round have a target port in common: all endpoints with hostNetwork have one.
            let mut taken = BTreeSet::new();
            let mut round = Vec::new();
            for (ports, cells) in &mut suspects {
                if ports.is_disjoint(&taken) {
                    taken.extend(ports);
                    round.extend(cells.pop().map(|cell| (cell, ports.clone())));
                }
            }
            suspects.retain(|_, cells| !cells.is_empty());
            self.forget()?;
            let alone: Vec<_> = round.iter().map(|(cell, _)| *cell).collect();
            let again = self.phase(&alone, AT_ONCE_SILENT)?;
            let seen = capture::seen(self.cluster.endpoints())?;
            for (cell, ports) in round {
                let at: BTreeSet<_> = ports
                    .iter()
                    .filter_map(|port| seen.get(port))
                    .flatten()
                    .cloned()
                    .collect();
                let came = again.iter().find(|outcome| outcome.name == cell.name);
                if let (Some(came), false) = (came, at.is_empty()) {
                    let at: Vec<_> = at.into_iter().collect();
                    let seen = format!("{}, but packets arrived at {}", came.seen, at.join(", "));
                    leaks.insert(cell.name.clone(), seen);
                }
            }
        }
        for outcome in outcomes {
            if let Some(seen) = leaks.remove(&outcome.name) {
                outcome.agrees = false;
                outcome.seen = seen;
            }
        }
        Ok(())
    }

    fn target_ports(&self, cell: &Cell) -> BTreeSet<u16> {
        let service = self.plan.services.get(cell.service);
        let places = service.map(|service| (service, [Place::Pod(Node::A, 1), Place::Host(Node::A)]));
        let all = places.into_iter().flat_map(|(service, places)| {
            let has = move |place: &Place| {
                service
                    .endpoints
                    .iter()
                    .any(|endpoint| matches!(endpoint.place, Place::Host(_)) == matches!(place, Place::Host(_)))
            };
            places.into_iter().filter(has).map(|place| service.target_port(place))
        });
        all.collect()
    }
}

fn outcome(cell: &Cell, service: &str, question: &str, seen: &str, agrees: bool) -> Outcome {
    Outcome {
        name: cell.name.clone(),
        group: cell.group.clone(),
        decisions: cell.promise.decisions.clone(),
        expected: cell.promise.expectation.to_string(),
        seen: seen.to_owned(),
        agrees,
        service: service.to_owned(),
        question: question.to_owned(),
    }
}

/// A pause of up to some milliseconds, different for each cell and time.
fn irregular(name: &str, time: usize) -> Duration {
    let mut hasher = DefaultHasher::new();
    (name, time).hash(&mut hasher);
    Duration::from_micros(hasher.finish() % 8000)
}

/// Each different thing that came, with its number.
fn tally(came: &[Came]) -> String {
    let mut counts: BTreeMap<&Came, usize> = BTreeMap::new();
    for one in came {
        *counts.entry(one).or_default() += 1;
    }
    let parts: Vec<_> = counts.iter().map(|(one, count)| format!("{count} × {one}")).collect();
    parts.join(", ")
}

enum Verdict {
    /// Something came that is not promised.
    Wrong,
    /// All that is promised came; no more questions are needed.
    Complete,
    /// So far so good.
    Incomplete,
}

fn verdict(cell: &Cell, asked: IpAddr, came: &[Came]) -> Verdict {
    let right = |one: &Came| match (&cell.promise.expectation, one) {
        (Expectation::Answer(by, _), Came::Answer(name, source)) => {
            by.get(name).is_some_and(|expected| is(*expected, *source, cell, asked))
        }
        (Expectation::Echo, Came::Echo)
        | (Expectation::Refused, Came::Refused)
        | (Expectation::Silence, Came::Silence) => true,
        (Expectation::NoAnswer, came) => !matches!(came, Came::Answer(..) | Came::Echo | Came::Odd(_)),
        _ => false,
    };
    if !came.iter().all(right) {
        return Verdict::Wrong;
    }
    let names: BTreeSet<_> = came
        .iter()
        .filter_map(|one| match one {
            Came::Answer(name, _) => Some(name),
            _ => None,
        })
        .collect();
    match &cell.promise.expectation {
        Expectation::Answer(_, Spread::One) if names.len() > 1 => Verdict::Wrong,
        Expectation::Answer(by, Spread::All) if by.len() > 1 => {
            if names.len() == by.len() {
                Verdict::Complete
            } else {
                Verdict::Incomplete
            }
        }
        _ => Verdict::Incomplete,
    }
}

fn is(expected: Source, source: IpAddr, cell: &Cell, asked: IpAddr) -> bool {
    match expected {
        Source::Client => cell.client.addresses(cell.family).contains(&source),
        Source::Node(node) => node.addresses(cell.family).contains(&source),
        Source::Within(node) => {
            node.addresses(cell.family).contains(&source)
                || source == asked
                || source == node.address(cell.family, NodeAddress::Loopback)
        }
    }
}
