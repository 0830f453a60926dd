//! The modes, for tests of what all of them promise.

use std::collections::BTreeSet;

use testbed::netns::Netns;
use testbed::world::World;

use crate::seen;

/// A mode, the iptables mode with the implementation that the node's other agents use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Ipvs,
    Nft,
    Legacy,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Ipvs, Self::Nft, Self::Legacy];

    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Ipvs => "--proxy-mode=ipvs",
            Self::Nft | Self::Legacy => "--proxy-mode=iptables",
        }
    }

    /// A node that forwards, as its network plugin makes it, with a chain of the kubelet that decides which iptables is
    /// used.
    pub(crate) fn world(self) -> World {
        let world = World::new().unwrap();
        if let Some(suffix) = self.suffix() {
            world.node.sh("sysctl -qw net.ipv4.ip_forward=1").unwrap();
            let canary = format!("iptables{suffix} -t mangle -N KUBE-KUBELET-CANARY");
            world.node.sh(&canary).unwrap();
        }
        world
    }

    /// Of the programs' names.
    pub(crate) fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Ipvs => None,
            Self::Nft => Some("-nft"),
            Self::Legacy => Some("-legacy"),
        }
    }

    /// What serves: virtual and real servers, or rules and chains without counters.
    pub(crate) fn picture(self, node: &Netns) -> BTreeSet<String> {
        let Some(suffix) = self.suffix() else {
            return seen::ipvsadm(node);
        };
        let saved = ["iptables", "ip6tables"].map(|program| node.sh(&format!("{program}{suffix}-save")).unwrap());
        let lines = saved.iter().flat_map(|text| text.lines());
        lines
            // The kubelet's chain is its own to make again.
            .filter(|line| line.contains("KUBE-") && !line.contains("KUBELET"))
            .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
            .collect()
    }

    /// New connections to a virtual server go to this real server.
    pub(crate) fn leads(self, node: &Netns, service: &str, real: &str) -> bool {
        let lines = self.picture(node);
        if self == Self::Ipvs {
            let line = format!("-a -t {service} -r {real} ");
            return lines
                .iter()
                .any(|found| found.starts_with(&line) && !found.ends_with(" -w 0"));
        }
        let targets = |chain: &str, holds: &[&str]| -> Vec<String> {
            let from = format!("-A {chain} ");
            let fits = |line: &&String| line.starts_with(&from) && holds.iter().all(|text| line.contains(text));
            let target = |line: &String| Some(line.rsplit_once(" -j ")?.1.split(' ').next()?.to_owned());
            lines.iter().filter(fits).filter_map(target).collect()
        };
        let (address, port) = service.rsplit_once(':').unwrap();
        let (at, real) = (format!("-d {address}/32 "), format!("--to-destination {real}"));
        let services = targets("KUBE-SERVICES", &[&at, &format!("--dport {port} ")]);
        let mut endpoints = services.iter().flat_map(|chain| targets(chain, &[" -j KUBE-SEP-"]));
        endpoints.any(|chain| !targets(&chain, &[&real]).is_empty())
    }
}
