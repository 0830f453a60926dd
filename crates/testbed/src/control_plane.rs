//! A real control plane.
use std::path::{Path, PathBuf};
use anyhow::{Result, bail};
/// Environment variable with the path of the program.
pub const PROGRAM: &str = "KUBE_IPVS_CONTROL_PLANE";
/// Builds it.
///
/// # Errors
/// Always.
pub fn build(_: &Path) -> Result<PathBuf> { bail!("not yet") }
