//! Sets and maps, and their elements.

use std::fmt;
use std::time::Duration;

use crate::value::{DataType, Value, Verdict, concatenated};

/// A set, or with data a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// The fields of a key; several are a concatenation.
    pub key: Vec<DataType>,
    /// What an element leads to.
    pub data: SetData,
    /// Elements may be ranges.
    pub intervals: bool,
    /// Elements may have a timeout.
    pub timeouts: bool,
}

/// What the elements of a set lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetData {
    /// Nothing: a set.
    None,
    /// A verdict each.
    Verdict,
    /// A value, or a concatenation, each.
    Values(Vec<DataType>),
}

/// An element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Its key, or the first one of a range.
    pub key: Vec<Value>,
    /// The last key of a range, field by field; in sets of intervals only.
    pub end: Option<Vec<Value>>,
    /// Its data, where the set has some.
    pub data: ElementData,
    /// After which it goes by itself, counted from when it was written; as read, what is left of it.
    pub timeout: Option<Duration>,
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ElementData {
    /// Nothing.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// Values.
    Values(Vec<Value>),
}

impl Element {
    /// An element of a plain set.
    pub fn plain(key: Vec<Value>) -> Self {
        Self {
            key,
            end: None,
            data: ElementData::None,
            timeout: None,
        }
    }

    /// An element of a verdict map.
    pub fn verdict(key: Vec<Value>, verdict: Verdict) -> Self {
        Self {
            data: ElementData::Verdict(verdict),
            ..Self::plain(key)
        }
    }

    /// An element of a map.
    pub fn mapped(key: Vec<Value>, values: Vec<Value>) -> Self {
        Self {
            data: ElementData::Values(values),
            ..Self::plain(key)
        }
    }
}

impl fmt::Display for Set {
    /// Its definition in braces, as behind `add set ip TABLE NAME`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ type {}", concatenated(&self.key))?;
        match &self.data {
            SetData::None => {}
            SetData::Verdict => f.write_str(" : verdict")?,
            SetData::Values(types) => write!(f, " : {}", concatenated(types))?,
        }
        let flags: Vec<_> = [(self.intervals, "interval"), (self.timeouts, "timeout")]
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect();
        if !flags.is_empty() {
            write!(f, "; flags {}", flags.join(", "))?;
        }
        f.write_str("; }")
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            None => f.write_str(&concatenated(&self.key))?,
            Some(end) => {
                let ranges = self.key.iter().zip(end).map(|(first, last)| {
                    if first == last {
                        first.to_string()
                    } else {
                        format!("{first}-{last}")
                    }
                });
                f.write_str(&ranges.collect::<Vec<_>>().join(" . "))?;
            }
        }
        if let Some(timeout) = self.timeout {
            write!(f, " timeout {}ms", timeout.as_millis())?;
        }
        match &self.data {
            ElementData::None => Ok(()),
            ElementData::Verdict(verdict) => write!(f, " : {verdict}"),
            ElementData::Values(values) => write!(f, " : {}", concatenated(values)),
        }
    }
}
