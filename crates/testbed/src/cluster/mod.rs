//! A cluster whose nodes run pods: by kind, or made here of upstream's programs in a kernel with IPVS. What a test does
//! with it is the same, so it is one trait; the node itself is looked at by a pod of the host's network.
//!
//! Reading order: `machine` (what the test kernel lacks of a machine), [`runtime`] (containerd and the pods' network),
//! [`node`] (these and the kubelet), [`in_kernel`] (one node and its control plane in one kernel), [`lab`] (nodes that are
//! kernels of their own, the control plane beside them), [`kind`].

pub mod in_kernel;
pub mod kind;
pub mod lab;
pub(crate) mod machine;
pub mod node;
pub mod runtime;

use std::path::Path;

use anyhow::Result;

pub use in_kernel::InKernel;
pub use kind::Kind;
pub use lab::Lab;

/// The range of pod addresses, in either.
pub const POD_RANGE: &str = "10.244.0.0/16";

/// A cluster without a Service proxy.
pub trait Cluster {
    /// Runs kubectl with every right, and returns what it prints.
    ///
    /// # Errors
    /// It ends with another status than zero: with what it said.
    fn kubectl(&self, arguments: &[&str]) -> Result<String>;

    /// A kubeconfig with every right.
    fn kubeconfig(&self) -> &Path;

    /// Puts the images of an OCI archive onto every node.
    ///
    /// # Errors
    /// The node's container runtime refuses them.
    fn import(&self, archive: &Path) -> Result<()>;

    /// Runs a command outside of the cluster, from where the nodes' addresses are reached.
    ///
    /// # Errors
    /// As [`kubectl`](Self::kubectl).
    fn outside(&self, words: &[&str]) -> Result<String>;
}
