//! kube-ipvs killed at random moments while services come, go and change, and clients talk to those that stay.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use fastrand::Rng;
use testbed::load::{Client, Habit, Load, Protocol};

use crate::kernel_state::{differences, look, wipe};
use crate::scene::{NODE_ADDRESSES, Pod, Scene, Service};
use crate::{Options, Verdict};

/// Kills of the long and of the short form.
const KILLS: [usize; 2] = [1000, 25];
/// A kill comes within this time, in milliseconds, of the start or of the first commit: a start takes about as long.
const MOMENT: u64 = 150;
/// Longest pause between two changes, in milliseconds.
const PAUSE: u64 = 60;
/// A client of a service that rolls ends its connection before its server does.
const AGE: Duration = Duration::from_secs(1);

/// Services that come and go.
const CHURNING: u8 = 6;
/// Pods of the service that rolls, and how many of them serve at once.
const ROLLING: u8 = 8;
const SERVING: usize = 4;

pub(crate) fn run(options: &Options) -> Result<Verdict> {
    let mut scene = Scene::new(options.mode)?;
    let stable = stable();
    let mut churn = Churn::new(options.seed);
    scene.start_servers(&stable, &[0, 1, 2])?;
    scene.start_servers(&churn.rolling, &(20..20 + ROLLING).collect::<Vec<_>>())?;
    scene.put(&stable)?;
    churn.write_all(&scene)?;

    let mut daemon = scene.start_daemon()?;
    daemon.wait_until_serving()?;
    let load = Load::start(&clients(&scene, &stable, &churn.rolling));
    drop(daemon);

    let kills = options.kills.unwrap_or(KILLS[usize::from(options.short)]);
    let (ended, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (scene_now, changes_now, ended_now) = (&scene, &changes, &ended);
    let serving = thread::scope(|scope| {
        let churning = scope.spawn(move || {
            while !ended_now.load(Ordering::SeqCst) {
                churn.change(scene_now)?;
                changes_now.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(churn.random.u64(1..=PAUSE)));
            }
            anyhow::Ok(())
        });
        let serving = kill(&scene, &load, kills, Rng::with_seed(options.seed ^ 1));
        ended.store(true, Ordering::SeqCst);
        let churned = churning.join();
        ensure!(matches!(churned, Ok(Ok(()))), "the churn ended: {churned:?}");
        serving
    })?;
    let seen = load.finish();
    let changes = changes.load(Ordering::SeqCst);
    println!("sigkill: {kills} kills, {serving} of them after the first commit, {changes} changes; {seen}");
    let left = left_over(&scene)?;
    println!(
        "sigkill: {} objects are not as a fresh start on the same manifests has them",
        left.len()
    );
    left.iter().for_each(|line| println!("  {line}"));
    Ok(Verdict {
        failures: left.len() + usize::try_from(seen.failed)?,
    })
}

/// Starts and kills it. Returns how often it had committed before.
fn kill(scene: &Scene, load: &Load, kills: usize, mut random: Rng) -> Result<usize> {
    let mut serving = 0;
    for number in 1..=kills {
        let mut daemon = scene.start_daemon()?;
        if random.bool() {
            daemon.wait_until_serving()?;
        }
        thread::sleep(Duration::from_millis(random.u64(0..MOMENT)));
        let ended = daemon.ended()?;
        ensure!(
            ended.is_none(),
            "it ended by itself: {ended:?}\n{}",
            daemon.said().join("\n")
        );
        serving += usize::from(daemon.said().iter().any(|line| line.contains(" serving ")));
        drop(daemon);
        if number.is_multiple_of(100) {
            let seen = load.so_far();
            println!(
                "sigkill: {number} kills, {} requests, {} failed",
                seen.requests, seen.failed
            );
        }
    }
    Ok(serving)
}

/// What differs between a start on what the killed ones left, and one on an empty kernel.
fn left_over(scene: &Scene) -> Result<Vec<String>> {
    let after_kills = start_and_look(scene)?;
    scene.world.node.run(|| wipe(scene.mode))?;
    let fresh = start_and_look(scene)?;
    ensure!(fresh.len() > 50, "a fresh start has {} objects", fresh.len());
    Ok(differences(&fresh, &after_kills))
}

