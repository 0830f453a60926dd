//! Files in, events out.

use std::fs;

use service_model::{Change, Cluster, Config, ObjectName};
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
            Event::Unreadable(rejection) => format!("! {} {}", rejection.kind, rejection.object),
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

fn read_now(directory: &TempDir) -> Directory {
    Directory::read(directory.path()).unwrap()
}

fn faults_of(directory: &Directory) -> Vec<&str> {
    directory.faults().collect()
}

#[test]
fn files_by_name_and_what_follows() {
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}} {"apiVersion":"v1","kind":"Secret"}"#;
    let directory = directory(&[
        ("1.yaml", &format!("{}---\n{}", service("b"), service("a"))),
        ("2.json", node),
        ("3.yml", &service("c")),
        ("4.txt", "not read"),
        (".5.yaml", "{not: read"),
    ]);
    fs::create_dir(directory.path().join("sub.yaml")).unwrap();
    let read = read_now(&directory);
    let objects = ["service default/a", "service default/b", "service default/c", "node n"];
    assert_eq!(
        names(&read.batch()),
        objects.iter().chain(&COMPLETE).copied().collect::<Vec<_>>()
    );
    assert!(faults_of(&read).is_empty());
}

#[test]
fn an_empty_directory_is_complete() {
    assert_eq!(names(&read_now(&directory(&[])).batch()), COMPLETE);
}

#[test]
fn what_is_wrong_is_named_and_the_rest_is_there() {
    let good = ("z.yaml", service("z"));
    let check = |files: &[(&str, &str)], expect: &[&str]| {
        let mut files = files.to_vec();
        files.push((good.0, &good.1));
        let directory = directory(&files);
        let read = read_now(&directory);
        let batch = read.batch();
        let rejections = batch.iter().filter_map(|event| match event {
            Event::Unreadable(rejection) => Some(rejection.to_string()),
            _ => None,
        });
        let told: Vec<_> = rejections.chain(read.faults().map(str::to_owned)).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        for part in expect {
            assert!(told[0].contains(part), "{told:?}");
        }
        assert!(names(&batch).contains(&"service default/z".to_owned()));
    };
    check(&[("a.yaml", "a: [")], &["a.yaml: "]);
    check(&[("a.json", "{")], &["a.json: ", "line 1"]);
    check(
        &[(
            "a.yaml",
            &format!("{}---\nkind: Service\napiVersion: v1\n", service("a")),
        )],
        &["a.yaml: document 2 (line 5): a Service whose name"],
    );
    check(
        &[("a.yaml", &service("x").replace("80", "'80'"))],
        &["Service default/x: spec.ports[0].port: ", "a.yaml)"],
    );
    // A link that leads nowhere is a file that cannot be read.
    let dangling = directory(&[("z.yaml", &service("z"))]);
    std::os::unix::fs::symlink("nowhere", dangling.path().join("a.yaml")).unwrap();
    let read = read_now(&dangling);
    assert!(
        read.faults()
            .next()
            .unwrap()
            .ends_with("a.yaml: No such file or directory (os error 2)")
    );
    assert_eq!(names(&read.batch())[0], "service default/z");
    let missing = Directory::read(Path::new("/nonexistent/manifests")).err().unwrap();
    assert!(with_cause(&missing).contains("No such file"));
}

#[test]
fn an_object_that_is_there_twice() {
    let other = service("x").replace("10.0.0.1", "10.0.0.2");
    let unreadable = service("x").replace("80", "'80'");
    let check = |files: &[(&str, &str)], expect: &[&str]| {
        let read = directory(files);
        let batch = read_now(&read).batch();
        let text = batch.iter().filter_map(|event| match event {
            Event::Service(Change::Applied(service)) => Some(service.cluster_ips[0].to_string()),
            Event::Unreadable(rejection) => Some(rejection.to_string().replace(read.path().to_str().unwrap(), "")),
            _ => None,
        });
        assert_eq!(text.collect::<Vec<_>>(), expect);
    };
    check(&[("a.yaml", &service("x")), ("b.yaml", &service("x"))], &["10.0.0.1"]);
    check(
        &[("b.yaml", &other), ("a.yaml", &service("x"))],
        &[
            "10.0.0.1",
            "Service default/x: is in /a.yaml and, otherwise, in /b.yaml: the first counts",
        ],
    );
    // Of one file the first document counts.
    check(
        &[("a.yaml", &format!("{other}---\n{}", service("x")))],
        &[
            "10.0.0.2",
            "Service default/x: is in /a.yaml and, otherwise, in /a.yaml: the first counts",
        ],
    );
    check(
        &[("a.yaml", &unreadable), ("b.yaml", &other)],
        &[
            "10.0.0.2",
            "Service default/x: spec.ports[0].port: invalid type: string \"80\", expected i64 (/a.yaml)",
        ],
    );
}

#[test]
fn a_bad_port_is_left_to_the_model() {
    let text = service("a").replace("80", "70000");
    let events = read_now(&directory(&[("a.yaml", &text)])).batch();
    let mut cluster = Cluster::new(Config::of_node("n"));
    cluster.extend(events);
    let program = cluster.program(&ObjectName::new("default", "a"));
    assert_eq!(
        program.rejections.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["Service default/a: spec.ports[0].port: 70000 is not between 1 and 65535"]
    );
}

