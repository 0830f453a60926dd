//! Worlds for the tests: kernels with IPVS, network namespaces as nodes, pods and clients, a fake and a real API
//! server. Never a dependency of a shipped crate.
//!
//! Reading order: [`kernel`] (where a kernel comes from and how a command runs on it), [`netns`] (one namespace),
//! [`world`] (a node with pods, another host, a client), [`daemon`] (kube-ipvs as a process), [`load`] (clients
//! and servers that count), [`fake_api`], [`go`] and [`control_plane`], [`matrix`] (a cluster of three nodes, and who must reach
//! whom), [`cluster`] (real pods under a real kubelet).

pub mod cluster;
pub mod control_plane;
pub mod daemon;
pub mod fake_api;
pub mod go;
pub mod http;
pub mod kernel;
pub mod link;
pub mod load;
pub mod matrix;
pub mod netns;
pub mod tool;
pub mod world;
