//! Taking in what the kernel holds: at start, after something broke, and by the audit; and what was not as it should be.

use std::fmt;

use foldhash::HashSet;

use crate::plan::Key;

/// Objects of ours that somebody else removed, changed or added, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Virtual servers.
    pub virtual_servers: usize,
    /// Real servers, weights included.
    pub real_servers: usize,
    /// Routes of VIPs.
    pub routes: usize,
    /// Addresses on `kube-ipvs0`.
    pub addresses: usize,
    /// Tables with their rules.
    pub tables: usize,
    /// Elements of tables that stand.
    pub elements: usize,
    /// Sysctls that the mode in use depends on.
    pub sysctls: usize,
}

impl Drift {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn count(&mut self, key: &Key) {
        match key {
            Key::Rules(_) => self.tables += 1,
            Key::Element(_) => self.elements += 1,
            Key::VirtualServer(_) => self.virtual_servers += 1,
            Key::RealServer(..) => self.real_servers += 1,
            Key::Route(_) => self.routes += 1,
            Key::Address(_) => self.addresses += 1,
            Key::Flows(_) => {}
        }
    }
}

impl fmt::Display for Drift {
    /// `2 routes, 1 table`; `nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.virtual_servers, "virtual server"),
            (self.real_servers, "real server"),
            (self.routes, "route"),
            (self.addresses, "address"),
            (self.tables, "table"),
            (self.elements, "element"),
            (self.sysctls, "sysctl"),
        ];
        let plural = |(count, name): (usize, &str)| match (count, name) {
            (1, _) => format!("1 {name}"),
            (_, "address") => format!("{count} addresses"),
            _ => format!("{count} {name}s"),
        };
        let parts: Vec<_> = counts.into_iter().filter(|(count, _)| *count > 0).map(plural).collect();
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// One look at the kernel on its way into the ledger.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    /// Objects that we wrote after the look was asked for: what it says of them may be old.
    written: HashSet<Key>,
    /// What was not as it was thought to be.
    pub(crate) drift: Drift,
}

impl Adoption {
    pub(crate) fn new(written: HashSet<Key>) -> Self {
        Self {
            written,
            drift: Drift::default(),
        }
    }

    /// What it says of this object counts.
    pub(crate) fn tells(&self, key: &Key) -> bool {
        !self.written.contains(key)
    }

    /// Takes in the value of one object; `None` = it is not there.
    pub(crate) fn take<V: PartialEq>(&mut self, has: &mut Option<V>, now: Option<V>, key: Key) {
        if *has != now && self.tells(&key) {
            *has = now;
            self.drift.count(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_told_in_words() {
        assert_eq!(Drift::default().to_string(), "nothing");
        let drift = Drift {
            virtual_servers: 1,
            addresses: 2,
            elements: 3,
            sysctls: 1,
            ..Drift::default()
        };
        assert_eq!(drift.to_string(), "1 virtual server, 2 addresses, 3 elements, 1 sysctl");
    }
}
