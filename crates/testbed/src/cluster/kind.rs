//! A cluster by kind, in containers of this machine's docker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::{Cluster, POD_RANGE};
use crate::tool;

/// Name of the cluster.
const NAME: &str = "kube-ipvs-e2e";

/// The cluster. It is deleted when this is dropped, but for [`keep`](Self::keep).
pub struct Kind {
    kubeconfig: PathBuf,
    kept: bool,
}

impl Kind {
    /// What is missing on this machine, one sentence each.
    pub fn missing() -> Vec<String> {
        let mut missing: Vec<_> = ["docker", "kind", "kubectl"]
            .iter()
            .filter(|program| !tool::exists(program))
            .map(|program| format!("the program {program} is not on the path"))
            .collect();
        if tool::exists("docker") && tool::sh("docker info").is_err() {
            missing.push("docker has no daemon that answers (docker info)".to_owned());
        }
        missing
    }

    /// Makes it of one node, without kube-proxy.
    ///
    /// # Errors
    /// kind cannot make it: with what it said.
    pub fn start(folder: &Path) -> Result<Self> {
        let configuration = folder.join("kind.yaml");
        fs::write(
            &configuration,
            json!({
                "kind": "Cluster",
                "apiVersion": "kind.x-k8s.io/v1alpha4",
                "networking": {"kubeProxyMode": "none", "podSubnet": POD_RANGE, "serviceSubnet": "10.96.0.0/16"},
            })
            .to_string(),
        )?;
        let cluster = Self {
            kubeconfig: folder.join("kubeconfig"),
            kept: false,
        };
        // Not waited for: until a proxy runs nothing reaches the API server by its Service.
        let mut command = Command::new("kind");
        command.args(["create", "cluster", "--name", NAME, "--config"]);
        command.arg(configuration).arg("--kubeconfig").arg(&cluster.kubeconfig);
        tool::show(command)?;
        Ok(cluster)
    }

    /// Leaves it there, for a look. Returns how to talk to it and how to delete it.
    pub fn keep(&mut self) -> String {
        self.kept = true;
        format!(
            "kubectl --kubeconfig {}; kind delete cluster --name {NAME}",
            self.kubeconfig.display()
        )
    }
}

impl Cluster for Kind {
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        tool::output(command)
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn import(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new("kind");
        command.args(["load", "image-archive", "--name", NAME]).arg(archive);
        tool::output(command).map(drop)
    }

    fn outside(&self, words: &[&str]) -> Result<String> {
        tool::run(words)
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        if !self.kept {
            let _ = tool::sh(&format!("kind delete cluster --name {NAME}"));
        }
    }
}
