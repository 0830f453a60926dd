//! That the matrix is as large and as complete as it says, and that the oracle says what decisions.md says.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::collections::BTreeSet;

use super::cell::{Cell, PROBE, Plan, is_far_at_a_node_port, plans};
use super::question::{Address, Ask, Expectation, Mode, Source};
use super::service::Protocol;
use super::setting::Detector;
use super::site::{Client, Family, NodeAddress};

fn cells(plans: &[Plan], subset: bool) -> usize {
    let all = plans.iter().flat_map(|plan| &plan.cells);
    all.filter(|cell| !subset || cell.subset).count()
}

#[test]
fn there_are_enough_cells() {
    for mode in [Mode::Ipvs, Mode::Iptables] {
        let plans = plans(mode);
        for plan in &plans {
            println!("{:20} {:5} cells", plan.setting.name, plan.cells.len());
        }
        let (all, subset) = (cells(&plans, false), cells(&plans, true));
        println!("{all} cells, {subset} in the subset");
        assert!(all >= 2000, "{all}");
        assert!((400..2000).contains(&subset), "{subset}");
        let groups = |subset: bool| -> BTreeSet<_> {
            let all = plans.iter().flat_map(|plan| &plan.cells);
            all.filter(|cell| !subset || cell.subset)
                .map(|cell| &cell.group)
                .collect()
        };
        assert_eq!(groups(true), groups(false));
    }
}

#[test]
fn names_are_unique() {
    let plans = plans(Mode::Ipvs);
    let all = plans.iter().flat_map(|plan| &plan.cells);
    let names: BTreeSet<_> = all.map(|cell| &cell.name).collect();
    assert_eq!(names.len(), cells(&plans, false));
}

/// Values of a cell in the dimensions of the design's table; the services with something of their own are one dimension.
fn dimensions(plan: &Plan, cell: &Cell) -> Vec<String> {
    let service = &plan.services[cell.service];
    let own = matches!(cell.address, Address::Node(node, NodeAddress::Internal) if node == cell.client.node());
    let address = match cell.address {
        Address::Node(..) if own => "nodeport".to_owned(),
        Address::Node(_, which) => format!("nodeport elsewhere {}", which.name()),
        other => other.name(),
    };
    let client = cell.client.name();
    vec![
        format!("family {}", cell.family.name()),
        format!("protocol {}", cell.protocol.name()),
        format!("address {address}"),
        format!("policy {}", service.policy()),
        format!("endpoints {}", service.placement),
        format!("client {client}"),
    ]
}

fn check_pairs<'a>(plan: &Plan, cells: impl Iterator<Item = &'a Cell>) {
    let all: Vec<_> = cells.map(|cell| dimensions(plan, cell)).collect();
    assert!(!all.is_empty());
    let mut values: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); all[0].len()];
    let mut pairs = BTreeSet::new();
    for cell in &all {
        for (index, first) in cell.iter().enumerate() {
            values[index].insert(first);
            pairs.extend(cell[index + 1..].iter().map(|second| (first.as_str(), second.as_str())));
        }
    }
    for (index, firsts) in values.iter().enumerate() {
        for seconds in &values[index + 1..] {
            for first in firsts {
                for second in seconds {
                    assert!(pairs.contains(&(*first, *second)), "{first} × {second} is not asked");
                }
            }
        }
    }
}

/// Policies, endpoints, clients, the four kinds of address, families and protocols: every pair.
#[test]
fn pairs_of_dimensions_are_covered() {
    let plans = plans(Mode::Ipvs);
    let base = plans.first().unwrap();
    let plain = |cell: &&Cell| {
        let own = match cell.address {
            Address::Node(node, which) => node == cell.client.node() && which == NodeAddress::Internal,
            _ => true,
        };
        let standard = base.services[cell.service].name.starts_with("svc-");
        standard && own && cell.ask == Ask::Service && cell.protocol != Protocol::Sctp
    };
    check_pairs(base, base.cells.iter().filter(plain));
}

/// The services with something of their own: each with every client, kind of address, family and protocol.
#[test]
fn every_client_asks_every_special_service() {
    let plans = plans(Mode::Ipvs);
    let base = plans.first().unwrap();
    for (index, service) in base.services.iter().enumerate() {
        if service.name.starts_with("svc-") || service.name == PROBE {
            continue;
        }
        let of = |cell: &&Cell| {
            let elsewhere = matches!(cell.address, Address::Node(node, which)
                if node != cell.client.node() || which != NodeAddress::Internal);
            cell.service == index && cell.ask == Ask::Service && !elsewhere
        };
        check_pairs(base, base.cells.iter().filter(of));
    }
}

