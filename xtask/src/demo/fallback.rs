//! A kernel without IPVS: kube-ipvs says so, writes the rules of the iptables mode, and serves.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::daemon::{BINARY, Daemon};
use testbed::kernel::{Job, Name, Provider};
use testbed::tool;
use testbed::world::{NODE, World};

use super::{Question, ask, eventually, manifests, say, title};
use crate::cargo::{cache, executable, root};

pub(crate) fn run(kernel: Option<Name>) -> Result<ExitCode> {
    tool::install(crate::GUEST_PACKAGES)?;
    let provider = Provider::for_fallback(kernel, &cache())?;
    let binary = executable(&["build", "--locked", "-p", "agent", "--bin", "kube-ipvs"])?;
    title(&format!("kernel: {provider}"));
    let this = std::env::current_exe().context("this program's path")?;
    let command = vec![
        this.to_string_lossy().into_owned(),
        "guest-demo".to_owned(),
        "--fallback".to_owned(),
    ];
    let mut job = Job::new(command, root());
    job.environment
        .push((BINARY.to_owned(), binary.to_string_lossy().into_owned()));
    job.memory = 2048;
    job.limit = Duration::from_secs(600);
    let status = provider.run(&job)?;
    ensure!(status == 0, "the demo failed");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn guest() -> Result<ExitCode> {
    say(&format!("Linux {}", tool::sh("uname -r")?.trim()));
    ensure!(
        !std::path::Path::new("/proc/net/ip_vs").exists(),
        "this kernel has IPVS, nothing falls back here; a kernel without is needed"
    );
    let world = World::new().context("build the world")?;
    // As the network plugin does; IPVS mode sets it itself, as kube-proxy's does.
    world.node.sh("sysctl -qw net.ipv4.ip_forward=1")?;
    say("a node with two pods, another host with two pods, a client outside: network namespaces");
    let folder = tempfile::tempdir()?;
    let scene = manifests(folder.path())?;
    let run_dir = format!("--run-dir={}", folder.path().join("run").display());
    let none = [
        "--manifests",
        "x",
        "--hostname-override",
        NODE,
        "--fallback=none",
        &run_dir,
    ];
    title(&format!("kube-ipvs {}", none.join(" ")));
    let mut refused = Daemon::start(&world.node, &none)?;
    eventually("it ends", || Ok(refused.ended()?.is_some()))?;
    let status = refused.ended()?.context("it has ended")?;
    refused.said().iter().for_each(|line| say(line));
    ensure!(status.code() == Some(3), "exit status 3, not {status}");
    say("exit status 3");

    let mut arguments: Vec<&str> = scene.arguments.iter().map(String::as_str).collect();
    arguments.push(&run_dir);
    title(&format!("kube-ipvs {}", arguments.join(" ")));
    let mut daemon = Daemon::start(&world.node, &arguments)?;
    daemon.wait_until_serving()?;
    daemon.said().iter().for_each(|line| say(line));
    ensure!(
        daemon.said().iter().any(|line| line.contains("effective=iptables")),
        "the choice is said"
    );

    title("iptables-save -t nat | grep -E 'KUBE-SERVICES|shop/web'");
    let show = || -> Result<String> {
        let saved = world.node.sh("iptables-save -t nat")?;
        let lines = saved
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SERVICES") || line.contains("shop/web"));
        Ok(lines.map(|line| format!("{line}\n")).collect())
    };
    let rules = show()?;
    print!("{rules}");
    ensure!(rules.contains("shop/web:http cluster IP"), "the rules of shop/web");

    title("clients");
    for question in &scene.questions {
        ask(&world, question)?;
    }
    title(&format!("{}: one endpoint goes, one comes", scene.change));
    let said = daemon.said().len();
    (scene.act)(None)?;
    say(&daemon.wait_for(said, " commit ")?);
    eventually("the rules follow", || Ok(show()?.contains("10.244.2.12:8080")))?;
    let question = Question {
        names: scene.after.into(),
        ..Question::tcp(scene.changed, &[])
    };
    ask(&world, &question)?;
    let (status, _) = daemon.terminate()?;
    ensure!(status.success(), "kube-ipvs ended with {status}");
    title("the demo is over: every statement above was checked");
    Ok(ExitCode::SUCCESS)
}
