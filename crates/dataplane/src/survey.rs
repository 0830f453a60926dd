//! How much a data plane holds, for the log and for metrics: a count of each kind of object, and whose each virtual
//! server is. A survey walks everything and is made when nothing else waits.

use ipvs::VirtualServer;
use service_model::{Family, ObjectName};

use crate::iptables::Table;

/// A kind of object in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// Virtual servers.
    VirtualServer,
    /// Real servers.
    RealServer,
    /// Local routes of VIPs.
    Route,
    /// Addresses on `kube-ipvs0`.
    Address,
    /// Policy tables.
    Table,
    /// Elements of the policy tables.
    Element,
}

impl ObjectKind {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::VirtualServer,
        Self::RealServer,
        Self::Route,
        Self::Address,
        Self::Table,
        Self::Element,
    ];

    /// As in labels: `virtual_server`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VirtualServer => "virtual_server",
            Self::RealServer => "real_server",
            Self::Route => "route",
            Self::Address => "address",
            Self::Table => "table",
            Self::Element => "element",
        }
    }
}

/// Objects of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Wanted.
    pub wanted: usize,
    /// In the kernel, as far as it is known; those that drain included.
    pub present: usize,
    /// Refused by the kernel, and waiting for the next try.
    pub refused: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, wanted: bool, present: bool) {
        self.wanted += usize::from(wanted);
        self.present += usize::from(present);
    }
}

/// What a survey found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// By [`ObjectKind`].
    pub counts: [Counts; ObjectKind::ALL.len()],
    /// Real servers that drain.
    pub draining: usize,
    /// Rules of the iptables mode.
    pub rules: Vec<(Family, Table, usize)>,
    /// Wanted virtual servers, each with the service that wants it, in no order.
    pub owners: Vec<(VirtualServer, ObjectName)>,
}

impl Survey {
    /// The counts of a kind.
    pub fn of(&self, kind: ObjectKind) -> Counts {
        self.counts.get(kind as usize).copied().unwrap_or_default()
    }

    pub(crate) fn of_mut(&mut self, kind: ObjectKind) -> &mut Counts {
        // Kinds are numbered from 0 and all of them are counted.
        self.counts.get_mut(kind as usize).expect("a count of each kind")
    }
}
