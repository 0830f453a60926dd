//! Files in, events out.

use std::fs;

use service_model::{Cluster, Config, Family, NodePortAddresses, Scheduler};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn names(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::Service(Change::Applied(service)) => format!("service {}", service.name),
            Event::Service(Change::Deleted(name)) => format!("no service {name}"),
            Event::EndpointSlice(Change::Applied(slice)) => format!("slice {}", slice.name),
            Event::EndpointSlice(Change::Deleted(name)) => format!("no slice {name}"),
            Event::Node(Change::Applied(node)) => format!("node {}", node.name),
            Event::Complete(kind) => format!("complete {kind}"),
            other => format!("{other:?}"),
        })
        .collect()
}

const COMPLETE: [&str; 4] = [
    "complete Service",
    "complete EndpointSlice",
    "complete Node",
    "OtherNodesComplete",
];

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n"
    )
}

#[test]
fn yaml_json_documents_and_lists() {
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}} {"apiVersion":"v1","kind":"Secret"}"#;
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}\n",
        service("c").trim_end().replace('\n', "\n  ")
    );
    let directory = directory(&[
        (
            "1.yaml",
            &format!("---\n{}---\n---\n# nothing\n---\n{}", service("a"), service("b")),
        ),
        ("2.json", node),
        ("3.yml", &list),
        ("4.txt", "not read"),
        (".5.yaml", "{not: read"),
    ]);
    let found = names(&read_directory(directory.path()).unwrap());
    let objects = ["service default/a", "service default/b", "service default/c", "node n"];
    assert_eq!(found, objects.iter().chain(&COMPLETE).copied().collect::<Vec<_>>());
}

#[test]
fn an_empty_directory_is_complete() {
    assert_eq!(names(&read_directory(directory(&[]).path()).unwrap()), COMPLETE);
}

#[test]
fn what_is_wrong_is_named() {
    let check = |files: &[(&str, &str)], expect: &[&str]| {
        let directory = directory(files);
        let error = with_cause(&read_directory(directory.path()).unwrap_err());
        for part in expect {
            assert!(error.contains(part), "{error}");
        }
    };
    check(&[("a.yaml", "a: [")], &["a.yaml"]);
    check(&[("a.json", "{")], &["a.json", "line 1"]);
    check(&[("a.yaml", "a: 1\n")], &["a.yaml", "without a kind"]);
    check(
        &[(
            "a.yaml",
            &format!("{}---\nkind: Service\napiVersion: v1\n", service("a")),
        )],
        &["document 2", "metadata"],
    );
    check(
        &[("a.yaml", "apiVersion: v1\nkind: Node\nmetadata: {}\n")],
        &["a Node without a name"],
    );
    check(
        &[("a.yaml", "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n")],
        &["v1beta1"],
    );
    check(
        &[("a.yaml", &service("x")), ("b.yaml", &service("x"))],
        &["Service default/x", "a.yaml", "b.yaml"],
    );
    let missing = read_directory(Path::new("/nonexistent/manifests")).unwrap_err();
    assert!(with_cause(&missing).contains("No such file"));
}

#[test]
fn a_bad_port_is_left_to_the_model() {
    let text = service("a").replace("80", "70000");
    let events = read_directory(directory(&[("a.yaml", &text)]).path()).unwrap();
    let mut cluster = Cluster::new(Config {
        node_name: "n".into(),
        scheduler: Scheduler::default(),
        families: Family::BOTH,
        node_port_addresses: NodePortAddresses::All,
        node_ip: None,
        allow_external_ips: true,
        masquerade_all: false,
        detect_local: service_model::DetectLocal::default(),
        capture: service_model::Capture::Bind,
    });
    events.into_iter().for_each(|event| cluster.apply(event));
    let program = cluster.program(&ObjectName::new("default", "a"));
    assert_eq!(
        program.rejections.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["Service default/a: spec.ports[0].port: 70000 is not between 1 and 65535"]
    );
}

#[tokio::test]
async fn changes_are_followed_and_the_last_good_state_stays() {
    let directory = directory(&[("a.yaml", &service("a")), ("b.yaml", &service("b"))]);
    let path = directory.path();
    let (sender, mut events) = mpsc::channel(100);
    let task = tokio::spawn(watch_directory(path.to_owned(), sender));
    let mut next = async |count: usize| {
        let mut found = Vec::new();
        for _ in 0..count {
            found.push(
                timeout(Duration::from_secs(60), events.recv())
                    .await
                    .expect("an event comes")
                    .unwrap(),
            );
        }
        assert!(events.try_recv().is_err());
        names(&found)
    };
    assert_eq!(next(6).await[..2], ["service default/a", "service default/b"]);

    // Unreadable: `b` stays. Another file: its object comes.
    fs::write(path.join("b.yaml"), "kind: [").unwrap();
    fs::write(path.join("c.yaml"), service("c")).unwrap();
    assert_eq!(next(1).await, ["service default/c"]);
    // Readable again, and another object.
    fs::write(path.join("b.yaml"), service("d")).unwrap();
    assert_eq!(next(2).await, ["no service default/b", "service default/d"]);
    // The same object twice: nothing changes until that is over.
    fs::write(path.join("e.yaml"), service("d")).unwrap();
    fs::remove_file(path.join("a.yaml")).unwrap();
    fs::remove_file(path.join("e.yaml")).unwrap();
    assert_eq!(next(1).await, ["no service default/a"]);
    drop(events);
    assert!(matches!(
        timeout(Duration::from_secs(60), task).await.unwrap().unwrap(),
        Error::Closed
    ));
}
