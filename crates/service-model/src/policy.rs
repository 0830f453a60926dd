//! Which endpoints of a service port take traffic: readiness, topology, traffic policies. Pure.
//!
//! The rules are those of kube-proxy's newest version (T25), except where they would break a promise: a Local policy
//! never gets endpoints of other nodes (T1, T4).

use std::net::SocketAddr;

use crate::frontend::Target;

/// An endpoint of one service port, with what the policies look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) address: SocketAddr,
    pub(crate) local: bool,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    /// It has hints for nodes; and one of them is this node.
    pub(crate) node_hints: Hints,
    /// It has hints for zones; and one of them is this node's.
    pub(crate) zone_hints: Hints,
}

/// Topology hints of one kind, seen from this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hints {
    /// There are none.
    #[default]
    None,
    /// There are some, for others.
    Others,
    /// There are some, and this node (or its zone) is among them.
    Us,
}

/// The endpoints by traffic policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Categories {
    /// For policy Cluster.
    pub(crate) cluster: Vec<Target>,
    /// For policy Local.
    pub(crate) local: Vec<Target>,
    /// Those for policy Local are ready, and no last resort.
    pub(crate) local_ready: bool,
    /// Some endpoint, anywhere, could take traffic.
    pub(crate) any: bool,
}

/// Sorts the endpoints of a service port by policy. Not-ready ones take traffic only as a last resort, and only while
/// they terminate and still serve.
pub(crate) fn categorize(candidates: &[Candidate]) -> Categories {
    let ready: Vec<_> = candidates.iter().filter(|candidate| candidate.ready).collect();
    let last_resort = || {
        candidates
            .iter()
            .filter(|candidate| candidate.serving && candidate.terminating)
    };
    let mut cluster: Vec<_> = near(&ready).map(target).collect();
    if cluster.is_empty() {
        // Topology does not apply to the last resort.
        cluster = last_resort().map(target).collect();
    }
    let mut local: Vec<_> = ready
        .iter()
        .filter(|candidate| candidate.local)
        .map(|candidate| target(candidate))
        .collect();
    let local_ready = !local.is_empty();
    if !local_ready {
        local = last_resort().filter(|candidate| candidate.local).map(target).collect();
    }
    Categories {
        cluster,
        local,
        local_ready,
        any: !ready.is_empty() || last_resort().next().is_some(),
    }
}

/// The ready endpoints that topology hints leave: those for this node, else those for its zone, else all. Hints hold
/// only where every ready endpoint has them and at least one means us: a half-hinted service is in transition.
fn near<'a>(ready: &'a [&'a Candidate]) -> impl Iterator<Item = &'a Candidate> {
    let hold = |hints: fn(&Candidate) -> Hints| {
        ready.iter().all(|candidate| hints(candidate) != Hints::None)
            && ready.iter().any(|candidate| hints(candidate) == Hints::Us)
    };
    let (by_node, by_zone) = (
        hold(|candidate| candidate.node_hints),
        hold(|candidate| candidate.zone_hints),
    );
    ready.iter().copied().filter(move |candidate| {
        if by_node {
            candidate.node_hints == Hints::Us
        } else {
            !by_zone || candidate.zone_hints == Hints::Us
        }
    })
}

fn target(candidate: &Candidate) -> Target {
    Target {
        address: candidate.address,
        local: candidate.local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One word per endpoint: its last byte, then letters: `L`ocal, `r`eady, `s`erving, `t`erminating,
    /// `n`ode hint for others, `N` for us, `z`one hint for others, `Z` for us.
    fn check(endpoints: &str, cluster: &str, local: &str, any: bool) {
        let candidates: Vec<_> = endpoints.split_whitespace().map(candidate).collect();
        let found = categorize(&candidates);
        let names = |targets: &[Target]| {
            targets
                .iter()
                .map(|target| target.address.port().to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            (names(&found.cluster).as_str(), names(&found.local).as_str(), found.any),
            (cluster, local, any),
            "{endpoints}"
        );
    }

    fn candidate(word: &str) -> Candidate {
        let has = |letter: char| word.contains(letter);
        let hints = |others: char, us: char| match (has(others), has(us)) {
            (_, true) => Hints::Us,
            (true, false) => Hints::Others,
            _ => Hints::None,
        };
        let number: String = word.chars().take_while(char::is_ascii_digit).collect();
        Candidate {
            address: SocketAddr::new([10, 0, 0, 1].into(), number.parse().unwrap()),
            local: has('L'),
            ready: has('r'),
            serving: has('r') || has('s'),
            terminating: has('t'),
            node_hints: hints('n', 'N'),
            zone_hints: hints('z', 'Z'),
        }
    }

    #[test]
    fn readiness() {
        check("", "", "", false);
        check("1r 2r", "1 2", "", true);
        check("1Lr 2r", "1 2", "1", true);
        check("1 2", "", "", false);
        check("1 2Lr", "2", "2", true);
        check("1s", "", "", false);
        check("1t", "", "", false);
    }

    #[test]
    fn terminating_endpoints_are_the_last_resort() {
        check("1st 2st", "1 2", "", true);
        check("1Lst 2st", "1 2", "1", true);
        check("1st 2r", "2", "", true);
        check("1Lst 2r", "2", "1", true);
        check("1Lst 2Lr 3st", "2", "2", true);
        check("1Lst 2Lt", "1", "1", true);
        check("1L 2Lst 3r", "3", "2", true);
        check("1stz 2stZ", "1 2", "", true);
        check("1stn 2stN", "1 2", "", true);
    }

    #[test]
    fn t25_hints_for_zones() {
        check("1rZ 2rz", "1", "", true);
        check("1rZ 2rZ 3rz", "1 2", "", true);
        check("1rz 2rz", "1 2", "", true);
        check("1rZ 2r", "1 2", "", true);
        check("1r 2r", "1 2", "", true);
        check("1rZ 2z", "1", "", true);
        check("1rZ 2", "1", "", true);
        check("1Z 2rz", "2", "", true);
        check("1rZ 2stz", "1", "", true);
        check("1Lrz 2rZ", "2", "1", true);
    }

    #[test]
    fn t25_hints_for_nodes_come_before_zones() {
        check("1rN 2rn", "1", "", true);
        check("1rNz 2rnZ", "1", "", true);
        check("1rnZ 2rnz", "1", "", true);
        check("1rn 2rn", "1 2", "", true);
        check("1rN 2r", "1 2", "", true);
        check("1rNZ 2rZ 3rz", "1 2", "", true);
        check("1LrN 2rn", "1", "1", true);
        check("1Lrn 2rN", "2", "1", true);
    }

    #[test]
    fn t01_t04_local_never_has_remote_endpoints() {
        check("1r 2r", "1 2", "", true);
        check("1L 2r", "2", "", true);
        check("1Lt 2r", "2", "", true);
    }
}
