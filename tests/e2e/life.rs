//! What operators do to the proxy: health, configuration, modes, rights.

use anyhow::{Context, Result, ensure};

use crate::overlay;
use crate::scene::{From, PROXIES, SYSTEM, Scene, eventually};

/// kube-proxy's own words.
pub(crate) const CHANGED: &str = "content of the proxy server's configuration file was updated";
const TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// /healthz tells load balancers that the node is about to go; /livez says that the proxy is well.
pub(crate) fn health(scene: &Scene) -> Result<()> {
    let address = scene.node_address()?;
    let healthz = || scene.status_outside(&format!("http://{address}:10256/healthz"));
    let livez = || scene.status_outside(&format!("http://{address}:10256/livez"));
    eventually("healthz", healthz, |status| status == "200")?;
    scene.kubectl(&format!("taint nodes --all {TAINT}=1:NoSchedule"))?;
    eventually("healthz of a node that goes", healthz, |status| status == "503")?;
    ensure!(livez()? == "200", "the proxy itself is well");
    scene.kubectl(&format!("taint nodes --all {TAINT}-"))?;
    eventually("healthz of a node that stays", healthz, |status| status == "200").map(drop)
}

/// An edited ConfigMap ends the process, with the message that kube-proxy has; the next one does as it says.
pub(crate) fn configuration(scene: &Scene) -> Result<()> {
    let before = restarts(scene)?;
    configure(scene, "mode: ipvs\nipvs:\n  scheduler: lc\n")?;
    eventually("the container is another", || restarts(scene), |now| *now != before)?;
    let said = scene.log("--previous");
    ensure!(said.contains(CHANGED), "it did not say why it ended: {said}");
    scheduler(scene, "lc")?;
    configure(scene, "mode: ipvs\n")?;
    scheduler(scene, "rr")
}

/// How often the proxy's container was started again.
pub(crate) fn restarts(scene: &Scene) -> Result<String> {
    let count = "jsonpath={.items[0].status.containerStatuses[0].restartCount}";
    scene
        .cluster
        .kubectl(&["get", "pods", "--namespace", SYSTEM, "--selector", PROXIES, "-o", count])
}

pub(crate) fn scheduler(scene: &Scene, name: &str) -> Result<()> {
    let table = || scene.shell(From::Node, "ipvsadm -Sn");
    let line = format!("-A -t 10.96.10.1:80 -s {name}");
    eventually("the scheduler", table, |table| table.contains(&line)).map(drop)
}

/// `mode: iptables`: rules instead of virtual servers, the same Services; and back.
pub(crate) fn iptables_mode(scene: &Scene) -> Result<()> {
    for mode in ["iptables", "ipvs"] {
        configure(scene, &format!("mode: {mode}\n"))?;
        // A proxy that watches its file does this by itself; twice is no harm.
        scene.kubectl(&format!("rollout restart --namespace {SYSTEM} daemonset/kube-ipvs"))?;
        scene.rolled_out(SYSTEM, "daemonset/kube-ipvs")?;
        mode_serves(scene, mode)?;
    }
    Ok(())
}

/// Services are rules or virtual servers, whichever the mode has, and never both; and all servers answer.
pub(crate) fn mode_serves(scene: &Scene, mode: &str) -> Result<()> {
    let names = scene.servers()?.0;
    let count = || {
        let look = "echo $(ipvsadm -Sn | grep -c 10.96.10.1) \
                    $( (iptables-nft-save; iptables-legacy-save) 2>/dev/null | grep -c 10.96.10.1/32)";
        scene.shell(From::Node, look)
    };
    eventually(&format!("mode {mode}"), count, |counts| {
        let virtual_servers = mode == "ipvs";
        match counts.trim().split_once(' ') {
            Some((servers, rules)) => (servers != "0") == virtual_servers && (rules == "0") == virtual_servers,
            None => false,
        }
    })?;
    let answered = scene.ask(From::Pod, "10.96.10.1")?;
    ensure!(answered == names, "mode {mode}: {answered:?}, not {names:?}");
    println!("  mode {mode}: all {} servers answer", names.len());
    Ok(())
}

/// The overlay least-privilege: what runs on has one capability, and does the same.
pub(crate) fn least_privilege(scene: &Scene) -> Result<()> {
    scene.apply_folder(&overlay::write(scene, "least-privilege")?)?;
    scene.rolled_out(SYSTEM, "daemonset/kube-ipvs")?;
    let rights = scene.shell(
        From::Node,
        "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Seccomp_filters):' /proc/$(pidof kube-ipvs)/status",
    )?;
    let fields: Vec<_> = rights.split_whitespace().collect();
    for (right, why) in [
        ("CapEff:\t0000000000001000", "CAP_NET_ADMIN (bit 12) and nothing else"),
        ("CapBnd:\t0000000000001000", "and none to be had"),
        ("NoNewPrivs:\t1", "it gets no more by executing"),
        ("Seccomp:\t2", "filters of system calls"),
        ("Seccomp_filters:\t2", "the runtime's, and its own without execve"),
    ] {
        ensure!(rights.contains(right), "{why}: {fields:?}");
    }
    println!("  {}", fields.join(" "));
    crate::traffic::scaling(scene)?;
    scene.apply_folder(&overlay::write(scene, "base")?)?;
    scene
        .rolled_out(SYSTEM, "daemonset/kube-ipvs")
        .context("back to privileged")
}

fn configure(scene: &Scene, fields: &str) -> Result<()> {
    let text = format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}");
    patch_configuration(scene, "kube-ipvs", &text)
}

/// Gives a ConfigMap another configuration.
pub(crate) fn patch_configuration(scene: &Scene, config_map: &str, text: &str) -> Result<()> {
    let patch = serde_json::json!({"data": {"config.conf": text}}).to_string();
    scene
        .cluster
        .kubectl(&[
            "patch",
            "configmap",
            "--namespace",
            SYSTEM,
            config_map,
            "--type=merge",
            "--patch",
            &patch,
        ])
        .map(drop)
}
