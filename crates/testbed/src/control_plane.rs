//! A real control plane: etcd, kube-apiserver and the EndpointSlice controller, upstream's own, built from their Go
//! modules (`tests/control-plane`) and started in a namespace.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::go;
use crate::netns::Netns;
use crate::tool;

/// Environment variable with the path of the program that [`build`] made.
pub const PROGRAM: &str = "KUBE_IPVS_CONTROL_PLANE";
/// Of cluster IPs, both families.
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
const TOKEN: &str = "testbed-admin";
const READY: Duration = Duration::from_secs(240);
const PROXY: u16 = 8001;
/// What the API server makes for itself, in the folder of its files.
const AUTHORITY: &str = "certificates/apiserver.crt";

/// Builds the program, as [`go::build`] does.
///
/// # Errors
/// As there.
pub fn build(workspace: &Path) -> Result<PathBuf> {
    tool::install(&[("openssl", "openssl")])?;
    go::build(workspace, "control-plane", ".")
}

/// The program that the environment names.
///
/// # Errors
/// It names none.
pub fn program() -> Result<PathBuf> {
    std::env::var_os(PROGRAM)
        .map(PathBuf::from)
        .with_context(|| format!("{PROGRAM} names no program; see CONTRIBUTING.md"))
}

/// Who may do what, and which controllers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// Pods are objects only: everybody may do everything, and of the controllers there is that of EndpointSlices.
    Objects,
    /// Nodes run pods: RBAC, service accounts with tokens, all controllers.
    Nodes,
}

impl Setup {
    fn api_server(self) -> &'static [&'static str] {
        match self {
            Self::Objects => &[
                "--authorization-mode=AlwaysAllow",
                "--disable-admission-plugins=ServiceAccount",
            ],
            Self::Nodes => &[
                "--authorization-mode=RBAC",
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
            ],
        }
    }

    fn controllers(self, authority: &Path, key: &str) -> Vec<String> {
        match self {
            Self::Objects => vec!["--controllers=endpointslice-controller".to_owned()],
            Self::Nodes => vec![
                format!("--root-ca-file={}", authority.display()),
                format!("--service-account-private-key-file={key}"),
            ],
        }
    }
}

/// A running control plane. Its processes are killed when this is dropped.
pub struct ControlPlane {
    children: Vec<Child>,
    netns: Netns,
    program: PathBuf,
    /// A kubeconfig with every right.
    pub kubeconfig: PathBuf,
}

impl ControlPlane {
    /// Starts one at an address of the namespace (no loopback), with its files in a folder; ready when this returns.
    /// A folder `etcd` in it with data is taken over.
    ///
    /// # Errors
    /// A process cannot be started or is not ready within four minutes: with the end of its log.
    pub fn start(program: &Path, netns: &Netns, address: &str, folder: &Path) -> Result<Self> {
        Self::start_as(Setup::Objects, program, netns, address, folder)
    }

