//! Tests against a real kernel with IPVS. One binary, so that one boot runs them all; each test works in network
//! namespaces of its own. `cargo xtask test` runs it where such a kernel is; run elsewhere, every test fails.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod attack;
mod cleanup;
mod config_file;
mod conformance;
mod conntrack;
mod daemon;
mod fallback;
mod health;
mod host_rules;
mod instance;
mod ipv6_off;
mod ipvs;
mod leftovers;
mod life;
mod load;
mod metrics;
mod mode;
mod nftables;
mod other_nodes;
mod plan;
mod policy;
mod privilege;
mod probe;
mod protected;
mod scheduler;
mod seen;
mod tables;
mod work;
mod worlds;
