//! The seam to the kernel: ops in, one answer per op out; and a reader.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;

use ipvs::{RealServer, RealServerConfig, VirtualServer, VirtualServerConfig};
use nftables::Family;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::element::{ElementKey, ElementValue, SetName};
use crate::plan::Op;

/// A kernel that can be read and changed: the live one, the fake one, or one that only prints.
pub trait Kernel {
    /// Everything that could be ours, as it is now.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn read(&mut self) -> Result<Snapshot, KernelBroken>;

    /// One virtual server with its real servers; `None` where there is none.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn read_virtual_server(&mut self, server: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken>;

    /// Connections of each real server of a virtual server, those that end included, persistence templates not; empty
    /// where there is no such virtual server.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn connections(&mut self, server: &VirtualServer) -> Result<FxHashMap<RealServer, u32>, KernelBroken>;

    /// Executes ops in order, each on its own, and tells for each how it went. Empty in, empty out. Ops of the policy
    /// tables that stand together are one transaction: those that are not refused happen at one moment.
    ///
    /// # Errors
    /// Where the way to the kernel broke: which ops were executed is then unknown, and only a new read tells.
    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken>;
}

/// What the kernel holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All virtual servers, ours and foreign.
    pub virtual_servers: Vec<PresentServer>,
    /// Destinations of our local routes.
    pub routes: Vec<IpAddr>,
    /// Addresses on `kube-ipvs0`.
    pub addresses: Vec<IpAddr>,
    /// The policy tables that are there.
    pub tables: Vec<PresentTable>,
}

/// A policy table in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentTable {
    /// Its family.
    pub family: Family,
    /// Chain and fingerprint of its rules, by chain.
    pub rules: Vec<(String, Vec<u8>)>,
    /// Its elements.
    pub elements: Vec<(ElementKey, ElementValue)>,
}

impl Snapshot {
    /// The virtual servers that the policy tables say are ours (L10).
    pub fn owned(&self) -> FxHashSet<VirtualServer> {
        let elements = self.tables.iter().flat_map(|table| &table.elements);
        elements
            .filter_map(|(key, _)| match *key {
                ElementKey::Place(SetName::Services, place) => Some(place.virtual_server()),
                _ => None,
            })
            .collect()
    }
}

/// A virtual server in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentServer {
    /// Identity.
    pub server: VirtualServer,
    /// What is set on it.
    pub config: VirtualServerConfig,
    /// Its real servers.
    pub real_servers: Vec<(RealServer, RealServerConfig)>,
}

/// The kernel refused one op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpError {
    /// `errno`, as in errno.h.
    pub errno: i32,
    /// The whole reason, with the kernel's own sentence where it gave one.
    pub reason: Box<str>,
}

/// The way to the kernel broke (a socket error, an unreadable answer).
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct KernelBroken {
    /// What was being done.
    pub operation: &'static str,
    /// Why it broke.
    pub source: Box<dyn Error + Send + Sync>,
}

/// An error with its causes, as one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for OpError {}
