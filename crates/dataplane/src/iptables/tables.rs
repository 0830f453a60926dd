//! The ledger of the iptables mode: what every service is to be, what of it is not written yet, and the restore text
//! that writes it.

use std::collections::{BTreeMap, BTreeSet};

use service_model::{Family, LocalTraffic, NodePortPlaces, ObjectName, Program};

use super::base::{Base, FIREWALL, Jump, jumps};
use super::chain::{ServiceRules, Table};
use super::compile::{View, compile, compile_shared};
use super::name::{ChainName, is_of_a_service};
use super::restore::{Restore, RuleCounts, Scope, Writer};
use super::rule::{Comments, Rule};
use super::saved::SavedTables;
use super::staged::Staged;

const TABLES: [Table; 2] = [Table::Filter, Table::Nat];

/// More endpoints than these are not named in comments any more. Upstream's number.
const LARGE: usize = 1000;

/// What does not change while the process runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The bit of a packet's mark that means masquerading, from 0 (`iptables.masqueradeBit`).
    pub masquerade_bit: u8,
    /// What belongs to no connection is dropped where it is forwarded: unless `nf_conntrack_tcp_be_liberal` is set.
    pub drop_invalid: bool,
    /// The families that the node has; tables of the others are neither read nor written.
    pub families: &'static [Family],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            drop_invalid: true,
            families: Family::BOTH,
        }
    }
}

/// What a saved text told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Chains of services that there are and nobody wants.
    pub stale: usize,
    /// Chains and jumps that are written, and are not there, or not with as many rules.
    pub differ: usize,
}

/// Wanted programs, and what of them is not written yet.
#[derive(Debug)]
pub struct Tables {
    settings: Settings,
    services: BTreeMap<ObjectName, Entry>,
    v4: FamilyState,
    v6: FamilyState,
}

#[derive(Debug, Default)]
struct Entry {
    program: Program,
    v4: Size,
    v6: Size,
}

/// How much a service is in a family.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    endpoints: usize,
    rules: RuleCounts,
}

#[derive(Debug)]
struct FamilyState {
    family: Family,
    local: LocalTraffic,
    places: NodePortPlaces,
    /// All is to be written.
    full: bool,
    staged: Staged,
    /// Jumps that are not there, as far as anything is known.
    lost: Vec<Jump>,
    /// How the chains that stand were written.
    comments: Comments,
    /// The sum of all services.
    total: Size,
}

