//! List and watch against a fake API server that does, one by one, what real ones do on bad days.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use api_watch::{ApiConfig, ApiServer, CallObserver, EventSink, EventType, ObjectEvent, Patience, Peers};
use serde_json::{Value, json};
use service_model::{Batch, Change, Event, Kind, ObjectName};
use testbed::fake_api::{FakeApi, Fault};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";
/// Longer than any wait that a test provokes.
const LONG: Duration = Duration::from_secs(60);

/// A server and one that watches it. Every fault that was asked for must have happened in the end.
struct World {
    api: FakeApi,
    batches: mpsc::Receiver<Batch>,
    /// Events of batches that came.
    waiting: VecDeque<Event>,
    sink: EventSink,
    other_nodes: watch::Sender<bool>,
}

impl World {
    /// Prepares the server, then starts to watch.
    async fn start(prepare: impl FnOnce(&FakeApi)) -> Self {
        Self::start_with(patience(), prepare).await
    }

    async fn start_with(patience: Patience, prepare: impl FnOnce(&FakeApi)) -> Self {
        let api = FakeApi::start().await.unwrap();
        prepare(&api);
        let server = connect_with(&api.url(), patience, CallObserver::default()).await;
        let sink = server.event_sink();
        let (sender, batches) = mpsc::channel(10_000);
        let (other_nodes, wanted) = watch::channel(false);
        tokio::spawn(server.watch(sender, wanted));
        Self {
            api,
            batches,
            waiting: VecDeque::new(),
            sink,
            other_nodes,
        }
    }

    async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            let batch = self.next_batch().await;
            self.waiting.extend(batch);
        }
    }

    async fn next_batch(&mut self) -> Batch {
        timeout(LONG, self.batches.recv())
            .await
            .expect("a batch comes")
            .unwrap()
    }

    /// The next event about a Node, as text.
    async fn next_of_nodes(&mut self) -> String {
        loop {
            return match self.next_event().await {
                Event::Node(Change::Applied(node)) => format!("+{} {:?}", node.name, node.addresses),
                Event::Node(Change::Deleted(name)) => format!("-{name}"),
                Event::Complete(Kind::Node) => "this node complete".to_owned(),
                Event::OtherNodesComplete => "other nodes complete".to_owned(),
                Event::OtherNodesForgotten => "forgotten".to_owned(),
                _ => continue,
            };
        }
    }

    /// The next event that a list of other Nodes brings when something changed.
    async fn next_change_of_nodes(&mut self) -> String {
        loop {
            let next = self.next_of_nodes().await;
            if next != "other nodes complete" {
                return next;
            }
        }
    }

    async fn expect_of_nodes(&mut self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.next_of_nodes().await, *text, "{:?}", self.api.requests());
        }
    }

    /// Requests for all Nodes so far.
    fn requests_for_all_nodes(&self) -> usize {
        let all = |uri: &&String| uri.starts_with(NODES) && !uri.contains("fieldSelector");
        self.api.requests().iter().filter(all).count()
    }

    /// The next event about a Service, as text.
    async fn next(&mut self) -> String {
        loop {
            return match self.next_event().await {
                Event::Unreadable(rejection) => format!("!{rejection}"),
                Event::Service(Change::Applied(service)) => format!("+{}", service.name.name()),
                Event::Service(Change::Deleted(name)) => format!("-{}", name.name()),
                Event::Complete(Kind::Service) => "complete".to_owned(),
                _ => continue,
            };
        }
    }

    async fn expect(&mut self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.next().await, *text, "{:?}", self.api.requests());
        }
    }

    /// Events up to the next "complete", sorted.
    async fn until_complete(&mut self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        loop {
            match self.next().await.as_str() {
                "complete" => return found,
                other => drop(found.insert(other.to_owned())),
            }
        }
    }

    /// Waits until every fault has happened.
    async fn faults_over(&self) {
        timeout(LONG, async {
            while self.api.faults_left() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    /// Requests about Services so far: the watches and lists, by what distinguishes them.
    fn requests(&self) -> Vec<String> {
        let services = self
            .api
            .requests()
            .into_iter()
            .filter(|uri| uri.starts_with(&format!("{SERVICES}?")));
        services
            .map(|uri| {
                let has = |text: &str| uri.contains(text);
                if has("limit=1") {
                    return "look".to_owned();
                }
                let kind = match (
                    has("sendInitialEvents=true"),
                    has("watch=true"),
                    has("continue="),
                    has("limit="),
                ) {
                    (true, ..) => "stream",
                    (_, true, ..) => "watch",
                    (_, _, true, _) => "next page",
                    (.., true) => "first page",
                    _ => "list",
                };
                kind.to_owned()
            })
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.api.faults_left(), 0, "{:?}", self.api.requests());
        }
    }
}

