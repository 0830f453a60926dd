//! Clients reach Services, whatever happens to servers and proxy.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::scene::{From, SYSTEM, Scene, eventually};

const CLUSTER: &str = "10.96.10.1:80";

/// Every type of Service, from a pod, from the node, from outside: all servers answer.
pub(crate) fn services(scene: &Scene) -> Result<()> {
    let node = scene.node_address()?;
    let (names, addresses) = scene.servers()?;
    ensure!(names.len() == 3, "three servers, not {names:?}");
    eventually("the table", || scene.real_servers(CLUSTER), |found| *found == addresses)?;
    for (what, place) in [
        ("cluster IP", "10.96.10.1".to_owned()),
        ("NodePort", format!("{node}:30080")),
        ("load balancer", "203.0.113.10".to_owned()),
        ("external IP", "203.0.113.20".to_owned()),
    ] {
        for from in [From::Pod, From::Node] {
            let answered = scene.ask(from, &place)?;
            ensure!(
                answered == names,
                "{what} {place} from {from:?}: {answered:?}, not {names:?}"
            );
        }
        println!("  {what:<14} {place:<20} reached from a pod and from the node");
    }
    let answered = scene.ask_outside(&format!("{node}:30080"))?;
    ensure!(answered == names, "NodePort from outside: {answered:?}, not {names:?}");
    println!("  NodePort from outside: all {} servers", names.len());
    // What the node's own tool shows, for a person.
    let table = scene.shell(From::Node, "ipvsadm -Ln")?;
    println!("{table}");
    ensure!(!table.contains("None"), "the headless Service is nowhere");
    Ok(())
}

/// More servers, fewer servers: the table follows, and they answer.
pub(crate) fn scaling(scene: &Scene) -> Result<()> {
    for replicas in [5, 2] {
        let (names, addresses) = scale(scene, replicas)?;
        eventually("the table", || scene.real_servers(CLUSTER), |found| *found == addresses)?;
        let answered = scene.ask(From::Pod, CLUSTER)?;
        ensure!(answered == names, "{answered:?}, not {names:?}");
        println!(
            "  {replicas} servers: {}",
            names.into_iter().collect::<Vec<_>>().join(" ")
        );
    }
    Ok(())
}

/// Changes the number of servers, and gives their names and addresses once all of them run.
pub(crate) fn scale(scene: &Scene, replicas: usize) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    scene.kubectl(&format!("scale --namespace e2e deployment/web --replicas={replicas}"))?;
    let counted = |(names, _): &(BTreeSet<String>, BTreeSet<String>)| names.len() == replicas;
    eventually("the servers", || scene.servers(), counted)?;
    scene.rolled_out("e2e", "deployment/web")?;
    scene.servers()
}

/// All servers are replaced while a client asks: it does not notice.
pub(crate) fn rolling_restart(scene: &Scene) -> Result<()> {
    under_load(scene, || {
        let before = scene.servers()?.0;
        scene.kubectl("rollout restart --namespace e2e deployment/web")?;
        scene.rolled_out("e2e", "deployment/web")?;
        let all_new = |(names, _): &(BTreeSet<String>, BTreeSet<String>)| names.is_disjoint(&before);
        let (_, addresses) = eventually("new servers", || scene.servers(), all_new)?;
        eventually("the table", || scene.real_servers(CLUSTER), |found| *found == addresses).map(drop)
    })
}

/// The proxy's pod is deleted while a client asks: it does not notice.
pub(crate) fn proxy_restart(scene: &Scene) -> Result<()> {
    under_load(scene, || {
        scene.kubectl(&format!("delete pod --namespace {SYSTEM} --selector k8s-app=kube-ipvs"))?;
        scene.rolled_out(SYSTEM, "daemonset/kube-ipvs")?;
        scene.serving()
    })
}

/// Runs something while a client asks, and sees that every question was answered, some of them afterwards.
fn under_load(scene: &Scene, work: impl FnOnce() -> Result<()>) -> Result<()> {
    scene.apply("load.yaml", include_str!("load.yaml"))?;
    let right = || Ok(answers(scene)?.0);
    eventually("the client's first answers", right, |count| *count >= 20)?;
    work()?;
    let so_far = right()?;
    eventually("answers afterwards", right, |count| *count >= so_far + 40)?;
    let (right, wrong) = answers(scene)?;
    scene.kubectl("delete pod --namespace e2e load --grace-period=0 --force")?;
    println!("  {right} requests answered, {} not", wrong.len());
    ensure!(wrong.is_empty(), "failed requests: {wrong:?}");
    Ok(())
}

/// How many answers were right so far, and what else the client said.
fn answers(scene: &Scene) -> Result<(usize, Vec<String>)> {
    let log = scene.kubectl("logs --namespace e2e load")?;
    let (right, wrong): (Vec<_>, Vec<_>) = log.lines().partition(|line| *line == "200");
    Ok((right.len(), wrong.into_iter().map(str::to_owned).collect()))
}
