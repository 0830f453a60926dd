//! What programs are handed to, in any mode: the seam between the sync thread and a data plane.

use std::net::IpAddr;
use std::time::Instant;

use conntrack::Passes;
use ipvs::Gone;
use service_model::{Family, LocalTraffic, NodePortPlaces, ObjectName, Program};

use crate::adoption::Drift;
use crate::commit::Report;
use crate::engine::DataPlane;
use crate::iptables::Restored;
use crate::kernel::{Kernel, KernelBroken, Snapshot};
use crate::plan::Key;
use crate::survey::Survey;

/// A data plane.
pub trait Plane {
    /// What somebody who looks at the kernel beside the sync thread brings back.
    type Picture: Send + 'static;

    /// Who is who among the clients of a family. Nothing is written yet; repeating it changes nothing.
    fn want_local_traffic(&mut self, family: Family, local: LocalTraffic);

    /// Where NodePorts of a family answer, for who is not told it address by address. Repeating it changes nothing.
    fn want_node_ports(&mut self, family: Family, places: NodePortPlaces);

    /// The addresses of this node's interfaces, for planes that do not get them place by place. Repeating it changes nothing.
    fn want_node_addresses(&mut self, _: &[IpAddr]) {}

    /// What one service is to be from now on. Nothing is written yet.
    fn want(&mut self, service: &ObjectName, program: &Program);

    /// Takes in what the kernel holds: after the first wants and before the first commit, and again after
    /// [`KernelBroken`]. Tells what was not as it was thought to be.
    ///
    /// # Errors
    /// Where the kernel cannot be read.
    fn adopt(&mut self) -> Result<Drift, KernelBroken>;

    /// Writes what is wanted and not there, or a share of about this many ops; [`Report::more`] tells which.
    ///
    /// # Errors
    /// Where the way to the kernel broke: [`Plane::adopt`] before the next commit.
    fn commit(&mut self, now: Instant, ops: usize) -> Result<Report, KernelBroken>;

    /// When there is work for when nothing else waits.
    fn next_background(&self, now: Instant) -> Option<Instant>;

    /// Does a share of it.
    ///
    /// # Errors
    /// As [`Plane::commit`].
    fn background(&mut self, now: Instant) -> Result<Report, KernelBroken>;

    /// When something that was refused is tried again.
    fn next_retry(&self) -> Option<Instant>;

    /// When [`Plane::look`] is to be called.
    fn next_look(&self) -> Option<Instant>;

    /// Looks at what only waits. True where a commit has something to do now.
    ///
    /// # Errors
    /// Where the kernel cannot be read.
    fn look(&mut self, now: Instant) -> Result<bool, KernelBroken>;

    /// Somebody looks from now on.
    fn begin_audit(&mut self);

    /// What he saw. What is to be repaired is written by the next commit.
    fn audited(&mut self, picture: &Self::Picture) -> Drift;

    /// What went was ours, and we did not remove it.
    fn misses(&self, gone: Gone) -> bool;

    /// The service that wants this virtual server.
    fn owner(&self, server: &ipvs::VirtualServer) -> Option<&ObjectName>;

    /// How much there is. Walks everything.
    fn survey(&self) -> Survey;

    /// No flows are looked for before then: what is to be ended waits (L8).
    fn rest_flows(&mut self, until: Instant);

    /// Looks for flows to be ended (L8) so far, of IPv4 and IPv6.
    fn passes(&self) -> [Passes; 2];

    /// Restores of the iptables mode since the last call, those that failed included.
    fn take_restores(&mut self) -> Vec<Restored> {
        Vec::new()
    }

    /// Real servers that drain.
    fn draining(&self) -> usize;
}

impl<K: Kernel> Plane for DataPlane<K> {
    type Picture = Snapshot;

    fn want_local_traffic(&mut self, family: Family, local: LocalTraffic) {
        DataPlane::want_local_traffic(self, family, local);
    }

    fn want_node_ports(&mut self, _: Family, _: NodePortPlaces) {}

    fn want(&mut self, service: &ObjectName, program: &Program) {
        DataPlane::want(self, service, program);
    }

    fn adopt(&mut self) -> Result<Drift, KernelBroken> {
        DataPlane::adopt(self)
    }

    fn commit(&mut self, now: Instant, ops: usize) -> Result<Report, KernelBroken> {
        self.commit_share(now, ops)
    }

    fn next_background(&self, now: Instant) -> Option<Instant> {
        self.ledger().next_background(now)
    }

    fn background(&mut self, now: Instant) -> Result<Report, KernelBroken> {
        self.commit_addresses(now)
    }

    fn next_retry(&self) -> Option<Instant> {
        self.ledger().next_retry()
    }

    fn next_look(&self) -> Option<Instant> {
        self.ledger().next_look()
    }

    fn look(&mut self, now: Instant) -> Result<bool, KernelBroken> {
        self.look_at_drains(now)
    }

    fn begin_audit(&mut self) {
        DataPlane::begin_audit(self);
    }

    fn audited(&mut self, picture: &Snapshot) -> Drift {
        DataPlane::audited(self, picture)
    }

    fn misses(&self, gone: Gone) -> bool {
        match gone {
            Gone::Device | Gone::Unknown => true,
            Gone::Route(ip) => self.ledger().has_vip(&Key::Route(ip)),
            Gone::Address(ip) => self.ledger().has_vip(&Key::Address(ip)),
        }
    }

    fn owner(&self, server: &ipvs::VirtualServer) -> Option<&ObjectName> {
        self.ledger().owner(server)
    }

    fn survey(&self) -> Survey {
        self.ledger().survey()
    }

    fn rest_flows(&mut self, until: Instant) {
        DataPlane::rest_flows(self, until);
    }

    fn passes(&self) -> [Passes; 2] {
        self.kernel().passes()
    }

    fn draining(&self) -> usize {
        self.ledger().draining()
    }
}