/// A directory that is followed, reading by reading.
struct Followed {
    path: PathBuf,
    batches: mpsc::Receiver<Batch>,
}

impl Followed {
    fn new(directory: &TempDir) -> Self {
        let (sender, batches) = mpsc::channel(100);
        tokio::spawn(read_now(directory).follow(sender));
        let path = directory.path().to_owned();
        Self { path, batches }
    }

    async fn next(&mut self) -> Vec<String> {
        let batch = timeout(Duration::from_secs(60), self.batches.recv())
            .await
            .expect("a batch comes")
            .unwrap();
        names(&batch)
    }

    /// Replaced at once, as editors and ConfigMaps do it.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path.join("next"), text).unwrap();
        fs::rename(self.path.join("next"), self.path.join(name)).unwrap();
    }
}

#[tokio::test]
async fn changes_are_followed_and_the_last_good_state_stays() {
    let directory = directory(&[("a.yaml", &service("a")), ("b.yaml", &service("b"))]);
    let mut followed = Followed::new(&directory);
    assert_eq!(followed.next().await[..2], ["service default/a", "service default/b"]);

    // Unreadable: `b` stays. Another file: its object comes.
    followed.put("b.yaml", "kind: [");
    followed.put("c.yaml", &service("c"));
    assert_eq!(followed.next().await, ["service default/c"]);
    // Not even a file.
    std::os::unix::fs::symlink("nowhere", followed.path.join("next")).unwrap();
    fs::rename(followed.path.join("next"), followed.path.join("b.yaml")).unwrap();
    followed.put("c.yaml", &service("c2"));
    assert_eq!(followed.next().await, ["no service default/c", "service default/c2"]);
    // Readable again, and another object.
    followed.put("b.yaml", &service("d"));
    assert_eq!(followed.next().await, ["no service default/b", "service default/d"]);
    // One document of two, and one object of two.
    followed.put("b.yaml", &format!("{}---\n{}", service("d"), service("e")));
    assert_eq!(followed.next().await, ["service default/e"]);
    followed.put(
        "b.yaml",
        &format!("kind: [\n---\n{}", service("e").replace("10.0.0.1", "10.0.0.9")),
    );
    assert_eq!(followed.next().await, ["service default/e"]);
    followed.put(
        "b.yaml",
        &format!("{}---\n{}", service("d").replace("80", "'80'"), service("f")),
    );
    assert_eq!(
        followed.next().await,
        ["no service default/e", "! Service default/d", "service default/f"]
    );
    // A copy that says the same is nothing; one that differs is a rejection, and gone it is none.
    followed.put("d.yaml", &service("a"));
    followed.put("e.yaml", &service("a").replace("80", "81"));
    assert_eq!(followed.next().await, ["service default/a", "! Service default/a"]);
    fs::remove_file(followed.path.join("e.yaml")).unwrap();
    assert_eq!(followed.next().await, ["service default/a"]);
    fs::remove_file(followed.path.join("d.yaml")).unwrap();
    fs::remove_file(followed.path.join("a.yaml")).unwrap();
    assert_eq!(followed.next().await, ["no service default/a"]);
}

#[tokio::test]
async fn who_follows_ends_with_the_reader() {
    let (sender, batches) = mpsc::channel(1);
    drop(batches);
    let end = read_now(&directory(&[])).follow(sender);
    assert!(matches!(
        timeout(Duration::from_secs(60), end).await.unwrap(),
        Error::Closed
    ));
}

/// Some files are read before others are replaced: what moved from one to the other must not be in neither.
#[test]
fn a_reading_is_of_one_time() {
    let directory = directory(&[("a.yaml", &service("one")), ("b.yaml", &service("two"))]);
    let path = directory.path();
    let listed = list(path).unwrap();
    let mut halfway = read(path, listed.clone(), &Files::new()).unwrap().files;
    halfway.remove(&path.join("b.yaml"));
    fs::write(path.join("a.yaml"), service("two")).unwrap();
    fs::write(path.join("b.yaml"), service("one") + "# moved\n").unwrap();
    let reading = read(path, listed, &halfway).unwrap();
    let found: Vec<_> = picture(&reading.files)
        .into_keys()
        .map(|(_, name)| name.to_string())
        .collect();
    assert!(reading.steady);
    assert_eq!(found, ["default/one", "default/two"]);
}

/// A ConfigMap's volume: files are links into a folder that is a link, which is turned over.
#[tokio::test]
async fn a_config_map_is_turned_over_at_once() {
    let directory = directory(&[]);
    let path = directory.path();
    let version = |number: u8, files: &[(&str, String)]| {
        let folder = path.join(format!("..{number}"));
        fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(&folder, path.join("..next")).unwrap();
        fs::rename(path.join("..next"), path.join("..data")).unwrap();
    };
    version(1, &[("a.yaml", service("one")), ("b.yaml", service("two"))]);
    for name in ["a.yaml", "b.yaml"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), path.join(name)).unwrap();
    }
    let mut followed = Followed::new(&directory);
    assert_eq!(
        followed.next().await[..2],
        ["service default/one", "service default/two"]
    );
    // `one` moves from one file to the other: nothing of it is said.
    version(
        2,
        &[
            ("a.yaml", service("two")),
            ("b.yaml", service("one") + "---\n" + &service("three")),
        ],
    );
    assert_eq!(followed.next().await, ["service default/three"]);
}
