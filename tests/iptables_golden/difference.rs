//! Every difference between upstream's rules and ours, with the decision that wants it: each row makes upstream's rules
//! into ours, and what is not in a row fails. Written from the worlds' objects, with nothing of the product.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::saved::Saved;
use crate::world::World;

/// A row.
pub(crate) struct Difference {
    /// Number in docs/decisions.md.
    pub(crate) decision: &'static str,
    pub(crate) what: &'static str,
    /// Makes one into the other; tells how often it had to.
    pub(crate) apply: fn(&mut Saved, &World) -> usize,
}

pub(crate) const DIFFERENCES: [Difference; 11] = [
    Difference {
        decision: "T5",
        what: "TCP is refused by a reset: the rate of ICMP errors is limited",
        apply: reset,
    },
    Difference {
        decision: "T5",
        what: "this node is refused at load balancers' addresses and external IPs, too: a jump from OUTPUT",
        apply: output_jump,
    },
    Difference {
        decision: "T2",
        what: "pods of other nodes that are short-circuited are masqueraded; at NodePorts they come from outside",
        apply: far_pods,
    },
    Difference {
        decision: "T2",
        what: "without a detector, this node's pods are told by its podCIDRs",
        apply: pods_without_detector,
    },
    Difference {
        decision: "T15",
        what: "the node is allowed by all of its addresses, whichever it speaks from",
        apply: node_in_ranges,
    },
    Difference {
        decision: "T15",
        what: "ranges are aggregated, and sorted",
        apply: aggregated_ranges,
    },
    Difference {
        decision: "T16, T17",
        what: "NodePorts are refused at the places where they answer alone",
        apply: refused_places,
    },
    Difference {
        decision: "T17",
        what: "the kubelet's chain is led to where it has a rule of ours, and nowhere else",
        apply: unused_chain_of_the_kubelet,
    },
    Difference {
        decision: "T19",
        what: "of several claims on a place the strongest has it alone",
        apply: claims,
    },
    Difference {
        decision: "L9",
        what: "the canary that tells a flush belongs to the applying side",
        apply: canary,
    },
    Difference {
        decision: "L19",
        what: "no nfacct counters, which would have to be made before the rules",
        apply: counters,
    },
];

fn reset(saved: &mut Saved, _: &World) -> usize {
    let mut count = 0;
    for (_, rules) in saved.begin("filter", "KUBE-") {
        for rule in rules {
            if rule.contains("-p tcp ") && rule.contains("-j REJECT --reject-with icmp") {
                let (matches, _) = rule.split_once("-j REJECT").unwrap();
                *rule = format!("{matches}-j REJECT --reject-with tcp-reset");
                count += 1;
            }
        }
    }
    count
}

fn output_jump(saved: &mut Saved, _: &World) -> usize {
    let jump = "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" \
                -j KUBE-EXTERNAL-SERVICES";
    // The first to be inserted is the last of the chain.
    saved.chain("filter", "OUTPUT").push(jump.to_owned());
    1
}

fn unused_chain_of_the_kubelet(saved: &mut Saved, _: &World) -> usize {
    const CHAIN: &str = "KUBE-FIREWALL";
    if !saved.chain("filter", CHAIN).is_empty() {
        return 0;
    }
    saved.chains.remove(&("filter".to_owned(), CHAIN.to_owned()));
    for from in ["INPUT", "OUTPUT"] {
        saved
            .chain("filter", from)
            .retain(|rule| rule != &format!("-j {CHAIN}"));
    }
    1
}

const FAR_AT_NODE_PORT: &str = "--comment \"pods of other nodes come from outside to the node port of ";

fn far_pods(saved: &mut Saved, world: &World) -> usize {
    let (Some(cluster), own) = (world.cluster_pods(saved.v4), world.own_pods(saved.v4)) else {
        return 0;
    };
    if world.upstream.detect_local_mode != "ClusterCIDR" || own == Some(cluster) {
        return 0;
    }
    let v4 = saved.v4;
    let places = node_port_places(world, v4);
    let mut node_ports = saved.chain("nat", "KUBE-NODEPORTS").clone();
    node_ports.retain(|rule| !rule.contains(" -m nfacct "));
    let mut count = 0;
    for (chain, rules) in saved.begin("nat", "KUBE-EXT-") {
        let Some(at) = rules.iter().position(|rule| rule.contains("\"pod traffic for ")) else {
            continue;
        };
        let rule = rules.remove(at);
        if let Some(own) = own {
            rules.insert(at, rule.replace(&cluster.to_string(), &own.to_string()));
        }
        let near = match rules.last().unwrap().strip_prefix("-j ") {
            Some(near) => near.to_owned(),
            None => "RETURN".to_owned(),
        };
        let of_node = |rule: &String| rule.contains("\"route LOCAL traffic for ");
        let mut end = rules.iter().position(of_node).unwrap() + 1;
        let mut add = |rule: String| {
            rules.insert(end, rule);
            end += 1;
        };
        if let Some(rule) = node_ports
            .iter()
            .find(|rule| rule.ends_with(chain))
            .filter(|_| own.is_some())
        {
            let (matches, _) = rule.split_once(" -j ").unwrap();
            let matches = matches.replace("--comment \"", FAR_AT_NODE_PORT);
            let (before, port) = matches.rsplit_once(" -m ").unwrap();
            for (to, kind) in &places {
                add(format!("-s {cluster} {to}{before}{kind} -m {port} -j {near}"));
            }
        }
        let (before, _) = rule.split_once(" -j ").unwrap();
        let before = before.replace("\"pod traffic for ", "\"masquerade pods of other nodes for ");
        add(format!("{before} -j KUBE-MARK-MASQ"));
        add(rule);
        count += 1;
    }
    count
}

