//! Who may connect to a load balancer's addresses (T15).

use ipnet::IpNet;

use crate::frontend::SourceRanges;
use crate::nodes::Nodes;
use crate::object::{Family, Service};
use crate::step::step;

/// The ranges of a family. `None` = there is none of it, and everybody may connect, as in kube-proxy's modes (k/k#109575). One
/// that cannot be read could be of either family.
pub(crate) fn source_ranges(service: &Service, family: Family, nodes: &Nodes) -> Option<SourceRanges> {
    let is_ours = |range: &IpNet| range.addr().is_ipv4() == (family == Family::V4);
    let mut ours = service
        .source_ranges
        .iter()
        .filter(|range| range.as_ref().is_none_or(is_ours))
        .peekable();
    ours.peek()?;
    let ranges = disjoint(ours.flatten().copied().collect());
    let own = nodes.interfaces().unwrap_or_default();
    let admits_node = own.iter().any(|own| {
        let after = ranges.partition_point(|range| range.network() <= *own);
        let below = after.checked_sub(1).and_then(|at| ranges.get(at));
        below.is_some_and(|range| range.contains(own))
    });
    Some(SourceRanges { ranges, admits_node })
}

/// The same addresses in as few ranges as there can be, in their order: the kernel refuses overlapping elements. One family.
/// n log n, where [`IpNet::aggregate`] moves the rest of the list for each range that goes.
fn disjoint(mut ranges: Vec<IpNet>) -> Vec<IpNet> {
    // An outer range comes before those in it.
    ranges.sort_unstable_by_key(|range| (range.network(), range.prefix_len()));
    let mut disjoint: Vec<IpNet> = Vec::with_capacity(ranges.len());
    for range in ranges {
        step();
        if disjoint.last().is_some_and(|last| last.contains(&range)) {
            continue;
        }
        let mut range = range.trunc();
        while let Some(both) = disjoint.last().and_then(|last| both_halves(last, &range)) {
            step();
            disjoint.pop();
            range = both;
        }
        disjoint.push(range);
    }
    disjoint
}

/// What two ranges are together, where they are the halves of one.
fn both_halves(low: &IpNet, high: &IpNet) -> Option<IpNet> {
    let whole = high.supernet()?;
    (low.prefix_len() == high.prefix_len() && low != high && whole.contains(low)).then_some(whole)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    /// Near each other, so that many meet.
    fn v4() -> impl Strategy<Value = IpNet> {
        (0..64_u32, 24..=32_u8).prop_map(|(low, len)| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 | low << 1 | low & 1);
            IpNet::V4(Ipv4Net::new(address, len).unwrap().trunc())
        })
    }

    fn v6() -> impl Strategy<Value = IpNet> {
        (0..64_u128, 120..=128_u8).prop_map(|(low, len)| {
            let address = Ipv6Addr::from_bits(0xfd << 120 | low);
            IpNet::V6(Ipv6Net::new(address, len).unwrap().trunc())
        })
    }

    proptest! {
        #[test]
        fn f02_disjoint_ranges_are_those_of_the_library(v4 in prop::collection::vec(v4(), 0..40), v6 in prop::collection::vec(v6(), 0..40)) {
            for ranges in [v4, v6] {
                let mut expect = IpNet::aggregate(&ranges);
                expect.sort_unstable();
                prop_assert_eq!(disjoint(ranges), expect);
            }
        }
    }

    #[test]
    fn everything_is_one_range() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let halves = vec![net("0.0.0.0/1"), net("128.0.0.0/1"), net("10.0.0.0/8")];
        assert_eq!(disjoint(halves), [net("0.0.0.0/0")]);
        assert_eq!(disjoint(vec![net("::/1"), net("::/0")]), [net("::/0")]);
        assert_eq!(disjoint(Vec::new()), []);
    }
}
