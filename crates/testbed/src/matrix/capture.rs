//! What arrived at endpoints: new connections by target port, counted by nf_tables before anything else sees them. In
//! pods the target ports of all services then lead to one server.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::site::{HOST_NETWORK_PORT, POD_PORT};
use crate::netns::Netns;
use crate::tool;

const TABLE: &str = "inet matrix-capture";

/// Counts, and redirects, in a pod.
pub(super) fn install_in_pod(pod: &Netns) -> Result<()> {
    install(
        pod,
        &format!(
            "chain arrivals {{ type filter hook prerouting priority -350; jump count_new; }}
             chain redirect_all {{ type nat hook prerouting priority -100;
                 meta l4proto {{ tcp, udp, sctp }} th dport 20000-29999 redirect to :{POD_PORT}; }}"
        ),
    )
}

/// Counts in a node what reaches its endpoints with hostNetwork, where all filters have let it pass.
pub(super) fn install_in_node(node: &Netns) -> Result<()> {
    install(
        node,
        &format!(
            "chain arrivals {{ type filter hook input priority 300; th dport {HOST_NETWORK_PORT} jump count_new; }}"
        ),
    )
}

fn install(netns: &Netns, chains: &str) -> Result<()> {
    // One statement a line for the shell's sake; 0x5 is the type of the first chunk of SCTP's INIT.
    let text = format!(
        "table {TABLE} {{
           set seen {{ type inet_service; flags dynamic; size 65535; }}
           chain count_new {{
             tcp flags & (syn | ack) == syn add @seen {{ th dport }}
             meta l4proto udp add @seen {{ th dport }}
             sctp vtag 0 add @seen {{ th dport }}
           }}
           {chains}
         }}"
    );
    netns
        .run(|| tool::feed(&["nft", "-f", "-"], &text))
        .context("install the capture")
        .map(drop)
}

/// Forgets what it saw.
pub(super) fn clear(netns: &Netns) -> Result<()> {
    netns.sh(&format!("nft flush set {TABLE} seen")).map(drop)
}

/// Target ports that anything arrived at, by name of the namespace.
pub(super) fn seen<'a>(places: impl Iterator<Item = (&'a str, &'a Netns)>) -> Result<BTreeMap<u16, Vec<String>>> {
    let mut all: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for (name, netns) in places {
        let text = netns.sh(&format!("nft -j list set {TABLE} seen"))?;
        let json: Value = serde_json::from_str(&text)?;
        for port in ports(&json) {
            all.entry(port).or_default().push(name.to_owned());
        }
    }
    Ok(all)
}

fn ports(json: &Value) -> Vec<u16> {
    let sets = json.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let elements = sets
        .filter_map(|item| item.get("set")?.get("elem")?.as_array())
        .flatten();
    elements
        .filter_map(|element| {
            let number = element.as_u64().or_else(|| element.get("elem")?.get("val")?.as_u64());
            number.and_then(|number| u16::try_from(number).ok())
        })
        .collect()
}
