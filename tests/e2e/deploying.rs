//! From a cluster without a proxy to one that serves, by our manifests; and out again without a trace.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::overlay;
use crate::scene::{From, SYSTEM, Scene, eventually};

/// What of ours, or of a mode of ours, could stay on a node.
const STATE: &str = "
echo virtual servers; ipvsadm -Sn
ip=/usr/bin/ip # not the shell's own
echo device; $ip -o link show kube-ipvs0 2>&1 | grep -v 'does not exist'
echo routes; $ip route show table local proto 163; $ip -6 route show table local proto 163
echo tables; nft list tables | grep kube-ipvs
for save in iptables-nft-save iptables-legacy-save ip6tables-nft-save ip6tables-legacy-save; do
    echo $save; $save 2>/dev/null | grep -E '^-A|^:[^ ]+ -'
done
for name in vs/conntrack vs/conn_reuse_mode vs/expire_nodest_conn vs/expire_quiescent_template ip_forward \
    conf/all/arp_ignore conf/all/arp_announce conf/all/route_localnet; do
    echo $name $(cat /proc/sys/net/ipv4/$name 2>&1)
done
";

/// The images are there, the objects of the test too, and no Service is served.
pub(crate) fn workload(scene: &Scene) -> Result<()> {
    for image in &scene.images {
        scene.cluster.import(image)?;
    }
    scene.apply("workload.yaml", include_str!("workload.yaml"))?;
    scene.kubectl("wait --namespace e2e --for=condition=Ready pod/client pod/node --timeout=240s")?;
    scene.rolled_out("e2e", "deployment/web")?;
    // What a cloud's controller does.
    scene.cluster.kubectl(&[
        "patch",
        "service",
        "--namespace=e2e",
        "load-balancer",
        "--subresource=status",
        "--type=merge",
        "--patch",
        r#"{"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.10"}]}}}"#,
    ])?;
    let nobody = scene.shell(From::Pod, "curl -s --max-time 3 http://10.96.10.1/hostname");
    ensure!(nobody.is_err(), "a Service answers before a proxy runs: {nobody:?}");
    fs::write(scene.folder.join("state"), state(scene)?)?;
    Ok(())
}

/// `kubectl apply -k`, and the pod runs under the kubelet.
pub(crate) fn apply(scene: &Scene) -> Result<()> {
    let address = scene.node_address()?;
    scene.kubectl(&format!(
        "create configmap --namespace {SYSTEM} kube-ipvs-api-server --from-literal=host={address} --from-literal=port=6443"
    ))?;
    scene.apply_folder(&overlay::write(scene, "base")?)?;
    scene.rolled_out(SYSTEM, "daemonset/kube-ipvs")?;
    scene.serving()
}

/// The service account has what it needs, and no more.
pub(crate) fn rights(scene: &Scene) -> Result<()> {
    let log = scene.log("").to_lowercase();
    ensure!(!log.contains("forbidden"), "the API server forbids something:\n{log}");
    let account = format!("--as=system:serviceaccount:{SYSTEM}:kube-ipvs");
    let can = |verb: &str, what: &str| -> Result<bool> {
        // Its status is 1 for "no".
        let answer = scene
            .cluster
            .kubectl(&["auth", "can-i", verb, what, &account, "--all-namespaces"]);
        Ok(answer.is_ok_and(|text| text.trim() == "yes"))
    };
    ensure!(can("watch", "services")?, "it may watch Services");
    for (verb, what) in [
        ("list", "secrets"),
        ("delete", "pods"),
        ("update", "services"),
        ("patch", "nodes"),
    ] {
        ensure!(!can(verb, what)?, "it may {verb} {what}");
    }
    Ok(())
}

/// Events reach the API server.
pub(crate) fn events(scene: &Scene) -> Result<()> {
    let ask = || scene.kubectl("get events --namespace e2e --field-selector reason=CannotProgram -o name");
    eventually("an event about the Service `strange`", ask, |names| {
        names.contains("strange")
    })?;
    let answered = scene.ask(From::Pod, "10.96.10.2")?;
    ensure!(!answered.is_empty(), "and it is served all the same");
    Ok(())
}

/// `kubectl delete -k`, cleanup on every node, and the node is as it was.
pub(crate) fn uninstall(scene: &Scene) -> Result<()> {
    let folder = overlay::write(scene, "base")?;
    scene
        .cluster
        .kubectl(&["delete", "--wait=true", "--kustomize", &folder.to_string_lossy()])?;
    let gone = || {
        scene.kubectl(&format!(
            "get pods --namespace {SYSTEM} --selector k8s-app=kube-ipvs -o name"
        ))
    };
    eventually("the proxy's pods are gone", gone, String::is_empty)?;
    let served = scene
        .ask(From::Pod, "10.96.10.1")
        .context("without the proxy the data path stays (L12)")?;
    ensure!(!served.is_empty(), "the data path stays");
    clean_up(scene)?;
    scene.kubectl(&format!("delete configmap --namespace {SYSTEM} kube-ipvs-api-server"))?;
    let before = fs::read_to_string(scene.folder.join("state"))?;
    let after = state(scene)?;
    ensure!(
        before == after,
        "the node is not as it was.\nbefore:\n{before}\nafter:\n{after}"
    );
    Ok(())
}

/// `kubectl apply -k deploy/kustomize/cleanup`, until it is through on the node, and `delete -k`.
pub(crate) fn clean_up(scene: &Scene) -> Result<()> {
    let cleanup = overlay::write(scene, "cleanup")?;
    scene.apply_folder(&cleanup)?;
    scene.rolled_out(SYSTEM, "daemonset/kube-ipvs-cleanup")?;
    let said = scene.kubectl(&format!(
        "logs --namespace {SYSTEM} --selector k8s-app=kube-ipvs-cleanup --container cleanup --tail=1000"
    ))?;
    println!("{said}");
    ensure!(said.contains("10.96.10.1"), "cleanup tells what it removes");
    scene
        .cluster
        .kubectl(&["delete", "--wait=true", "--kustomize", &cleanup.to_string_lossy()])
        .map(drop)
}

/// What is on the node.
pub(crate) fn state(scene: &Scene) -> Result<String> {
    scene.shell(From::Node, STATE)
}
