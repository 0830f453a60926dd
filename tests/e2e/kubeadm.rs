//! kube-proxy's own DaemonSet with our image and nothing else changed. It is kubeadm that writes it, by its own command and
//! with a patch directory, as an operator of Kubernetes 1.37 does; the cluster is the one of the other steps, whose node is
//! clean.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::cluster::POD_RANGE;
use testbed::control_plane::SERVICE_RANGES;
use testbed::tool;

use crate::deploying::{self, state};
use crate::life::{self, CHANGED};
use crate::scene::{From, SYSTEM, Scene, eventually};
use crate::traffic;

/// kubeadm's names.
const PROXY: &str = "kube-proxy";
const PLAIN: &str = concat!("ghcr.io/kube-ipvs/kube-ipvs:v", env!("CARGO_PKG_VERSION"));
const WITH_IPTABLES: &str = concat!("ghcr.io/kube-ipvs/kube-ipvs:v", env!("CARGO_PKG_VERSION"), "-iptables");

/// `kubeadm init phase addon kube-proxy` with `mode: ipvs` and a patch that names the image: the pod is up and ready, and
/// every type of Service answers.
pub(crate) fn image_swap(scene: &Scene) -> Result<()> {
    let proxy = "---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n";
    let expected = with_image(scene, proxy, PLAIN)?;
    traffic::scale(scene, 3)?;
    install(scene, proxy, PLAIN)?;
    scene.rolled_out(SYSTEM, "daemonset/kube-proxy")?;
    scene.serving()?;
    let daemon_set = get(scene, "daemonset")?;
    ensure!(
        daemon_set.pointer("/spec") == expected.pointer("/spec"),
        "kubeadm's DaemonSet differs in more than the image:\n{daemon_set:#}\nexpected:\n{expected:#}"
    );
    let command = daemon_set.pointer("/spec/template/spec/containers/0/command");
    println!("  {} in {PLAIN}", command.context("no command")?);
    traffic::services(scene)?;
    traffic::scaling(scene)?;
    let log = scene.log("");
    ensure!(
        !log.to_lowercase().contains("forbidden"),
        "system:node-proxier lacks a right:\n{log}"
    );
    ensure!(!log.contains("ERROR"), "an error:\n{log}");
    for line in log.lines().filter(|line| line.contains(" WARN ")) {
        println!("  {line}");
    }
    let ask = || scene.kubectl("get events --namespace e2e --field-selector reason=CannotProgram -o name");
    eventually("an event about the Service `strange`", ask, |names| {
        names.contains("strange")
    })?;
    let events = scene.kubectl("get events --namespace default --field-selector reason=Starting -o wide")?;
    ensure!(events.contains("node/"), "no event says that it starts:\n{events}");
    Ok(())
}

/// An edited ConfigMap ends the process, as kube-proxy; the kubelet starts it again, and it does as the file says.
pub(crate) fn image_swap_configuration(scene: &Scene) -> Result<()> {
    let before = life::restarts(scene)?;
    edit(scene, "scheduler: \"\"", "scheduler: lc")?;
    eventually(
        "the container is another",
        || life::restarts(scene),
        |now| *now != before,
    )?;
    let said = scene.log("--previous");
    ensure!(said.contains(CHANGED), "it did not say why it ended: {said}");
    life::scheduler(scene, "lc")?;
    scene.serving()
}

/// kubeadm 1.37 writes `mode: iptables` where nothing was said. It is obeyed, by the image that has iptables, and kubeadm
/// keeps the image that its patch directory names.
pub(crate) fn image_swap_default_mode(scene: &Scene) -> Result<()> {
    install(scene, "", WITH_IPTABLES)?;
    let written = configuration(scene)?;
    ensure!(
        written.contains("\nmode: iptables\n"),
        "kubeadm's default is another:\n{written}"
    );
    scene.rolled_out(SYSTEM, "daemonset/kube-proxy")?;
    life::mode_serves(scene, "iptables")?;
    let image = get(scene, "daemonset")?;
    let image = image.pointer("/spec/template/spec/containers/0/image");
    ensure!(
        image == Some(&json!(WITH_IPTABLES)),
        "kubeadm took another image: {image:?}"
    );
    // The sentence of docs/migrate.md.
    edit(scene, "mode: iptables", "mode: ipvs")?;
    life::mode_serves(scene, "ipvs")
}

