//! The IPVS family of generic netlink, and what a proxy on IPVS needs beside it: VIPs, node addresses, sysctls.
//!
//! Reading order: [`virtual_server`] (the objects), [`command`] (their changes), [`message`] (both on the wire),
//! [`client`] (the family), [`proc_table`] (the kernel's own list), [`vip_command`] and [`vip`] (routes, addresses,
//! `kube-ipvs0`), [`node_address`], [`host_network`] and [`listening`] (what the host needs for itself), [`sysctl`] and
//! [`old_values`], [`ipset`] (what a predecessor left). Knows nothing of Kubernetes.

pub mod client;
pub mod command;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod host_network;
pub mod ipset;
pub mod listening;
pub mod message;
pub mod node_address;
pub mod old_values;
pub mod proc_table;
pub mod scheduler;
pub mod sysctl;
pub mod uapi;
pub mod vip;
pub mod vip_command;
pub mod vip_monitor;
pub mod virtual_server;

pub use client::Ipvs;
pub use command::Command;
pub use error::Error;
pub use host_network::{Gateway, HostNetwork, Subnet};
pub use ipset::Ipsets;
pub use listening::Listening;
pub use message::{Info, RealServerState, Statistics, Timeouts, VirtualServerState};
pub use netlink::Counters;
pub use old_values::OldValues;
pub use scheduler::SchedulerName;
pub use vip::Vips;
pub use vip_command::VipCommand;
pub use vip_monitor::{Gone, VipMonitor};
pub use virtual_server::{
    Family, Flags, Forward, Persistence, Protocol, RealServer, RealServerConfig, VirtualServer, VirtualServerConfig,
};
