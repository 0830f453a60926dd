//! Worlds for the tests: kernels with IPVS, network namespaces as nodes, pods and clients, a fake and a real API
//! server. Never a dependency of a shipped crate.

pub mod control_plane;
pub mod fake_api;
pub mod kernel;
pub mod netns;
pub mod world;
