//! kube-ipvs at work, shown by the standard tools and by traffic; every statement it makes is asserted.
//!
//! [`run`] prepares and boots; [`guest`] is what runs inside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::control_plane::ControlPlane;
use testbed::daemon::{BINARY, Daemon};
use testbed::kernel::{IN_GUEST, Job, Name, Provider};
use testbed::netns::Netns;
use testbed::tool;
use testbed::world::{self, NODE, PODS, World};

use crate::cargo::{cache, executable, root};

pub(crate) mod fallback;

pub(crate) fn run(control_plane: bool, kernel: Option<Name>) -> Result<ExitCode> {
    tool::install(crate::GUEST_PACKAGES)?;
    let provider = Provider::for_demo(kernel, &cache())?;
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    let program = if control_plane {
        Some(testbed::control_plane::build(&root())?)
    } else {
        None
    };
    title(&format!("kernel: {provider}"));
    let this = std::env::current_exe().context("this program's path")?;
    let mut command = vec![this.to_string_lossy().into_owned(), "guest-demo".to_owned()];
    if let Some(program) = &program {
        command.extend(["--control-plane".to_owned(), program.to_string_lossy().into_owned()]);
    }
    let mut job = Job::new(command, root());
    job.environment
        .push((BINARY.to_owned(), binary.to_string_lossy().into_owned()));
    job.memory = if control_plane { 6144 } else { 2048 };
    job.limit = Duration::from_secs(600);
    let status = provider.run(&job)?;
    ensure!(status == 0, "the demo failed inside the guest");
    Ok(ExitCode::SUCCESS)
}

/// The demo itself, in a kernel with IPVS.
pub(crate) fn guest(control_plane: Option<&Path>) -> Result<ExitCode> {
    say(&format!(
        "Linux {} ({})",
        tool::sh("uname -r")?.trim(),
        std::env::var(IN_GUEST).unwrap_or_default()
    ));
    let world = World::new().context("build the world")?;
    say("a node with two pods, another host with two pods, a client outside: network namespaces");
    let folder = tempfile::tempdir()?;
    let scene = match control_plane {
        None => manifests(folder.path())?,
        Some(program) => cluster(program, &world, folder.path())?,
    };
    let arguments: Vec<&str> = scene.arguments.iter().map(String::as_str).collect();
    title(&format!("kube-ipvs {}", arguments.join(" ")));
    let mut daemon = Daemon::start(&world.node, &arguments)?;
    say(&daemon.wait_until_serving()?);

    title("ipvsadm -Ln");
    let table = scene.wait_for_table(&world.node)?;
    println!("{table}");
    check_table(&table)?;

    title("clients");
    for question in &scene.questions {
        ask(&world, question)?;
    }

    title(&format!("{}: one endpoint goes, one comes", scene.change));
    let said = daemon.said().len();
    (scene.act)(scene.plane.as_ref())?;
    say(&daemon.wait_for(said, " commit ")?);
    let place = scene.changed.to_string();
    let expect = BTreeSet::from(scene.after);
    let show = || world.node.sh(&format!("ipvsadm -Ln -t {place}"));
    eventually("the table follows", || {
        Ok(real_servers(&show()?) == expect.iter().map(|pod| address_of(pod)).collect())
    })?;
    println!("{}", show()?);
    ask(
        &world,
        &Question {
            names: scene.after.into(),
            ..Question::tcp(scene.changed, &[])
        },
    )?;
    let (status, _) = daemon.terminate()?;
    ensure!(status.success(), "kube-ipvs ended with {status}");
    title("the demo is over: every statement above was checked");
    Ok(ExitCode::SUCCESS)
}

/// Changes an endpoint, by the control plane where there is one.
type Act = Box<dyn Fn(Option<&ControlPlane>) -> Result<()>>;

