//! kustomize and helm give the same objects: those who use the one get what the other's users tested.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::tool;

use crate::cargo::root;

/// Overlays, and the chart's values that stand for them.
const SAME: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("least-privilege", &["--set=leastPrivilege=true"]),
    ("kubeadm", &["--set=kubeProxyConfigMap=true"]),
];
/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

/// Renders both by upstream's own programs and compares object by object.
///
/// # Errors
/// One of them does not render, or they differ.
pub(crate) fn check(control_plane: &Path, helm: &Path) -> Result<()> {
    let deploy = root().join("deploy");
    for (overlay, values) in SAME {
        let mut kustomize = Command::new(control_plane);
        kustomize
            .args(["kubectl", "kustomize"])
            .arg(deploy.join("kustomize").join(overlay));
        let mut chart = Command::new(helm);
        chart
            .args(["template", "kube-ipvs"])
            .arg(deploy.join("helm/kube-ipvs"))
            // What a helm that is not a release takes for the cluster's version is older than any that we serve.
            .args(["--namespace=kube-system", "--kube-version=1.37.2"])
            .args(*values);
        let (ours, theirs) = (objects(kustomize)?, objects(chart)?);
        ensure!(ours.len() >= 4, "overlay {overlay} has {} objects", ours.len());
        let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
        ensure!(
            names(&ours) == names(&theirs),
            "overlay {overlay} and chart have other objects: {:?}, {:?}",
            names(&ours),
            names(&theirs)
        );
        for (name, object) in &ours {
            let other = theirs.get(name);
            ensure!(
                Some(object) == other,
                "overlay {overlay} and chart differ in {name:?}:\n{object:#}\n{:#}",
                other.unwrap_or(&Value::Null)
            );
        }
        println!("overlay {overlay} and the chart render the same {} objects", ours.len());
    }
    Ok(())
}

fn objects(command: Command) -> Result<Objects> {
    let text = tool::output(command)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("read what was rendered")?;
    let named = documents.into_iter().filter(|object| !object.is_null()).map(|object| {
        let text = |path: &str| {
            object
                .pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        ((text("/kind"), text("/metadata/name")), object)
    });
    Ok(named.collect())
}
