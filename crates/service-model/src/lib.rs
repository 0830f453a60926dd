//! Kubernetes Service semantics: which addresses a service answers at on this node, with which endpoints
//! and under which policy. Pure: no I/O, no clock, no log, and it does not fail.
//!
//! Reading order: [`object`] and [`event`] (what comes in), [`backlog`] (what waits of it), [`frontend`] (what goes out), [`cluster`] (the state
//! between), [`arrival`] (what is told of it), `face` (a service's addresses), `claim` (conflicts), `nodes`, `protected`, `endpoint_cache` and `policy` (its endpoints),
//! `program` (all of it together), `source_range`, `rotation`, `unreadable` (what could not come in). `address` and `duration` read texts.

mod address;
pub mod arrival;
pub mod backlog;
mod claim;
pub mod cluster;
pub mod config;
mod duration;
mod endpoint_cache;
pub mod event;
mod face;
pub mod frontend;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod local_traffic;
pub mod name;
mod nodes;
pub mod object;
mod policy;
mod program;
pub mod protected;
mod rotation;
pub mod scheduler;
mod source_range;
mod step;
mod unreadable;

pub use address::{parse_cidr, parse_cidr_as_written, parse_ip};
pub use arrival::{Arrivals, Pending};
pub use backlog::Backlog;
pub use cluster::Cluster;
pub use config::{Capture, Config, DetectLocal, Limits, NodePortAddresses};
pub use duration::parse_duration;
pub use event::{Batch, Change, Event, Kind};
pub use frontend::{
    AddressKind, Frontend, FrontendKey, HealthCheck, Masquerade, NodePortPlaces, Program, Refusal, Rejection,
    SourceRanges, Target,
};
pub use local_traffic::{LocalTraffic, Source};
pub use name::ObjectName;
pub use object::{
    Endpoint, EndpointPort, EndpointSlice, ExternalIp, Family, InvalidField, IpMode, LoadBalancerIngress, Node,
    Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};
pub use protected::{Protected, ProtectedPorts};
pub use scheduler::{Scheduler, UnknownScheduler};
