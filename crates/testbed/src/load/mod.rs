//! Clients that ask without end and servers that answer for as long, with counts: what tests of reliability decide by.
//!
//! Reading order: [`pods`] (places for many servers), [`server`] (who answers), [`request`] (one question, or a
//! conversation), [`client`] (questions without end).

pub mod client;
pub mod pods;
pub mod request;
pub mod server;

pub use client::{Client, Habit, Load, Summary};
pub use pods::Pods;
pub use request::{Answer, Conversation, Place, Protocol};
pub use server::{Server, Servers};
