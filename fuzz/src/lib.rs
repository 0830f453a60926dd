//! What the targets share.
//!
//! [`node`] serves events as a node does, in both modes; [`world`] makes events of bytes; [`attempt`] prepares the process.

pub mod attempt;
pub mod node;
pub mod world;
