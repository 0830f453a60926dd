//! A cluster of one node on the kernel that this process runs on: control plane, scheduler, containerd, kubelet, and a
//! client's network outside. Made for a guest of the test kernel, whose only job it is: it mounts over the system's
//! folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::runtime::Runtime;
use super::{Cluster, machine};
use crate::control_plane::ControlPlane;
use crate::netns::Netns;
use crate::tool;

/// Debian packages of a node, each with what shows that it is there.
pub const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("openssl", "openssl"),
    ("mount", "mount"),
];
/// Name of the node.
pub const NODE: &str = "node-a";
const ADDRESS: &str = "192.0.2.10";
const OUTSIDE: &str = "192.0.2.1";
const READY: Duration = Duration::from_secs(240);

/// The programs that it is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// As [`crate::control_plane::build`] makes it.
    pub control_plane: PathBuf,
    /// kubelet and kube-scheduler.
    pub node: PathBuf,
}

/// The cluster. Its processes are killed when this is dropped; containers go with the guest.
pub struct InKernel {
    plane: ControlPlane,
    runtime: Runtime,
    outside: Netns,
    children: Vec<Child>,
    folder: PathBuf,
}

impl InKernel {
    /// Starts it with its files in a folder, which ought to be on a tmpfs; the node is ready when this returns.
    ///
    /// # Errors
    /// A program cannot be started, or the node is not ready within four minutes.
    pub fn start(programs: &Programs, images: &[&Path], folder: &Path) -> Result<Self> {
        machine::prepare()?;
        let outside = connect()?;
        let runtime = Runtime::configure(folder)?;
        let mut children = vec![runtime.command()?.spawn().context("start containerd")?];
        let here = Netns::current()?;
        let plane = ControlPlane::start_for_nodes(&programs.control_plane, &here, ADDRESS, folder)?;
        wait_for("containerd", || Ok(runtime.socket().exists()))?;
        for image in images {
            runtime.import(image)?;
        }
        let kubeconfig = plane.kubeconfig.to_string_lossy().into_owned();
        let mut child = |words: &[&str]| -> Result<()> {
            children.push(start(&programs.node, folder, words)?);
            Ok(())
        };
        child(&["kube-scheduler", "--kubeconfig", &kubeconfig, "--leader-elect=false"])?;
        let configuration = folder.join("kubelet.yaml");
        fs::write(&configuration, kubelet(folder, &runtime))?;
        let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
        child(&[
            "kubelet",
            &format!("--config={}", configuration.display()),
            &format!("--kubeconfig={kubeconfig}"),
            &format!("--hostname-override={NODE}"),
            &format!("--node-ip={ADDRESS}"),
            &format!("--root-dir={}", at("kubelet")),
            &format!("--cert-dir={}", at("kubelet-certificates")),
        ])?;
        let cluster = Self {
            plane,
            runtime,
            outside,
            children,
            folder: folder.to_owned(),
        };
        let ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        wait_for("the node", || {
            Ok(cluster.kubectl(&["get", "nodes", "-o", ready])? == "True")
        })
        .with_context(|| format!("the kubelet said:\n{}", cluster.log_end("kubelet")))?;
        Ok(cluster)
    }

    fn log_end(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(40)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// The kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.plane.kubeconfig
    }
}

impl Cluster for InKernel {
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    fn import(&self, archive: &Path) -> Result<()> {
        self.runtime.import(archive)
    }

    fn outside(&self, words: &[&str]) -> Result<String> {
        self.outside.run(|| tool::run(words))
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The node's network card, and the client's namespace at its other end.
fn connect() -> Result<Netns> {
    let outside = Netns::new()?;
    tool::sh("ip link add eth0 type veth peer name outside")?;
    outside.take_interface("outside")?;
    for line in [
        format!("ip addr add {ADDRESS}/24 dev eth0"),
        "ip link set eth0 up".to_owned(),
        format!("ip route add default via {OUTSIDE}"),
    ] {
        tool::sh(&line)?;
    }
    for line in [
        format!("ip addr add {OUTSIDE}/24 dev outside"),
        "ip link set outside up".to_owned(),
    ] {
        outside.sh(&line)?;
    }
    Ok(outside)
}

fn start(program: &Path, folder: &Path, words: &[&str]) -> Result<Child> {
    let name = words.first().copied().unwrap_or_default();
    let log = fs::File::create(folder.join(format!("{name}.log")))?;
    Command::new(program)
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name}"))
}

fn wait_for(what: &str, ready: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + READY;
    while !ready().unwrap_or(false) {
        ensure!(
            Instant::now() < deadline,
            "{what} is not ready after {} s",
            READY.as_secs()
        );
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// KubeletConfiguration: no quality-of-service groups, no limits, nothing outside of the folder.
fn kubelet(folder: &Path, runtime: &Runtime) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "containerRuntimeEndpoint": format!("unix://{}", runtime.socket().display()),
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "1Mi"},
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "podLogsDir": folder.join("pod-logs"),
        "resolvConf": "",
        "volumePluginDir": folder.join("volume-plugins"),
        // What a test changes must not wait a minute for the next look.
        "syncFrequency": "5s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
    })
    .to_string()
}
