//! The connectivity matrix: a small cluster of namespaces, and for each of some thousand questions who answers, from
//! which source address the server sees the client, or how it is refused — beside what the API promises.
//!
//! Reading order: [`site`] (nodes, clients, addresses), [`setting`] (what a proxy is told), [`service`] (the Services),
//! [`question`] (a question, and what can come of it), [`oracle`] (what is promised), [`cell`] (all questions). These
//! are pure.

pub mod cell;
pub mod oracle;
pub mod question;
pub mod service;
pub mod setting;
pub mod site;

#[cfg(test)]
mod tests;
