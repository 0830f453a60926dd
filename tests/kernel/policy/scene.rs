//! A world with services of a test's own, the daemon on its node, and questions whose answers are words.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::daemon::Daemon;
use testbed::netns::Netns;
use testbed::world::{NODE, PODS, World, ask_tcp, ask_udp, kind_of};

use crate::seen;

/// Who asks; the names are the table's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A pod of the node.
    Pod,
    /// A process of the node itself.
    Node,
    /// Another host of the cluster.
    Other,
    /// Somebody outside.
    Outside,
}

/// All four.
pub(super) const CLIENTS: [Client; 4] = [Client::Pod, Client::Node, Client::Other, Client::Outside];
/// No answer, of any kind, in three seconds.
pub(super) const SILENT: &str = "silent";
/// Refused at once.
pub(super) const REFUSED: &str = "refused";

/// A world, its manifests, and what runs on its node.
pub(super) struct Scene {
    pub(super) world: World,
    manifests: TempDir,
    daemon: Option<Daemon>,
}

/// A Service; `spec` as in the API, but for `load_balancer`, a list of addresses.
pub(super) fn service(name: &str, mut spec: Value) -> Value {
    let balancer = spec.as_object_mut().unwrap().remove("load_balancer");
    let addresses = balancer.as_ref().and_then(Value::as_array).into_iter().flatten();
    let ingress: Vec<_> = addresses.map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "d"},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// The EndpointSlices of a service: pods of the world, by name, of each family, on one port number for each named port.
pub(super) fn slices(service: &str, ports: &Value, pods: &[&str]) -> Value {
    let pods: Vec<_> = PODS.iter().filter(|pod| pods.contains(&pod.name)).collect();
    let slice = |family: &str, v4: bool| {
        let endpoint = |pod: &&testbed::world::Pod| {
            let node = if pod.local { NODE } else { "node-b" };
            json!({"addresses": [if v4 { pod.v4 } else { pod.v6 }], "nodeName": node})
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family, "ports": ports,
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()), "namespace": "d",
                "labels": {"kubernetes.io/service-name": service},
            },
            "endpoints": pods.iter().copied().map(|pod| endpoint(&pod)).collect::<Vec<_>>(),
        })
    };
    list(&[slice("IPv4", true), slice("IPv6", false)])
}

/// The port that most services here have: TCP 80 → 8080.
pub(super) fn http() -> Value {
    json!([{"port": 8080}])
}

fn list(items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "items": items})
}

impl Scene {
    /// A world with this node and another one, and no daemon yet.
    pub(super) fn new() -> Self {
        let scene = Self {
            world: World::new().unwrap(),
            manifests: tempfile::tempdir().unwrap(),
            daemon: None,
        };
        let node = |name: &str, cidrs: [&str; 2], addresses: [&str; 2]| {
            let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses},
            })
        };
        let own = node(
            NODE,
            ["10.244.1.0/24", "fd00:10:244:1::/64"],
            ["192.0.2.10", "2001:db8::10"],
        );
        let other = node(
            "node-b",
            ["10.244.2.0/24", "fd00:10:244:2::/64"],
            ["192.0.2.20", "2001:db8::20"],
        );
        scene.put("nodes", &list(&[own, other]));
        scene
    }

    /// Writes a manifest.
    pub(super) fn put(&self, name: &str, object: &Value) {
        // In one step, so that no half of it is read.
        let path = self.manifests.path().join(format!("{name}.json"));
        let draft = self.manifests.path().join(format!("{name}.draft"));
        fs::write(&draft, object.to_string()).unwrap();
        fs::rename(draft, path).unwrap();
    }

    /// Takes one away.
    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.manifests.path().join(format!("{name}.json"))).unwrap();
    }

    /// A service with TCP endpoints on port 8080: the service is manifest `NAME`, its slices `NAME-endpoints`.
    pub(super) fn serve(&self, name: &str, spec: Value, pods: &[&str]) {
        self.put(name, &service(name, spec));
        self.put(&format!("{name}-endpoints"), &slices(name, &http(), pods));
    }

    /// Starts the daemon, in place of one that runs, and waits until it serves. Returns the line that says so.
    pub(super) fn start(&mut self) -> String {
        self.daemon = None;
        let path = self.manifests.path().to_string_lossy();
        // With it, hosts are no pods: what they send to a cluster IP is masqueraded, and replies pass the node (T11).
        let cidr = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48";
        let arguments = ["--manifests", &path, "--hostname-override", NODE, cidr];
        let mut daemon = Daemon::start(&self.world.node, &arguments).unwrap();
        let line = daemon.wait_until_serving().unwrap();
        self.daemon = Some(daemon);
        line
    }

    /// Ends the daemon by SIGTERM.
    pub(super) fn terminate(&mut self) {
        let (status, said) = self.daemon.take().unwrap().terminate().unwrap();
        assert!(status.success(), "{said:?}");
    }

    /// The daemon.
    pub(super) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap()
    }

    /// The namespace of a client.
    pub(super) fn of(&self, client: Client) -> &Netns {
        match client {
            Client::Pod => &self.world.client_pod,
            Client::Node => &self.world.node,
            Client::Other => &self.world.other,
            Client::Outside => &self.world.client,
        }
    }

    /// One TCP question: who answers, or how it ends.
    pub(super) fn ask(&self, client: Client, to: &str) -> String {
        word(ask_tcp(self.of(client), address(to)))
    }

    /// The same by UDP.
    pub(super) fn ask_udp(&self, client: Client, to: &str) -> String {
        word(ask_udp(self.of(client), address(to)))
    }

    /// Many TCP questions at once, so that the silent ones take their time together.
    pub(super) fn ask_all(&self, questions: &[(Client, &str)]) -> Vec<String> {
        thread::scope(|scope| {
            let asked: Vec<_> = questions
                .iter()
                .map(|(client, to)| scope.spawn(move || self.ask(*client, to)))
                .collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        })
    }

    /// Every question has its answer.
    pub(super) fn check(&self, expect: &[(Client, &str, &str)]) {
        let questions: Vec<_> = expect.iter().map(|(client, to, _)| (*client, *to)).collect();
        let found = self.ask_all(&questions);
        let told = |answers: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            let lines = questions.iter().zip(answers);
            lines
                .map(|((client, to), answer)| format!("{client:?} {to} {answer}"))
                .collect()
        };
        assert_eq!(
            told(&mut found.iter().map(String::as_str)),
            told(&mut expect.iter().map(|(.., answer)| *answer)),
            "{:#?}",
            seen::ipvsadm(&self.world.node)
        );
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn word(answer: anyhow::Result<(String, String)>) -> String {
    match answer {
        Ok((name, _)) => name,
        Err(error) => match kind_of(&error) {
            Some(ErrorKind::ConnectionRefused) => REFUSED.to_owned(),
            Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => SILENT.to_owned(),
            other => format!("{other:?}"),
        },
    }
}
