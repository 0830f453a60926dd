//! A saved text of any kind: what holds of what is made of it.

use super::leftover::{is_chain_of_kube_proxy, is_chain_of_ours, removals};
use super::ruleset::{Backend, Family, Ruleset, Wanted, places};
use crate::config::ForwardAccept;

/// Reads it, and decides what goes and where something is put.
///
/// # Panics
/// Where a chain goes and stays.
pub(crate) fn saved(text: &str) {
    let ruleset = Ruleset::parse(text);
    let of_kube_proxy = removals(&ruleset, |_, name, _| is_chain_of_kube_proxy(name));
    let of_ours = removals(&ruleset, |table, name, chain| {
        is_chain_of_ours(&ruleset, table, name, chain)
    });
    for removals in [of_kube_proxy, of_ours] {
        for removal in &removals.tables {
            let restore = removal.restore();
            assert!(restore.ends_with("COMMIT\n"));
            drop(removal.lines("iptables"));
        }
    }
    let wanted = Wanted::forward(14);
    let _ = (ruleset.is_incompatible(), ruleset.rules(wanted.chain));
    let tables = [(Backend::Nft, Family::V4, ruleset)];
    for mode in [ForwardAccept::Auto, ForwardAccept::Always] {
        drop(places(mode, &tables, &wanted));
    }
}
