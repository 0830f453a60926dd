//! What came in: numbers for metrics, and when the changes of endpoints were triggered.

use foldhash::HashMap;

use crate::name::ObjectName;
use crate::object::Family;

/// All that came in so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Events of Services, those that changed nothing included.
    pub services: u64,
    /// Events of EndpointSlices that count for a service, those that changed nothing included.
    pub endpoint_slices: u64,
    /// What is not programmed yet.
    pub pending: Pending,
}

/// Changes since somebody took them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Services that changed or went, each change counted.
    pub services: u64,
    /// EndpointSlices that changed or went, each change counted.
    pub endpoint_slices: u64,
    /// When a change of an EndpointSlice was triggered, in nanoseconds since 1970, by its service. Not of the first list,
    /// which tells of changes long past, and not of what went: its time is that of the change before.
    pub triggers: HashMap<ObjectName, Vec<(Family, i64)>>,
}

impl Pending {
    pub(crate) fn slice_changed(&mut self, service: &ObjectName, trigger: Option<(Family, i64)>) {
        self.endpoint_slices += 1;
        if let Some(trigger) = trigger {
            self.triggers.entry(service.clone()).or_default().push(trigger);
        }
    }

    /// What waits of the service goes along, as in kube-proxy.
    pub(crate) fn slice_went(&mut self, service: &ObjectName) {
        self.endpoint_slices += 1;
        self.triggers.remove(service);
    }
}
