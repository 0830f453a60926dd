//! Changes of a table, as values that print as the lines of an `nft -f` script.

use std::fmt;

use crate::rule::{Chain, Rule};
use crate::set::{Element, Set, SetData};
use crate::value::Family;

/// A table: all commands are about one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes the table where it is missing, with a comment; empty = none. Kernels before 5.10 keep no comments.
    AddTable(Table, String),
    /// Removes the table with all that is in it. Missing: ENOENT.
    DeleteTable(Table),
    /// Makes a chain where it is missing.
    AddChain(Table, Chain),
    /// Makes a set or map where it is missing.
    AddSet(Table, Set),
    /// Appends a rule.
    AddRule(Table, Rule),
    /// Adds elements. One that is there with the same data stays; with other data, or overlapping: EEXIST.
    AddElements(Table, Set, Vec<Element>),
    /// Removes elements. Missing: ENOENT.
    DeleteElements(Table, Set, Vec<Element>),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |elements: &[Element]| elements.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::AddTable(table, comment) if comment.is_empty() => write!(f, "add table {table}"),
            Self::AddTable(table, comment) => write!(f, "add table {table} {{ comment \"{comment}\"; }}"),
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain(table, chain) => write!(f, "add chain {table} {}{chain}", chain.name),
            Self::AddSet(table, set) => {
                let what = if set.data == SetData::None { "set" } else { "map" };
                write!(f, "add {what} {table} {} {set}", set.name)
            }
            Self::AddRule(table, rule) => write!(f, "add rule {table} {} {}", rule.chain, rule.text(table.family)),
            Self::AddElements(table, set, elements) => {
                write!(f, "add element {table} {} {{ {} }}", set.name, list(elements))
            }
            Self::DeleteElements(table, set, elements) => {
                write!(f, "delete element {table} {} {{ {} }}", set.name, list(elements))
            }
        }
    }
}
