//! One node on the kernel that this process runs on: containerd, the pods' network and the kubelet. Made for a guest of
//! the test kernel: `machine` prepares it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::runtime::Runtime;

const READY: Duration = Duration::from_secs(240);

/// What makes one node differ from another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSettings {
    /// Name of the Node object.
    pub name: String,
    /// Its addresses, one of a family at most. An interface of the kernel has them.
    pub addresses: Vec<String>,
    /// Ranges of its pods, one of a family at most.
    pub pods: Vec<String>,
    /// Address of the cluster's name service. `None` = pods have none.
    pub dns: Option<String>,
    /// kubelet and kube-scheduler, as `tests/control-plane/node` makes them.
    pub program: PathBuf,
    /// State, which ought to be on a tmpfs.
    pub folder: PathBuf,
    /// Where the logs go.
    pub logs: PathBuf,
}

/// A node. Its processes are killed when this is dropped; containers go with the kernel.
pub(crate) struct Node {
    settings: NodeSettings,
    runtime: Runtime,
    children: Vec<(String, Child)>,
}

impl Node {
    /// Starts containerd.
    ///
    /// # Errors
    /// It cannot be started, or a file cannot be written.
    pub(crate) fn start(settings: NodeSettings) -> Result<Self> {
        fs::create_dir_all(&settings.folder)?;
        fs::create_dir_all(&settings.logs)?;
        let runtime = Runtime::configure(&settings.folder, &settings.pods)?;
        let mut node = Self {
            settings,
            runtime,
            children: Vec::new(),
        };
        node.child("containerd", node.runtime.command())?;
        Ok(node)
    }

    /// Imports archives, once containerd answers.
    ///
    /// # Errors
    /// containerd does not answer within minutes, or refuses an archive: with the end of its log.
    pub(crate) fn import(&self, archives: &[&Path]) -> Result<()> {
        let import = || {
            wait_for("containerd", || Ok(self.runtime.socket().exists()))?;
            archives.iter().try_for_each(|archive| self.runtime.import(archive))
        };
        import().with_context(|| format!("containerd said:\n{}", self.log_end("containerd")))
    }

    /// Starts the kubelet, which makes the node one of the cluster's.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn join(&mut self, kubeconfig: &Path) -> Result<()> {
        let settings = &self.settings;
        let configuration = settings.folder.join("kubelet.yaml");
        fs::write(&configuration, kubelet(settings, &self.runtime))?;
        let at = |name: &str| settings.folder.join(name).display().to_string();
        let mut command = Command::new(&settings.program);
        command.args([
            "kubelet".to_owned(),
            format!("--config={}", configuration.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", settings.name),
            format!("--node-ip={}", settings.addresses.join(",")),
            format!("--root-dir={}", at("kubelet")),
            format!("--cert-dir={}", at("kubelet-certificates")),
        ]);
        self.child("kubelet", command)
    }

    /// Starts a process of the node, with a log of its name.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn child(&mut self, name: &str, command: Command) -> Result<()> {
        let child = start(name, command, &self.settings.folder, &self.settings.logs)?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    /// Returns when a process of the node has ended, which none of them ought to.
    ///
    /// # Errors
    /// Always: which one ended, with the end of its log.
    pub(crate) fn watch(&mut self) -> Result<()> {
        loop {
            for (name, child) in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!("{name} ended ({status}):\n{}", log_end(&self.settings.logs, name));
                }
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// The end of a process's log.
    pub(crate) fn log_end(&self, name: &str) -> String {
        log_end(&self.settings.logs, name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for (_, child) in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a process in a folder, with a log of its name in another.
pub(crate) fn start(name: &str, mut command: Command, folder: &Path, logs: &Path) -> Result<Child> {
    let log = fs::File::create(logs.join(format!("{name}.log")))?;
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name}"))
}

/// The last lines of a log. Empty where there is none.
pub(crate) fn log_end(logs: &Path, name: &str) -> String {
    let text = fs::read(logs.join(format!("{name}.log"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let end = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
    end.join("\n")
}

/// Waits until something is so. An error while it is asked for means that it is not yet so.
pub(crate) fn wait_for(what: &str, ready: impl Fn() -> Result<bool>) -> Result<()> {
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
fn kubelet(settings: &NodeSettings, runtime: &Runtime) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "clusterDNS": settings.dns.iter().collect::<Vec<_>>(),
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", runtime.socket().display()),
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "1Mi"},
        "failSwapOn": false,
        // There is no registry to fetch an image from again.
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "podLogsDir": settings.folder.join("pod-logs"),
        "resolvConf": "",
        "volumePluginDir": settings.folder.join("volume-plugins"),
        // What a test changes must not wait a minute for the next look.
        "syncFrequency": "5s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
    })
    .to_string()
}
