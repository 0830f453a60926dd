//! One virtual server of the ledger, with its real servers.

use std::net::IpAddr;
use std::time::Duration;

use foldhash::{HashMap, HashSet};
use ipvs::{RealServer, RealServerConfig, VirtualServer, VirtualServerConfig};
use service_model::ObjectName;

use crate::adoption::Adoption;
use crate::compile::Priority;
use crate::kernel::PresentServer;
use crate::plan::Key;
use crate::slot::Slot;

/// A virtual server.
#[derive(Debug)]
pub(crate) struct ServerEntry {
    pub(crate) slot: Slot<VirtualServerConfig>,
    /// The service that wants it.
    pub(crate) owner: Option<ObjectName>,
    pub(crate) vip: Option<IpAddr>,
    pub(crate) priority: Priority,
    /// What its service says of its real servers' draining.
    pub(crate) drain_timeout: Option<Duration>,
    /// Sorted by address.
    pub(crate) real_servers: Vec<RealEntry>,
}

/// A real server.
#[derive(Debug)]
pub(crate) struct RealEntry {
    pub(crate) server: RealServer,
    pub(crate) slot: Slot<RealServerConfig>,
    /// Place among the others (T23).
    pub(crate) rank: u32,
}

impl Default for ServerEntry {
    fn default() -> Self {
        Self {
            slot: Slot::default(),
            owner: None,
            vip: None,
            priority: Priority::Ordinary,
            drain_timeout: None,
            real_servers: Vec::new(),
        }
    }
}

impl ServerEntry {
    pub(crate) fn real(&self, server: RealServer) -> Option<&RealEntry> {
        self.real_servers
            .binary_search_by_key(&server, |real| real.server)
            .ok()
            .and_then(|i| self.real_servers.get(i))
    }

    /// The real server's slot, made where it is missing.
    pub(crate) fn real_mut(&mut self, server: RealServer) -> &mut RealEntry {
        let at = match self.real_servers.binary_search_by_key(&server, |real| real.server) {
            Ok(at) => at,
            Err(at) => {
                self.real_servers.insert(
                    at,
                    RealEntry {
                        server,
                        slot: Slot::default(),
                        rank: 0,
                    },
                );
                at
            }
        };
        self.real_servers
            .get_mut(at)
            .expect("the place was found or just filled")
    }

    /// Makes slots for these real servers where they are missing, all in one pass.
    pub(crate) fn make_room(&mut self, servers: impl Iterator<Item = RealServer>) {
        let missing: Vec<_> = servers.filter(|server| self.real(*server).is_none()).collect();
        if missing.is_empty() {
            return;
        }
        self.real_servers.reserve_exact(missing.len());
        self.real_servers.extend(missing.into_iter().map(|server| RealEntry {
            server,
            slot: Slot::default(),
            rank: 0,
        }));
        self.real_servers.sort_by_key(|real| real.server);
        self.real_servers.dedup_by_key(|real| real.server);
    }

    /// The real servers that are wanted from now on, in order (T23). True where one came or went.
    pub(crate) fn want_reals(
        &mut self,
        server: VirtualServer,
        reals: &[(RealServer, RealServerConfig)],
        staged: &mut HashSet<Key>,
    ) -> bool {
        // Sorted, so that each side is walked once whatever the number of endpoints.
        let mut wanted: Vec<_> = reals
            .iter()
            .zip(0..)
            .map(|((real, config), rank)| (*real, *config, rank))
            .collect();
        wanted.sort_unstable_by_key(|(real, ..)| *real);
        let mut moved = false;
        for real in &mut self.real_servers {
            let gone = wanted.binary_search_by_key(&real.server, |(real, ..)| *real).is_err();
            if gone && real.slot.wanted.take().is_some() {
                moved = true;
                staged.insert(Key::RealServer(server, real.server));
            }
        }
        self.make_room(wanted.iter().map(|(real, ..)| *real));
        for (real, config, rank) in wanted {
            let entry = self.real_mut(real);
            entry.rank = rank;
            if entry.slot.wanted != Some(config) {
                moved |= entry.slot.wanted.is_none();
                entry.slot.wanted = Some(config);
                staged.insert(Key::RealServer(server, real));
            }
        }
        moved
    }

    /// Nobody wants it any more.
    pub(crate) fn release(&mut self) {
        self.owner = None;
        self.slot.wanted = None;
        self.real_servers.iter_mut().for_each(|real| real.slot.wanted = None);
    }

    /// Takes in what the kernel holds of it; `None` = nothing.
    pub(crate) fn adopt(&mut self, server: VirtualServer, present: Option<&PresentServer>, adoption: &mut Adoption) {
        let config = present.map(|present| present.config);
        adoption.take(&mut self.slot.has, config, Key::VirtualServer(server));
        let reals = present.map_or(&[][..], |present| &present.real_servers);
        self.make_room(reals.iter().map(|(real, _)| *real));
        let reals: HashMap<_, _> = reals.iter().copied().collect();
        for real in &mut self.real_servers {
            let config = reals.get(&real.server).copied();
            adoption.take(&mut real.slot.has, config, Key::RealServer(server, real.server));
        }
    }

    /// Stages what differs. True where something does.
    pub(crate) fn stage(&self, server: VirtualServer, staged: &mut HashSet<Key>) -> bool {
        let before = staged.len();
        if self.slot.difference().is_some() {
            staged.insert(Key::VirtualServer(server));
        }
        let differ = self.real_servers.iter().filter(|real| real.slot.difference().is_some());
        staged.extend(differ.map(|real| Key::RealServer(server, real.server)));
        staged.len() > before
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use ipvs::{Flags, Protocol};

    use super::*;

    /// Audit F29: each one that was made room for by itself moved those behind it. Room that is made at once is exact.
    #[test]
    fn f29_real_servers_that_are_found_are_taken_in_at_once() {
        const NUMBER: u16 = 10_000;
        let server = VirtualServer::Address {
            address: [10, 0, 0, 1].into(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        let real = |port| RealServer {
            address: SocketAddr::from(([10, 1, 0, 1], port)),
        };
        let config = RealServerConfig::masquerade(1);
        let found = PresentServer {
            server,
            config: VirtualServerConfig {
                scheduler: ipvs::SchedulerName::new("rr").unwrap(),
                flags: Flags::default(),
                persistence: None,
            },
            real_servers: (1..=NUMBER).rev().map(|port| (real(port), config)).collect(),
        };
        let mut entry = ServerEntry::default();
        entry.adopt(server, Some(&found), &mut Adoption::default());
        assert_eq!(entry.real_servers.len(), usize::from(NUMBER));
        assert_eq!(entry.real_servers.capacity(), usize::from(NUMBER));
        assert!(entry.real_servers.is_sorted_by_key(|real| real.server));
        let mut staged = HashSet::default();
        assert!(!entry.want_reals(server, &[], &mut staged), "nobody wanted them");
        assert!(entry.stage(server, &mut staged));
        assert_eq!(staged.len(), usize::from(NUMBER) + 1);
    }
}
