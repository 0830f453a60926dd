//! The cluster as the steps see it: kubectl, a shell in a pod, the node, and waiting for a state.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testbed::cluster::Cluster;

/// Longer than any state takes that comes at all.
const PATIENCE: Duration = Duration::from_secs(180);
/// The namespace of the proxy.
pub(crate) const SYSTEM: &str = "kube-system";

/// Pods of the proxy: ours, or kube-proxy's own with our image. There is never more than one of the two.
pub(crate) const PROXIES: &str = "k8s-app in (kube-ipvs, kube-proxy)";

/// Where a question is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    Pod,
    Node,
}

/// The cluster, and what a run knows about it.
pub(crate) struct Scene {
    pub(crate) cluster: Box<dyn Cluster>,
    /// For files of the run.
    pub(crate) folder: PathBuf,
    /// The project's `deploy`.
    pub(crate) deploy: PathBuf,
    /// Upstream's kubeadm.
    pub(crate) kubeadm: PathBuf,
    /// Archives: the proxy's images, and those of the test.
    pub(crate) images: Vec<PathBuf>,
    /// Steps that the caller left out, by name.
    pub(crate) skipped: Vec<String>,
}

impl Scene {
    pub(crate) fn kubectl(&self, line: &str) -> Result<String> {
        self.cluster.kubectl(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Applies a text.
    pub(crate) fn apply(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        self.cluster
            .kubectl(&["apply", "--filename", &path.to_string_lossy()])
            .map(drop)
    }

    /// Applies a kustomization.
    pub(crate) fn apply_folder(&self, folder: &Path) -> Result<()> {
        self.cluster
            .kubectl(&["apply", "--kustomize", &folder.to_string_lossy()])
            .map(drop)
    }

    /// Runs a shell line in a pod of the test, or on the node.
    pub(crate) fn shell(&self, from: From, line: &str) -> Result<String> {
        let pod = match from {
            From::Pod => "client",
            From::Node => "node",
        };
        self.cluster
            .kubectl(&["exec", "--namespace", "e2e", pod, "--", "sh", "-c", line])
    }

    /// Asks a place nine times, each by a connection of its own. Returns who answered.
    pub(crate) fn ask(&self, from: From, place: &str) -> Result<BTreeSet<String>> {
        let answers = self
            .shell(from, &question(place))
            .with_context(|| format!("ask {place}"))?;
        Ok(answers.split_whitespace().map(str::to_owned).collect())
    }

    /// The same from outside of the cluster.
    pub(crate) fn ask_outside(&self, place: &str) -> Result<BTreeSet<String>> {
        let answers = self.cluster.outside(&["sh", "-c", &question(place)])?;
        Ok(answers.split_whitespace().map(str::to_owned).collect())
    }

    /// The HTTP status of a page, asked from outside.
    pub(crate) fn status_outside(&self, url: &str) -> Result<String> {
        self.cluster.outside(&[
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "--max-time",
            "10",
            "-w",
            "%{http_code}",
            url,
        ])
    }

    /// The names of the servers that are not about to go, and their addresses.
    pub(crate) fn servers(&self) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let pods: Value = serde_json::from_str(&self.kubectl("get pods --namespace e2e --selector app=web -o json")?)?;
        let items = pods.pointer("/items").and_then(Value::as_array).context("no list")?;
        let text = |pod: &Value, path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(items
            .iter()
            .filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none())
            .map(|pod| (text(pod, "/metadata/name"), text(pod, "/status/podIP")))
            .unzip())
    }

    /// Addresses of the real servers of a virtual server that take new connections.
    pub(crate) fn real_servers(&self, place: &str) -> Result<BTreeSet<String>> {
        let table = self.shell(From::Node, &format!("ipvsadm -Sn | grep -- '-t {place} -r'"))?;
        let taking = table.lines().filter(|line| !line.trim_end().ends_with("-w 0"));
        let address = |line: &str| Some(line.split(" -r ").nth(1)?.split(':').next()?.to_owned());
        taking
            .map(|line| address(line).context("a line without a real server"))
            .collect()
    }

    /// Waits for a DaemonSet or Deployment.
    pub(crate) fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        let waited = self.kubectl(&format!("rollout status --namespace {namespace} {what} --timeout=240s"));
        waited.map(drop).or_else(|error| {
            let pods = self.kubectl("get pods --all-namespaces -o wide").unwrap_or_default();
            let agent = self.log("");
            let events = self
                .kubectl("get events --all-namespaces --sort-by=.lastTimestamp")
                .unwrap_or_default();
            bail!("{error:#}\n{pods}\n{events}\n{agent}")
        })
    }

    /// Waits until the proxy's pod says that it serves.
    pub(crate) fn serving(&self) -> Result<()> {
        eventually("the proxy serves", || Ok(self.log("")), |log| log.contains(" serving ")).map(drop)
    }

    /// What the proxy's pod said, or with `--previous` the container before.
    pub(crate) fn log(&self, previous: &str) -> String {
        let words = [
            "logs",
            "--namespace",
            SYSTEM,
            "--selector",
            PROXIES,
            "--all-containers",
            "--tail=200",
        ];
        let previous = Some(previous).filter(|word| !word.is_empty());
        self.cluster
            .kubectl(&words.into_iter().chain(previous).collect::<Vec<_>>())
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    /// The node's own address.
    pub(crate) fn node_address(&self) -> Result<String> {
        self.cluster.kubectl(&[
            "get",
            "nodes",
            "-o",
            "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}",
        ])
    }
}

fn question(place: &str) -> String {
    format!("curl -sS --max-time 10 -H 'Connection: close' -w '\\n' 'http://{place}/hostname?[1-9]'")
}

/// Waits until a question has the right answer.
pub(crate) fn eventually<T: std::fmt::Debug>(
    what: &str,
    ask: impl Fn() -> Result<T>,
    right: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        match answer {
            Ok(answer) if right(&answer) => return Ok(answer),
            answer => ensure!(
                Instant::now() < deadline,
                "{what}: not within {} s; the last answer: {answer:?}",
                PATIENCE.as_secs()
            ),
        }
        thread::sleep(Duration::from_millis(500));
    }
}
