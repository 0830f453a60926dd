//! Defaults of fields whose zero means the default, as kube-proxy's `SetDefaults_KubeProxyConfiguration`.

use std::net::IpAddr;

use super::address::{ip, with_port};
use super::duration::GoDuration;
use super::kube_proxy::KubeProxyConfiguration;
use super::logging::FlushFrequency;

/// Port of `/healthz`.
pub(crate) const HEALTHZ_PORT: i32 = 10256;
/// Port of `/metrics`.
pub(crate) const METRICS_PORT: i32 = 10249;

impl KubeProxyConfiguration {
    /// What stands where nothing is said. The mode is chosen later: [`choose`](Self::choose).
    pub(crate) fn defaults() -> Self {
        let mut defaults = Self::default();
        defaults.fill();
        defaults
    }

    /// Gives defaults to what a file leaves out.
    pub(crate) fn fill(&mut self) {
        text(&mut self.bind_address, "0.0.0.0");
        // What is no address is IPv6 to upstream; validation names it.
        let (all, loopback) = match ip(&self.bind_address) {
            Some(IpAddr::V4(_)) => ("0.0.0.0", "127.0.0.1"),
            Some(IpAddr::V6(_)) | None => ("::", "::1"),
        };
        text(&mut self.healthz_bind_address, all);
        self.healthz_bind_address = with_port(&self.healthz_bind_address, HEALTHZ_PORT);
        text(&mut self.metrics_bind_address, loopback);
        self.metrics_bind_address = with_port(&self.metrics_bind_address, METRICS_PORT);

        time(&mut self.iptables.sync_period, 30);
        time(&mut self.iptables.min_sync_period, 1);
        time(&mut self.ipvs.sync_period, 30);
        time(&mut self.nftables.sync_period, 30);
        time(&mut self.nftables.min_sync_period, 1);
        time(&mut self.config_sync_period, 15 * 60);

        let client = &mut self.client_connection;
        text(&mut client.content_type, "application/vnd.kubernetes.protobuf");
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }

        text(&mut self.logging.format, "text");
        if self.logging.flush_frequency.is_zero() {
            self.logging.flush_frequency = FlushFrequency::Text(GoDuration::seconds(5));
        }
    }

    /// Chooses where a blank stands for a choice: the mode is `ipvs`, which is what this program is for (kube-proxy:
    /// `iptables`), and local traffic is told by `ClusterCIDR`.
    pub(crate) fn choose(&mut self) {
        text(&mut self.mode, "ipvs");
        text(&mut self.detect_local_mode, "ClusterCIDR");
    }
}

fn text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn time(field: &mut GoDuration, seconds: u32) {
    if field.is_zero() {
        *field = GoDuration::seconds(seconds);
    }
}