async fn connect(url: &str) -> ApiServer {
    connect_observed(url, CallObserver::default()).await
}

async fn connect_observed(url: &str, observer: CallObserver) -> ApiServer {
    connect_with(url, patience(), observer).await
}

async fn connect_with(url: &str, patience: Patience, observer: CallObserver) -> ApiServer {
    ApiServer::connect(&ApiConfig {
        kubeconfig: None,
        master: Some(url.to_owned()),
        node_name: "n1".to_owned(),
        observer,
        peers: Peers::default(),
        patience,
    })
    .await
    .unwrap()
}

fn patience() -> Patience {
    Patience {
        response: Duration::from_millis(500),
        watch: Duration::from_secs(2),
        streamed_list: Duration::from_millis(500),
        ask_again: Duration::from_secs(60),
        other_nodes: Duration::from_millis(200),
        node_list_spread: Duration::ZERO,
        node_list_every: Duration::from_millis(300),
        long_node_list_every: Duration::from_secs(3600),
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}})
}

fn bad(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"ports": "many"}})
}

#[tokio::test]
async fn a_streamed_list_and_what_comes_after_it() {
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.put(SERVICES, service("b"));
    })
    .await;
    world.expect(&["+a", "+b", "complete"]).await;
    world.api.put(SERVICES, service("c"));
    world.api.put(SERVICES, service("a"));
    world.api.delete(SERVICES, "d/b");
    world.expect(&["+c", "+a", "-b"]).await;
    assert_eq!(world.requests(), ["stream"]);
}

#[tokio::test]
async fn selectors_are_those_of_the_contract() {
    let mut world = World::start(|api| api.put(SLICES, json!({"metadata": {"name": "x", "namespace": "d"}}))).await;
    world.expect(&["complete"]).await;
    let label = |name: &str| format!("labelSelector=%21service.kubernetes.io%2F{name}&");
    while world.api.requests().len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let requests = world.api.requests();
    let of = |path: &str| requests.iter().find(|uri| uri.starts_with(path)).unwrap();
    assert!(of(SERVICES).contains(&label("service-proxy-name")));
    assert!(of(SERVICES).contains("fieldSelector=spec.clusterIP%21%3DNone"));
    assert!(of(SLICES).contains(&label("headless")));
    assert!(of("/api/v1/nodes").contains("fieldSelector=metadata.name%3Dn1"));
}

/// Kubernetes 1.30 and older, with streamed lists and without them.
#[tokio::test]
async fn a_server_that_does_not_know_the_field_is_asked_without_it() {
    let headless = json!({"metadata": {"name": "h", "namespace": "d"}, "spec": {"clusterIP": "None"}});
    for streams in [true, false] {
        let mut world = World::start(|api| {
            api.set_knows_cluster_ip(false);
            api.set_streams_lists(streams);
            api.put(SERVICES, service("a"));
            api.put(SERVICES, headless.clone());
        })
        .await;
        // The model skips the headless one.
        world.expect(&["+a", "+h", "complete"]).await;
        world.api.put(SERVICES, service("b"));
        world.expect(&["+b"]).await;
        world.api.end_watches();
        for name in ["c", "e"] {
            world.api.put(SERVICES, service(name));
            world.expect(&[&format!("+{name}")]).await;
        }
        let expect: &[&str] = if streams {
            &["stream", "stream", "watch"]
        } else {
            &["stream", "first page", "first page", "watch", "watch"]
        };
        assert_eq!(world.requests(), expect);
        let of_services = |uri: &String| uri.starts_with(SERVICES);
        let requests: Vec<_> = world.api.requests().into_iter().filter(of_services).collect();
        let with_field = requests.iter().filter(|uri| uri.contains("fieldSelector")).count();
        assert_eq!(with_field, if streams { 1 } else { 2 });
        assert!(requests.iter().all(|uri| uri.contains("service-proxy-name")));
    }
}

