//! `--deny-exec`: the process forbids itself, and what it starts, to execute programs. A container runtime cannot do that
//! for it: it would have to execute this program after it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use tracing::{info, warn};

use crate::mode::Mode;

/// To be called while there is one thread: those that it starts later inherit the filter. The iptables mode executes its
/// programs and is left alone, with a warning.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(crate) fn in_mode(mode: Mode) -> Result<()> {
    if mode != Mode::Ipvs {
        warn!(%mode, "--deny-exec has no effect in this mode, which executes iptables");
        return Ok(());
    }
    apply_filter(&filter()?).context("forbid execve (--deny-exec)")?;
    info!("execve is forbidden");
    Ok(())
}

/// Who asks is told EPERM; every other system call is free.
fn filter() -> Result<BpfProgram> {
    // Without conditions: whatever the arguments.
    let rules = BTreeMap::from([libc::SYS_execve, libc::SYS_execveat].map(|number| (number, Vec::new())));
    let refused = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    let target: TargetArch = std::env::consts::ARCH.try_into().context("seccomp")?;
    SeccompFilter::new(rules, SeccompAction::Allow, refused, target)
        .and_then(TryInto::try_into)
        .context("seccomp")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_executed_and_all_else_goes_on() {
        // A thread of its own: the filter is for good.
        let refused = thread::spawn(|| {
            apply_filter(&filter().unwrap()).unwrap();
            std::fs::read_to_string("/proc/self/stat").unwrap();
            Command::new("true").status().map_err(|error| error.kind())
        });
        assert_eq!(
            refused.join().unwrap().unwrap_err(),
            std::io::ErrorKind::PermissionDenied
        );
        assert!(Command::new("true").status().unwrap().success());
    }
}
