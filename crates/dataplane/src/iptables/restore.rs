//! One input of `iptables-restore --noflush`: how it is put together.

use std::fmt::{Display, Write};
use std::time::Duration;

use service_model::Family;

use super::chain::{ServiceRules, Table};
use super::rule::{Comments, Rule};

/// How much of a family's tables a restore text writes. What it does not write stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every chain of ours. The jumps ([`super::jumps`]) are to be made sure of before.
    Full,
    /// The chains that all share, and those of services that changed.
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

    pub(super) fn rules(&mut self, table: Table, rules: &[Rule]) {
        match table {
            Table::Filter => self.counts.filter += rules.len(),
            Table::Nat => self.counts.nat += rules.len(),
        }
        let comments = self.comments;
        let text = &mut self.section(table).rules;
        rules.iter().for_each(|rule| rule.write(text, comments));
    }

    pub(super) fn service(&mut self, rules: &ServiceRules) {
        self.rules(Table::Filter, &rules.filter);
        self.rules(Table::Nat, &rules.nat);
        for chain in &rules.chains {
            self.declare(Table::Nat, &chain.name);
            self.rules(Table::Nat, &chain.rules);
        }
    }

    /// Nothing leads to it any more, since all that did are declared.
    pub(super) fn delete(&mut self, name: &str) {
        self.declare(Table::Nat, &name);
        let _ = writeln!(self.nat.rules, "-X {name}");
    }

    pub(super) fn finish(&mut self) -> String {
        let mut text = String::new();
        for (table, section) in [(Table::Filter, &self.filter), (Table::Nat, &self.nat)] {
            let _ = write!(text, "*{table}\n{}{}COMMIT\n", section.chains, section.rules);
        }
        text
    }
}
