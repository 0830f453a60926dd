//! Chains with their rules, and the tables that they are in.

use std::fmt;

use super::name::ChainName;
use super::rule::Rule;

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Verdicts.
    Filter,
    /// Addresses.
    Nat,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        })
    }
}

/// A chain of one service port, in the table `nat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: ChainName,
    /// Its rules, in order, each of which names it.
    pub rules: Vec<Rule>,
}

/// What a service is in the tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// Its rules in the chains of the table `filter` that all share.
    pub filter: Vec<Rule>,
    /// The same of the table `nat`.
    pub nat: Vec<Rule>,
    /// Its own chains.
    pub chains: Vec<Chain>,
}
