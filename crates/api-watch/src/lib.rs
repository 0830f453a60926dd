//! Where objects come from, and where events about them go.
//!
//! Objects: the API server ([`ApiServer`]) or a directory of manifests ([`Directory`]). Both become batches of
//! [`service_model::Event`]s at once; no API object is kept. The only crate that knows `kube`, JSON and
//! YAML of the API; it decides nothing about Services.
//!
//! Reading order: `decode` (text to model objects), `manifest` (a file's text), `directory`, `proxy`, `connection`, `peers`
//! (where connections lead), `request`, `follow` (list and watch of one kind), `node_list` (other Nodes' addresses),
//! `server` (all kinds), `sink` (events about objects), `call` (requests as numbers).

mod back_off;
mod call;
mod collection;
mod connection;
mod decode;
mod directory;
mod error;
mod failure;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lines;
mod manifest;
mod node_list;
mod peers;
mod proxy;
mod request;
mod server;
mod sink;
mod version;

pub use call::{Call, CallObserver};
pub use connection::{ApiConfig, Patience};
pub use directory::Directory;
pub use error::Error;
pub use peers::Peers;
pub use server::ApiServer;
pub use sink::{EventSink, EventType, ObjectEvent};
