//! kube-ipvs with a configuration file: both of its documents hold, and a change ends the program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use testbed::daemon::Daemon;
use testbed::world::{NODE, World};

use crate::daemon::examples;

/// A version of a ConfigMap's volume, as the kubelet puts it in place.
fn publish(volume: &Path, name: &str, scheduler: &str) {
    fs::create_dir(volume.join(name)).unwrap();
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\nipvs: {{scheduler: {scheduler}}}\nconntrack: {{maxPerCore: 0}}\n\
         ---\napiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIpvsConfiguration\nvipAddresses: false\n"
    );
    fs::write(volume.join(name).join("config.conf"), text).unwrap();
    symlink(name, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

/// The command line of a daemon with a configuration file.
fn words<'a>(config: &'a Path, manifests: &'a Path, run_dir: &'a Path) -> [&'a str; 8] {
    [
        "--config",
        config.to_str().unwrap(),
        "--manifests",
        manifests.to_str().unwrap(),
        "--hostname-override",
        NODE,
        "--run-dir",
        run_dir.to_str().unwrap(),
    ]
}

#[test]
fn both_documents_hold_and_the_swap_of_the_config_map_ends_the_program() {
    let (world, folder, manifests) = (World::new().unwrap(), tempfile::tempdir().unwrap(), examples());
    publish(folder.path(), "..1", "lc");
    let config = folder.path().join("config.conf");
    symlink("..data/config.conf", &config).unwrap();
    let run = folder.path().join("run");
    let words = words(&config, manifests.path(), &run);
    let mut daemon = Daemon::start(&world.node, &words).unwrap();
    daemon.wait_until_serving().unwrap();
    let servers = world.node.sh("ipvsadm -Sn").unwrap();
    assert!(servers.contains("-s lc") && !servers.contains("-s rr"), "{servers}");
    let addresses = world.node.sh("ip -br addr show dev kube-ipvs0 scope global").unwrap();
    assert!(!addresses.contains("10."), "{addresses}");
    assert!(run.join("sysctls").exists());

    publish(folder.path(), "..2", "sh");
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = daemon.ended().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "{:#?}", daemon.said());
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(1));
    let line = daemon.wait_for(0, "configuration file was updated").unwrap();
    assert!(
        line.ends_with("content of the proxy server's configuration file was updated"),
        "{line}"
    );
    // The data path stays as it is (L12).
    assert_eq!(world.node.sh("ipvsadm -Sn").unwrap(), servers);
}

/// kubeadm from 1.37 writes the mode by itself where none was chosen; and its own file stands behind `--config` in
/// clusters of kubernetes/kubernetes#76267.
#[test]
fn the_mode_iptables_of_a_file_is_obeyed_and_said_loudly_once() {
    let (world, folder, manifests) = (World::new().unwrap(), tempfile::tempdir().unwrap(), examples());
    world.node.sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY").unwrap();
    let config = folder.path().join("config.conf");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\nconntrack: {maxPerCore: 0}\nnodePortAddresses: [primary, localhost]\n\
                ---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n";
    fs::write(&config, text).unwrap();
    let run = folder.path().join("run");
    let words = words(&config, manifests.path(), &run);
    let mut daemon = Daemon::start(&world.node, &words).unwrap();
    daemon.wait_until_serving().unwrap();
    assert!(world.node.sh("iptables-nft-save").unwrap().contains("KUBE-SVC-"));
    assert_eq!(world.node.sh("ipvsadm -Sn").unwrap(), "");
    let said = daemon.said();
    let warnings = |text: &str| {
        said.iter()
            .filter(|line| line.contains("WARN") && line.contains(text))
            .count()
    };
    assert_eq!(warnings("mode: ipvs is what kube-ipvs is for"), 1, "{said:#?}");
    assert_eq!(warnings("of kind \"ClusterConfiguration\""), 1, "{said:#?}");
    // The iptables mode has NodePorts there.
    assert_eq!(warnings("localhost"), 0, "{said:#?}");
    daemon.terminate().unwrap();

    // A flag is a choice.
    let mut daemon = Daemon::start(&world.node, &[&words[2..], &["--proxy-mode=iptables"]].concat()).unwrap();
    daemon.wait_until_serving().unwrap();
    let said = daemon.said();
    assert!(
        said.iter().all(|line| !line.contains("mode: ipvs is what")),
        "{said:#?}"
    );
}

/// Kubernetes 1.37's keyword, which IPVS has no listener for (T17).
#[test]
fn localhost_alone_answers_nothing_in_the_ipvs_mode_and_that_is_a_warning() {
    let (world, manifests) = (World::new().unwrap(), examples());
    let start = |addresses: &str| {
        let flag = format!("--nodeport-addresses={addresses}");
        let words = [
            "--manifests",
            manifests.path().to_str().unwrap(),
            "--hostname-override",
            NODE,
            &flag,
        ];
        let mut daemon = Daemon::start(&world.node, &words).unwrap();
        daemon.wait_until_serving().unwrap();
        let said = daemon.said();
        let warned: Vec<_> = said
            .iter()
            .filter(|line| line.contains("NodePorts do not answer on localhost"))
            .cloned()
            .collect();
        let servers = world.node.sh("ipvsadm -Sn").unwrap();
        daemon.terminate().unwrap();
        (warned, servers)
    };
    let (warned, servers) = start("localhost");
    assert!(
        matches!(warned.as_slice(), [only] if only.contains("answers_elsewhere=false")),
        "{warned:?}"
    );
    let at_the_node = ["-t 192.0.2.10:30", "-t 127.0.0.1:", "-t [2001:db8"];
    assert!(at_the_node.iter().all(|start| !servers.contains(start)), "{servers}");
    let (warned, servers) = start("primary,localhost");
    assert!(
        matches!(warned.as_slice(), [only] if only.contains("answers_elsewhere=true")),
        "{warned:?}"
    );
    assert!(
        servers.contains(at_the_node[0]) && !servers.contains(at_the_node[1]),
        "{servers}"
    );
    let (warned, _) = start("primary");
    assert!(warned.is_empty(), "{warned:?}");
}
