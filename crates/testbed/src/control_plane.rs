//! A real control plane.
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
/// Environment variable with the path of the program.
pub const PROGRAM: &str = "KUBE_IPVS_CONTROL_PLANE";
/// Builds it.
///
/// # Errors
/// Always.
pub fn build(_: &Path) -> Result<PathBuf> {
    bail!("not yet")
}
