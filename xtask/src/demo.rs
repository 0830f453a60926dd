//! placeholder
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use testbed::kernel::Name;
pub(crate) fn run(_: bool, _: Option<Name>) -> Result<ExitCode> {
    bail!("demo")
}
pub(crate) fn guest(_: Option<&Path>) -> Result<ExitCode> {
    bail!("demo")
}
