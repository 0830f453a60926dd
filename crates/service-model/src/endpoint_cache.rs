//! EndpointSlices of one service, folded: the addresses with their conditions, and nothing that is not used.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

use crate::event::Kind;
use crate::face::forbidden;
use crate::frontend::Rejection;
use crate::name::ObjectName;
use crate::object::{Endpoint, EndpointPort, EndpointSlice, Family, InvalidField, Protocol, ServicePort};
use crate::policy::{Candidate, Hints};
use crate::step::step;

/// A slice as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    name: ObjectName,
    family: Family,
    ports: SmallVec<[EndpointPort; 1]>,
    endpoints: Box<[Folded]>,
    /// The sets of zones that its endpoints' hints name, in the order in which they come. They go with the slice (audit F11).
    zones: Box<[Zones]>,
    invalid: Box<[InvalidField]>,
}

/// An endpoint as it is kept: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Folded {
    address: IpAddr,
    /// `LOCAL` and so on.
    bits: u8,
    /// The number of its set of zone hints among those of the slice, from 1; 0 = none.
    zones: u32,
}

impl Folded {
    fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }
}

const LOCAL: u8 = 1;
const READY: u8 = 2;
const SERVING: u8 = 4;
const TERMINATING: u8 = 8;
const NODE_HINTS: u8 = 16;
const NODE_HINTED: u8 = 32;
/// It names its node.
const PLACED: u8 = 64;

/// A set of zones that hints name.
type Zones = SmallVec<[Box<str>; 1]>;

/// What the hints for a set of zones are in a zone.
fn hints(zones: &Zones, zone: &str) -> Hints {
    if !zone.is_empty() && zones.iter().any(|hinted| &**hinted == zone) {
        Hints::Us
    } else {
        Hints::Others
    }
}

/// Numbers the sets of a slice while it is folded: a slice has few sets, and many endpoints.
#[derive(Default)]
struct Numbering {
    numbers: HashMap<Zones, u32>,
    sets: Vec<Zones>,
}

impl Numbering {
    fn number(&mut self, zones: Zones) -> u32 {
        if zones.is_empty() {
            return 0;
        }
        *self.numbers.entry(zones).or_insert_with_key(|zones| {
            self.sets.push(zones.clone());
            u32::try_from(self.sets.len()).unwrap_or(0)
        })
    }
}

impl Slice {
    /// Folds a slice; `None` for one that counts for nothing: headless, FQDN, or without a service.
    pub(crate) fn fold(slice: EndpointSlice, node: &str) -> Option<Self> {
        if slice.headless_label || slice.service.is_empty() {
            return None;
        }
        let family = slice.family?;
        let mut invalid = slice.invalid;
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        let mut zones = Numbering::default();
        for (number, endpoint) in slice.endpoints.into_iter().enumerate() {
            match refuse(endpoint.address, family) {
                Some(why) => invalid.push(InvalidField {
                    field: format!("endpoints[{number}].addresses[0]").into(),
                    reason: format!("{} {why}", endpoint.address).into(),
                }),
                None => endpoints.push(fold_endpoint(endpoint, node, &mut zones)),
            }
        }
        Some(Self {
            name: slice.name,
            family,
            ports: slice.ports,
            endpoints: endpoints.into(),
            zones: zones.sets.into(),
            invalid: invalid.into(),
        })
    }

    pub(crate) fn name(&self) -> &ObjectName {
        &self.name
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// Some endpoint has hints for zones: a change of this node's zone matters.
    pub(crate) fn has_zone_hints(&self) -> bool {
        !self.zones.is_empty()
    }

    pub(crate) fn rejections(&self) -> impl Iterator<Item = Rejection> {
        self.invalid.iter().map(|invalid| Rejection {
            kind: Kind::EndpointSlice,
            object: self.name.clone(),
            field: invalid.field.clone(),
            reason: invalid.reason.clone(),
        })
    }
}

fn fold_endpoint(endpoint: Endpoint, node: &str, zones: &mut Numbering) -> Folded {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    Folded {
        address: endpoint.address,
        bits: bit(endpoint.node_name.is_some(), PLACED)
            | bit(endpoint.node_name.as_deref() == Some(node), LOCAL)
            | bit(endpoint.ready, READY)
            | bit(endpoint.serving, SERVING)
            | bit(endpoint.terminating, TERMINATING)
            | bit(!endpoint.node_hints.is_empty(), NODE_HINTS)
            | bit(endpoint.node_hints.iter().any(|hint| &**hint == node), NODE_HINTED),
        zones: zones.number(endpoint.zone_hints),
    }
}

/// Why an address cannot be an endpoint's.
fn refuse(address: IpAddr, family: Family) -> Option<&'static str> {
    let matches = matches!(
        (address, family),
        (IpAddr::V4(_), Family::V4) | (IpAddr::V6(_), Family::V6)
    );
    if matches {
        forbidden(address)
    } else {
        Some("is not of the slice's addressType")
    }
}