/// What differs between the two demos.
struct Scene {
    arguments: Vec<String>,
    questions: Vec<Question>,
    /// Lines the table must have before it is shown.
    lines: usize,
    /// What is done to see the table follow, where, and who answers after it.
    change: &'static str,
    act: Act,
    changed: SocketAddr,
    after: [&'static str; 3],
    plane: Option<ControlPlane>,
}

impl Scene {
    /// The EndpointSlices of a cluster come one by one.
    fn wait_for_table(&self, node: &Netns) -> Result<String> {
        eventually("the table is complete", || {
            Ok(node.sh("ipvsadm -Ln")?.lines().count() >= self.lines)
        })?;
        node.sh("ipvsadm -Ln")
    }
}

struct Question {
    to: SocketAddr,
    udp: bool,
    /// Who must answer, all of them.
    names: BTreeSet<&'static str>,
    /// The same one answers always.
    affinity: bool,
}

impl Question {
    fn tcp(to: SocketAddr, names: &[&'static str]) -> Self {
        Self {
            to,
            udp: false,
            names: names.iter().copied().collect(),
            affinity: false,
        }
    }
}

/// The services of `deploy/examples`.
fn manifests(folder: &Path) -> Result<Scene> {
    let from = root().join("deploy/examples");
    for entry in fs::read_dir(&from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))?;
    }
    let question = |to: &str, udp, names: &[&'static str]| -> Result<Question> {
        Ok(Question {
            udp,
            ..Question::tcp(to.parse()?, names)
        })
    };
    let file = folder.join("20-web.yaml");
    Ok(Scene {
        arguments: vec![
            "--manifests".into(),
            folder.to_string_lossy().into(),
            "--hostname-override".into(),
            NODE.into(),
        ],
        questions: vec![
            question("10.96.1.1:80", false, &["pod-a1", "pod-a2", "pod-b1"])?,
            question("[fd00:10:96::101]:80", false, &["pod-a1", "pod-b1"])?,
            question("10.96.0.10:53", true, &["pod-a1", "pod-b1"])?,
            question("[fd00:10:96::a]:53", true, &["pod-a1", "pod-b1"])?,
            Question {
                affinity: true,
                ..question("10.96.1.2:80", false, &[])?
            },
            question("192.0.2.10:30443", false, &["pod-a2", "pod-b2"])?,
            question("203.0.113.5:443", false, &["pod-a2", "pod-b2"])?,
        ],
        lines: 80,
        change: "20-web.yaml",
        act: Box::new(move |_| {
            let text = fs::read_to_string(&file)?;
            let changed = text.replace("10.244.1.12], nodeName: node-a", "10.244.2.12], nodeName: node-b");
            ensure!(changed != text, "the example has changed");
            Ok(fs::write(&file, changed)?)
        }),
        changed: "10.96.1.1:80".parse()?,
        after: ["pod-a1", "pod-b1", "pod-b2"],
        plane: None,
    })
}

/// Services and Pods in a real API server, whose EndpointSlices the real controller writes.
fn cluster(program: &Path, world: &World, folder: &Path) -> Result<Scene> {
    title("etcd, kube-apiserver and the EndpointSlice controller start on the other host");
    let start = Instant::now();
    let plane = ControlPlane::start(program, &world.other, "192.0.2.20", folder)?;
    say(&format!("ready after {:.1} s", start.elapsed().as_secs_f32()));
    let file = |name: &str, text: String| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let service = |name: &str, annotations: serde_json::Value, spec: serde_json::Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "annotations": annotations}, "spec": spec});
    let web = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let dns = json!([{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353}]);
    let both = json!(["IPv4", "IPv6"]);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-b"}},
        service("web", json!({}), json!({"selector": {"app": "web"}, "ports": web, "clusterIP": "10.96.1.1", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": both})),
        service("cart", json!({"kube-ipvs.io/scheduler": "mh"}), json!({"selector": {"app": "web"}, "ports": web, "clusterIP": "10.96.1.2", "sessionAffinity": "ClientIP"})),
        service("names", json!({}), json!({"selector": {"app": "web"}, "ports": dns, "clusterIP": "10.96.1.3", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": both})),
        service("gate", json!({"kube-ipvs.io/scheduler": "lc"}), json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}], "clusterIP": "10.96.1.4"})),
    ]});
    let path = file("objects.json", objects.to_string())?;
    title("kubectl create -f services.json");
    print!("{}", plane.kubectl(&["create", "-f", &path.to_string_lossy()])?);
    for pod in PODS.iter().take(3) {
        let node = if pod.local { "node-a" } else { "node-b" };
        plane.create_running_pod("default", pod.name, node, "web", &[pod.v4, pod.v6])?;
    }
    print!("{}", plane.kubectl(&["get", "pods", "-o", "wide"])?);
    eventually("the controller has written the EndpointSlices", || {
        Ok(plane
            .kubectl(&["get", "endpointslices"])?
            .matches("10.244.2.11")
            .count()
            >= 4)
    })?;
    print!("{}", plane.kubectl(&["get", "services,endpointslices"])?);
    let v6 = plane.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[1]}"])?;
    let kubeconfig = plane.kubeconfig.to_string_lossy().into_owned();
    let act = |plane: Option<&ControlPlane>| {
        let plane = plane.context("no control plane")?;
        print!(
            "{}",
            plane.kubectl(&["delete", "pod", "pod-a2", "--grace-period=0", "--force"])?
        );
        let last = PODS.last().context("no pods")?;
        plane.create_running_pod("default", last.name, "node-b", "web", &[last.v4, last.v6])
    };
    let all = ["pod-a1", "pod-a2", "pod-b1"];
    let v6: SocketAddr = format!("[{v6}]:80").parse()?;
    Ok(Scene {
        arguments: vec![
            "--kubeconfig".into(),
            kubeconfig,
            "--hostname-override".into(),
            NODE.into(),
        ],
        questions: vec![
            Question::tcp("10.96.1.1:80".parse()?, &all),
            Question::tcp(v6, &all),
            Question {
                udp: true,
                ..Question::tcp("10.96.1.3:53".parse()?, &all)
            },
            Question {
                affinity: true,
                ..Question::tcp("10.96.1.2:80".parse()?, &[])
            },
            Question::tcp("192.0.2.10:30080".parse()?, &all),
        ],
        lines: 40,
        change: "kubectl delete pod pod-a2, create pod pod-b2",
        act: Box::new(act),
        changed: "10.96.1.1:80".parse()?,
        after: ["pod-a1", "pod-b1", "pod-b2"],
        plane: Some(plane),
    })
}

