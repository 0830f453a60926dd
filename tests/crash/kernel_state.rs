//! What the kernel of this thread's namespace holds; and taking things away from it by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::Result;
use dataplane::element::ElementKey;
use dataplane::live::LiveKernel;
use dataplane::{Kernel, Op, PolicyCommand, Snapshot};
use ipvs::{Command, VipCommand, VirtualServer};
use testbed::load::pods;
use testbed::netns::Netns;
use testbed::tool;

use crate::mode::Mode;

/// Other people's port, of virtual servers that are none of ours.
pub(crate) const FOREIGN_PORT: u16 = 9999;

/// What is there now, an object a line, in no order.
pub(crate) fn look(mode: Mode) -> Result<BTreeSet<String>> {
    match mode {
        Mode::Ipvs => Ok(picture(&LiveKernel::open()?.read()?)),
        Mode::Iptables => rules(),
    }
}

/// Takes away all that is ours, by hand.
pub(crate) fn wipe(mode: Mode) -> Result<()> {
    match mode {
        Mode::Ipvs => wipe_ipvs(),
        Mode::Iptables => FAMILIES.iter().try_for_each(|program| {
            let tables = ["filter", "nat"].iter();
            let mut lines = tables.flat_map(|table| ["-F", "-X"].map(|verb| format!("{program} -t {table} {verb}")));
            lines.try_for_each(|line| tool::sh(&line).map(drop))
        }),
    }
}

/// The rules of a family; where there are none yet, nft's are used.
const FAMILIES: [&str; 2] = ["iptables-nft", "ip6tables-nft"];

/// Chains and rules with their place in the chain, which is their meaning.
fn rules() -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for program in FAMILIES {
        let saved = tool::sh(&format!("{program}-save"))?;
        let (mut table, mut places) = ("", BTreeMap::new());
        for line in saved.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let chain = rule.split(' ').next().unwrap_or_default();
                let place = places.entry((table, chain)).or_insert(0);
                *place += 1;
                lines.insert(format!("{program} {table} rule {place:03} {rule}"));
            } else if let Some(chain) = line.strip_suffix(" - [0:0]") {
                // The kernel's own have a policy in place of the dash.
                lines.insert(format!("{program} {table} chain {chain}"));
            }
        }
    }
    Ok(lines)
}

/// How much of what is new goes to a pod, at each place that leads to it: weights by ipvsadm, and 1 for a rule. Of both
/// families and protocols.
pub(crate) fn weights(mode: Mode, node: &Netns, pod: u8) -> Result<Vec<u32>> {
    let addresses = pods::addresses(pod);
    let of_pod = |text: &str, flag: &str, weight: &dyn Fn(&[&str]) -> Option<u32>| -> Vec<u32> {
        let of_line = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let real: SocketAddr = after(&words, flag)?.parse().ok()?;
            addresses.contains(&real.ip()).then(|| weight(&words))?
        };
        text.lines().filter_map(of_line).collect()
    };
    match mode {
        Mode::Ipvs => {
            let text = node.sh("ipvsadm -Sn")?;
            Ok(of_pod(&text, "-r", &|words| after(words, "-w")?.parse().ok()))
        }
        Mode::Iptables => {
            let texts = FAMILIES.map(|program| node.sh(&format!("{program}-save -t nat")));
            let text = texts.into_iter().collect::<Result<String>>()?;
            Ok(of_pod(&text, "--to-destination", &|_| Some(1)))
        }
    }
}

fn after<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == flag)?;
    words.get(at + 1).copied()
}

fn wipe_ipvs() -> Result<()> {
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
        tool::sh(&format!("nft delete table {family} kube-ipvs"))?;
    }
    Ok(())
}

/// Real servers that drain of a former change would make this one another.
pub(crate) fn forget_drained(mode: Mode) -> Result<()> {
    if mode == Mode::Iptables {
        return Ok(());
    }
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

/// Real servers that drain are left out, with their deadlines: they
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
