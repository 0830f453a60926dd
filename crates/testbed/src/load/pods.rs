//! Addresses of many pods in two namespaces, half of them on the node under test, half on the other host.
//!
//! A namespace takes a whole range as its own, so a pod costs no interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::Netns;
use crate::world::{NODE, World};

/// How many there are; numbers begin at 0.
pub const COUNT: u8 = 120;
/// Name of the other host's node.
pub const OTHER_NODE: &str = "node-b";

/// The namespaces of the pods.
#[derive(Clone)]
pub struct Pods {
    local: Netns,
    other: Netns,
}

impl Pods {
    /// Adds them to a world, without servers.
    ///
    /// # Errors
    /// The world has them already.
    pub fn new(world: &World) -> Result<Self> {
        let pods = Self {
            local: Netns::new()?,
            other: world.other.clone(),
        };
        world.add_pod(&pods.local, "to-pods", "10.244.1.50", "fd00:10:244:1::50")?;
        world
            .node
            .sh("ip route add 10.244.1.128/25 via 10.244.1.50 dev to-pods onlink")?;
        world
            .node
            .sh("ip route add fd00:10:244:1:1::/80 via fd00:10:244:1::50 dev to-pods onlink")?;
        for (netns, number) in [(&pods.local, 1), (&pods.other, 2)] {
            netns.sh(&format!("ip route add local 10.244.{number}.128/25 dev lo"))?;
            netns.sh(&format!("ip route add local fd00:10:244:{number}:1::/80 dev lo"))?;
            // A server may listen at an address of the range (net/ipv6/af_inet6.c asks for an address else).
            netns.sh("sysctl -qw net.ipv6.ip_nonlocal_bind=1")?;
        }
        Ok(pods)
    }

    /// Where the servers of a pod run.
    pub fn netns(&self, number: u8) -> &Netns {
        if is_local(number) { &self.local } else { &self.other }
    }
}

fn is_local(number: u8) -> bool {
    number.is_multiple_of(2)
}

/// Addresses of a pod, IPv4 first.
pub fn addresses(number: u8) -> [IpAddr; 2] {
    let network = if is_local(number) { 1 } else { 2 };
    let v4 = Ipv4Addr::new(10, 244, network, 128 + number % COUNT);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, network.into(), 1, 0, 0, number.into());
    [v4.into(), v6.into()]
}

/// The node of a pod.
pub fn node(number: u8) -> &'static str {
    if is_local(number) { NODE } else { OTHER_NODE }
}