fn ask(world: &World, question: &Question) -> Result<()> {
    for (who, client) in [
        ("a pod of the node", &world.client_pod),
        ("a client outside", &world.client),
    ] {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        // In turns where IPVS has round robin, by chance in the iptables mode.
        let all = |count: &BTreeMap<String, usize>| question.affinity || count.len() >= question.names.len();
        for number in 0..60 {
            if number >= 6 && all(&count) {
                break;
            }
            let answer = if question.udp {
                world::ask_udp(client, question.to)
            } else {
                world::ask_tcp(client, question.to)
            };
            *count
                .entry(answer.with_context(|| format!("{who} asks {}", question.to))?.0)
                .or_default() += 1;
        }
        let protocol = if question.udp { "UDP" } else { "TCP" };
        let list: Vec<_> = count.iter().map(|(name, number)| format!("{name} ×{number}")).collect();
        println!(
            "{:>24} {protocol}  {who:<18} {}",
            question.to.to_string(),
            list.join(", ")
        );
        if question.affinity {
            ensure!(count.len() == 1, "one client, one endpoint");
        } else {
            ensure!(
                count.keys().map(String::as_str).collect::<BTreeSet<_>>() == question.names,
                "want {:?}",
                question.names
            );
        }
    }
    Ok(())
}

/// What the table must show: both protocols, both families, schedulers, persistence.
fn check_table(table: &str) -> Result<()> {
    let servers: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("TCP ") || line.starts_with("UDP "))
        .collect();
    ensure!(servers.len() >= 4, "at least four virtual servers");
    let has = |what: &dyn Fn(&str) -> bool, name: &str| {
        ensure!(servers.iter().any(|line| what(line)), "no {name} in the table");
        Ok(())
    };
    has(&|line| line.starts_with("TCP"), "TCP")?;
    has(&|line| line.starts_with("UDP"), "UDP")?;
    has(&|line| line.contains('['), "IPv6")?;
    has(&|line| !line.contains('['), "IPv4")?;
    has(&|line| line.contains(" rr"), "rr")?;
    has(&|line| line.contains(" mh"), "mh")?;
    has(&|line| line.contains(" persistent "), "session affinity")
}

fn real_servers(table: &str) -> BTreeSet<String> {
    table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-> "))
        // One of weight 0 drains: somebody has just asked it.
        .filter(|line| line.split_whitespace().nth(2) != Some("0"))
        .filter_map(|line| line.split(':').next())
        .filter(|address| address.parse::<std::net::IpAddr>().is_ok())
        .map(str::to_owned)
        .collect()
}

fn address_of(name: &str) -> String {
    PODS.iter()
        .find(|pod| pod.name == name)
        .map(|pod| pod.v4.to_owned())
        .unwrap_or_default()
}

fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn say(text: &str) {
    println!("   {text}");
}
