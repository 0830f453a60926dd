//! The crate edges that ARCHITECTURE.md allows.
