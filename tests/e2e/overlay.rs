//! What an operator writes to deploy: a kustomization of their own over one of ours.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::scene::Scene;

/// Writes one over `deploy/kustomize/NAME` and returns its folder.
pub(crate) fn write(scene: &Scene, name: &str) -> Result<PathBuf> {
    let folder = scene.folder.join(format!("overlay-{name}"));
    fs::create_dir_all(&folder)?;
    // kustomize takes folders relative to the kustomization only.
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{}]\n",
        relative(&scene.deploy.join("kustomize").join(name))
    );
    text.push_str("images:\n  - {name: registry.k8s.io/pause, newName: kube-ipvs.test/pause, newTag: '1'}\n");
    if name != "cleanup" && scene.skipped.iter().any(|step| step == "health") {
        writeln!(text, "patches:\n  - path: without-probes.yaml")?;
        fs::write(folder.join("without-probes.yaml"), WITHOUT_PROBES)?;
    }
    fs::write(folder.join("kustomization.yaml"), text)?;
    Ok(folder)
}

/// Upwards to the root, and down again: the folders may have nothing else in common.
fn relative(path: &Path) -> String {
    format!("{}{}", "../".repeat(16), path.to_string_lossy().trim_start_matches('/'))
}

const WITHOUT_PROBES: &str = "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-ipvs, namespace: kube-system}
spec:
  template:
    spec:
      containers:
        - {name: kube-ipvs, startupProbe: null, livenessProbe: null, readinessProbe: null}
";
