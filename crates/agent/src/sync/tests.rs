//! Batches in, a kernel in memory out: what is in the old and in the new picture stays, wherever commits are made.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use api_watch::Directory;
use dataplane::DataPlane;
use dataplane::fake::FakeKernel;
use proptest::prelude::*;
use service_model::Event;
use tokio::sync::mpsc;

use super::*;
use crate::metrics::Metrics;
use crate::mode::{Choice, Mode};
use crate::progress::Progress;

/// A sync thread that is stepped by hand, and what feeds it.
struct World {
    sync: Sync<DataPlane<FakeKernel>>,
    /// Between the source and the scheduler of deliveries.
    from_source: Receiver<Batch>,
    to_sync: mpsc::Sender<Batch>,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// A directory with this file, followed.
    fn new(manifests: &str, min_sync: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), manifests);
        let (sender, from_source) = mpsc::channel(1);
        let read = Directory::read(folder.path()).unwrap();
        runtime.spawn(read.follow(sender));
        let (to_sync, batches) = mpsc::channel(1024);
        let progress = Arc::new(Progress::new());
        let metrics = Metrics::new(Choice::as_requested(Mode::Ipvs), Arc::clone(&progress), Vec::new());
        let readers = Readers {
            progress,
            metrics: Arc::new(metrics),
            health_checks: watch::channel(Arc::default()).0,
        };
        let channels = Channels {
            batches,
            heard: Heard {
                disturbances: mpsc::channel(1).1,
                looks: mpsc::channel(1).1,
                ask: None,
            },
            surroundings: Surroundings::of_nothing(),
            sink: EventSink::null(),
            readers,
            other_nodes: watch::channel(false).0,
            serving: oneshot::channel().0,
        };
        let config = Config::of_node("n1");
        let plane = DataPlane::new(FakeKernel::new(), dataplane::Settings::default());
        let periods = Periods {
            min_sync,
            sync: Duration::from_secs(30),
        };
        let mut world = Self {
            sync: Sync::new(config, plane, channels, periods),
            from_source,
            to_sync,
            folder,
            runtime,
        };
        world
            .sync
            .cluster
            .apply(Event::NodeAddresses(vec![[192, 168, 100, 1].into()]));
        while !world.sync.serving {
            world.deliver();
        }
        world
    }

    /// The next delivery of the source, and a commit that nothing holds back.
    fn deliver(&mut self) {
        let next = async { timeout(Duration::from_secs(60), self.from_source.recv()).await };
        let batch = self.runtime.block_on(next).expect("a batch comes").unwrap();
        self.to_sync.try_send(batch).unwrap();
        self.runtime.block_on(async { assert!(self.sync.wait().await) });
        self.sync.not_before = Instant::now();
        self.sync.step();
        assert!(!self.sync.serving || !self.sync.is_due());
    }

    /// Real servers that take new connections.
    fn real_servers(&self) -> BTreeSet<SocketAddr> {
        let tables = self.sync.plane.kernel().tables();
        let servers = tables.virtual_servers.iter().flat_map(|server| &server.real_servers);
        servers
            .filter(|(_, config)| config.weight > 0)
            .map(|(server, _)| server.address)
            .collect()
    }
}

/// Replaces the directory's only file at once.
fn put(folder: &Path, manifests: &str) {
    fs::write(folder.join("next"), manifests).unwrap();
    fs::rename(folder.join("next"), folder.join("all.yaml")).unwrap();
}

/// A service whose endpoints are in these slices, and one that tells that a picture is all there.
fn manifests(slices: &[BTreeSet<u8>], marker: u8) -> String {
    let service = |name: &str, number: u8| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{number}, ports: [{{name: p, port: 80}}]}}\n---\n"
        )
    };
    let slice = |(number, endpoints): (usize, &BTreeSet<u8>)| {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|n| format!("{{addresses: [10.244.1.{n}]}}"))
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-{number}, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{{name: p, port: 8080}}]\nendpoints: [{}]\n---\n",
            endpoints.join(", ")
        )
    };
    // An empty slice is not there.
    let slices = slices.iter().enumerate().filter(|(_, endpoints)| !endpoints.is_empty());
    service("s", 1) + &service("marker", marker) + &slices.map(slice).collect::<String>()
}

fn addresses(slices: &[BTreeSet<u8>]) -> BTreeSet<SocketAddr> {
    let address = |n: &u8| SocketAddr::from(([10, 244, 1, *n], 8080));
    slices.iter().flatten().map(address).collect()
}

/// From one picture to the next, with a commit between any two deliveries.
fn change(before: &[BTreeSet<u8>], now: &[BTreeSet<u8>], min_sync: Duration) -> World {
    let mut world = World::new(&manifests(before, 8), min_sync);
    assert_eq!(world.real_servers(), addresses(before));
    world.sync.plane.kernel_mut().log.clear();
    put(world.folder.path(), &manifests(now, 9));
    let stays: BTreeSet<_> = addresses(before).intersection(&addresses(now)).copied().collect();
    let marker = ObjectName::new("default", "marker");
    let mut deliveries = 0;
    loop {
        world.deliver();
        deliveries += 1;
        let there = world.real_servers();
        assert!(
            there.is_superset(&stays),
            "{stays:?} stays, and there is only {there:?}"
        );
        let program = world.sync.cluster.program(&marker);
        let is_marked = |frontend: &service_model::Frontend| frontend.key.address == IpAddr::from([10, 96, 0, 9]);
        if program.frontends.iter().any(is_marked) && there == addresses(now) {
            break;
        }
    }
    assert_eq!(deliveries, 1, "a reading is one step");
    world
}