fn start_and_look(scene: &Scene) -> Result<BTreeSet<String>> {
    let mut daemon = scene.start_daemon()?;
    daemon.wait_until_serving()?;
    // Addresses come in the background; they have come when nothing comes any more.
    let mut before = BTreeSet::new();
    loop {
        thread::sleep(Duration::from_millis(500));
        let now = scene.world.node.run(|| look(scene.mode))?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

fn stable() -> Service {
    Service::new("stable", 1, 30001, &[0, 1, 2])
}

/// Of each family: constant and short TCP, constant and short UDP, by cluster IP and node port.
fn clients(scene: &Scene, stable: &Service, rolling: &Service) -> Vec<Client> {
    let mut clients = Vec::new();
    for service in [stable, rolling] {
        let mut places = service.cluster_places();
        places.extend(service.node_places(&NODE_ADDRESSES.map(|text| text.parse().unwrap())));
        for place in places {
            let habits = match (service.name == stable.name, place.protocol) {
                (true, _) => vec![Habit::Constant, Habit::Constant, Habit::Short],
                (false, Protocol::Tcp) => vec![Habit::Until(AGE), Habit::Short],
                // A datagram to a server that is gone may be lost.
                (false, Protocol::Udp) => vec![Habit::Short],
            };
            clients.extend(habits.into_iter().map(|habit| Client {
                netns: scene.asker(place).clone(),
                name: format!("{habit:?}"),
                place,
                habit,
                servers: format!("{}-", service.name),
            }));
        }
    }
    clients
}

/// The services that change.
struct Churn {
    random: Rng,
    rolling: Service,
    others: Vec<Service>,
}

impl Churn {
    fn new(seed: u64) -> Self {
        let other = |number| Service::new(&format!("churn-{number}"), 10 + number, 0, &[]);
        Self {
            random: Rng::with_seed(seed),
            rolling: Service::new("rolling", 2, 30002, &[20, 21, 22, 23]),
            others: (0..CHURNING).map(other).collect(),
        }
    }

    fn write_all(&mut self, scene: &Scene) -> Result<()> {
        scene.put(&self.rolling)?;
        self.others.iter().try_for_each(|service| scene.put(service))
    }

    fn change(&mut self, scene: &Scene) -> Result<()> {
        if self.random.u8(0..4) == 0 {
            self.roll();
            return scene.put(&self.rolling);
        }
        let number = self.random.u8(0..CHURNING);
        let service = &mut self.others[usize::from(number)];
        match self.random.u8(0..4) {
            // An empty manifest: a file that goes while it is read ends the program (it is bad input then).
            0 => return scene.remove(&service.name),
            1 => {
                let (first, offset) = (30100 + 2 * u16::from(number), self.random.u16(0..3));
                service.node_port = if offset == 0 { 0 } else { first + offset };
            }
            _ => {
                let pod = Pod {
                    number: 60 + 8 * number + self.random.u8(0..8),
                    terminating: false,
                };
                let before = service.pods.len();
                service.pods.retain(|other| *other != pod);
                if service.pods.len() == before {
                    service.pods.push(pod);
                }
            }
        }
        scene.put(service)
    }

    /// As a rolling update does: a new one is ready and an old one terminates; at the next time the old one is gone.
    fn roll(&mut self) {
        let pods = &mut self.rolling.pods;
        let before = pods.len();
        pods.retain(|pod| !pod.terminating);
        if pods.len() < before {
            return;
        }
        let old = self.random.usize(0..SERVING);
        pods[old].terminating = true;
        let mut spare: Vec<_> = (20..20 + ROLLING).collect();
        spare.retain(|number| !pods.iter().any(|pod| pod.number == *number));
        pods.push(Pod {
            number: self.random.choice(spare).unwrap(),
            terminating: false,
        });
    }
}
