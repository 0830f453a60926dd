//! Leaving one mode for the other, with traffic (L15).

use testbed::world::ask_tcp;

use crate::daemon::{eventually, examples, start};
use crate::mode::Mode;
use crate::seen;

const WEB: &str = "10.96.1.1:80";

/// L15: what the mode before left would go on capturing traffic.
#[test]
fn each_mode_leaves_nothing_to_the_other() {
    let world = Mode::Nft.world();
    let rules = |node| Mode::Nft.picture(node);
    let manifests = examples();
    let node = &world.node;
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    for _ in 0..2 {
        let ipvs = start(node, manifests.path(), &[&run_dir]);
        // The rules go after IPVS serves.
        eventually(&false, || rules(node).iter().any(|line| line.contains("KUBE-SVC")));
        assert!(seen::ipvsadm(node).len() > 20);
        assert!(ask_tcp(&world.client, WEB.parse().unwrap()).is_ok());
        ipvs.terminate().unwrap();

        let iptables = start(node, manifests.path(), &[Mode::Nft.flag(), &run_dir]);
        eventually(&0, || seen::ipvsadm(node).len());
        eventually(&false, || node.sh("ip link show kube-ipvs0").is_ok());
        eventually(&false, || node.sh("nft list tables").unwrap().contains("kube-ipvs"));
        assert!(seen::routes(node).is_empty());
        assert!(rules(node).iter().any(|line| line.contains("KUBE-SVC")));
        assert!(ask_tcp(&world.client, WEB.parse().unwrap()).is_ok());
        iptables.terminate().unwrap();
    }
}
