//! What of a family is wanted and not written yet, by chain: a chain is the least that a restore can write.

use std::collections::{BTreeMap, BTreeSet};

use service_model::ObjectName;

use super::chain::{ServiceRules, Table};
use super::name::ChainName;
use super::rule::Rule;

/// Chains to be written, and chains to be deleted.
#[derive(Debug, Default)]
pub(super) struct Staged {
    chains: BTreeSet<(Table, ChainName)>,
    /// Services of which a chain of their own is among them.
    services: BTreeSet<ObjectName>,
    /// Chains that go.
    pub(super) gone: BTreeSet<String>,
}

impl Staged {
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.gone.is_empty()
    }

    pub(super) fn writes(&self, table: Table, chain: ChainName) -> bool {
        self.chains.contains(&(table, chain))
    }

    /// A chain of the service's own is to be written.
    pub(super) fn writes_own(&self, service: &ObjectName) -> bool {
        self.services.contains(service)
    }

    /// Some chain that all share is to be written.
    pub(super) fn writes_shared(&self) -> bool {
        self.chains.iter().any(|(_, chain)| matches!(chain, ChainName::Base(_)))
    }

    pub(super) fn stage(&mut self, table: Table, chain: ChainName) {
        self.chains.insert((table, chain));
    }

    pub(super) fn stage_own(&mut self, service: &ObjectName, chain: ChainName) {
        self.stage(Table::Nat, chain);
        self.services.insert(service.clone());
    }

    /// A service is this now and was that before.
    pub(super) fn change(&mut self, service: &ObjectName, before: &ServiceRules, now: &ServiceRules) {
        for (table, before, now) in [
            (Table::Filter, &before.filter, &now.filter),
            (Table::Nat, &before.nat, &now.nat),
        ] {
            let (before, now) = (by_chain(before), by_chain(now));
            let all: BTreeSet<_> = before.keys().chain(now.keys()).copied().collect();
            let differ = all.into_iter().filter(|chain| before.get(chain) != now.get(chain));
            differ.for_each(|chain| self.stage(table, chain));
        }
        let (before, now) = (own(before), own(now));
        for (name, _) in before.iter().filter(|(name, _)| !now.contains_key(*name)) {
            self.chains.remove(&(Table::Nat, *name));
            self.gone.insert(name.to_string());
        }
        for (name, rules) in &now {
            self.gone.remove(&name.to_string());
            if before.get(name) != Some(rules) {
                self.stage_own(service, *name);
            }
        }
    }
}

fn by_chain(rules: &[Rule]) -> BTreeMap<ChainName, Vec<&Rule>> {
    let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for rule in rules {
        chains.entry(rule.chain).or_default().push(rule);
    }
    chains
}

fn own(rules: &ServiceRules) -> BTreeMap<ChainName, &[Rule]> {
    let chains = rules.chains.iter();
    chains.map(|chain| (chain.name, chain.rules.as_slice())).collect()
}
