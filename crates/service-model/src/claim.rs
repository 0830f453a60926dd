//! Who may answer at an address, port and protocol where two services want to (T19).

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::frontend::{AddressKind, FrontendKey};
use crate::name::ObjectName;

/// One service's wish to answer at a place. Ordered by precedence: kind, age, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) kind: AddressKind,
    pub(crate) created: i64,
    pub(crate) service: ObjectName,
}

/// All claims, by place.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    places: FxHashMap<FrontendKey, SmallVec<[Claim; 1]>>,
}

impl Claims {
    /// The claim that holds the place.
    pub(crate) fn holder(&self, key: &FrontendKey) -> Option<&Claim> {
        self.places.get(key)?.first()
    }

    /// Adds a claim, one per service and place. Returns the services that share the place.
    pub(crate) fn add(&mut self, key: FrontendKey, claim: Claim) -> impl Iterator<Item = &ObjectName> {
        let place = self.places.entry(key).or_default();
        let at = place.partition_point(|other| *other < claim);
        let service = claim.service.clone();
        place.insert(at, claim);
        place
            .iter()
            .map(|other| &other.service)
            .filter(move |other| **other != service)
    }

    /// Takes a service's claim away. Returns the services that still want the place.
    pub(crate) fn remove(&mut self, key: &FrontendKey, service: &ObjectName) -> SmallVec<[ObjectName; 1]> {
        let Some(place) = self.places.get_mut(key) else {
            return SmallVec::new();
        };
        place.retain(|claim| claim.service != *service);
        let rest = place.iter().map(|claim| claim.service.clone()).collect();
        if place.is_empty() {
            self.places.remove(key);
        }
        rest
    }
}