#[tokio::test]
async fn a_bad_request_of_another_cause_is_waited_out_with_the_selector() {
    let mut world = World::start(|api| {
        api.set_streams_lists(false);
        api.put(SERVICES, service("a"));
        for _ in 0..2 {
            api.fault(&format!("{SERVICES} limit="), Fault::Status(400));
        }
    })
    .await;
    world.expect(&["+a", "complete"]).await;
    let requests = world.api.requests();
    let pages: Vec<_> = requests
        .iter()
        .filter(|uri| uri.starts_with(SERVICES) && uri.contains("limit="))
        .collect();
    assert_eq!(pages.len(), 3);
    assert!(pages.iter().all(|uri| uri.contains("fieldSelector=spec.clusterIP")));
}

#[tokio::test]
async fn pages_where_lists_are_not_streamed() {
    for code in [400, 404, 422] {
        let mut world = World::start(|api| {
            api.fault(&format!("{SERVICES} sendInitialEvents"), Fault::Status(code));
            (0..1201).for_each(|number| api.put(SERVICES, service(&format!("s{number}"))));
        })
        .await;
        assert_eq!(world.until_complete().await.len(), 1201);
        world.api.put(SERVICES, service("new"));
        world.expect(&["+new"]).await;
        assert_eq!(
            world.requests(),
            ["stream", "first page", "next page", "next page", "watch"]
        );
    }
}

#[tokio::test]
async fn a_streamed_list_without_its_bookmark_is_given_up() {
    // As Kubernetes 1.30 does with the feature on: after three seconds, always.
    let too_large = json!({"type": "ERROR", "object": {
        "kind": "Status", "code": 504, "message": "Timeout: Too large resource version: 81, current: 74",
    }});
    let too_large = Fault::Line(too_large.to_string());
    for fault in [Fault::NoBookmark, Fault::PlainBookmark, too_large] {
        let mut world = World::start(|api| {
            api.put(SERVICES, service("a"));
            api.fault(&format!("{SERVICES} sendInitialEvents"), fault.clone());
        })
        .await;
        // Of the list that broke off nothing is heard.
        world.expect(&["+a", "complete"]).await;
        world.api.delete(SERVICES, "d/a");
        world.expect(&["-a"]).await;
        assert_eq!(world.requests(), ["stream", "first page", "watch"]);
    }
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_without_a_list() {
    let mut world = World::start(|api| api.put(SERVICES, service("a"))).await;
    world.expect(&["+a", "complete"]).await;
    for number in 0..3 {
        world.api.put(SERVICES, service(&format!("before-{number}")));
        world.expect(&[&format!("+before-{number}")]).await;
        world.api.end_watches();
        world.api.put(SERVICES, service(&format!("after-{number}")));
        world.expect(&[&format!("+after-{number}")]).await;
    }
    assert_eq!(world.requests()[0], "stream");
    assert!(world.requests()[1..].iter().all(|request| request == "watch"));
}

#[tokio::test]
async fn a_broken_connection_is_resumed_and_half_a_line_is_forgotten() {
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.fault(&format!("{SERVICES} allowWatchBookmarks resourceVersion="), Fault::Cut);
    })
    .await;
    world.expect(&["+a", "complete"]).await;
    world.api.end_watches();
    world.faults_over().await;
    world.api.put(SERVICES, service("b"));
    world.expect(&["+b"]).await;
}

#[tokio::test]
async fn an_expired_version_as_a_status_leads_to_a_list_and_deletes_what_is_gone() {
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.put(SERVICES, service("b"));
    })
    .await;
    world.expect(&["+a", "+b", "complete"]).await;
    // One watch is resumed before the history is forgotten; the next is not.
    world.api.fault(&format!("{SERVICES} watch=true"), Fault::Status(410));
    world.api.end_watches();
    world.api.delete(SERVICES, "d/a");
    let found = world.until_complete().await;
    assert_eq!(found, ["+b".to_owned(), "-a".to_owned()].into());
}

