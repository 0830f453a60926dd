//! Tests against a real kernel with IPVS. One binary, so that one boot runs them all; each test works in a network
//! namespace of its own.

mod conformance;
mod daemon;
mod ipvs;
