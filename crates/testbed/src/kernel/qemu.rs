//! to be written
use super::Job;
use anyhow::{Result, bail};
pub(super) fn install() -> Result<()> {
    bail!("qemu")
}
pub(super) fn run(_job: &Job) -> Result<i32> {
    bail!("qemu")
}
