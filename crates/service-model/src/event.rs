//! What enters the model: one change of one object, or the news that a kind is complete.

use std::net::IpAddr;

use crate::name::ObjectName;
use crate::object::{EndpointSlice, Node, Service};

/// A kind of object that the proxy follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Node.
    Node,
}

/// One object appeared, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// It exists and is now this. An unchanged object may be sent again; it costs nothing.
    Applied(T),
    /// It is gone. One that was never sent may go, too; that is no error.
    Deleted(ObjectName),
}

/// What enters [`Cluster::apply`](crate::cluster::Cluster::apply).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A Service.
    Service(Change<Service>),
    /// An EndpointSlice.
    EndpointSlice(Change<EndpointSlice>),
    /// A Node.
    Node(Change<Node>),
    /// The addresses of this node's interfaces, all of them (`kube-ipvs0`, loopback and IPv6 link-local left out).
    NodeAddresses(Vec<IpAddr>),
    /// Every object of this kind that existed has been sent. Repeated after each new list. Of Nodes: this one.
    Complete(Kind),
    /// Every other Node that existed has been sent (T18). Repeated after each new list.
    OtherNodesComplete,
    /// Other Nodes are followed no more: what was sent of them is to be forgotten.
    OtherNodesForgotten,
}
