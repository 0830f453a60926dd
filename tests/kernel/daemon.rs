//! The daemon end to end: manifests in, IPVS and traffic out.