/// Without the proxy the data path stays; `cleanup` takes it out. Only sysctls stay as they were set: that DaemonSet mounts
/// no folder of the host in which their old values could be kept (L16).
pub(crate) fn image_swap_uninstall(scene: &Scene) -> Result<()> {
    for object in ["daemonset", "configmap", "serviceaccount"] {
        scene.kubectl(&format!("delete {object} --namespace {SYSTEM} {PROXY} --wait=true"))?;
    }
    let gone = || {
        scene.kubectl(&format!(
            "get pods --namespace {SYSTEM} --selector k8s-app={PROXY} -o name"
        ))
    };
    eventually("the proxy's pods are gone", gone, String::is_empty)?;
    let served = scene.ask(From::Pod, "10.96.10.1")?;
    ensure!(!served.is_empty(), "the data path stays (L12)");
    deploying::clean_up(scene)?;
    let without_sysctls = |text: &str| {
        let lines = text
            .lines()
            .filter(|line| !line.contains("conf/") && !line.contains("vs/"));
        lines
            .filter(|line| !line.starts_with("ip_forward"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = without_sysctls(&fs::read_to_string(scene.folder.join("state"))?);
    let after = without_sysctls(&state(scene)?);
    ensure!(
        before == after,
        "the node is not as it was.\nbefore:\n{before:#?}\nafter:\n{after:#?}"
    );
    Ok(())
}

/// Runs kubeadm's phase against the cluster.
fn install(scene: &Scene, proxy: &str, image: &str) -> Result<()> {
    let patches = scene.folder.join("kubeadm-patches");
    fs::create_dir_all(&patches)?;
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": PROXY, "image": image}]}}}});
    fs::write(patches.join("kubeproxydaemonset.json"), patch.to_string())?;
    let kubeconfig = scene.cluster.kubeconfig().to_string_lossy().into_owned();
    let patches = format!("patches: {{directory: {}}}\n", patches.display());
    let said = kubeadm(scene, &patches, proxy, &["--kubeconfig", &kubeconfig])?;
    println!("{}", said.trim_end());
    Ok(())
}

/// What kubeadm would install without a patch, with another image, and with the API server's defaults.
fn with_image(scene: &Scene, proxy: &str, image: &str) -> Result<Value> {
    let printed = kubeadm(scene, "", proxy, &["--print-manifest"])?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&printed).context("read what kubeadm prints")?;
    let mut daemon_set = documents
        .into_iter()
        .find(|object| object.pointer("/kind") == Some(&json!("DaemonSet")))
        .context("kubeadm prints no DaemonSet")?;
    let place = daemon_set.pointer_mut("/spec/template/spec/containers/0/image");
    *place.context("no container with an image")? = json!(image);
    let path = scene.folder.join("kubeadm-daemon-set.json");
    fs::write(&path, daemon_set.to_string())?;
    let path = path.to_string_lossy();
    let words = ["create", "--dry-run=server", "--output=json", "--filename", &path];
    serde_json::from_str(&scene.cluster.kubectl(&words)?).context("read the DaemonSet with defaults")
}

fn kubeadm(scene: &Scene, patches: &str, proxy: &str, words: &[&str]) -> Result<String> {
    let file = scene.folder.join("kubeadm.yaml");
    let (address, services) = (
        scene.node_address()?,
        SERVICE_RANGES.split(',').next().unwrap_or_default(),
    );
    let text = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n\
         localAPIEndpoint: {{advertiseAddress: {address}, bindPort: 6443}}\n\
         nodeRegistration: {{name: node, criSocket: 'unix:///run/containerd/containerd.sock'}}\n\
         {patches}---\n\
         apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.37.2\n\
         networking: {{podSubnet: {POD_RANGE}, serviceSubnet: {services}}}\n{proxy}"
    );
    fs::write(&file, text)?;
    let (program, file) = (scene.kubeadm.to_string_lossy(), file.to_string_lossy());
    let phase = [&*program, "init", "phase", "addon", "kube-proxy", "--config", &file];
    tool::run(&[&phase, words].concat())
}

fn get(scene: &Scene, kind: &str) -> Result<Value> {
    let text = scene.kubectl(&format!("get {kind} --namespace {SYSTEM} {PROXY} --output=json"))?;
    serde_json::from_str(&text).with_context(|| format!("read the {kind}"))
}

fn configuration(scene: &Scene) -> Result<String> {
    let map = get(scene, "configmap")?;
    let text = map.pointer("/data/config.conf").and_then(Value::as_str);
    Ok(text.context("no configuration in kubeadm's ConfigMap")?.to_owned())
}

/// Changes a line of kubeadm's own configuration, as an operator does.
fn edit(scene: &Scene, from: &str, to: &str) -> Result<()> {
    let text = configuration(scene)?;
    ensure!(text.contains(from), "no {from:?} in kubeadm's configuration:\n{text}");
    life::patch_configuration(scene, PROXY, &text.replace(from, to))
}
