//! The fallback's data plane: programs in, the text of `iptables-restore --noflush` out, one for each family.
//!
//! The chains, their names and their rules are those of kube-proxy's iptables mode, since other agents look for them;
//! `tests/iptables_golden.rs` compares them with the real one's, and its table names every difference with the decision
//! that wants it.
//!
//! Reading order: [`name`] (chain names), [`rule`] and [`chain`] (values that print), `base` (what is there whatever the
//! services: fixed rules, jumps), [`compile`] (a program → its rules and chains), [`tables`] (the ledger: wanted programs,
//! plans), `staged` (what of them is not written yet, by chain), `saved` (what `iptables-save` says), [`restore`] (the
//! text of a plan).
//!
//! All of this executes nothing and reads nothing. [`programs`] does, and [`plane`] puts both together.

mod base;
pub mod chain;
pub mod compile;
pub mod name;
pub mod plane;
pub mod programs;
pub mod restore;
pub mod rule;
mod saved;
mod staged;
pub mod tables;

pub use chain::Table;
pub use plane::{IptablesPlane, Saved};
pub use programs::{Installed, Programs};
pub use restore::{Restore, Restored, RuleCounts, Scope};
pub use tables::{Found, Settings, Tables};
