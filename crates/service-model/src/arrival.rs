//! What came in since it was last asked for: numbers for metrics, and when the changes of endpoints were triggered.

use rustc_hash::FxHashMap;

use crate::name::ObjectName;
use crate::object::Family;

/// Changes that came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Events of Services, those that changed nothing included.
    pub services: u64,
    /// Events of EndpointSlices that count for a service, those that changed nothing included.
    pub endpoint_slices: u64,
    /// Services that changed or went, each change counted.
    pub changed_services: u64,
    /// EndpointSlices that changed or went, each change counted.
    pub changed_endpoint_slices: u64,
    /// When a change of an EndpointSlice was triggered, in nanoseconds since 1970, by its service. Not of the first list,
    /// which tells of changes long past, and not of what went: its time is that of the change before.
    pub triggers: FxHashMap<ObjectName, Vec<(Family, i64)>>,
}

impl Arrivals {
    pub(crate) fn slice_changed(&mut self, service: &ObjectName, trigger: Option<(Family, i64)>) {
        self.changed_endpoint_slices += 1;
        if let Some(trigger) = trigger {
            self.triggers.entry(service.clone()).or_default().push(trigger);
        }
    }

    pub(crate) fn slice_went(&mut self, service: &ObjectName) {
        self.changed_endpoint_slices += 1;
        self.triggers.remove(service);
    }
}
