//! The ledger's part for the policy tables: rules by family, elements by key, each wanted and present. Elements have
//! owners: two services may want one, and it goes with the last of them.

use std::net::SocketAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use nftables::Family;
use service_model::ObjectName;

use crate::adoption::Adoption;
use crate::element::{ElementKey, ElementValue, Place, SetName};
use crate::kernel::PresentTable;
use crate::plan::{Key, PolicyCommand};
use crate::rules::Rules;
use crate::slot::{Difference, Slot};
use crate::survey::{ObjectKind, Survey};

/// Rules and elements.
#[derive(Debug, Default)]
pub(crate) struct PolicyLedger {
    v4: Table,
    v6: Table,
    elements: HashMap<ElementKey, Entry>,
    /// The elements of each service, sorted.
    services: HashMap<ObjectName, Box<[ElementKey]>>,
}

#[derive(Debug, Default)]
struct Table {
    wanted: Option<Arc<Rules>>,
    /// These rules stand.
    has: Option<Arc<Rules>>,
    /// Some element was wanted, or some table found. A family that nobody uses has no table.
    used: bool,
}

#[derive(Debug, Default)]
struct Entry {
    slot: Slot<ElementValue>,
    /// Services that want it.
    owners: u32,
}

impl Table {
    fn differs(&self) -> bool {
        self.used && self.wanted.is_some() && self.wanted != self.has
    }
}

impl PolicyLedger {
    fn table(&mut self, family: Family) -> &mut Table {
        match family {
            Family::Ip => &mut self.v4,
            Family::Ip6 => &mut self.v6,
        }
    }

    /// Rules of one family.
    pub(crate) fn want_rules(&mut self, rules: Rules, staged: &mut HashSet<Key>) {
        let family = rules.family;
        let table = self.table(family);
        if table.wanted.as_deref() != Some(&rules) {
            table.wanted = Some(Arc::new(rules));
            self.stage_rules(family, staged);
        }
    }

    /// All elements of a service.
    pub(crate) fn want(
        &mut self,
        service: &ObjectName,
        elements: &[(ElementKey, ElementValue)],
        staged: &mut HashSet<Key>,
    ) {
        let before = self.services.remove(service).unwrap_or_default();
        for (key, value) in elements {
            let entry = self.elements.entry(*key).or_default();
            if before.binary_search(key).is_err() {
                entry.owners += 1;
            }
            if entry.slot.wanted != Some(*value) {
                entry.slot.wanted = Some(*value);
                staged.insert(Key::Element(*key));
            }
        }
        for key in &before {
            if elements.binary_search_by_key(key, |(key, _)| *key).is_ok() {
                continue;
            }
            if let Some(entry) = self.elements.get_mut(key) {
                entry.owners = entry.owners.saturating_sub(1);
                if entry.owners == 0 {
                    entry.slot.wanted = None;
                    staged.insert(Key::Element(*key));
                }
            }
        }
        for family in [Family::Ip, Family::Ip6] {
            if !self.table(family).used && elements.iter().any(|(key, _)| key.family() == family) {
                self.table(family).used = true;
                self.stage_rules(family, staged);
            }
        }
        if !elements.is_empty() {
            self.services
                .insert(service.clone(), elements.iter().map(|(key, _)| *key).collect());
        }
    }

    /// One element that belongs to no service.
    pub(crate) fn want_alone(&mut self, key: ElementKey, wanted: bool, staged: &mut HashSet<Key>) {
        let entry = self.elements.entry(key).or_default();
        let value = wanted.then_some(ElementValue::There);
        if entry.slot.wanted != value {
            entry.slot.wanted = value;
            staged.insert(Key::Element(key));
        }
    }

    /// Where insiders are sent from a place.
    pub(crate) fn redirect(&self, from: Place) -> Option<SocketAddr> {
        SetName::REDIRECTS.into_iter().find_map(|map| {
            let key = ElementKey::Place(map, from);
            match self.elements.get(&key)?.slot.wanted? {
                ElementValue::To(to) => Some(to),
                _ => None,
            }
        })
    }

    /// Places that send insiders elsewhere, and where.
    pub(crate) fn redirects(&self) -> impl Iterator<Item = (Place, SocketAddr)> {
        self.elements
            .iter()
            .filter_map(|(key, entry)| match (key, entry.slot.wanted) {
                (ElementKey::Place(_, from), Some(ElementValue::To(to))) => Some((*from, to)),
                _ => None,
            })
    }

