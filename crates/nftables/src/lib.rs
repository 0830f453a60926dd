//! The part of nf_tables that a Service proxy needs, as values: what prints in `nft` syntax is what goes to the kernel.
//!
//! Reading order: [`value`] (addresses, ports, marks, verdicts and their concatenations), [`set`], [`rule`] (chains and
//! rules), [`command`] (changes), [`message`] (their bytes), [`client`] (one atomic transaction, dumps),
//! [`base_chain`] (what others let pass), [`monitor`] (what others change). Runs no `nft`; knows nothing of Services.

pub mod base_chain;
pub mod client;
pub mod command;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod message;
pub mod monitor;
pub mod rule;
pub mod set;
pub mod uapi;
pub mod value;

pub use base_chain::{BaseChain, Policy, TableFamily};
pub use client::Nftables;
pub use command::{Command, Table};
pub use error::Error;
pub use monitor::Monitor;
pub use rule::{Chain, ChainKind, Field, Hook, Interface, Is, Rule, Statement};
pub use set::{Element, Set, SetData};
pub use value::{DataType, Family, Value, Verdict};
