//! Flows of the kernel's connection tracker, of which a caller points at those that are to end.
//!
//! Reading order: [`flow`] (what a flow is), [`filter`] (which ones are listed), `message` (their bytes), [`client`]
//! (list, decide, delete). Runs no `conntrack`; knows nothing of Services.

pub mod client;
pub mod error;
pub mod filter;
pub mod flow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod message;
mod uapi;

pub use client::{Conntrack, Deleted, Passes};
pub use error::Error;
pub use filter::{Family, Filter};
pub use flow::{Flow, Tuple, Zone};
