//! Cases as data: manifests in, plan out.
