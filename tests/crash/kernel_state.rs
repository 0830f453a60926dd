//! What the kernel of this thread's namespace holds; and taking things away from it by hand.

use std::collections::BTreeSet;

use anyhow::Result;
use dataplane::element::ElementKey;
use dataplane::live::LiveKernel;
use dataplane::{Kernel, Op, PolicyCommand, Snapshot};
use ipvs::{Command, VipCommand, VirtualServer};

/// Other people's port, of virtual servers that are none of ours.
pub(crate) const FOREIGN_PORT: u16 = 9999;

/// [`picture`] of now.
pub(crate) fn look() -> Result<BTreeSet<String>> {
    Ok(picture(&LiveKernel::open()?.read()?))
}

/// Takes away all that is ours, by hand.
pub(crate) fn wipe() -> Result<()> {
    let snapshot = LiveKernel::open()?.read()?;
    let servers = snapshot.virtual_servers.iter().map(|present| present.server);
    let servers = servers
        .filter(|server| !matches!(server, VirtualServer::Address { port, .. } if *port == FOREIGN_PORT))
        .map(|server| Op::Ipvs(Command::DelService(server)));
    let routes = snapshot.routes.iter().map(|ip| Op::Vip(VipCommand::DelRoute(*ip)));
    let addresses = snapshot.addresses.iter().map(|ip| Op::Vip(VipCommand::DelAddress(*ip)));
    let ops: Vec<_> = routes.chain(addresses).chain(servers).collect();
    LiveKernel::open()?.execute(&ops)?;
    for table in &snapshot.tables {
        let family = if table.family == nftables::Family::Ip {
            "ip"
        } else {
            "ip6"
        };
        testbed::tool::sh(&format!("nft delete table {family} kube-ipvs"))?;
    }
    Ok(())
}

/// Real servers that drain of a former change would make this one another.
pub(crate) fn forget_drained() -> Result<()> {
    let snapshot = LiveKernel::open()?.read()?;
    let drained = snapshot.virtual_servers.iter().flat_map(|present| {
        let idle = present.real_servers.iter().filter(|(_, config)| config.weight == 0);
        idle.map(|(real, _)| Op::Ipvs(Command::DelDest(present.server, *real)))
    });
    let elements = snapshot.tables.iter().flat_map(|table| &table.elements);
    let deadlines = elements.filter(|(key, _)| matches!(key, ElementKey::Draining(..)));
    let deadlines = deadlines.map(|(key, _)| Op::Policy(PolicyCommand::Delete(*key)));
    let ops: Vec<_> = drained.chain(deadlines).collect();
    LiveKernel::open()?.execute(&ops)?;
    Ok(())
}

/// What a kernel holds, an object a line, in no order. Real servers that drain are left out, with their deadlines: they
/// take no new client, and for how long they stay depends on what connections they had at what time (L5).
fn picture(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for present in &snapshot.virtual_servers {
        let server = present.server;
        lines.insert(format!("virtual server {server}: {:?}", present.config));
        for (real, config) in &present.real_servers {
            if config.weight != 0 {
                lines.insert(format!("real server {real} of {server}: {config:?}"));
            }
        }
    }
    lines.extend(snapshot.routes.iter().map(|ip| format!("route {ip}")));
    lines.extend(snapshot.addresses.iter().map(|ip| format!("address {ip}")));
    for table in &snapshot.tables {
        let family = table.family;
        // Order within a chain is the rules' meaning.
        for (number, (chain, fingerprint)) in table.rules.iter().enumerate() {
            lines.insert(format!("{family:?} rule {number:02} {chain} {fingerprint:02x?}"));
        }
        let elements = table.elements.iter();
        let elements = elements.filter(|(key, _)| !matches!(key, ElementKey::Draining(..)));
        lines.extend(elements.map(|(key, value)| format!("element {key} {value:?}")));
    }
    lines
}

/// The lines that only one of two pictures has.
pub(crate) fn differences(wanted: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<String> {
    let missing = wanted.difference(found).map(|line| format!("missing: {line}"));
    let surplus = found.difference(wanted).map(|line| format!("surplus: {line}"));
    missing.chain(surplus).collect()
}