impl Tables {
    /// Of no service, over tables of which nothing is known: the first plan is a full one.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            services: BTreeMap::new(),
            v4: FamilyState::new(Family::V4),
            v6: FamilyState::new(Family::V6),
        }
    }

    /// Who is who among the clients of a family. Repeating it changes nothing.
    pub fn want_local_traffic(&mut self, family: Family, local: LocalTraffic) {
        let state = self.family_mut(family);
        if state.local != local {
            state.local = local;
            state.full = true;
            self.measure(family);
        }
    }

    /// Where NodePorts of a family answer. Repeating it changes nothing.
    pub fn want_node_ports(&mut self, family: Family, places: NodePortPlaces) {
        let settings = self.settings;
        let state = self.family_mut(family);
        if state.places != places {
            state.places = places;
            for table in TABLES {
                for chain in state.base(settings).chains(table) {
                    state.staged.stage(table, chain);
                }
            }
            self.measure(family);
        }
    }

    /// What one service is to be from now on.
    pub fn want(&mut self, service: &ObjectName, program: &Program) {
        let before = self.services.remove(service).unwrap_or_default();
        let (v4, v6) = (
            self.v4.want(service, (&before.program, before.v4), program),
            self.v6.want(service, (&before.program, before.v6), program),
        );
        if !program.frontends.is_empty() {
            let program = program.clone();
            self.services.insert(service.clone(), Entry { program, v4, v6 });
        }
    }

    /// Takes in what `iptables-save` says of a family. Chains of services that nobody wants are deleted by the next plan;
    /// what is not as it was written is written again.
    pub fn found(&mut self, family: Family, save: &str) -> Found {
        let saved = SavedTables::parse(save);
        let settings = self.settings;
        let (services, state) = self.parts(family);
        let mut shared: BTreeMap<(Table, ChainName), usize> = BTreeMap::new();
        for table in TABLES {
            let base = state.base(settings);
            shared.extend(base.chains(table).into_iter().map(|chain| ((table, chain), 0)));
            count(&mut shared, table, &base.rules(table));
        }
        let (mut differ, mut wanted) = (0, BTreeSet::new());
        for (service, entry) in services {
            let rules = compile(service, &entry.program, state.view());
            count(&mut shared, Table::Filter, &rules.filter);
            count(&mut shared, Table::Nat, &rules.nat);
            for chain in rules.chains {
                let name = chain.name.to_string();
                let there = saved.chains.get(&(Table::Nat, &*name));
                if there != Some(&chain.rules.len()) && !state.staged.writes(Table::Nat, chain.name) {
                    state.staged.stage_own(service, chain.name);
                    differ += 1;
                }
                wanted.insert(name);
            }
        }
        for ((table, chain), rules) in &shared {
            let name = chain.to_string();
            let there = saved.chains.get(&(*table, &*name));
            // The kubelet has rules of its own there.
            let fits = |there: &usize| there == rules || *chain == FIREWALL && there > rules;
            if !there.is_some_and(fits) && !state.staged.writes(*table, *chain) {
                state.staged.stage(*table, *chain);
                differ += 1;
            }
        }
        let led_to = |jump: &Jump| shared.contains_key(&(jump.table, jump.to));
        let mut lost = jumps();
        lost.retain(|jump| led_to(jump) && !saved.has_jump(jump));
        differ += lost.iter().filter(|jump| !state.lost.contains(jump)).count();
        state.lost = lost;
        let present = saved.chains.keys().filter(|(table, _)| *table == Table::Nat);
        let stale = present.filter(|(_, name)| is_of_a_service(name) && !wanted.contains(*name));
        let before = state.staged.gone.len();
        state.staged.gone.extend(stale.map(|(_, name)| (*name).to_owned()));
        Found {
            stale: state.staged.gone.len() - before,
            differ,
        }
    }

    /// Nothing is to be written in a family: [`Tables::plan`] gives none.
    pub fn is_written(&self, family: Family) -> bool {
        let state = self.family(family);
        !state.needs_all() && state.staged.is_empty() && state.lost.is_empty()
    }

    /// What is to be written in a family. `None` = all is there.
    pub fn plan(&self, family: Family) -> Option<Restore> {
        if self.is_written(family) {
            return None;
        }
        let state = self.family(family);
        let (scope, comments) = match (state.needs_all(), state.total.endpoints > LARGE) {
            (true, true) => (Scope::Full, Comments::Large),
            (true, false) => (Scope::Full, Comments::Full),
            // A cluster that shrinks keeps its form until all is written again, so that it does not swing to and fro.
            (false, _) => (Scope::Partial, state.comments),
        };
        let mut writer = Writer::new(comments);
        let base = state.base(self.settings);
        let writes = |table, chain| scope == Scope::Full || state.staged.writes(table, chain);
        for table in TABLES {
            let chains = base.chains(table).into_iter();
            let written = chains.filter(|chain| writes(table, *chain));
            written.for_each(|name| writer.declare(table, &name));
        }
        for (service, entry) in &self.services {
            if scope == Scope::Full || state.staged.writes_own(service) {
                writer.service(&compile(service, &entry.program, state.view()), writes);
            } else if state.staged.writes_shared() {
                writer.service(&compile_shared(service, &entry.program, state.view()), writes);
            }
        }
        for table in TABLES {
            let rules = base.rules(table);
            writer.rules(table, rules.iter().filter(|rule| writes(table, rule.chain)));
        }
        let led_to = |jump: &&Jump| base.chains(jump.table).contains(&jump.to);
        state.lost.iter().filter(led_to).for_each(|jump| writer.jump(jump));
        state.staged.gone.iter().for_each(|name| writer.delete(name));
        Some(Restore {
            family,
            scope,
            text: writer.finish(),
            rules: writer.counts,
            deleted_chains: state.staged.gone.len(),
            comments,
        })
    }

    /// A plan stands: nothing was wanted since it was made.
    pub fn written(&mut self, restore: &Restore) {
        let state = self.family_mut(restore.family);
        state.full = false;
        state.staged = Staged::default();
        state.lost.clear();
        state.comments = restore.comments;
    }

    /// What is in the tables is not known any more: a restore failed, or somebody flushed them. The next plan is a full
    /// one.
    pub fn forget(&mut self, family: Family) {
        self.family_mut(family).full = true;
    }

    /// Rules that a family has when all is written.
    pub fn rules(&self, family: Family) -> RuleCounts {
        let state = self.family(family);
        let base = state.base(self.settings);
        RuleCounts {
            filter: state.total.rules.filter + base.rules(Table::Filter).len(),
            nat: state.total.rules.nat + base.rules(Table::Nat).len(),
        }
    }

    /// Sizes depend on more than programs.
    fn measure(&mut self, family: Family) {
        let state = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        state.total = Size::default();
        for (service, entry) in &mut self.services {
            let new = size(&compile(service, &entry.program, state.view()));
            state.total = state.total.plus(new);
            match family {
                Family::V4 => entry.v4 = new,
                Family::V6 => entry.v6 = new,
            }
        }
    }

    fn family(&self, family: Family) -> &FamilyState {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn family_mut(&mut self, family: Family) -> &mut FamilyState {
        self.parts(family).1
    }

    fn parts(&mut self, family: Family) -> (&BTreeMap<ObjectName, Entry>, &mut FamilyState) {
        let state = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        (&self.services, state)
    }
}