const LOCAL: &str = " -m addrtype --dst-type LOCAL";

/// How rules tell the places where NodePorts answer: what is said of the destination before the protocol, and after the
/// comment.
fn node_port_places(world: &World, v4: bool) -> Vec<(String, &'static str)> {
    match world.node_port_addresses(v4) {
        // 127.0.0.1 is such a place.
        None if v4 && world.upstream.localhost_node_ports => vec![(String::new(), LOCAL)],
        None => {
            let loopback = if v4 { "127.0.0.0/8" } else { "::1/128" };
            vec![(format!("! -d {loopback} "), LOCAL)]
        }
        Some(addresses) => {
            let one = |ip| (format!("-d {} ", IpNet::from(ip)), "");
            addresses.into_iter().map(one).collect()
        }
    }
}

fn pods_without_detector(saved: &mut Saved, world: &World) -> usize {
    let Some(own) = world.own_pods(saved.v4).filter(|_| world.has_no_detector(saved.v4)) else {
        return 0;
    };
    let mut count = 0;
    for (_, rules) in saved.begin("nat", "KUBE-EXT-") {
        let Some(at) = rules
            .iter()
            .position(|rule| rule.contains("\"masquerade LOCAL traffic for "))
        else {
            continue;
        };
        let to = rules[at + 1].split(" -j ").nth(1).unwrap().to_owned();
        let comment = rules[at].split('"').nth(1).unwrap().replace("masquerade LOCAL", "pod");
        rules.insert(at, format!("-s {own} -m comment --comment \"{comment}\" -j {to}"));
        count += 1;
    }
    count
}

/// The ranges that a firewall chain allows, from its rules.
fn range(rule: &str, v4: bool) -> Option<IpNet> {
    if rule.contains("will be dropped by") || rule.contains("--src-type") {
        return None;
    }
    let all = if v4 { "0.0.0.0/0" } else { "::/0" };
    let text = rule
        .strip_prefix("-s ")
        .map_or(all, |rest| rest.split(' ').next().unwrap());
    text.parse().ok()
}

fn node_in_ranges(saved: &mut Saved, world: &World) -> usize {
    let balancers: BTreeSet<IpAddr> = claimed(world).keys().map(|(ip, ..)| *ip).collect();
    let v4 = saved.v4;
    let mut count = 0;
    for (_, rules) in saved.begin("nat", "KUBE-FW-") {
        let is_balancer = |rule: &String| {
            let range = range(rule, v4);
            range.is_some_and(|net| net.prefix_len() == net.max_prefix_len() && balancers.contains(&net.addr()))
        };
        let before = rules.clone();
        rules.retain(|rule| !is_balancer(rule));
        let ranges: Vec<_> = rules.iter().filter_map(|rule| range(rule, v4)).collect();
        let admitted = world
            .addresses
            .iter()
            .any(|own| ranges.iter().any(|range| range.contains(own)));
        if admitted {
            let end = rules.pop().unwrap();
            let (_, rest) = rules[0].split_once("-m comment").unwrap();
            let rest = rest.replace(" -j ", " -m addrtype --src-type LOCAL -j ");
            rules.push(format!("-m comment{rest}"));
            rules.push(end);
        }
        count += usize::from(*rules != before);
    }
    count
}

fn aggregated_ranges(saved: &mut Saved, _: &World) -> usize {
    let v4 = saved.v4;
    let mut count = 0;
    for (_, rules) in saved.begin("nat", "KUBE-FW-") {
        let ranges: Vec<_> = rules.iter().filter_map(|rule| range(rule, v4)).collect();
        let (_, rest) = rules[0].split_once("-m comment").unwrap();
        let allow = |net: IpNet| match net.prefix_len() {
            0 => format!("-m comment{rest}"),
            _ => format!("-s {net} -m comment{rest}"),
        };
        let mut new: Vec<_> = IpNet::aggregate(&ranges).into_iter().map(allow).collect();
        new.extend(rules.iter().filter(|rule| range(rule, v4).is_none()).cloned());
        count += usize::from(*rules != new);
        *rules = new;
    }
    count
}