    /// The API server of another release, a program of its own, with more flags; etcd and kubectl are of `program`. No
    /// controllers: those of another release than the server's are not made for it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_beside(
        program: &Path,
        api_server: &Path,
        flags: &[&str],
        netns: &Netns,
        address: &str,
        folder: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(api_server);
        command.args(Setup::Objects.api_server()).args(flags);
        Self::start_server(program, command, netns, address, folder)
    }

    /// The same with what nodes and their pods need, RBAC among it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_for_nodes(program: &Path, netns: &Netns, address: &str, folder: &Path) -> Result<Self> {
        Self::start_as(Setup::Nodes, program, netns, address, folder)
    }

    fn start_as(setup: Setup, program: &Path, netns: &Netns, address: &str, folder: &Path) -> Result<Self> {
        let mut server = Command::new(program);
        server.arg("kube-apiserver").args(setup.api_server());
        let mut plane = Self::start_server(program, server, netns, address, folder)?;
        let mut controllers = vec![
            "kube-controller-manager".to_owned(),
            "--kubeconfig".to_owned(),
            plane.kubeconfig.to_string_lossy().into_owned(),
        ];
        let authority = folder.join(AUTHORITY);
        let key = folder.join("key").to_string_lossy().into_owned();
        controllers.extend(setup.controllers(&authority, &key));
        controllers.extend(
            [
                "--leader-elect=false",
                "--concurrent-service-endpoint-syncs=10",
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
            ]
            .map(str::to_owned),
        );
        plane.child(folder, &controllers)?;
        Ok(plane)
    }

    /// etcd, an API server that gets what every one needs beside its own flags, and kubectl as the way to it.
    fn start_server(
        program: &Path,
        mut api_server: Command,
        netns: &Netns,
        address: &str,
        folder: &Path,
    ) -> Result<Self> {
        let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
        fs::write(folder.join("tokens"), format!("{TOKEN},admin,1,system:masters\n"))?;
        tool::run(&["openssl", "genrsa", "-out", &at("key"), "2048"])?;
        let mut plane = Self {
            children: Vec::new(),
            netns: netns.clone(),
            program: program.to_owned(),
            kubeconfig: folder.join("kubeconfig"),
        };
        plane.child(
            folder,
            &[
                "etcd",
                "--data-dir",
                &at("etcd"),
                "--unsafe-no-fsync",
                "--log-level=error",
                "--quota-backend-bytes=4294967296",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=default=http://127.0.0.1:2380",
            ],
        )?;
        let key = at("key");
        api_server.args([
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--secure-port=6443".to_owned(),
            format!("--advertise-address={address}"),
            format!("--bind-address={address}"),
            format!("--cert-dir={}", at("certificates")),
            format!("--token-auth-file={}", at("tokens")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--max-requests-inflight=2000".to_owned(),
            "--max-mutating-requests-inflight=1000".to_owned(),
        ]);
        plane.spawn(folder, "kube-apiserver", api_server)?;
        let authority = folder.join(AUTHORITY);
        plane.wait("its certificate", folder, || authority.exists())?;
        fs::write(
            &plane.kubeconfig,
            json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "testbed",
                "clusters": [{"name": "testbed", "cluster": {
                    "server": format!("https://{address}:6443"), "certificate-authority": authority,
                }}],
                "users": [{"name": "admin", "user": {"token": TOKEN}}],
                "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "admin"}}],
            })
            .to_string(),
        )?;
        let kubeconfig = plane.kubeconfig.to_string_lossy().into_owned();
        plane.child(
            folder,
            &[
                "kubectl",
                "--kubeconfig",
                &kubeconfig,
                "proxy",
                &format!("--port={PROXY}"),
            ],
        )?;
        let netns = plane.netns.clone();
        plane.wait("the API server", folder, || {
            matches!(request_in(&netns, "GET", "/readyz", None), Ok((200, _)))
        })?;
        Ok(plane)
    }

    fn child(&mut self, folder: &Path, words: &[impl AsRef<str>]) -> Result<()> {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let name = words.first().copied().unwrap_or_default();
        let mut command = Command::new(&self.program);
        command.args(&words);
        self.spawn(folder, name, command)
    }

    fn spawn(&mut self, folder: &Path, name: &str, mut command: Command) -> Result<()> {
        let log = fs::File::create(folder.join(format!("{name}.log")))?;
        command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.children.push(self.netns.spawn(command)?);
        Ok(())
    }

    fn wait(&mut self, what: &str, folder: &Path, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + READY;
        while !ready() {
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "a process of the control plane ended ({status}) before {what} was ready:\n{}",
                        logs(folder)
                    );
                }
            }
            ensure!(Instant::now() < deadline, "{what} is not ready:\n{}", logs(folder));
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    /// As [`tool::run`].
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .arg("kubectl")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments);
        self.netns.run(|| tool::output(command))
    }

    /// Sends a request through `kubectl proxy` and returns status and body.
    ///
    /// # Errors
    /// Where there is no answer; a status that is an error is none.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        request_in(&self.netns, method, path, body)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// The API server refuses it: with its answer.
    pub fn create(&self, collection: &str, object: &Value) -> Result<()> {
        let (status, body) = self.request("POST", collection, Some(object))?;
        ensure!((200..300).contains(&status), "create in {collection}: {status}: {body}");
        Ok(())
    }

    /// Creates a Pod that runs and is ready at these addresses, as a kubelet would tell.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_running_pod(&self, namespace: &str, name: &str, node: &str, app: &str, ips: &[&str]) -> Result<()> {
        let collection = format!("/api/v1/namespaces/{namespace}/pods");
        self.create(
            &collection,
            &json!({
                "metadata": {"name": name, "labels": {"app": app}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
            }),
        )?;
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {
            "phase": "Running",
            "podIP": ips.first().and_then(|ip| ip.get("ip")),
            "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        let (code, body) = self.request("PATCH", &format!("{collection}/{name}/status"), Some(&status))?;
        ensure!(code == 200, "status of pod {name}: {code}: {body}");
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The ends of all logs.
fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "log") {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = lines
                .get(lines.len().saturating_sub(15)..)
                .unwrap_or_default()
                .join("\n");
            text.push_str(&format!("-- {}\n{end}\n", path.display()));
        }
    }
    text
}

fn request_in(netns: &Netns, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
    netns.run(|| request(method, path, body))
}

/// Sends a request from this thread's namespace, in which `kubectl proxy` must run.
///
/// # Errors
/// Where there is no answer.
pub fn request(method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], PROXY))).context("connect to kubectl proxy")?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // In one piece: a second one would wait for the acknowledgement of the first, which may be delayed by 40 ms.
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without an end of its head")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("an answer without a status")?;
    Ok((status, body.to_owned()))
}
