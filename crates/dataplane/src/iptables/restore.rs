//! One input of `iptables-restore --noflush`: how it is put together.

use std::fmt::{Display, Write};
use std::time::Duration;

use service_model::Family;

use super::base::Jump;
use super::chain::{ServiceRules, Table};
use super::name::ChainName;
use super::rule::{Comments, Rule};

/// How much of a family's tables a restore text writes. What it does not write stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every chain of ours.
    Full,
    /// The chains whose rules changed.
    Partial,
}

/// Numbers of rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// In the table `filter`.
    pub filter: usize,
    /// In the table `nat`.
    pub nat: usize,
}

/// One input of `iptables-restore --noflush`, or of `ip6tables-restore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Which of the two.
    pub family: Family,
    /// How much it writes.
    pub scope: Scope,
    /// The text.
    pub text: String,
    /// Rules in it.
    pub rules: RuleCounts,
    /// Chains that it deletes.
    pub deleted_chains: usize,
    pub(super) comments: Comments,
}

/// A restore that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Of which family.
    pub family: Family,
    /// How much it was to write.
    pub scope: Scope,
    /// Rules that it was to write.
    pub rules: RuleCounts,
    /// How long the program ran.
    pub took: Duration,
    /// Nothing of a table was written.
    pub failed: bool,
}

impl Restore {
    /// Lines of the text.
    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }
}

/// The parts of a restore text, which are declared chains first, then rules, for each table.
pub(super) struct Writer {
    comments: Comments,
    filter: Section,
    nat: Section,
    pub(super) counts: RuleCounts,
}

#[derive(Default)]
struct Section {
    chains: String,
    rules: String,
}

impl Writer {
    pub(super) fn new(comments: Comments) -> Self {
        Self {
            comments,
            filter: Section::default(),
            nat: Section::default(),
            counts: RuleCounts::default(),
        }
    }

    fn section(&mut self, table: Table) -> &mut Section {
        match table {
            Table::Filter => &mut self.filter,
            Table::Nat => &mut self.nat,
        }
    }

    /// A chain is made, or emptied.
    pub(super) fn declare(&mut self, table: Table, name: &dyn Display) {
        // Writing into a String does not fail.
        let _ = writeln!(self.section(table).chains, ":{name} - [0:0]");
    }

    pub(super) fn rules<'a>(&mut self, table: Table, rules: impl IntoIterator<Item = &'a Rule>) {
        let comments = self.comments;
        for rule in rules {
            match table {
                Table::Filter => self.counts.filter += 1,
                Table::Nat => self.counts.nat += 1,
            }
            rule.write(&mut self.section(table).rules, comments);
        }
    }

    /// What a service has in the chains that are written.
    pub(super) fn service(&mut self, rules: &ServiceRules, writes: impl Fn(Table, ChainName) -> bool) {
        for (table, rules) in [(Table::Filter, &rules.filter), (Table::Nat, &rules.nat)] {
            self.rules(table, rules.iter().filter(|rule| writes(table, rule.chain)));
        }
        for chain in rules.chains.iter().filter(|chain| writes(Table::Nat, chain.name)) {
            self.declare(Table::Nat, &chain.name);
            self.rules(Table::Nat, &chain.rules);
        }
    }

    pub(super) fn jump(&mut self, jump: &Jump) {
        let _ = writeln!(self.section(jump.table).rules, "{jump}");
    }

    /// Nothing leads to it any more, since all that did are declared.
    pub(super) fn delete(&mut self, name: &str) {
        self.declare(Table::Nat, &name);
        let _ = writeln!(self.nat.rules, "-X {name}");
    }

    pub(super) fn finish(&mut self) -> String {
        let mut text = String::new();
        let sections = [(Table::Filter, &self.filter), (Table::Nat, &self.nat)];
        // A table that is named is read and written by iptables-legacy as a whole.
        let is_empty = |section: &Section| section.chains.is_empty() && section.rules.is_empty();
        for (table, section) in sections.iter().filter(|(_, section)| !is_empty(section)) {
            let _ = write!(text, "*{table}\n{}{}COMMIT\n", section.chains, section.rules);
        }
        text
    }
}
