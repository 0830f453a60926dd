//! The data plane behind four calls: adopt, want, commit, commit addresses.

use std::time::{Duration, Instant};

use service_model::{Family, LocalTraffic, ObjectName, Program};

use crate::adoption::Drift;
use crate::commit::{Report, commit};
use crate::compile::{compile, priority};
use crate::kernel::{Kernel, KernelBroken, Snapshot};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::rules::Rules;

/// How often a commit plans again at once because the kernel was not as the ledger said. A table that somebody else
/// changes all the time must not hold the thread.
const ROUNDS: usize = 4;

/// Addresses added to `kube-ipvs0` between two looks at what else is to be done. Adding is quadratic in the kernel
/// (net/ipv4/devinet.c `__inet_insert_ifa` walks the device's list), so the share is small.
const ADDRESS_SHARE: usize = 128;

/// What does not change while the process runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// VIPs are addresses on `kube-ipvs0`, too, besides their routes (L4).
    pub with_addresses: bool,
    /// The bit of a packet's mark that means masquerading, from 0 (`iptables.masqueradeBit`).
    pub masquerade_bit: u8,
    /// How long a TCP real server that is gone may keep its connections; zero = as long as they live (L5).
    pub drain_timeout: Duration,
    /// The families that the node has; the policy tables of the others are not made.
    pub families: &'static [Family],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            with_addresses: true,
            masquerade_bit: 14,
            drain_timeout: Duration::from_secs(15 * 60),
            families: Family::BOTH,
        }
    }
}

/// The wanted state, the kernel, and what is known of it.
#[derive(Debug)]
pub struct DataPlane<K> {
    ledger: Ledger,
    masquerade_bit: u8,
    families: &'static [Family],
    kernel: K,
}

impl<K: Kernel> DataPlane<K> {
    /// Over a kernel of which nothing is known yet.
    pub fn new(kernel: K, settings: Settings) -> Self {
        let mut plane = Self {
            ledger: Ledger::new(settings.with_addresses, settings.drain_timeout),
            masquerade_bit: settings.masquerade_bit,
            families: settings.families,
            kernel,
        };
        for family in settings.families {
            plane.want_local_traffic(*family, LocalTraffic::default());
        }
        plane
    }

    /// Who is who among the clients of a family. Nothing is written yet; repeating it changes nothing, and so does a family
    /// that the node has not.
    pub fn want_local_traffic(&mut self, family: Family, local: LocalTraffic) {
        if !self.families.contains(&family) {
            return;
        }
        self.ledger.want_rules(Rules {
            family: table_family(family),
            masquerade_bit: self.masquerade_bit,
            local,
        });
    }

    /// Reads the kernel into the ledger (L2), and tells what was not as the ledger said. To be called after the first [`DataPlane::want`]s and before the first
    /// commit, and again after [`KernelBroken`].
    ///
    /// # Errors
    /// Where the kernel cannot be read.
    pub fn adopt(&mut self) -> Result<Drift, KernelBroken> {
        let snapshot = self.kernel.read()?;
        self.ledger.forget_missing_schedulers();
        Ok(self.ledger.adopt(&snapshot))
    }

    /// Somebody reads the kernel from now on, beside this thread; [`DataPlane::audited`] takes it in (L9).
    pub fn begin_audit(&mut self) {
        self.ledger.watch_writes();
    }

    /// Takes in what the kernel was found to hold since [`DataPlane::begin_audit`]. What is to be repaired is written by
    /// the next commit.
    pub fn audited(&mut self, snapshot: &Snapshot) -> Drift {
        self.ledger.adopt(snapshot)
    }

    /// What one service is to be from now on. Nothing is written yet.
    pub fn want(&mut self, service: &ObjectName, program: &Program) {
        let mut objects = compile(program);
        // A family that the node has not has no table either.
        let has = |family| self.families.iter().any(|of| table_family(*of) == family);
        objects.elements.retain(|(key, _)| has(key.family()));
        self.ledger.want(service, priority(service, program), &objects);
    }

    /// What a commit would do now, the addresses on `kube-ipvs0` included, all of them.
    pub fn plan(&mut self, now: Instant) -> Plan {
        let mut plan = self.ledger.plan(now);
        plan.append(self.ledger.plan_addresses(now, usize::MAX));
        plan
    }

    /// Writes what is staged, all of it. Nothing staged = no system call.
    ///
    /// # Errors
    /// Where the way to the kernel broke: [`DataPlane::adopt`] before the next commit.
    pub fn commit(&mut self, now: Instant) -> Result<Report, KernelBroken> {
        self.commit_share(now, usize::MAX)
    }

    /// Writes a share of what is staged, of about this many ops, each service in its turn; [`Report::more`] tells whether
    /// another one is to follow. Between two shares anything may be wanted.
    ///
    /// # Errors
    /// As [`DataPlane::commit`].
    pub fn commit_share(&mut self, now: Instant, ops: usize) -> Result<Report, KernelBroken> {
        let mut report = Report::default();
        let mut left = ops;
        for _ in 0..ROUNDS {
            let plan = self.ledger.plan_share(now, left);
            if plan.is_empty() {
                break;
            }
            left = left.saturating_sub(plan.ops().len());
            report.append(commit(&plan, &mut self.ledger, &mut self.kernel, now)?);
        }
        report.fallen_back = self.ledger.take_fallen_back();
        report.more = left == 0 || self.ledger.has_more();
        report.caught_up = self.ledger.is_caught_up();
        debug_assert!(
            report.surprised || report.more || self.ledger.plan(now).is_empty(),
            "planning again after a commit gives nothing"
        );
        Ok(report)
    }

    /// No UDP flows are looked for before then; [`Ledger::next_retry`] tells when there are some that wait.
    pub fn rest_flows(&mut self, until: Instant) {
        self.ledger.rest_flows(until);
    }

    /// Looks at the real servers that drain: to be called when [`Ledger::next_look`] says so. True where one may go, with
    /// the next commit.
    ///
    /// # Errors
    /// Where the kernel cannot be read: as [`DataPlane::commit`].
    pub fn look_at_drains(&mut self, now: Instant) -> Result<bool, KernelBroken> {
        let mut over = false;
        for server in self.ledger.begin_look(now) {
            let connections = self.kernel.connections(&server)?;
            over |= self.ledger.look(&server, &connections, now);
        }
        Ok(over)
    }

    /// Adds some addresses to `kube-ipvs0`: to be called when nothing else waits, until
    /// [`DataPlane::has_addresses_to_add`] says no.
    ///
    /// # Errors
    /// As [`DataPlane::commit`].
    pub fn commit_addresses(&mut self, now: Instant) -> Result<Report, KernelBroken> {
        let plan = self.ledger.plan_addresses(now, ADDRESS_SHARE);
        commit(&plan, &mut self.ledger, &mut self.kernel, now)
    }

    /// There is background work.
    pub fn has_addresses_to_add(&self, now: Instant) -> bool {
        self.ledger.has_addresses_to_add(now)
    }

    /// What we want and what the kernel has.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, to be changed behind the ledger's back: for tests.
    #[cfg(any(test, feature = "test-util"))]
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }
}

fn table_family(family: Family) -> nftables::Family {
    match family {
        Family::V4 => nftables::Family::Ip,
        Family::V6 => nftables::Family::Ip6,
    }
}

#[cfg(test)]
mod tests;
