//! The connectivity matrix: a small cluster of namespaces, and for each of some thousand questions who answers, from
//! which source address the server sees the client, or how it is refused — beside what the API promises.
//!
//! Reading order: [`site`] (nodes, clients, addresses), [`setting`] (what a proxy is told), [`service`] (the Services),
//! [`question`] (a question, and what can come of it), [`oracle`] (what is promised), [`cell`] (all questions). These
//! are pure. Then [`cluster`] (the namespaces), [`proxy`] (what is under test), [`runner`] (asks and compares) and
//! [`report`]; [`mutant`] proves that it can fail.

mod asker;
mod capture;
pub mod cell;
pub mod cluster;
pub mod mutant;
pub mod oracle;
pub mod proxy;
pub mod question;
pub mod report;
pub mod runner;
pub mod server;
pub mod service;
pub mod setting;
pub mod site;
pub mod upstream;
mod yaml;

#[cfg(test)]
mod tests;
