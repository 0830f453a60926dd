//! The order in which endpoints are inserted differs from node to node (T23): `rr` starts somewhere else on each.

use crate::frontend::{FrontendKey, Target};

/// Rotates endpoints by a hash of node and frontend: the same at every start of the same node.
pub(crate) fn rotate(endpoints: &mut [Target], node: &str, key: &FrontendKey) {
    if endpoints.len() < 2 {
        return;
    }
    let hash = fnv1a(node.bytes().chain(key.to_string().bytes()));
    let by = usize::try_from(hash % u64::try_from(endpoints.len()).unwrap_or(u64::MAX)).unwrap_or(0);
    endpoints.rotate_left(by);
}

/// FNV-1a, 64 bits: short, spread well enough, and the same on every machine and in every version.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Its low bits alone are weak for short inputs that differ at the end.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use super::*;
    use crate::object::Protocol;

    /// k/k#121591.
    #[test]
    fn t23_rr_first_pick_spread_over_nodes() {
        let key = FrontendKey {
            address: [10, 96, 0, 1].into(),
            port: 443,
            protocol: Protocol::Tcp,
        };
        let mut first: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for node in 0..300 {
            let mut targets: Vec<_> = (1..=3)
                .map(|n| Target {
                    address: SocketAddr::new([10, 0, 0, n].into(), 6443),
                    local: false,
                })
                .collect();
            rotate(&mut targets, &format!("node-{node}"), &key);
            *first.entry(targets[0].address).or_default() += 1;
        }
        assert_eq!(first.len(), 3);
        assert!(first.values().all(|count| (70..130).contains(count)), "{first:?}");
    }
}