/// A slice, and the number that it gives a port.
type Numbered<'a> = (&'a Slice, u16);

/// The slices of a service by what a service port looks for, so that each port meets its own endpoints alone.
pub(crate) struct Endpoints<'a> {
    by_port: HashMap<(Family, &'a str, Protocol), Vec<Numbered<'a>>>,
    zone: &'a str,
}

impl<'a> Endpoints<'a> {
    /// Of these slices, seen from a zone.
    pub(crate) fn new(slices: &'a [Slice], zone: &'a str) -> Self {
        let mut by_port: HashMap<_, Vec<_>> = HashMap::default();
        for slice in slices {
            let mut seen = HashSet::default();
            for port in &slice.ports {
                step();
                if seen.insert((&port.name, port.protocol, port.port)) {
                    let key = (slice.family, &*port.name, port.protocol);
                    by_port.entry(key).or_default().push((slice, port.port));
                }
            }
        }
        Self { by_port, zone }
    }

    /// The endpoints of one service port and family, sorted by address; of one that is named several times, the copy that
    /// counts most. Neither the order of slices nor their names matter.
    pub(crate) fn candidates(&self, family: Family, port: &ServicePort) -> Vec<Candidate> {
        let mut all: BTreeMap<SocketAddr, (Precedence, Candidate)> = BTreeMap::new();
        let slices = self.by_port.get(&(family, &*port.name, port.protocol));
        for (slice, number) in slices.into_iter().flatten() {
            let hinted: Vec<_> = slice.zones.iter().map(|zones| hints(zones, self.zone)).collect();
            for endpoint in &slice.endpoints {
                step();
                let candidate = candidate(endpoint, *number, &hinted);
                let copy = (precedence(&candidate, endpoint.has(PLACED)), candidate);
                let place = all.entry(candidate.address).or_insert(copy);
                if place.0 < copy.0 {
                    *place = copy;
                }
            }
        }
        all.into_values().map(|(_, candidate)| candidate).collect()
    }
}

/// `hinted`: what the zone hints of each set of the slice are.
fn candidate(endpoint: &Folded, port: u16, hinted: &[Hints]) -> Candidate {
    let set = usize::try_from(endpoint.zones)
        .ok()
        .and_then(|number| number.checked_sub(1));
    Candidate {
        address: SocketAddr::new(endpoint.address, port),
        local: endpoint.has(LOCAL),
        ready: endpoint.has(READY),
        serving: endpoint.has(SERVING),
        terminating: endpoint.has(TERMINATING),
        node_hints: match (endpoint.has(NODE_HINTS), endpoint.has(NODE_HINTED)) {
            (false, _) => Hints::None,
            (true, false) => Hints::Others,
            (true, true) => Hints::Us,
        },
        zone_hints: set.and_then(|set| hinted.get(set)).copied().unwrap_or_default(),
    }
}

/// What a copy of an endpoint says for itself, greatest first: it is ready; it serves; it does not terminate; it names its
/// node; that is this one; and, so that equal ones are the same, its hints. kube-proxy 1.37 takes one that does not
/// terminate, else whichever came (endpointslicecache.go:235-249).
type Precedence = (bool, bool, bool, bool, bool, Hints, Hints);

fn precedence(copy: &Candidate, placed: bool) -> Precedence {
    (
        copy.ready,
        copy.serving,
        !copy.terminating,
        placed,
        copy.local,
        copy.node_hints,
        copy.zone_hints,
    )
}
