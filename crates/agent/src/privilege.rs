//! What the process has to be allowed.

use anyhow::{Context, Result, bail};
use rustix::thread::CapabilitySet;

/// Everything that writes needs it; one sentence is clearer than the first EPERM.
pub(crate) fn require_net_admin() -> Result<()> {
    let capabilities = rustix::thread::capabilities(None).context("read this process's capabilities")?;
    if !capabilities.effective.contains(CapabilitySet::NET_ADMIN) {
        bail!("CAP_NET_ADMIN is missing: run kube-ipvs as root, or as a privileged container");
    }
    Ok(())
}