impl FamilyState {
    fn new(family: Family) -> Self {
        Self {
            family,
            local: LocalTraffic::default(),
            places: NodePortPlaces::EveryLocal { loopback: false },
            full: true,
            staged: Staged::default(),
            lost: jumps(),
            comments: Comments::Full,
            total: Size::default(),
        }
    }

    /// It is unknown what stands, or the cluster has outgrown the form in which it was written.
    fn needs_all(&self) -> bool {
        self.full || self.comments == Comments::Full && self.total.endpoints > LARGE
    }

    fn view(&self) -> View<'_> {
        View {
            family: self.family,
            local: &self.local,
            places: &self.places,
        }
    }

    fn base(&self, settings: Settings) -> Base<'_> {
        Base {
            family: self.family,
            mark: 1_u32.checked_shl(settings.masquerade_bit.into()).unwrap_or(0),
            drop_invalid: settings.drop_invalid,
            places: &self.places,
        }
    }

    /// A program in place of another, of which this is known to be the size.
    fn want(&mut self, service: &ObjectName, (before, less): (&Program, Size), now: &Program) -> Size {
        let view = self.view();
        let (before, now) = (compile(service, before, view), compile(service, now, view));
        let more = size(&now);
        self.total = self.total.minus(less).plus(more);
        self.staged.change(service, &before, &now);
        more
    }
}

fn size(rules: &ServiceRules) -> Size {
    let own: usize = rules.chains.iter().map(|chain| chain.rules.len()).sum();
    let is_endpoint = |name: &ChainName| matches!(name, ChainName::Service(super::name::Prefix::Endpoint, _));
    Size {
        endpoints: rules.chains.iter().filter(|chain| is_endpoint(&chain.name)).count(),
        rules: RuleCounts {
            filter: rules.filter.len(),
            nat: rules.nat.len() + own,
        },
    }
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            endpoints: self.endpoints + other.endpoints,
            rules: RuleCounts {
                filter: self.rules.filter + other.rules.filter,
                nat: self.rules.nat + other.rules.nat,
            },
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            endpoints: self.endpoints.saturating_sub(other.endpoints),
            rules: RuleCounts {
                filter: self.rules.filter.saturating_sub(other.rules.filter),
                nat: self.rules.nat.saturating_sub(other.rules.nat),
            },
        }
    }
}

/// Adds rules to those of their chains.
fn count(chains: &mut BTreeMap<(Table, ChainName), usize>, table: Table, rules: &[Rule]) {
    for rule in rules {
        *chains.entry((table, rule.chain)).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
