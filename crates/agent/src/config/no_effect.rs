//! Fields that are accepted and change nothing here: named where they are not at their defaults.

use super::kube_proxy::KubeProxyConfiguration;
use super::tree;

const FIELDS: [&str; 14] = [
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "clientConnection.qps",
    "clientConnection.burst",
    "logging.flushFrequency",
    "logging.vmodule",
    "logging.options",
    "showHiddenMetricsForVersion",
    // Virtual servers of others are never touched (L10).
    "ipvs.excludeCIDRs",
    // The mode nftables is refused.
    "nftables",
    "winkernel",
    // Watches are not refreshed.
    "configSyncPeriod",
    "portRange",
    "windowsRunAsService",
];

/// The fields among them that say something.
pub(super) fn fields(config: &KubeProxyConfiguration) -> Vec<&'static str> {
    let (given, defaults) = (tree::of(config), tree::of(&KubeProxyConfiguration::defaults()));
    let says = |field: &&str| tree::get(&given, field) != tree::get(&defaults, field);
    FIELDS.into_iter().filter(says).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_to_something_else_is_named() {
        let mut config = KubeProxyConfiguration::defaults();
        assert_eq!(fields(&config), [""; 0]);
        config.ipvs.exclude_cidrs.push("10.0.0.0/8".to_owned());
        config.ipvs.strict_arp = true;
        config.nftables.masquerade_all = true;
        config.client_connection.burst = 7;
        assert_eq!(
            fields(&config),
            ["clientConnection.burst", "ipvs.excludeCIDRs", "nftables"]
        );
    }
}
