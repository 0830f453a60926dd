//! The running kernel, in a mount and a network namespace of its own.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::Job;
use super::guest::Run;
use crate::tool;

/// The running kernel has what the tests need, and lets us use it.
pub(super) fn works() -> bool {
    // Loads the module where that is possible and needed.
    let _ = tool::sh("modprobe -q -a ip_vs dummy");
    Path::new("/proc/net/ip_vs").exists() && tool::sh("unshare --net ip link add probe type dummy").is_ok()
}

/// It can do what the iptables mode needs, and lets us use it.
pub(super) fn has_iptables() -> bool {
    let tries = [
        "iptables -t nat -S",
        "ip6tables -t nat -S",
        "ip link add probe type veth",
    ];
    tries
        .iter()
        .all(|line| tool::sh(&format!("unshare --net {line}")).is_ok())
}

pub(super) fn run(job: &Job) -> Result<i32> {
    let run = Run::new(job, "native", "")?;
    let mut carrier = Command::new("unshare");
    carrier.args(["--net", "--mount", "--"]).arg(run.script());
    run.finish(carrier, job.limit, &[])
}
