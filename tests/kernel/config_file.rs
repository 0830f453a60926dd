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

#[test]
fn both_documents_hold_and_the_swap_of_the_config_map_ends_the_program() {
    let (world, folder, manifests) = (World::new().unwrap(), tempfile::tempdir().unwrap(), examples());
    publish(folder.path(), "..1", "lc");
    let config = folder.path().join("config.conf");
    symlink("..data/config.conf", &config).unwrap();
    let run = folder.path().join("run");
    let words = [
        "--config",
        config.to_str().unwrap(),
        "--manifests",
        manifests.path().to_str().unwrap(),
        "--hostname-override",
        NODE,
        "--run-dir",
        run.to_str().unwrap(),
    ];
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
