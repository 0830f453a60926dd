//! How large the connection tracker is and how long it remembers (`conntrack` of the configuration), as kube-proxy sets
//! them at start, in every mode. `nf_conntrack_max` is raised and never lowered, as by kube-proxy from 1.36.6 and 1.37.2
//! (kubernetes/kubernetes#142035).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ipvs::sysctl::{Suffices, Sysctl};
use tracing::info;

use crate::start_settings::ConntrackSettings;

/// More entries than this are not asked for by the number of processors (kube-proxy since 1.36).
const MOST: u64 = 1 << 20;
const MAX: &str = "net/netfilter/nf_conntrack_max";
/// The table itself, which is no sysctl: written here it is resized at once.
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Entries for each place of the table.
const DEPTH: u64 = 4;

/// The sysctls, without those that are left alone.
pub(crate) fn wanted(settings: ConntrackSettings, processors: u64) -> Vec<Sysctl> {
    let seconds = |name, time: Duration| (!time.is_zero()).then(|| sysctl(name, time.as_secs()));
    let most = entries(settings, processors).map(|entries| Sysctl {
        suffices: Suffices::Limit,
        ..sysctl(MAX, entries)
    });
    let liberal = settings
        .tcp_be_liberal
        .then(|| sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", 1));
    let timeout = |name, time| seconds(name, time);
    [
        most,
        timeout(
            "net/netfilter/nf_conntrack_tcp_timeout_established",
            settings.tcp_established_timeout,
        ),
        timeout(
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            settings.tcp_close_wait_timeout,
        ),
        liberal,
        timeout("net/netfilter/nf_conntrack_udp_timeout", settings.udp_timeout),
        timeout(
            "net/netfilter/nf_conntrack_udp_timeout_stream",
            settings.udp_stream_timeout,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn sysctl(name: &'static str, value: u64) -> Sysctl {
    Sysctl {
        name,
        value: value.to_string().into(),
        suffices: Suffices::Same,
    }
}

/// `None` = left alone. Where the processors ask for more than the most, that is what counts, whatever `min` says (Kubernetes
/// 1.37, pkg/proxy/conntrack/sysctls.go, `getConntrackMax`).
fn entries(settings: ConntrackSettings, processors: u64) -> Option<u64> {
    if settings.max_per_core == 0 {
        return None;
    }
    let by_processors = u64::from(settings.max_per_core).saturating_mul(processors);
    Some(if by_processors > MOST {
        MOST
    } else {
        by_processors.max(settings.min.into())
    })
}

/// Gives the table a place for every few entries, where it has fewer.
///
/// # Errors
/// Where it cannot be read or written, as with a read-only /sys. The tracker works all the same, with longer chains.
pub(crate) fn ensure_hash_size(settings: ConntrackSettings, processors: u64) -> Result<()> {
    ensure_hash_size_in(Path::new(HASH_SIZE), settings, processors)
}

fn ensure_hash_size_in(path: &Path, settings: ConntrackSettings, processors: u64) -> Result<()> {
    let Some(entries) = entries(settings, processors) else {
        return Ok(());
    };
    let wanted = entries / DEPTH;
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let has: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("{}: {text:?}", path.display()))?;
    if has < wanted {
        fs::write(path, wanted.to_string()).with_context(|| format!("write {wanted} to {}", path.display()))?;
        info!(old = has, new = wanted, "table of the connection tracker enlarged");
    }
    Ok(())
}

/// Processors of this machine, not those that this process may use; these where nothing tells the former.
pub(crate) fn processors() -> u64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|text| count(&text));
    let ours = || thread::available_parallelism().map_or(1, |number| number.get() as u64);
    online.unwrap_or_else(ours)
}

/// Of a list such as `0-3,6`.
fn count(list: &str) -> Option<u64> {
    let number = |text: &str| text.parse::<u64>().ok();
    list.trim()
        .split(',')
        .map(|range| match range.split_once('-') {
            None => number(range).map(|_| 1),
            Some((first, last)) => (number(last)? + 1).checked_sub(number(first)?),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: ConntrackSettings = ConntrackSettings {
        max_per_core: 32_768,
        min: 131_072,
        tcp_established_timeout: Duration::from_secs(86_400),
        tcp_close_wait_timeout: Duration::from_secs(3_600),
        tcp_be_liberal: false,
        udp_timeout: Duration::ZERO,
        udp_stream_timeout: Duration::ZERO,
    };

    #[test]
    fn entries_by_processors_and_at_least() {
        let check = |max_per_core, min, processors, expect| {
            let settings = ConntrackSettings {
                max_per_core,
                min,
                ..DEFAULTS
            };
            assert_eq!(entries(settings, processors), expect);
        };
        check(32_768, 131_072, 2, Some(131_072));
        check(32_768, 131_072, 8, Some(262_144));
        check(32_768, 131_072, 256, Some(MOST));
        check(32_768, 2_000_000, 256, Some(MOST));
        check(32_768, 2_000_000, 32, Some(2_000_000));
        check(u32::MAX, 0, u64::MAX, Some(MOST));
        check(1, 0, 3, Some(3));
        // 0 = left alone, and then the least number, too.
        check(0, 131_072, 8, None);
    }

    #[test]
    fn what_is_zero_is_left_alone() {
        let names = |settings| {
            let all: Vec<_> = wanted(settings, 4)
                .into_iter()
                .map(|sysctl| {
                    let name = sysctl.name.trim_start_matches("net/netfilter/nf_conntrack_");
                    let at_least = if sysctl.suffices == Suffices::Limit { ">" } else { "" };
                    format!("{name}{at_least}={}", sysctl.value)
                })
                .collect();
            all.join(" ")
        };
        assert_eq!(
            names(DEFAULTS),
            "max>=131072 tcp_timeout_established=86400 tcp_timeout_close_wait=3600"
        );
        let others = ConntrackSettings {
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(30),
            udp_stream_timeout: Duration::from_secs(120),
            ..ConntrackSettings::default()
        };
        assert_eq!(names(others), "tcp_be_liberal=1 udp_timeout=30 udp_timeout_stream=120");
        assert_eq!(names(ConntrackSettings::default()), "");
    }

    #[test]
    fn the_table_is_never_made_smaller() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hashsize");
        let after = |before: &str, settings| {
            fs::write(&path, before).unwrap();
            ensure_hash_size_in(&path, settings, 4).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(after("65536\n", DEFAULTS), "65536\n");
        assert_eq!(after("1024\n", DEFAULTS), "32768");
        assert_eq!(after("1\n", ConntrackSettings::default()), "1\n");
        assert!(ensure_hash_size_in(&folder.path().join("none"), DEFAULTS, 4).is_err());
        fs::write(&path, "many").unwrap();
        assert!(ensure_hash_size_in(&path, DEFAULTS, 4).is_err());
    }

    #[test]
    fn processors_of_a_list() {
        let check = |list, expect| assert_eq!(count(list), expect, "{list}");
        check("0\n", Some(1));
        check("0-3\n", Some(4));
        check("0-3,6,8-9", Some(7));
        check("", None);
        check("3-0", None);
        assert!(processors() > 0);
    }
}
