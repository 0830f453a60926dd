//! The IPVS family of generic netlink, and what a proxy on IPVS needs beside it.

pub mod command;
pub mod scheduler;
pub mod virtual_server;

pub use command::Command;
pub use scheduler::SchedulerName;
pub use virtual_server::{
    Family, Flags, Forward, Persistence, Protocol, RealServer, RealServerConfig, VirtualServer, VirtualServerConfig,
};
