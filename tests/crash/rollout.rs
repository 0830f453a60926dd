//! Rolling restarts of a service under load: each old server runs until it is drained, or until its grace ends.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use testbed::load::{Client, Habit, Load, Protocol, Server};

use crate::kernel_state::weights;
use crate::mode::Mode;
use crate::scene::{NODE_ADDRESSES, Pod, Scene, Service};
use crate::{Options, Verdict};

/// Endpoints of the service.
const ENDPOINTS: u8 = 5;
/// Restarts of one endpoint each, of the long and of the short form.
const RESTARTS: [u8; 2] = [50, 5];
/// How long an old server runs at most, as `terminationGracePeriodSeconds`.
const GRACE: Duration = Duration::from_secs(30);
/// A client that keeps its connection ends it well within the grace.
const AGE: Duration = Duration::from_secs(4);
/// From the moment at which the kernel gives a server nothing new to the moment at which nothing new may arrive.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two restarts.
const PACE: Duration = Duration::from_millis(300);
/// For the kernel to have what a manifest says: only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that takes no new clients.
struct Leaving {
    pod: u8,
    server: Server,
    /// Connections that it had accepted when it was to get no more.
    accepted: u64,
    ends: Instant,
}

/// What became of old servers.
#[derive(Debug, Default)]
struct Gone {
    drained: usize,
    by_grace: usize,
    /// Connections that were open then; whose clients noticed decides.
    cut: u64,
    /// Connections that came although they were to get no more.
    late: u64,
}

pub(crate) fn run(options: &Options) -> Result<Verdict> {
    let scene = Scene::new(options.mode)?;
    let restarts = RESTARTS[usize::from(options.short)];
    let mut service = Service::new("app", 4, 30004, &(0..ENDPOINTS).collect::<Vec<_>>());
    let mut servers = VecDeque::new();
    for pod in 0..ENDPOINTS {
        servers.push_back((pod, scene.start_server(&service, pod)?));
    }
    scene.put(&service)?;
    let mut daemon = scene.start_daemon()?;
    daemon.wait_until_serving()?;
    let load = Load::start(&clients(&scene, &service));

    let (mut leaving, mut gone) = (Vec::new(), Gone::default());
    for pod in (ENDPOINTS..).take(restarts.into()) {
        servers.push_back((pod, scene.start_server(&service, pod)?));
        service.pods.push(Pod {
            number: pod,
            terminating: false,
        });
        scene.put(&service)?;
        let Some((old, server)) = servers.pop_front() else {
            bail!("no endpoint")
        };
        let whole = weights(scene.mode, &scene.world.node, old)?.len();
        wait(&scene, pod, |weights| {
            weights.len() == whole && weights.iter().all(|weight| *weight != 0)
        })?;

        service
            .pods
            .iter_mut()
            .filter(|pod| pod.number == old)
            .for_each(|pod| pod.terminating = true);
        scene.put(&service)?;
        wait(&scene, old, |weights| weights.iter().all(|weight| *weight == 0))?;
        thread::sleep(SETTLE);
        leaving.push(Leaving {
            pod: old,
            accepted: server.accepted(),
            server,
            ends: Instant::now() + GRACE,
        });
        service.pods.retain(|pod| pod.number != old);
        scene.put(&service)?;
        thread::sleep(PACE);
        for server in std::mem::take(&mut leaving) {
            // What the connection tracker carries on no rule tells of.
            let drained = match scene.mode {
                Mode::Ipvs => weights(scene.mode, &scene.world.node, server.pod)?.is_empty(),
                Mode::Iptables => server.server.open() == 0,
            };
            if drained || server.ends <= Instant::now() {
                gone.add(&server, drained);
            } else {
                leaving.push(server);
            }
        }
    }
    let seen = load.finish();
    let draining = leaving.len();
    gone.late += leaving.iter().map(Leaving::late).sum::<u64>();
    ensure!(
        seen.conversations > seen.requests / 100,
        "too few conversations: {seen}"
    );
    println!(
        "rollout: {restarts} restarts, old servers: {} drained, {} ended by grace, {draining} still draining, {} \
         connections cut, {} new connections to draining servers; {seen}",
        gone.drained, gone.by_grace, gone.cut, gone.late
    );
    Ok(Verdict {
        failures: usize::try_from(seen.failed + gone.late)?,
    })
}

impl Leaving {
    fn late(&self) -> u64 {
        self.server.accepted() - self.accepted
    }
}

impl Gone {
    fn add(&mut self, server: &Leaving, drained: bool) {
        self.drained += usize::from(drained);
        self.by_grace += usize::from(!drained);
        self.late += server.late();
        self.cut += server.server.open();
    }
}

/// Of each family, by cluster IP and node port.
fn clients(scene: &Scene, service: &Service) -> Vec<Client> {
    let mut places = service.cluster_places();
    places.extend(service.node_places(&NODE_ADDRESSES.map(|text| text.parse().unwrap())));
    let mut clients = Vec::new();
    for place in places {
        let habits = match place.protocol {
            Protocol::Tcp => vec![Habit::Until(AGE), Habit::Until(AGE), Habit::Short],
            Protocol::Udp => vec![Habit::Short],
        };
        clients.extend(habits.into_iter().map(|habit| Client {
            netns: scene.asker(place).clone(),
            name: format!("{habit:?}"),
            place,
            habit,
            servers: format!("{}-", service.name),
        }));
    }
    clients
}

fn wait(scene: &Scene, pod: u8, fits: impl Fn(&[u32]) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = weights(scene.mode, &scene.world.node, pod)?;
        if fits(&now) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "weights of pod {pod} stay {now:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