/// Undefined ports and echoes: each kind of VIP with every client and family.
#[test]
fn every_client_asks_for_what_is_no_service() {
    let plans = plans(Mode::Ipvs);
    let base = plans.first().unwrap();
    for ask in [Ask::UndefinedPort, Ask::NodePort, Ask::Echo] {
        for client in Client::ALL {
            for family in Family::ALL {
                for address in [Address::ClusterIp, Address::LoadBalancer, Address::External] {
                    let there = base.cells.iter().any(|cell| {
                        (cell.ask, cell.client, cell.family, cell.address) == (ask, client, family, address)
                    });
                    assert!(there, "{ask:?} at {address:?} by {client:?}, {family:?}");
                }
            }
        }
    }
}

/// T2, the world where all is known: by one endpoint on node A, which terminates. Upstream's end-to-end test of that name
/// (test/e2e/network/service.go, "should fallback to local terminating endpoints when there are no ready endpoints with
/// externalTrafficPolicy=Local") asks the same.
#[test]
fn pods_come_from_outside_to_the_node_ports_of_other_nodes() {
    let plans = plans(Mode::Ipvs);
    let base = plans.first().unwrap();
    for policy in ["etp-local", "both-local"] {
        for (family, protocol) in [("v4", "tcp"), ("v4", "udp"), ("v6", "tcp"), ("v6", "udp")] {
            let promise = |node: &str, client: &str| {
                let place = format!("nodeport-{node}-internal/{policy}/endpoints-one-terminating");
                let name = format!("{family}/{protocol}/{place}/{client}");
                let cell = base.cells.iter().find(|cell| cell.name == name);
                let promise = cell.unwrap_or_else(|| panic!("{name} is not asked")).promise.clone();
                assert!(promise.decisions.contains(&"T2"), "{name}");
                promise.expectation
            };
            let seen = Expectation::answer("a1", Source::Client);
            assert_eq!(promise("a", "pod-b"), seen);
            assert_eq!(promise("a", "pod-c"), seen);
            assert_eq!(promise("a", "far-pod"), seen);
            assert_eq!(promise("b", "pod-a"), Expectation::Silence);
            assert_eq!(promise("b", "a1"), Expectation::Silence);
        }
    }
}

/// T2: whatever tells pods, in both families, whether the cluster IP has a Local policy too or not, and whether the node
/// has an endpoint or not.
#[test]
fn every_detector_meets_pods_of_other_nodes_at_node_ports() {
    for mode in [Mode::Ipvs, Mode::Iptables] {
        let plans = plans(mode);
        let worlds = plans.iter().filter(|plan| {
            let setting = &plan.setting;
            setting.detector != Detector::ClusterCidr || setting.name.is_empty() || !setting.pod_cidrs
        });
        let mut names = BTreeSet::new();
        for plan in worlds {
            names.insert(plan.setting.name);
            for family in Family::ALL {
                for policy in ["etp-local", "both-local"] {
                    let kinds: BTreeSet<_> = plan
                        .cells
                        .iter()
                        .filter(|cell| {
                            let service = &plan.services[cell.service];
                            let few = ["a", "b", "ab"].contains(&service.placement);
                            let asked = (cell.family, service.policy(), few) == (family, policy, true);
                            asked && is_far_at_a_node_port(cell.client, cell.address, service)
                        })
                        .map(|cell| match &cell.promise.expectation {
                            Expectation::Answer(by, _) if by.values().all(|source| *source == Source::Client) => "near",
                            Expectation::Answer(by, _) if by.len() > 1 => "every",
                            other => other.kind(),
                        })
                        .collect();
                    let expected = match plan.setting.pod_cidrs {
                        true => vec!["near", "silence"],
                        false => vec!["every"],
                    };
                    assert_eq!(
                        kinds.into_iter().collect::<Vec<_>>(),
                        expected,
                        "{} {policy}",
                        plan.setting.name
                    );
                }
            }
        }
        let expected = [
            "",
            "bridge-interface",
            "interface-prefix",
            "no-detector",
            "no-pod-cidrs",
            "node-cidr",
        ];
        assert_eq!(names, BTreeSet::from(expected));
    }
}

#[test]
fn every_decision_about_traffic_is_asked_in_both_families() {
    let expected = [
        "T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "T9", "T10", "T11", "T12", "T13", "T14", "T15", "T16", "T17",
        "T18", "T19", "T20", "T24", "T25", "T28", "T30", "T31",
    ];
    let plans = plans(Mode::Ipvs);
    for family in Family::ALL {
        for subset in [false, true] {
            let all = plans.iter().flat_map(|plan| &plan.cells);
            let cited: BTreeSet<_> = all
                .filter(|cell| cell.family == family && (!subset || cell.subset))
                .flat_map(|cell| cell.promise.decisions.iter().copied())
                .collect();
            let missing: Vec<_> = expected.iter().filter(|decision| !cited.contains(*decision)).collect();
            assert!(missing.is_empty(), "{missing:?} in {family:?}, subset: {subset}");
        }
    }
}
