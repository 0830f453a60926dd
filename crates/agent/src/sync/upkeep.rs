//! Sysctls that the data path depends on: set at start, and looked at with every audit, since `sysctl --system`, tuning
//! daemons and people change them while the node runs (L9). A handful of short files: read and written in one step.

use std::collections::BTreeSet;

use ipvs::OldValues;
use ipvs::sysctl::{self, Ensured, Sysctl};
use tracing::{error, warn};

/// What is kept as it was set.
pub(crate) struct Upkeep {
    wanted: Vec<Sysctl>,
    /// Where values that were set by others are kept for cleanup (L16).
    old: Option<OldValues>,
    /// Names of those that differ and cannot be set: told once each, until they are right again.
    refused: BTreeSet<&'static str>,
    ensure: fn(&[Sysctl], Option<&OldValues>) -> Ensured,
}

impl Upkeep {
    /// Nothing is looked at.
    pub(crate) fn of_nothing() -> Self {
        Self {
            wanted: Vec::new(),
            old: None,
            refused: BTreeSet::new(),
            ensure: sysctl::ensure,
        }
    }

    pub(crate) fn of(wanted: Vec<Sysctl>, old: OldValues) -> Self {
        Self {
            wanted,
            old: Some(old),
            ..Self::of_nothing()
        }
    }

    /// Sets those that differ again. Returns how many it set; one that cannot be set is an error in the log, once.
    pub(super) fn repair(&mut self) -> usize {
        let Ensured { changed, kept } = (self.ensure)(&self.wanted, self.old.as_ref());
        if let Err(error) = kept
            && self.refused.is_empty()
        {
            let error = format!("{:#}", anyhow::Error::from(error));
            warn!(
                error,
                "the value that a sysctl was given is not kept, cleanup will not restore it"
            );
        }
        let mut repaired = 0;
        let before = std::mem::take(&mut self.refused);
        for change in changed {
            let (name, new) = (change.name, change.new);
            match change.result {
                Ok(()) => {
                    warn!(name, found = change.old, %new, "somebody else changed a sysctl, set again");
                    repaired += 1;
                }
                Err(error) => {
                    if !before.contains(name) {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        error!(name, found = change.old, %new, error, "somebody else changed a sysctl, and it cannot be set again");
                    }
                    self.refused.insert(name);
                }
            }
        }
        repaired
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use ipvs::sysctl::{Changed, ROUTE_LOCALNET};

    use super::*;

    static WRITABLE: AtomicBool = AtomicBool::new(false);

    /// The first one differs always.
    fn ensure(wanted: &[Sysctl], _: Option<&OldValues>) -> Ensured {
        let change = |sysctl: &Sysctl| Changed {
            name: sysctl.name,
            old: "0".to_owned(),
            new: sysctl.value.clone(),
            result: if WRITABLE.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err(ipvs::Error::File {
                    operation: "write",
                    path: sysctl.name.into(),
                    source: std::io::ErrorKind::ReadOnlyFilesystem.into(),
                })
            },
        };
        Ensured {
            changed: wanted.first().map(change).into_iter().collect(),
            kept: Ok(()),
        }
    }

    #[test]
    fn f08_what_cannot_be_set_is_no_repair_and_is_told_once() {
        let mut upkeep = Upkeep {
            wanted: vec![ROUTE_LOCALNET],
            ensure,
            ..Upkeep::of_nothing()
        };
        for _ in 0..3 {
            assert_eq!(upkeep.repair(), 0);
            assert_eq!(upkeep.refused.len(), 1);
        }
        WRITABLE.store(true, Ordering::Relaxed);
        assert_eq!(upkeep.repair(), 1);
        assert!(upkeep.refused.is_empty());
        assert_eq!(Upkeep::of_nothing().repair(), 0);
    }
}
