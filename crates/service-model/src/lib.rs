//! Kubernetes Service semantics: which addresses a service answers at on this node, with which endpoints
//! and under which policy. Pure: no I/O, no clock, no log, and it does not fail.

pub mod cluster;
pub mod event;
pub mod frontend;
pub mod name;
pub mod object;
pub mod scheduler;

pub use cluster::{Cluster, Config, NodePortAddresses};
pub use event::{Change, Event, Kind};
pub use frontend::{AddressKind, Frontend, FrontendKey, HealthCheck, Program, Refusal, Rejection, Target};
pub use name::ObjectName;
pub use object::{
    Endpoint, EndpointPort, EndpointSlice, Family, InvalidField, IpMode, LoadBalancerIngress, Node, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
pub use scheduler::{Scheduler, UnknownScheduler};
