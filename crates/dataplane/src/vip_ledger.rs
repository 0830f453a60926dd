//! The ledger's part for VIPs: each a route, and an address on `kube-ipvs0` that is added in the background (L4).

use std::net::IpAddr;

use foldhash::{HashMap, HashSet};
use ipvs::VipCommand;

use crate::adoption::Adoption;
use crate::compile::Priority;
use crate::kernel::Snapshot;
use crate::plan::{Key, Op, Placed};
use crate::slot::{Difference, Slot};
use crate::survey::{ObjectKind, Survey};

/// Routes and addresses.
#[derive(Debug, Default)]
pub(crate) struct VipLedger {
    vips: HashMap<IpAddr, Vip>,
    /// VIPs whose address is to be added to `kube-ipvs0`. Apart, so that a commit does not walk them.
    background: HashSet<IpAddr>,
    /// Addresses on `kube-ipvs0` are wanted at all.
    with_addresses: bool,
}

#[derive(Debug)]
struct Vip {
    /// Wanted virtual servers at this address.
    users: u32,
    priority: Priority,
    route: Slot<()>,
    address: Slot<()>,
}

impl Default for Vip {
    fn default() -> Self {
        Self {
            users: 0,
            priority: Priority::Ordinary,
            route: Slot::default(),
            address: Slot::default(),
        }
    }
}

impl VipLedger {
    /// `with_addresses`: VIPs are addresses on `kube-ipvs0`, too, besides their routes.
    pub(crate) fn new(with_addresses: bool) -> Self {
        Self {
            with_addresses,
            ..Self::default()
        }
    }

    /// One more wanted virtual server is there.
    pub(crate) fn add_user(&mut self, ip: IpAddr, staged: &mut HashSet<Key>) {
        self.vips.entry(ip).or_default().users += 1;
        self.stage(ip, staged);
    }

    /// One less.
    pub(crate) fn remove_user(&mut self, ip: IpAddr, staged: &mut HashSet<Key>) {
        if let Some(vip) = self.vips.get_mut(&ip) {
            vip.users = vip.users.saturating_sub(1);
            self.stage(ip, staged);
        }
    }

    /// A service of this priority is there.
    pub(crate) fn raise_priority(&mut self, ip: IpAddr, priority: Priority) {
        let vip = self.vips.entry(ip).or_default();
        vip.priority = vip.priority.min(priority);
    }

    fn stage(&mut self, ip: IpAddr, staged: &mut HashSet<Key>) {
        let vip = self.vips.entry(ip).or_default();
        let wanted = (vip.users > 0).then_some(());
        vip.route.wanted = wanted;
        vip.address.wanted = wanted.filter(|()| self.with_addresses);
        // A vacant one is staged to be forgotten.
        let vacant = vip.users == 0;
        if vacant {
            vip.priority = Priority::Ordinary;
        }
        if vacant || vip.route.difference().is_some() {
            staged.insert(Key::Route(ip));
        }
        match vip.address.difference() {
            Some(Difference::Add(())) => drop(self.background.insert(ip)),
            None if !vacant => {}
            _ => drop(staged.insert(Key::Address(ip))),
        }
    }

    /// Takes in what the kernel holds.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot, staged: &mut HashSet<Key>, adoption: &mut Adoption) {
        let routes: HashSet<_> = snapshot.routes.iter().copied().collect();
        let addresses: HashSet<_> = snapshot.addresses.iter().copied().collect();
        for ip in routes.union(&addresses) {
            self.vips.entry(*ip).or_default();
        }
        for (ip, vip) in &mut self.vips {
            let there = |of: &HashSet<IpAddr>| of.contains(ip).then_some(());
            adoption.take(&mut vip.route.has, there(&routes), Key::Route(*ip));
            adoption.take(&mut vip.address.has, there(&addresses), Key::Address(*ip));
        }
        for ip in self.vips.keys().copied().collect::<Vec<_>>() {
            self.stage(ip, staged);
        }
    }

    /// It is bound by us, or about to be.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.vips.contains_key(&ip)
    }

    /// The kernel is thought to have this route or address.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.slot(key).is_some_and(|(_, slot)| slot.has.is_some())
    }

    fn slot(&self, key: &Key) -> Option<(&Vip, &Slot<()>)> {
        match key {
            Key::Route(ip) => self.vips.get(ip).map(|vip| (vip, &vip.route)),
            Key::Address(ip) => self.vips.get(ip).map(|vip| (vip, &vip.address)),
            _ => None,
        }
    }

    /// What brings a route or an address to its wanted value; `None` where nothing is to be done.
    pub(crate) fn op(&self, key: &Key) -> Option<Placed> {
        let (vip, slot) = self.slot(key)?;
        let adds = !matches!(slot.difference()?, Difference::Delete);
        let command = match (*key, adds) {
            (Key::Route(ip), true) => VipCommand::AddRoute(ip),
            (Key::Route(ip), false) => VipCommand::DelRoute(ip),
            (Key::Address(ip), true) => VipCommand::AddAddress(ip),
            (Key::Address(ip), false) => VipCommand::DelAddress(ip),
            _ => return None,
        };
        Some(Placed {
            priority: vip.priority,
            rank: 0,
            op: Op::Vip(command),
        })
    }

    /// Addresses that may have to be added to `kube-ipvs0`.
    pub(crate) fn background(&self) -> impl Iterator<Item = Key> {
        self.background.iter().map(|ip| Key::Address(*ip))
    }

    /// Forgets those that are added, or not wanted any more, and tells which.
    pub(crate) fn settle_background(&mut self) -> Vec<Key> {
        let vips = &self.vips;
        let adds = |vip: &Vip| matches!(vip.address.difference(), Some(Difference::Add(())));
        let settled = self.background.extract_if(|ip| !vips.get(ip).is_some_and(adds));
        settled.map(Key::Address).collect()
    }

    /// The command was executed.
    pub(crate) fn done(&mut self, command: VipCommand) {
        match command {
            VipCommand::AddRoute(ip) => self.vips.entry(ip).or_default().route.has = Some(()),
            VipCommand::DelRoute(ip) => self.vips.entry(ip).or_default().route.has = None,
            VipCommand::AddAddress(ip) => self.vips.entry(ip).or_default().address.has = Some(()),
            VipCommand::DelAddress(ip) => self.vips.entry(ip).or_default().address.has = None,
        }
    }

    /// Forgets a VIP that is neither wanted nor there.
    pub(crate) fn forget_vacant(&mut self, ip: IpAddr) {
        let vacant = |vip: &Vip| vip.users == 0 && vip.route.is_vacant() && vip.address.is_vacant();
        if self.vips.get(&ip).is_some_and(vacant) {
            self.vips.remove(&ip);
        }
    }

    /// Counts routes and addresses.
    pub(crate) fn survey(&self, survey: &mut Survey) {
        for vip in self.vips.values() {
            let (route, address) = (&vip.route, &vip.address);
            survey
                .of_mut(ObjectKind::Route)
                .add(route.wanted.is_some(), route.has.is_some());
            survey
                .of_mut(ObjectKind::Address)
                .add(address.wanted.is_some(), address.has.is_some());
        }
    }
}
