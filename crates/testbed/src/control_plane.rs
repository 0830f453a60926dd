//! A real control plane from Go modules.
