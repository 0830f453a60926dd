//! What enters the model: one change of one object, or the news that a kind is complete; and which of these belong
//! together.

use std::net::IpAddr;

use crate::frontend::Rejection;
use crate::name::ObjectName;
use crate::object::{EndpointSlice, InvalidField, Node, Service};

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
    /// An object exists and cannot be read, or is there a second time and differs (L18). What was sent of it before
    /// stays until it is sent again or goes; one that was never sent is not programmed.
    Unreadable(Rejection),
    /// The addresses of this node's interfaces, all of them (`kube-ipvs0`, loopback and IPv6 link-local left out).
    NodeAddresses(Vec<IpAddr>),
    /// Every object of this kind that existed has been sent. Repeated after each new list. Of Nodes: this one.
    Complete(Kind),
    /// Every other Node that existed has been sent (T18). Repeated after each new list.
    OtherNodesComplete,
    /// Other Nodes are followed no more: what was sent of them is to be forgotten.
    OtherNodesForgotten,
}

impl Event {
    /// The object that is applied or deleted; `None` where the event is of none, or of one that cannot be read.
    pub fn object(&self) -> Option<(Kind, &ObjectName)> {
        fn name<'a, T>(change: &'a Change<T>, of: impl Fn(&'a T) -> &'a ObjectName) -> &'a ObjectName {
            match change {
                Change::Applied(object) => of(object),
                Change::Deleted(name) => name,
            }
        }
        match self {
            Self::Service(change) => Some((Kind::Service, name(change, |service| &service.name))),
            Self::EndpointSlice(change) => Some((Kind::EndpointSlice, name(change, |slice| &slice.name))),
            Self::Node(change) => Some((Kind::Node, name(change, |node| &node.name))),
            _ => None,
        }
    }

    /// Fields of a Node that cannot be read. Those of a Service and its slices are among the rejections of its program.
    pub(crate) fn unread_fields(&self) -> Vec<Rejection> {
        let Self::Node(Change::Applied(node)) = self else {
            return Vec::new();
        };
        let rejection = |invalid: &InvalidField| Rejection {
            kind: Kind::Node,
            object: node.name.clone(),
            field: invalid.field.clone(),
            reason: invalid.reason.clone(),
        };
        node.invalid.iter().map(rejection).collect()
    }
}

/// Events that are one step from a picture to the next: they enter the model together, and no commit is made between
/// them. One reading of a directory, one list of the API server and one event of a watch are a batch each.
pub type Batch = Vec<Event>;
