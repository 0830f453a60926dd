//! What is set on the node at start: all of it that `--init-only` does before, so that CAP_NET_ADMIN suffices after.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use dataplane::live::LiveKernel;
use ipvs::sysctl::{self, Ensured, Sysctl};
use ipvs::{Ipvs, OldValues, Timeouts};
use tracing::{debug, info, warn};

use crate::conntrack_sysctls;
use crate::host_rules;
use crate::mode::Mode;
use crate::settings::{IpvsTimeouts, Settings};
use crate::start_settings::StartSettings;
use crate::sync::Upkeep;

/// What every mode needs. Returns what is to be told as an event on the Node: nothing depends on it.
///
/// # Errors
/// Where a sysctl of the connection tracker is not as it should be and cannot be set, as kube-proxy's start.
pub(crate) fn node(settings: &StartSettings) -> Result<Option<String>> {
    if let Some(score) = settings.oom_score_adj
        && let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        // Of a container the runtime has set one.
        info!(%error, score, "oomScoreAdj cannot be set");
    }
    let processors = conntrack_sysctls::processors();
    set_sysctls(&conntrack_sysctls::wanted(settings.conntrack, processors), None)
        .context("0 in the section conntrack of the configuration leaves a sysctl alone")?;
    let sized = conntrack_sysctls::ensure_hash_size(settings.conntrack, processors);
    Ok(sized.err().map(|error| {
        let error = format!("{error:#}");
        warn!(
            error,
            "the table of the connection tracker is smaller than it should be"
        );
        error
    }))
}

/// What the IPVS mode needs.
///
/// # Errors
/// Where something cannot be set.
pub(crate) fn ipvs(settings: &Settings, kernel: &mut LiveKernel) -> Result<()> {
    kernel
        .vips()
        .ensure_device()
        .context("make the dummy device kube-ipvs0")?;
    set_sysctls(&sysctl::required(settings.strict_arp), Some(&settings.old_sysctls))?;
    set_timeouts(kernel.ipvs(), settings.timeouts)
}

/// What the iptables mode needs. Where it cannot be set NodePorts do not answer on 127.0.0.1, and everything else does.
pub(crate) fn iptables(settings: &Settings) {
    if settings.localhost_node_ports()
        && let Err(error) = set_sysctls(&[sysctl::ROUTE_LOCALNET], Some(&settings.old_sysctls))
    {
        warn!(error = format!("{error:#}"), "NodePorts do not answer on 127.0.0.1");
    }
}

/// The sysctls that a mode depends on while it serves, and which the daemon therefore keeps as they are. Sizes and times of
/// the connection tracker are not among them: they are the operator's once the node runs, and nothing breaks by them.
pub(crate) fn upkeep(settings: &Settings, mode: Mode) -> Upkeep {
    let wanted = match mode {
        Mode::Ipvs => sysctl::required(settings.strict_arp),
        Mode::Iptables if settings.localhost_node_ports() => vec![sysctl::ROUTE_LOCALNET],
        Mode::Iptables => Vec::new(),
    };
    Upkeep::of(wanted, settings.old_sysctls.clone())
}

/// `--init-only`: all of it, and the accepts in the host's iptables, which the daemon has a command of its own for.
///
/// # Errors
/// As those above.
pub(crate) fn init_only(settings: &Settings, mode: Mode) -> Result<()> {
    node(&settings.start)?;
    match mode {
        Mode::Ipvs => {
            ipvs(settings, &mut LiveKernel::open()?)?;
            host_rules::run(settings.forward_accept, settings.masquerade_bit);
        }
        Mode::Iptables => iptables(settings),
    }
    info!("set up, as --init-only asks");
    Ok(())
}

/// A value that cannot be set ends the start, as kube-proxy's does; one that is right already needs no right to write.
fn set_sysctls(wanted: &[Sysctl], old: Option<&OldValues>) -> Result<()> {
    let Ensured { changed, kept } = sysctl::ensure(wanted, old);
    if let Err(error) = kept {
        warn!(
            error = format!("{:#}", anyhow::Error::from(error)),
            "old values of sysctls are not kept, cleanup will not restore them"
        );
    }
    for change in changed {
        let (name, new) = (change.name, change.new);
        match change.result {
            Ok(()) => info!(name, old = change.old, %new, "sysctl set"),
            Err(error) => return Err(error).with_context(|| format!("set sysctl {name} to {new}")),
        }
    }
    Ok(())
}

fn set_timeouts(ipvs: &mut Ipvs, timeouts: IpvsTimeouts) -> Result<()> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).context("IPVS timeouts are 32-bit seconds");
    let wanted = Timeouts {
        tcp: seconds(timeouts.tcp)?,
        tcp_fin: seconds(timeouts.tcp_fin)?,
        udp: seconds(timeouts.udp)?,
    };
    if wanted == Timeouts::default() {
        debug!("IPVS timeouts are left alone");
        return Ok(());
    }
    ipvs.set_timeouts(wanted).context("set the IPVS timeouts")?;
    info!(
        tcp = wanted.tcp,
        tcp_fin = wanted.tcp_fin,
        udp = wanted.udp,
        "IPVS timeouts set, 0 = left alone"
    );
    Ok(())
}
