//! A veth pair between two namespaces.

use anyhow::Result;

use crate::netns::Netns;
use crate::tool;

/// Makes a pair of interfaces: `near_name` here, `far_name` there, both up. The far side does not wait for duplicate
/// address detection.
///
/// # Errors
/// A name is taken.
pub fn link(near: &Netns, near_name: &str, far: &Netns, far_name: &str) -> Result<()> {
    near.run(|| {
        tool::sh(&format!("ip link add {near_name} type veth peer name {near_name}-far"))?;
        far.take_interface(&format!("{near_name}-far"))?;
        tool::sh(&format!("ip link set {near_name} up"))
    })?;
    far.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0")?;
    far.sh(&format!("ip link set {near_name}-far name {far_name} up"))
        .map(drop)
}
