//! That the matrix is as large and as complete as it says, and that the oracle says what decisions.md says.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::BTreeSet;

use super::cell::{Plan, plans};
use super::question::Mode;
use super::site::Family;

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

/// Pairs of values that no question can have are those that the generator leaves out on purpose.
#[test]
fn pairs_of_dimensions_are_covered() {
    let plans = plans(Mode::Ipvs);
    let base = plans.first().unwrap();
    let mut pairs = BTreeSet::new();
    for cell in &base.cells {
        pairs.extend(cell.pairs(&base.services));
    }
    let values = |dimension: &str| -> BTreeSet<String> {
        let all = base.cells.iter().flat_map(|cell| cell.dimensions(&base.services));
        all.filter(|value| value.starts_with(dimension)).collect()
    };
    let dimensions = ["family", "protocol", "address", "policy", "endpoints", "client"];
    let mut missing = Vec::new();
    for (index, first) in dimensions.iter().enumerate() {
        for second in dimensions.iter().skip(index + 1) {
            for a in values(first) {
                for b in values(second) {
                    if !pairs.contains(&(a.clone(), b.clone())) {
                        missing.push(format!("{a} × {b}"));
                    }
                }
            }
        }
    }
    let possible = missing.iter().filter(|pair| !left_out(pair));
    assert_eq!(possible.collect::<Vec<_>>(), Vec::<&String>::new());
}

/// What cannot be asked, or is asked once and not in every combination.
fn left_out(pair: &str) -> bool {
    // A node's port or address is asked for by clients that reach it without another's help, and seldom ones for few
    // services; SCTP is asked for at cluster IPs and node ports of plain services.
    let seldom = ["nodeport-", "UndefinedPort", "NodePort", "Echo", "sctp"];
    // Services with something of their own have endpoints of their own.
    let special = [
        "ranges-",
        "affinity-",
        "zone-",
        "claim-",
        "foreign-",
        "nodeip-",
        "hinted",
    ];
    seldom.iter().chain(&special).any(|word| pair.contains(word))
}

#[test]
fn every_decision_about_traffic_is_asked_in_both_families() {
    let expected = [
        "T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "T9", "T11", "T12", "T13", "T14", "T15", "T16", "T17", "T18",
        "T19", "T20", "T24", "T25", "T28",
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
