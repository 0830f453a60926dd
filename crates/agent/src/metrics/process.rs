//! This process, under the names of Prometheus' own client libraries; read from `/proc` when the page is asked for.

use std::fmt;
use std::fs;

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, WithCurrentSystemInfo};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tracing::debug;

use super::page::Page;

/// What `/proc` tells.
struct Readings {
    cpu_seconds: f64,
    open_fds: usize,
    max_fds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    max_virtual_bytes: f64,
    start_seconds: f64,
    /// Received and sent, of the network namespace.
    network_bytes: Option<[u64; 2]>,
}

#[allow(
    clippy::cast_precision_loss,
    reason = "seconds and limits far below 2^52 ticks; no limit is 2^64"
)]
fn read() -> ProcResult<Readings> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let limits = process.limits()?;
    let limit = |value| match value {
        LimitValue::Unlimited => u64::MAX as f64,
        LimitValue::Value(value) => value as f64,
    };
    let ticks = procfs::ticks_per_second() as f64;
    Ok(Readings {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        open_fds: process.fd_count()?,
        max_fds: limit(limits.max_open_files.soft_limit),
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        max_virtual_bytes: limit(limits.max_address_space.soft_limit),
        start_seconds: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
        network_bytes: fs::read_to_string("/proc/self/net/netstat")
            .ok()
            .and_then(|text| network_bytes(&text)),
    })
}

/// `InOctets` and `OutOctets` of `IpExt`: a line of names, then one of values.
fn network_bytes(netstat: &str) -> Option<[u64; 2]> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    let value = |wanted: &str| {
        let found = names.clone().zip(values.clone()).find(|(name, _)| *name == wanted);
        found.and_then(|(_, value)| value.parse().ok())
    };
    Some([value("InOctets")?, value("OutOctets")?])
}

/// When this process began, in seconds since 1970; 0 where `/proc` does not tell.
pub(crate) fn start_seconds() -> f64 {
    read().map_or(0.0, |readings| readings.start_seconds)
}

/// Writes it all; nothing where `/proc` cannot be read.
pub(super) fn write(page: &mut Page<'_>) -> fmt::Result {
    let readings = match read() {
        Ok(readings) => readings,
        Err(error) => {
            debug!(%error, "this process cannot be read in /proc");
            return Ok(());
        }
    };
    page.put(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        &ConstCounter::new(readings.cpu_seconds),
    )?;
    page.put(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        &ConstGauge::new(readings.max_fds),
    )?;
    if let Some([received, sent]) = readings.network_bytes {
        page.put(
            "process_network_receive_bytes_total",
            "Number of bytes received by the process over the network.",
            &ConstCounter::new(received),
        )?;
        page.put(
            "process_network_transmit_bytes_total",
            "Number of bytes sent by the process over the network.",
            &ConstCounter::new(sent),
        )?;
    }
    page.put(
        "process_open_fds",
        "Number of open file descriptors.",
        &ConstGauge::new(readings.open_fds),
    )?;
    page.put(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        &ConstGauge::new(readings.resident_bytes),
    )?;
    write_start(page, readings.start_seconds)?;
    page.put(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        &ConstGauge::new(readings.virtual_bytes),
    )?;
    page.put(
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
        &ConstGauge::new(readings.max_virtual_bytes),
    )
}

/// The start alone.
pub(super) fn write_start(page: &mut Page<'_>, seconds: f64) -> fmt::Result {
    page.put(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        &ConstGauge::new(seconds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let readings = read().unwrap();
        assert!(readings.open_fds >= 3 && readings.max_fds > 3.0);
        assert!(readings.resident_bytes > 100_000 && readings.virtual_bytes > readings.resident_bytes);
        let now = jiff::Timestamp::now().as_second();
        #[allow(clippy::cast_possible_truncation, reason = "seconds of this century")]
        let start = readings.start_seconds as i64;
        assert!((0..86_400).contains(&(now - start)), "{start} {now}");
    }

    #[test]
    fn bytes_of_the_network_are_found_by_name() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 7 8 9\n";
        assert_eq!(network_bytes(text), Some([8, 9]));
        assert_eq!(network_bytes("IpExt: InOctets\n"), None);
    }
}