#[tokio::test]
async fn an_expired_version_within_a_watch_leads_to_a_list() {
    let gone =
        json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}});
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.fault(
            &format!("{SERVICES} allowWatchBookmarks=true&timeoutSeconds resourceVersion="),
            Fault::Line(gone.to_string()),
        );
    })
    .await;
    world.expect(&["+a", "complete"]).await;
    world.api.end_watches();
    world.expect(&["+a", "complete"]).await;
}

#[tokio::test]
async fn pages_that_expire_become_one_list() {
    let mut world = World::start(|api| {
        api.set_streams_lists(false);
        api.fault(&format!("{SERVICES} continue="), Fault::Status(410));
        (0..700).for_each(|number| api.put(SERVICES, service(&format!("s{number}"))));
    })
    .await;
    assert_eq!(world.until_complete().await.len(), 700);
    let requests = world.requests();
    assert!(
        requests.contains(&"list".to_owned()) && !requests.ends_with(&["next page".to_owned()]),
        "{requests:?}"
    );
}

#[tokio::test]
async fn errors_of_the_server_are_waited_out() {
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        for fault in [
            Fault::Status(500),
            Fault::RetryAfter(429, 1),
            Fault::Status(503),
            Fault::Stall,
            Fault::Status(401),
        ] {
            api.fault(SERVICES, fault);
        }
    })
    .await;
    world.expect(&["+a", "complete"]).await;
    assert_eq!(world.requests().len(), 6);
}

#[tokio::test]
async fn api_endpoint_dies_reconnect() {
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.fault(&format!("{SERVICES} resourceVersion="), Fault::Silence);
    })
    .await;
    world.expect(&["+a", "complete"]).await;
    world.api.end_watches();
    world.faults_over().await;
    world.api.put(SERVICES, service("b"));
    world.expect(&["+b"]).await;
}

#[tokio::test]
async fn a_bad_object_is_skipped_and_its_last_good_state_kept() {
    let mut world = World::start(|api| {
        api.put(SERVICES, bad("x"));
        api.put(SERVICES, service("y"));
    })
    .await;
    let unreadable =
        |name: &str| format!("!Service d/{name}: spec.ports: invalid type: string \"many\", expected a sequence");
    let (x, y) = (unreadable("x"), unreadable("y"));
    world.expect(&[&x, "+y", "complete"]).await;
    world.api.put(SERVICES, bad("y"));
    world.api.put(SERVICES, service("z"));
    world.expect(&[&y, "+z"]).await;
    // A new list has it, unreadable: it is not gone.
    world.api.compact();
    world.api.end_watches();
    world.expect(&[&x, &y, "+z", "complete"]).await;
    world.api.delete(SERVICES, "d/y");
    world.api.delete(SERVICES, "d/x");
    world.expect(&["-y", "-x"]).await;
}

#[tokio::test]
async fn a_line_that_is_no_event_leads_to_a_new_watch() {
    let mut world =
        World::start(|api| api.fault(&format!("{SERVICES} watch=true"), Fault::Line("<html>".to_owned()))).await;
    world.api.put(SERVICES, service("a"));
    world.expect(&["+a", "complete"]).await;
}

#[tokio::test]
async fn repeated_events_and_unknown_ones_do_no_harm() {
    let added = json!({"type": "ADDED", "object": service("a")}).to_string();
    let odd = json!({"type": "WEATHER", "object": {}}).to_string();
    let gone = json!({"type": "DELETED", "object": service("never-seen")}).to_string();
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.fault(
            &format!("{SERVICES} sendInitialEvents"),
            Fault::Line(format!("{added}\n{odd}\n{gone}\n\n{added}")),
        );
    })
    .await;
    world.expect(&["+a", "+a", "+a", "complete"]).await;
}

