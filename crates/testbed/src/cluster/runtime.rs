//! containerd and the pods' network of one node: their configuration, in a folder of the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::tool;

/// The image of the container that holds a pod's namespaces.
pub const PAUSE: &str = "kube-ipvs.test/pause:1";
/// Where Debian has the network plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// Files of a node's runtime.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    folder: PathBuf,
}

impl Runtime {
    /// Writes the configuration. `pods` are the ranges of the pods' addresses, one of a family at most.
    pub(crate) fn configure(folder: &Path, pods: &[String]) -> Result<Self> {
        let runtime = Self {
            folder: folder.to_owned(),
        };
        let networks = folder.join("networks");
        fs::create_dir_all(&networks)?;
        fs::write(networks.join("10-bridge.conflist"), network(folder, pods))?;
        fs::write(folder.join("containerd.toml"), runtime.configuration(&networks))?;
        Ok(runtime)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// What starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.folder.join("containerd.toml"));
        command
    }

    /// Imports an archive for the kubelet to find.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive);
        tool::output(command)
            .map(drop)
            .with_context(|| format!("import {}", archive.display()))
    }

    fn configuration(&self, networks: &Path) -> String {
        let at = |name: &str| self.folder.join(name).display().to_string();
        format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            root = at("containerd"),
            state = at("containerd-state"),
            socket = self.socket().display(),
            networks = networks.display(),
        )
    }
}

/// A bridge with addresses of these ranges, and host ports by iptables.
fn network(folder: &Path, pods: &[String]) -> String {
    let ranges: Vec<_> = pods.iter().map(|range| json!([{"subnet": range}])).collect();
    let everywhere = |range: &String| if range.contains(':') { "::/0" } else { "0.0.0.0/0" };
    let routes: Vec<_> = pods.iter().map(|range| json!({"dst": everywhere(range)})).collect();
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": routes,
                    "dataDir": folder.join("addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}
