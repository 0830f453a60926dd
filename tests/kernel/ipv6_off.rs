//! A node on which IPv6 is off: services with both families are served by IPv4, and nothing is said about the other one.

use std::fs;
use std::thread;
use std::time::Duration;

use testbed::daemon::Daemon;
use testbed::world::{NODE, ask_tcp};

use crate::daemon::examples;
use crate::mode::Mode;
use crate::seen;

/// Every kind of place in both families.
const DUAL: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: dual, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.9.9, "fd00:10:96::9:9"]
  externalIPs: ["2001:db8:9::9"]
  ports: [{port: 80, nodePort: 30990}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}, {ip: "2001:db8:9::10"}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dual-v6, namespace: shop, labels: {kubernetes.io/service-name: dual}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ["fd00:10:244:1::11"], nodeName: node-a}]
"#;

/// kube-proxy from 1.36 takes `net.ipv6.conf.all.disable_ipv6` for the lack of IPv6.
#[test]
fn ipv6_that_is_off_is_not_programmed_and_nothing_is_noisy_about_it() {
    for mode in [Mode::Ipvs, Mode::Nft] {
        let world = mode.world();
        world.node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1").unwrap();
        let manifests = examples();
        fs::write(manifests.path().join("60-dual.yaml"), DUAL).unwrap();
        let run = format!("--run-dir={}", manifests.path().join("run").display());
        let words = [
            "--manifests",
            manifests.path().to_str().unwrap(),
            "--hostname-override",
            NODE,
            mode.flag(),
            &run,
            "--nodeport-addresses=all",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "-v=4",
        ];
        let mut daemon = Daemon::start(&world.node, &words).unwrap();
        daemon.wait_until_serving().unwrap();
        assert!(ask_tcp(&world.client, "10.96.1.1:80".parse().unwrap()).is_ok());
        // What is refused is tried again after a second.
        thread::sleep(Duration::from_secs(3));
        let said = daemon.said();
        let noise: Vec<_> = said
            .iter()
            .filter(|line| {
                line.contains("WARN") || line.contains("ERROR") || line.contains("[fd") || line.contains("2001:db8")
            })
            .collect();
        assert_eq!(noise, [""; 0], "{mode:?}");
        let told = said
            .iter()
            .filter(|line| line.contains("IPv6 is not programmed"))
            .count();
        assert_eq!(told, 1, "{said:#?}");
        match mode {
            Mode::Ipvs => {
                let servers = seen::ipvsadm(&world.node);
                assert!(
                    servers.len() > 10 && servers.iter().all(|line| !line.contains('[')),
                    "{servers:#?}"
                );
                assert!(seen::routes(&world.node).iter().all(|route| !route.contains(':')));
                let tables = world.node.sh("nft list tables").unwrap();
                assert!(
                    tables.contains("ip kube-ipvs") && !tables.contains("ip6 kube-ipvs"),
                    "{tables}"
                );
            }
            _ => {
                let rules = world.node.sh("ip6tables-nft-save").unwrap();
                assert!(
                    !rules.contains("KUBE-SVC") && !rules.contains("KUBE-SERVICES"),
                    "{rules}"
                );
            }
        }
        let (_, said) = daemon.terminate().unwrap();
        assert!(said.iter().all(|line| !line.contains("WARN")), "{said:#?}");
    }
}