#[tokio::test]
async fn a_server_that_went_away_is_found_again() {
    let mut world = World::start(|api| api.put(SERVICES, service("a"))).await;
    world.expect(&["+a", "complete"]).await;
    let address = world.api.address;
    drop(std::mem::replace(&mut world.api, FakeApi::start().await.unwrap()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Another one in its place, which does not know the old versions.
    let again = FakeApi::start_at(address).await.unwrap();
    again.put(SERVICES, service("b"));
    again.fault(&format!("{SERVICES} watch=true"), Fault::Status(410));
    world.api = again;
    let found = world.until_complete().await;
    assert_eq!(found, ["+b".to_owned(), "-a".to_owned()].into());
}

fn about_a(note: &str) -> ObjectEvent {
    ObjectEvent {
        kind: Kind::Service,
        object: ObjectName::new("d", "a"),
        event_type: EventType::Warning,
        reason: "CannotProgram",
        action: "Compute",
        note: note.to_owned(),
    }
}

/// Waits for so many events.
async fn posted(api: &FakeApi, count: usize) -> Vec<(String, Value)> {
    timeout(LONG, async {
        while api.posted().len() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    api.posted()
}

#[tokio::test]
async fn f28_events_of_an_object_and_reason_are_posted_as_one() {
    let mut world = World::start(|_| ()).await;
    world.expect(&["complete"]).await;
    for note in ["first", "first", "second", "first"] {
        world.sink.send(about_a(note));
    }
    let other = ObjectEvent {
        reason: "Other",
        ..about_a("third")
    };
    world.sink.send(other);
    let posted = posted(&world.api, 2).await;
    assert_eq!(posted.len(), 2);
    assert_eq!(posted[0].0, "/apis/events.k8s.io/v1/namespaces/d/events");
    let notes: BTreeSet<_> = posted
        .iter()
        .map(|(_, event)| event["note"].as_str().unwrap())
        .collect();
    assert_eq!(notes, ["first; second", "third"].into());
    assert_eq!(posted[0].1["reportingInstance"], "n1");
}

#[tokio::test]
async fn f21_events_survive_a_change_of_credentials() {
    let api = FakeApi::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let rotate = |token: &str| {
        api.set_token(token);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": api.url()}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "users": [{"name": "c", "user": {"token": token}}],
        });
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
    };
    rotate("old");
    let config = ApiConfig {
        kubeconfig: Some(path.clone()),
        master: None,
        node_name: "n1".to_owned(),
        observer: CallObserver::default(),
        peers: Peers::default(),
        patience: patience(),
    };
    let server = ApiServer::connect(&config).await.unwrap();
    let sink = server.event_sink();
    let (sender, _batches) = mpsc::channel(10_000);
    tokio::spawn(server.watch(sender, watch::channel(false).1));
    sink.send(about_a("before"));
    posted(&api, 1).await;
    rotate("new");
    sink.send(ObjectEvent {
        reason: "Other",
        ..about_a("after")
    });
    let posted = posted(&api, 2).await;
    assert_eq!(posted[1].1["note"], "after");
}

#[tokio::test]
async fn nobody_listens_any_more() {
    let api = FakeApi::start().await.unwrap();
    api.put(SERVICES, service("a"));
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let error = timeout(LONG, connect(&api.url()).await.watch(sender, watch::channel(true).1))
        .await
        .unwrap();
    assert!(matches!(error, api_watch::Error::Closed));
}

fn node(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

/// A server with this node and two others, of which the model knows this one.
async fn with_nodes() -> World {
    let mut world = World::start(|api| {
        for (name, address) in [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "192.0.2.3")] {
            api.put(NODES, node(name, address));
        }
    })
    .await;
    world.expect_of_nodes(&["+n1 [192.0.2.1]", "this node complete"]).await;
    world
}

const LISTED: [&str; 3] = ["+n2 [192.0.2.2]", "+n3 [192.0.2.3]", "other nodes complete"];

#[tokio::test]
async fn t18_other_nodes_are_listed_while_they_are_wanted() {
    let mut world = with_nodes().await;
    assert_eq!(world.requests_for_all_nodes(), 0);
    for _ in 0..2 {
        world.other_nodes.send_replace(true);
        world.expect_of_nodes(&LISTED).await;
        world.api.put(NODES, node("n3", "192.0.2.33"));
        assert_eq!(world.next_change_of_nodes().await, "+n3 [192.0.2.33]");
        world.api.delete(NODES, "n3");
        assert_eq!(world.next_change_of_nodes().await, "-n3");
        // What happens to this node is its own follower's news, once.
        world.api.put(NODES, node("n1", "192.0.2.1"));
        world.api.put(NODES, node("n3", "192.0.2.3"));
        let two: BTreeSet<_> = [world.next_change_of_nodes().await, world.next_change_of_nodes().await].into();
        assert_eq!(two, ["+n1 [192.0.2.1]".to_owned(), "+n3 [192.0.2.3]".to_owned()].into());
        world.other_nodes.send_replace(false);
        assert_eq!(world.next_change_of_nodes().await, "forgotten");
    }
    // Nobody lists other nodes now.
    let requests = world.requests_for_all_nodes();
    world.api.delete(NODES, "n2");
    world.api.delete(NODES, "n1");
    world.expect_of_nodes(&["-n1"]).await;
    assert_eq!(world.requests_for_all_nodes(), requests);
}

#[tokio::test]
async fn t18_a_need_that_ends_for_a_moment_forgets_nothing() {
    let mut world = with_nodes().await;
    world.other_nodes.send_replace(true);
    world.expect_of_nodes(&LISTED).await;
    for _ in 0..3 {
        world.other_nodes.send_replace(false);
        tokio::task::yield_now().await;
        world.other_nodes.send_replace(true);
    }
    world.api.put(NODES, node("n4", "192.0.2.4"));
    assert_eq!(world.next_change_of_nodes().await, "+n4 [192.0.2.4]");
}

#[tokio::test]
async fn t18_a_list_of_other_nodes_that_fails_changes_nothing() {
    let mut world = with_nodes().await;
    world.other_nodes.send_replace(true);
    world.expect_of_nodes(&LISTED).await;
    for fault in [Fault::Status(500), Fault::Status(403), Fault::Stall] {
        world.api.fault("includeObject", fault);
    }
    world.faults_over().await;
    world.api.delete(NODES, "n2");
    assert_eq!(world.next_change_of_nodes().await, "-n2");
}

fn node_with(name: &str, addresses: &[&str]) -> Value {
    let address = |address: &&str| json!({"type": "InternalIP", "address": address});
    let addresses: Vec<_> = addresses.iter().map(address).collect();
    json!({"metadata": {"name": name}, "status": {"addresses": addresses}})
}

#[tokio::test]
async fn f07_nodes_of_several_addresses_are_known_by_all_of_them() {
    for dual in [true, false] {
        let mut world = World::start(|api| {
            let own: &[&str] = if dual {
                &["192.0.2.1", "2001:db8::1"]
            } else {
                &["192.0.2.1"]
            };
            api.put(NODES, node_with("n1", own));
            api.put(NODES, node_with("n2", &["192.0.2.2", "2001:db8::2"]));
            // A first address of the other family tells the same.
            let third = if dual { "192.0.2.3" } else { "2001:db8::3" };
            api.put(NODES, node_with("n3", &[third, "192.0.2.33"]));
            api.set_largest_page(2);
        })
        .await;
        let (own, third) = if dual {
            ("+n1 [192.0.2.1, 2001:db8::1]", "+n3 [192.0.2.3, 192.0.2.33]")
        } else {
            ("+n1 [192.0.2.1]", "+n3 [192.0.2.33, 2001:db8::3]")
        };
        world.expect_of_nodes(&[own, "this node complete"]).await;
        world.other_nodes.send_replace(true);
        let expect = ["+n2 [192.0.2.2, 2001:db8::2]", third, "other nodes complete"];
        world.expect_of_nodes(&expect).await;
        // A new one, and one in whose place another came, are asked for by their names.
        world.api.put(NODES, node_with("n4", &["192.0.2.4", "192.0.2.44"]));
        let next = world.next_change_of_nodes().await;
        assert_eq!(next, "+n4 [192.0.2.4, 192.0.2.44]");
        world.api.put(NODES, node_with("n4", &["192.0.2.5", "192.0.2.55"]));
        let next = world.next_change_of_nodes().await;
        assert_eq!(next, "+n4 [192.0.2.5, 192.0.2.55]");
        // Many are listed with all others.
        let many = 100..120;
        for number in many.clone() {
            let name = format!("n{number}");
            world
                .api
                .put(NODES, node_with(&name, &[&format!("192.0.2.{number}"), "198.51.100.7"]));
        }
        let mut told = BTreeSet::new();
        while told.len() < many.len() {
            told.insert(world.next_change_of_nodes().await);
        }
        let expect = many.map(|number| format!("+n{number} [192.0.2.{number}, 198.51.100.7]"));
        assert_eq!(told, expect.collect());
    }
}

#[tokio::test]
async fn f07_a_server_that_makes_no_table_lists_objects() {
    let mut world = World::start(|api| {
        api.put(NODES, node("n1", "192.0.2.1"));
        api.put(NODES, node_with("n2", &["192.0.2.2", "192.0.2.22"]));
        api.set_makes_tables(false);
    })
    .await;
    world.expect_of_nodes(&["+n1 [192.0.2.1]", "this node complete"]).await;
    world.other_nodes.send_replace(true);
    world
        .expect_of_nodes(&["+n2 [192.0.2.2, 192.0.2.22]", "other nodes complete"])
        .await;
    // What cannot be read stays as it was.
    let bad = json!({"metadata": {"name": "n2"}, "status": {"addresses": "none"}});
    world.api.put(NODES, bad);
    world.api.put(NODES, node("n3", "192.0.2.3"));
    assert_eq!(world.next_change_of_nodes().await, "+n3 [192.0.2.3]");
}

/// Done-when 6 of issue 14: a list and a heartbeat of each Node were 13 KB.
#[tokio::test]
async fn f07_other_nodes_cost_less_than_a_hundredth() {
    const NODES_OF_CLUSTER: usize = 1000;
    const HEARTBEAT: Duration = Duration::from_secs(300);
    let api = FakeApi::start().await.unwrap();
    let mut all = 0;
    for number in 0..NODES_OF_CLUSTER {
        let mut node = node(
            &format!("worker-{number}.example.com"),
            &format!("10.0.{}.{}", number / 250, number % 250),
        );
        node["status"]["images"] = "x".repeat(13_000).into();
        all += node.to_string().len();
        api.put(NODES, node);
    }
    let (tell, mut told) = mpsc::unbounded_channel();
    let observer = CallObserver::new(move |call| {
        let _ = tell.send(call.response_size.unwrap_or_default());
    });
    let default = Patience::default();
    let once = Patience {
        node_list_spread: Duration::ZERO,
        ..default
    };
    let server = connect_with(&api.url(), once, observer).await;
    let (sender, mut batches) = mpsc::channel(10_000);
    let (_other_nodes, wanted) = watch::channel(true);
    tokio::spawn(server.watch(sender, wanted));
    timeout(LONG, async {
        while !batches.recv().await.unwrap().contains(&Event::OtherNodesComplete) {}
    })
    .await
    .unwrap();
    let mut list = 0;
    while let Ok(size) = told.try_recv() {
        list += usize::try_from(size).unwrap();
    }
    println!("{list} bytes of {all}");
    let a_second = |bytes: usize, every: Duration| bytes as f64 / every.as_secs_f64();
    assert!(list < all / 40, "{list} bytes of {all}");
    assert!(a_second(list, default.node_list_every) < a_second(all, HEARTBEAT) / 100.0);
    let watches = |uri: &&String| uri.starts_with(NODES) && uri.contains("watch") && !uri.contains("fieldSelector");
    assert_eq!(api.requests().iter().filter(watches).count(), 0);
}

#[tokio::test]
async fn f14_a_refusal_at_the_start_does_not_turn_streamed_lists_off() {
    for code in [401, 403, 429, 500, 503] {
        let mut world = World::start(|api| {
            api.put(SERVICES, service("a"));
            api.fault(&format!("{SERVICES} sendInitialEvents"), Fault::Status(code));
        })
        .await;
        world.expect(&["+a", "complete"]).await;
        assert_eq!(world.requests(), ["stream", "stream"], "{code}");
    }
}

#[tokio::test]
async fn f14_a_server_that_was_replaced_is_asked_again_what_it_can() {
    let soon = Patience {
        ask_again: Duration::from_millis(200),
        ..patience()
    };
    let mut world = World::start_with(soon, |api| {
        api.put(SERVICES, service("a"));
        api.set_streams_lists(false);
    })
    .await;
    world.expect(&["+a", "complete"]).await;
    world.api.set_streams_lists(true);
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.api.compact();
    world.api.end_watches();
    world.expect(&["+a", "complete"]).await;
    assert_eq!(
        world.requests(),
        ["stream", "first page", "watch", "look", "watch", "stream"],
        "{:?}",
        world.api.requests()
    );
}

/// A server that a backup of etcd was put into: `a` and `b` were there when it was made, `c` came later, `b` went.
async fn restored(end: impl FnOnce(&FakeApi)) -> World {
    let mut world = World::start(|api| {
        api.put(SERVICES, service("a"));
        api.put(SERVICES, service("b"));
    })
    .await;
    world.expect(&["+a", "+b", "complete"]).await;
    let backup = world.api.backup();
    world.api.put(SERVICES, service("c"));
    world.api.delete(SERVICES, "d/b");
    world.api.put(SERVICES, service("c"));
    world.expect(&["+c", "-b", "+c"]).await;
    end(&world.api);
    world.api.restore(backup);
    world
}

#[tokio::test]
async fn f13_a_restored_server_is_listed_anew() {
    // A watch that breaks; and one that ends in order, and whose next one brings nothing.
    let broken = |api: &FakeApi| api.fault(&format!("{SERVICES} watch=true"), Fault::Status(503));
    let quiet = |_: &FakeApi| ();
    for mut world in [restored(broken).await, restored(quiet).await] {
        let found = world.until_complete().await;
        assert_eq!(found, ["+a", "+b", "-c"].map(str::to_owned).into());
        world.api.put(SERVICES, service("later"));
        world.expect(&["+later"]).await;
    }
}

#[tokio::test]
async fn f13_a_version_that_goes_back_within_a_watch_leads_to_a_list() {
    let event = |what: &str, object: Value| json!({"type": what, "object": object}).to_string();
    let at = |name: &str, version: &str| {
        let mut object = service(name);
        object["metadata"]["resourceVersion"] = version.into();
        object
    };
    for line in [
        event("BOOKMARK", at("", "1")),
        event("MODIFIED", at("a", "1")),
        event("ADDED", at("old", "1")),
        event("DELETED", at("a", "1")),
        // Versions that fit, of objects that do not: events are missing.
        event("MODIFIED", at("never-added", "900")),
        event("DELETED", at("never-added", "900")),
    ] {
        let mut world = World::start(|api| {
            api.put(SERVICES, service("a"));
            api.put(SERVICES, service("a"));
            api.fault(&format!("{SERVICES} resourceVersion="), Fault::Line(line.clone()));
        })
        .await;
        world.expect(&["+a", "complete"]).await;
        world.api.end_watches();
        let mut found = world.until_complete().await;
        // The state in the end is that of the list.
        if found.remove("+never-added") {
            assert!(found.remove("-never-added"), "{line}");
        }
        assert_eq!(found, ["+a".to_owned()].into(), "{line}");
        assert_eq!(world.requests(), ["stream", "watch", "stream"], "{line}");
    }
}

#[tokio::test]
async fn requests_are_told_with_their_status_and_host() {
    let api = FakeApi::start().await.unwrap();
    api.fault(SLICES, Fault::Status(500));
    let (tell, mut told) = mpsc::unbounded_channel();
    let observer = CallObserver::new(move |call| {
        let _ = tell.send((
            call.method.to_owned(),
            call.host.to_owned(),
            call.status,
            call.request_size,
        ));
    });
    let server = connect_observed(&api.url(), observer).await;
    let sink = server.event_sink();
    let (sender, mut events) = mpsc::channel(10_000);
    tokio::spawn(server.watch(sender, watch::channel(false).1));
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    sink.send(ObjectEvent {
        kind: Kind::Service,
        object: ObjectName::new("shop", "web"),
        event_type: EventType::Warning,
        reason: "CannotProgram",
        action: "Compute",
        note: "x".to_owned(),
    });
    let host = api.url().trim_start_matches("http://").to_owned();
    let mut expect: BTreeSet<_> = [("GET", Some(200)), ("GET", Some(500)), ("POST", Some(201))].into();
    while !expect.is_empty() {
        let (method, at, status, size) = timeout(LONG, told.recv()).await.unwrap().unwrap();
        assert_eq!(at, host);
        assert_eq!(size == Some(0), method == "GET", "{method} {size:?}");
        expect.retain(|known| *known != (method.as_str(), status));
    }
}
