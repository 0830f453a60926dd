//! Who may answer at an address, port and protocol where two services want to (T19).

use std::collections::BTreeSet;
use std::collections::hash_map;
use std::ops::Bound;

use foldhash::HashMap;
use smallvec::SmallVec;

use crate::frontend::{AddressKind, FrontendKey};
use crate::name::ObjectName;
use crate::step::step;

/// One service's wish to answer at a place. Ordered by precedence: kind, age, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) kind: AddressKind,
    pub(crate) created: i64,
    pub(crate) service: ObjectName,
}

/// The claims of one place: most places have one.
#[derive(Debug)]
struct Place {
    holder: Claim,
    /// Those who come after, in their order.
    waiting: BTreeSet<Claim>,
}

/// Services for which a change of a place means something. Whoever waits further behind hears nothing of it, so that a
/// place that many want costs no more than one that two want.
pub(crate) type Concerned = SmallVec<[ObjectName; 2]>;

/// What a claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing<'a> {
    /// It holds the place.
    Holds,
    /// This one holds the place, and comes right before.
    After(&'a ObjectName),
    /// Some other one holds the place, and this one, which waits as well, comes right before.
    Behind(&'a ObjectName),
}

/// All claims, by place.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    places: HashMap<FrontendKey, Place>,
}

impl Claims {
    /// The claim that holds the place.
    pub(crate) fn holder(&self, key: &FrontendKey) -> Option<&Claim> {
        self.places.get(key).map(|place| &place.holder)
    }

    /// How a claim stands, which was added or not.
    pub(crate) fn standing(&self, key: &FrontendKey, claim: &Claim) -> Standing<'_> {
        match self.places.get(key) {
            None => Standing::Holds,
            Some(place) if place.holder >= *claim => Standing::Holds,
            Some(place) => match place.waiting.range(..claim).next_back() {
                None => Standing::After(&place.holder.service),
                Some(before) => Standing::Behind(&before.service),
            },
        }
    }

    /// Adds a claim, one per service and place. Returns the services that stand otherwise from now on; none where it was
    /// there.
    pub(crate) fn add(&mut self, key: FrontendKey, claim: Claim) -> Concerned {
        match self.places.entry(key) {
            hash_map::Entry::Vacant(free) => {
                free.insert(Place {
                    holder: claim,
                    waiting: BTreeSet::new(),
                });
                Concerned::new()
            }
            hash_map::Entry::Occupied(mut place) => place.get_mut().add(&claim),
        }
    }

    /// Takes a claim away. Returns the services that stand otherwise from now on; none where it was not there.
    pub(crate) fn remove(&mut self, key: &FrontendKey, claim: &Claim) -> Concerned {
        let hash_map::Entry::Occupied(mut place) = self.places.entry(*key) else {
            return Concerned::new();
        };
        let claims = place.get_mut();
        if claims.holder != *claim {
            return if claims.waiting.remove(claim) {
                claims.followers(claim)
            } else {
                Concerned::new()
            };
        }
        match claims.waiting.pop_first() {
            None => {
                place.remove();
                Concerned::new()
            }
            Some(next) => {
                claims.holder = next;
                claims.followers(claim)
            }
        }
    }
}

impl Place {
    fn add(&mut self, claim: &Claim) -> Concerned {
        if *claim == self.holder {
            return Concerned::new();
        }
        if *claim < self.holder {
            let before = std::mem::replace(&mut self.holder, claim.clone());
            self.waiting.insert(before);
        } else if !self.waiting.insert(claim.clone()) {
            return Concerned::new();
        }
        self.followers(claim)
    }

    /// The two claims that come after one: their rejections name the claim right before them, which may hold the place.
    fn followers(&self, claim: &Claim) -> Concerned {
        let after = (Bound::Excluded(claim), Bound::Unbounded);
        let holder = Some(&self.holder).filter(|holder| *holder > claim);
        holder
            .into_iter()
            .chain(self.waiting.range::<Claim, _>(after))
            .take(2)
            .map(|claim| {
                step();
                claim.service.clone()
            })
            .collect()
    }
}
