//! Providers of a kernel with IPVS.