    /// Takes in what the kernel holds. Where a table is not as it should be, nothing is told of its elements.
    pub(crate) fn adopt(&mut self, present: &[PresentTable], staged: &mut HashSet<Key>, adoption: &mut Adoption) {
        for family in [Family::Ip, Family::Ip6] {
            // A table that was written meanwhile had its elements written, too.
            if !adoption.tells(&Key::Rules(family)) {
                continue;
            }
            let found = present.iter().find(|table| table.family == family);
            let table = self.table(family);
            table.used |= found.is_some();
            let right = |wanted: &Arc<Rules>| found.is_some_and(|found| wanted.fingerprints() == found.rules);
            let has = table.wanted.clone().filter(right);
            let stands = table.has == has;
            adoption.take(&mut table.has, has, Key::Rules(family));
            let elements = found.map_or(&[][..], |found| &found.elements);
            for (key, _) in elements {
                self.elements.entry(*key).or_default();
            }
            let elements: HashMap<_, _> = elements.iter().copied().collect();
            for (key, entry) in self.elements.iter_mut().filter(|(key, _)| key.family() == family) {
                let value = elements.get(key).copied().map(timeless);
                if stands {
                    adoption.take(&mut entry.slot.has, value, Key::Element(*key));
                } else {
                    entry.slot.has = value;
                }
            }
        }
        let differ = |entry: &(&ElementKey, &Entry)| entry.1.slot.difference().is_some();
        staged.extend(self.elements.iter().filter(differ).map(|(key, _)| Key::Element(*key)));
        for family in [Family::Ip, Family::Ip6] {
            self.stage_rules(family, staged);
        }
    }

    /// The table is not as it was thought to be.
    pub(crate) fn table_missing(&mut self, family: Family, staged: &mut HashSet<Key>) {
        self.table(family).has = None;
        self.stage_rules(family, staged);
    }

    /// Where a table is to be made anew, its elements are, too.
    fn stage_rules(&mut self, family: Family, staged: &mut HashSet<Key>) {
        if !self.table(family).differs() {
            return;
        }
        staged.insert(Key::Rules(family));
        for (key, entry) in self.elements.iter_mut().filter(|(key, _)| key.family() == family) {
            entry.slot.has = None;
            staged.insert(Key::Element(*key));
        }
    }

    /// What brings an object to its wanted value; `None` where nothing is to be done.
    pub(crate) fn command(&self, key: &Key) -> Option<PolicyCommand> {
        match key {
            Key::Rules(family) => {
                let table = match family {
                    Family::Ip => &self.v4,
                    Family::Ip6 => &self.v6,
                };
                table
                    .differs()
                    .then(|| table.wanted.clone().map(PolicyCommand::Install))?
            }
            Key::Element(key) => Some(match self.elements.get(key)?.slot.difference()? {
                Difference::Add(value) => PolicyCommand::Add(*key, value),
                Difference::Set(value) => PolicyCommand::Replace(*key, value),
                Difference::Delete if self.makes_room(key) => PolicyCommand::Revoke(*key),
                Difference::Delete => PolicyCommand::Delete(*key),
            }),
            _ => None,
        }
    }

    /// Ranges must not overlap, so an old one goes with the transaction that brings the new ones.
    fn makes_room(&self, key: &ElementKey) -> bool {
        let ElementKey::Source(place, _) = key else {
            return false;
        };
        self.elements
            .get(&ElementKey::Place(SetName::Restricted, *place))
            .is_some_and(|entry| entry.slot.wanted.is_some())
    }

    /// The command was executed.
    pub(crate) fn done(&mut self, command: &PolicyCommand) {
        match command {
            PolicyCommand::Install(rules) => self.table(rules.family).has = Some(Arc::clone(rules)),
            PolicyCommand::Add(key, value) | PolicyCommand::Replace(key, value) => {
                self.elements.entry(*key).or_default().slot.has = Some(timeless(*value));
            }
            PolicyCommand::Revoke(key) | PolicyCommand::Delete(key) => self.differs(*key, false),
        }
    }

    /// The element is there with an unknown value, or not there.
    pub(crate) fn differs(&mut self, key: ElementKey, there: bool) {
        self.elements.entry(key).or_default().slot.has = there.then_some(ElementValue::Unknown);
    }

    /// Forgets an element that is neither wanted nor there.
    pub(crate) fn forget_vacant(&mut self, key: &ElementKey) {
        if self.elements.get(key).is_some_and(|entry| entry.slot.is_vacant()) {
            self.elements.remove(key);
        }
    }

    /// Counts tables and elements.
    pub(crate) fn survey(&self, survey: &mut Survey) {
        let tables = survey.of_mut(ObjectKind::Table);
        for table in [&self.v4, &self.v6] {
            tables.add(table.used && table.wanted.is_some(), table.has.is_some());
        }
        let elements = survey.of_mut(ObjectKind::Element);
        for entry in self.elements.values() {
            elements.add(entry.slot.wanted.is_some(), entry.slot.has.is_some());
        }
    }
}

/// How long an element stays is no part of what is compared: it is less every moment.
fn timeless(value: ElementValue) -> ElementValue {
    match value {
        ElementValue::For(_) => ElementValue::There,
        value => value,
    }
}