fn refused_places(saved: &mut Saved, world: &World) -> usize {
    let places = node_port_places(world, saved.v4);
    let mut count = 0;
    let rules = saved.chain("filter", "KUBE-EXTERNAL-SERVICES");
    for rule in std::mem::take(rules) {
        if !rule.contains(LOCAL) {
            rules.push(rule);
            continue;
        }
        let at = places
            .iter()
            .map(|(to, kind)| format!("{to}{}", rule.replace(LOCAL, kind)));
        let new: Vec<_> = at.collect();
        count += usize::from(new != [rule]);
        rules.extend(new);
    }
    count
}

/// Order of claims: the kind of address, age, name, number of the port.
type Claim = (u8, String, String, usize);
/// Address, protocol, port.
type Place = (IpAddr, String, u64);

/// Places of load balancers and of all else that services claim; the strongest claim of each first.
fn claimed(world: &World) -> BTreeMap<Place, BTreeSet<Claim>> {
    let mut places: BTreeMap<Place, BTreeSet<Claim>> = BTreeMap::new();
    for object in world.objects.iter().filter(|object| object["kind"] == "Service") {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let labels = metadata["labels"].as_object();
        if labels.is_some_and(|labels| labels.contains_key("service.kubernetes.io/service-proxy-name")) {
            continue;
        }
        let name = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
        let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
        let vips: Vec<_> = ingress
            .iter()
            .filter(|one| one["ipMode"] != "Proxy")
            .map(|one| one["ip"].clone())
            .collect();
        let kinds = [
            (0, list(&object["spec"]["clusterIPs"])),
            (2, vips),
            (3, list(&object["spec"]["externalIPs"])),
        ];
        for (number, port) in list(&object["spec"]["ports"]).iter().enumerate() {
            for (kind, ips) in &kinds {
                for ip in ips.iter().filter_map(|ip| ip.as_str()?.parse().ok()) {
                    let protocol = text(&port["protocol"]).to_lowercase();
                    let place = (ip, protocol, port["port"].as_u64().unwrap_or_default());
                    let created = text(&metadata["creationTimestamp"]);
                    places
                        .entry(place)
                        .or_default()
                        .insert((*kind, created, name.clone(), number));
                }
            }
        }
    }
    places
}

/// The place that a rule of the shared chains is for.
fn place(rule: &str) -> Option<Place> {
    let words: Vec<_> = rule.split(' ').collect();
    let after = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
    let net: IpNet = after("-d")?.parse().ok()?;
    Some((net.addr(), after("-p")?.to_owned(), after("--dport")?.parse().ok()?))
}

fn claims(saved: &mut Saved, world: &World) -> usize {
    let places = claimed(world);
    let mut lost = BTreeSet::new();
    let mut count = 0;
    for table in ["filter", "nat"] {
        for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"] {
            // Kinds are told by comments in `nat` alone, so a service that claims a place twice has both or none.
            saved.chain(table, chain).retain(|rule| {
                let Some((_, _, winner, _)) = place(rule).and_then(|place| places.get(&place)?.first()) else {
                    return true;
                };
                let comment = rule.split('"').nth(1).unwrap();
                let service = comment.split([':', ' ']).next().unwrap();
                let stays = service == winner;
                if !stays {
                    lost.insert(rule.split(" -j ").nth(1).unwrap().to_owned());
                    count += 1;
                }
                stays
            });
        }
    }
    remove_unreferenced(saved, lost);
    saved
        .chains
        .retain(|(table, chain), rules| !(table == "nat" && chain == "KUBE-EXTERNAL-SERVICES" && rules.is_empty()));
    saved
        .chains
        .retain(|(table, chain), rules| !(table == "nat" && chain == "KUBE-PROXY-FIREWALL" && rules.is_empty()));
    count
}

/// Chains that nothing leads to any more, and what only they led to.
fn remove_unreferenced(saved: &mut Saved, mut candidates: BTreeSet<String>) {
    while let Some(name) = candidates.pop_first() {
        let leads_there = |rule: &String| rule.split(" -j ").nth(1) == Some(&name);
        let is_own = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if !is_own || saved.chains.values().flatten().any(leads_there) {
            continue;
        }
        if let Some(rules) = saved.chains.remove(&("nat".to_owned(), name)) {
            candidates.extend(
                rules
                    .iter()
                    .filter_map(|rule| Some(rule.split(" -j ").nth(1)?.to_owned())),
            );
        }
    }
}

fn canary(saved: &mut Saved, _: &World) -> usize {
    let before = saved.chains.len();
    saved.chains.retain(|(_, chain), _| chain != "KUBE-PROXY-CANARY");
    before - saved.chains.len()
}

fn counters(saved: &mut Saved, _: &World) -> usize {
    let mut count = 0;
    for rules in saved.chains.values_mut() {
        let before = rules.len();
        // The same rule follows without a counter, for all addresses.
        rules.retain(|rule| !rule.contains(" localhost_nps_accepted_pkts "));
        count += before - rules.len();
        for rule in rules {
            // iptables prints two blanks there.
            let plain = rule.replace(" -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts", "");
            count += usize::from(*rule != plain);
            *rule = plain;
        }
    }
    count
}
