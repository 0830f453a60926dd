//! How much the ledger holds, and whose each virtual server is: one walk over all of it.

use service_model::ObjectName;

use super::Ledger;
use crate::plan::Key;
use crate::survey::{ObjectKind, Survey};

impl Ledger {
    /// Counts everything, which is not for a commit to do.
    pub fn survey(&self) -> Survey {
        let mut survey = Survey::default();
        for (server, entry) in &self.servers {
            let virtual_servers = survey.of_mut(ObjectKind::VirtualServer);
            virtual_servers.add(entry.slot.wanted.is_some(), entry.slot.has.is_some());
            let real_servers = survey.of_mut(ObjectKind::RealServer);
            for real in &entry.real_servers {
                real_servers.add(real.slot.wanted.is_some(), real.slot.has.is_some());
            }
            if let Some(owner) = entry.owner.as_ref().filter(|_| entry.slot.wanted.is_some()) {
                survey.owners.push((*server, ObjectName::clone(owner)));
            }
        }
        self.vips.survey(&mut survey);
        self.policies.survey(&mut survey);
        for (key, _) in self.refused.iter() {
            if let Some(kind) = ObjectKind::of(key) {
                survey.of_mut(kind).refused += 1;
            }
        }
        survey.draining = self.drains.len();
        survey
    }
}

impl ObjectKind {
    fn of(key: &Key) -> Option<Self> {
        Some(match key {
            Key::Rules(_) => Self::Table,
            Key::Element(_) => Self::Element,
            Key::VirtualServer(_) => Self::VirtualServer,
            Key::RealServer(..) => Self::RealServer,
            Key::Route(_) => Self::Route,
            Key::Address(_) => Self::Address,
            // What is in the connection tracker is no object of ours.
            Key::Flows(_) => return None,
        })
    }
}