/// kubernetes/kubernetes#135334: endpoints move between slices; with and without `minSyncPeriod` no op is about them.
#[test]
fn endpoints_that_move_between_slices_are_not_touched() {
    let before = [[151, 152].into(), BTreeSet::new()];
    let now = [BTreeSet::new(), [151, 152].into()];
    for min_sync in [Duration::ZERO, Duration::from_secs(5)] {
        let world = change(&before, &now, min_sync);
        let log = &world.sync.plane.kernel().log;
        let moved: Vec<_> = log
            .iter()
            .filter(|(op, _)| op.to_string().contains("10.244.1."))
            .collect();
        assert!(moved.is_empty(), "{moved:?}");
    }
}

/// Audit F3: a Service that changes faster than it is computed must not keep the others waiting.
#[test]
fn f03_a_round_computes_each_object_once_and_then_commits() {
    let mut world = World::new(&manifests(&[[1].into()], 8), Duration::ZERO);
    let changed = |port: u16| {
        let mut service = service_model::Service::new(ObjectName::new("default", "hot"));
        service.cluster_ips.push([10, 96, 0, 77].into());
        service.health_check_node_port = port;
        Event::Service(service_model::Change::Applied(service))
    };
    for port in 1..=1000 {
        world.to_sync.try_send(vec![changed(port)]).unwrap();
    }
    world.runtime.block_on(async { assert!(world.sync.wait().await) });
    let arrivals = world.sync.cluster.arrivals();
    assert_eq!(arrivals.pending.services, 1, "one change is computed");
    assert!(arrivals.services >= 1000, "all of them count as arrived");
    assert!(world.sync.batches.is_empty());
    world.sync.step();
    assert!(!world.sync.is_due());
}

/// The first picture may be more than a share: the next one must not wait for a batch that does not come.
#[test]
fn f09_a_start_of_several_shares_goes_on_at_once() {
    let mut world = World::new(&manifests(&[[1].into()], 8), Duration::ZERO);
    let now = Instant::now();
    for serving in [true, false] {
        (world.sync.serving, world.sync.more, world.sync.not_before) = (serving, true, now);
        assert_eq!(world.sync.pause(now), Some(Duration::ZERO), "{serving}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_stays_is_never_taken_out(
        before in prop::collection::vec(prop::collection::btree_set(1..7_u8, 0..4), 1..5),
        now in prop::collection::vec(prop::collection::btree_set(1..7_u8, 0..4), 1..5),
    ) {
        change(&before, &now, Duration::ZERO);
    }
}

/// Audit F6: a port that is ours from this commit on is no Service's from the next one on, and nothing is read for it.
#[test]
fn f06_the_port_of_a_health_check_is_no_services() {
    let mut world = World::new(&manifests(&[[1].into()], 8), Duration::ZERO);
    let place: SocketAddr = "192.168.100.1:30123".parse().unwrap();
    let port = service_model::ServicePort {
        position: 0,
        name: "p".into(),
        protocol: service_model::Protocol::Tcp,
        port: place.port(),
        node_port: 0,
    };
    let service = |name| service_model::Service {
        cluster_ips: [[10, 96, 0, 77].into()].into_iter().collect(),
        ports: [port.clone()].into_iter().collect(),
        ..service_model::Service::new(ObjectName::new("default", name))
    };
    let taker = service_model::Service {
        external_ips: vec![service_model::ExternalIp {
            position: 0,
            ip: place.ip(),
        }],
        ..service("taker")
    };
    let checked = service_model::Service {
        service_type: service_model::ServiceType::LoadBalancer,
        external_traffic_policy: service_model::TrafficPolicy::Local,
        health_check_node_port: place.port(),
        cluster_ips: [[10, 96, 0, 78].into()].into_iter().collect(),
        ..service("checked")
    };
    let applied = |service| Event::Service(service_model::Change::Applied(service));
    let mut commit = |event, expect| {
        world.to_sync.try_send(vec![event]).unwrap();
        world.runtime.block_on(async { assert!(world.sync.wait().await) });
        world.sync.step();
        while world.sync.is_due() {
            world.sync.step();
        }
        let tables = world.sync.plane.kernel().tables();
        let mut places = tables
            .virtual_servers
            .iter()
            .filter_map(|server| dataplane::element::Place::of(&server.server));
        assert_eq!(places.any(|at| at.socket() == place), expect);
    };
    commit(applied(taker), true);
    commit(applied(checked), false);
    let gone = ObjectName::new("default", "checked");
    commit(Event::Service(service_model::Change::Deleted(gone)), true);
}
