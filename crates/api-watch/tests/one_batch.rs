//! What one list brings is one step (ARCHITECTURE.md, "The life of one change"): whatever breaks off before it, and
//! wherever, nothing that is in the old and in the new picture is missing between two batches.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use api_watch::{ApiConfig, ApiServer, CallObserver, Patience, Peers};
use proptest::prelude::*;
use serde_json::{Value, json};
use service_model::{Batch, Cluster, Config, Event, Kind, ObjectName};
use testbed::fake_api::{FakeApi, Fault};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const LONG: Duration = Duration::from_secs(60);

/// Endpoints by slice.
type Slices = BTreeMap<u8, BTreeSet<u8>>;

/// How a list fails before one succeeds.
#[derive(Clone, Debug)]
enum Failure {
    /// A streamed list is cut after so many objects.
    Cut(usize),
    /// Pages of so many objects, of which a later one is refused with this status.
    Page(usize, u16),
    /// Pages of so many objects, all there.
    Pages(usize),
}

fn service() -> Value {
    let spec = json!({"clusterIP": "10.0.0.1", "ports": [{"name": "p", "port": 80}]});
    json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})
}

fn slice(number: u8, endpoints: &BTreeSet<u8>) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|n| json!({"addresses": [format!("10.1.0.{n}")]}))
        .collect();
    json!({
        "metadata": {"name": format!("s-{number}"), "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080}],
        "endpoints": endpoints,
    })
}

fn put(api: &FakeApi, before: &Slices, now: &Slices) {
    for gone in before.keys().filter(|number| !now.contains_key(number)) {
        api.delete(SLICES, &format!("d/s-{gone}"));
    }
    now.iter()
        .for_each(|(number, endpoints)| api.put(SLICES, slice(*number, endpoints)));
}

fn cluster() -> Cluster {
    Cluster::new(Config::of_node("n1"))
}

fn served(cluster: &Cluster) -> BTreeSet<SocketAddr> {
    let program = cluster.program(&ObjectName::new("d", "s"));
    let endpoints = program.frontends.iter().flat_map(|frontend| &frontend.endpoints);
    endpoints.map(|target| target.address).collect()
}

fn addresses(slices: &Slices) -> BTreeSet<SocketAddr> {
    let address = |n: &u8| SocketAddr::from(([10, 1, 0, *n], 8080));
    slices.values().flatten().map(address).collect()
}

/// Takes batches in one by one, and looks after each, up to the end of a list of slices.
async fn take_list(batches: &mut mpsc::Receiver<Batch>, cluster: &mut Cluster, mut look: impl FnMut(&Cluster)) {
    loop {
        let batch = timeout(LONG, batches.recv()).await.expect("a batch comes").unwrap();
        let listed = batch.contains(&Event::Complete(Kind::EndpointSlice));
        cluster.extend(batch);
        look(cluster);
        if listed {
            return;
        }
    }
}

async fn relist(before: &Slices, now: &Slices, failure: &Failure) {
    let api = FakeApi::start().await.unwrap();
    api.put(SERVICES, service());
    put(&api, &Slices::new(), before);
    let config = ApiConfig {
        kubeconfig: None,
        master: Some(api.url()),
        node_name: "n1".to_owned(),
        observer: CallObserver::default(),
        peers: Peers::default(),
        patience: Patience::default(),
    };
    let (sender, mut batches) = mpsc::channel(1);
    tokio::spawn(
        ApiServer::connect(&config)
            .await
            .unwrap()
            .watch(sender, watch::channel(false).1),
    );
    let mut cluster = cluster();
    while !(cluster.is_complete(Kind::Service) && cluster.is_complete(Kind::EndpointSlice)) {
        cluster.extend(timeout(LONG, batches.recv()).await.expect("a batch comes").unwrap());
    }
    assert_eq!(served(&cluster), addresses(before));

    match failure {
        Failure::Cut(objects) if *objects < now.len() => {
            api.fault(&format!("{SLICES} sendInitialEvents"), Fault::CutAfter(*objects));
        }
        Failure::Cut(_) => {}
        Failure::Page(objects, code) => {
            api.set_streams_lists(false);
            api.set_largest_page(*objects);
            if *objects < now.len() {
                api.fault(&format!("{SLICES} continue="), Fault::Status(*code));
            }
        }
        Failure::Pages(objects) => {
            api.set_streams_lists(false);
            api.set_largest_page(*objects);
        }
    }
    // The watch ends, and its version is too old: what changes before the next list is told by that list alone.
    api.fault(&format!("{SLICES} resourceVersion="), Fault::Status(410));
    let waiting = api.faults_left() - 1;
    api.end_watches();
    timeout(LONG, async {
        while api.faults_left() > waiting {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    put(&api, before, now);

    let stays: BTreeSet<_> = addresses(before).intersection(&addresses(now)).copied().collect();
    take_list(&mut batches, &mut cluster, |cluster| {
        let served = served(cluster);
        assert!(
            served.is_superset(&stays),
            "{stays:?} stays, and only {served:?} is served"
        );
    })
    .await;
    assert_eq!(served(&cluster), addresses(now));
    assert_eq!(api.faults_left(), 0);
}

fn slices() -> impl Strategy<Value = Slices> {
    // Few, so that endpoints move.
    prop::collection::btree_map(0..4_u8, prop::collection::btree_set(1..6_u8, 0..4), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_stays_is_never_missing(
        before in slices(),
        now in slices(),
        failure in prop_oneof![
            (0..4_usize).prop_map(Failure::Cut),
            (1..3_usize, prop::sample::select(vec![410_u16, 500])).prop_map(|(page, code)| Failure::Page(page, code)),
            (1..3_usize).prop_map(Failure::Pages),
        ],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(relist(&before, &now, &failure));
    }
}

/// kubernetes/kubernetes#135334: all endpoints move into a new slice, and the old one is gone.
#[tokio::test]
async fn endpoints_that_move_between_slices_stay() {
    let (before, now) = ([(0, [1, 2].into())].into(), [(1, [2, 1].into())].into());
    for failure in [Failure::Pages(1), Failure::Cut(0)] {
        relist(&before, &now, &failure).await;
    }
}
