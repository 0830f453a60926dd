//! Each rule, by what it says. The corpus test compares the words with kube-proxy's own.

use super::*;

type Change = fn(&mut KubeProxyConfiguration);

fn check(change: Change, expect: &[&str]) {
    let mut config = KubeProxyConfiguration::defaults();
    change(&mut config);
    config.choose();
    let errors: Vec<_> = validate(&config, &KubeIpvsConfiguration::default())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(errors, expect);
}

fn time(text: &str) -> GoDuration {
    text.parse().unwrap()
}

#[test]
fn the_defaults_are_valid() {
    check(|_| {}, &[]);
    check(|config| config.mode = "iptables".to_owned(), &[]);
}

#[test]
fn modes_schedulers_and_excluded_ranges() {
    check(
        |config| config.mode = "userspace".to_owned(),
        &[
            "mode: Invalid value: \"userspace\": must be iptables, ipvs, nftables or blank (blank means ipvs; nftables is kube-proxy's only)",
        ],
    );
    check(
        |config| config.ipvs.scheduler = "best".to_owned(),
        &[
            "ipvs.scheduler: unknown scheduler \"best\", must be one of rr, lc, dh, sh, sed, nq, wrr, wlc, lblc, lblcr, mh, fo, ovf, twos",
        ],
    );
    let change: Change = |config| {
        config.ipvs.exclude_cidrs = vec!["10.0.0.0/8".to_owned(), "x".to_owned()];
        config.ipvs.tcp_timeout = time("-1s");
    };
    check(
        change,
        &[
            "ipvs.tcpTimeout: Invalid value: \"-1s\": must be greater than or equal to 0",
            "ipvs.excludeCIDRs[1]: Invalid value: \"x\": must be a valid CIDR",
        ],
    );
    // Only of the mode in use.
    let unused: Change = |config| {
        config.mode = "iptables".to_owned();
        config.ipvs.scheduler = "best".to_owned();
        config.ipvs.tcp_timeout = time("-1s");
        config.ipvs.sync_period = time("-1s");
    };
    check(unused, &[]);
}

#[test]
fn periods_of_the_mode_in_use() {
    check(
        |config| config.ipvs.sync_period = time("0"),
        &["ipvs.syncPeriod: Invalid value: \"0s\": must be greater than 0"],
    );
    check(
        |config| config.ipvs.min_sync_period = time("-1s"),
        &["ipvs.minSyncPeriod: Invalid value: \"-1s\": must be greater than or equal to 0"],
    );
    check(
        |config| config.ipvs.min_sync_period = time("1m"),
        &["ipvs.syncPeriod: Invalid value: \"1m0s\": must be greater than or equal to ipvs.minSyncPeriod"],
    );
    let iptables: Change = |config| {
        config.mode = "iptables".to_owned();
        config.iptables.min_sync_period = time("1m");
        config.config_sync_period = time("-1s");
    };
    check(
        iptables,
        &[
            "configSyncPeriod: Invalid value: \"-1s\": must be greater than 0",
            "iptables.syncPeriod: Invalid value: \"1m0s\": must be greater than or equal to iptables.minSyncPeriod",
        ],
    );
}

#[test]
fn numbers_have_ranges() {
    let change: Change = |config| {
        config.iptables.masquerade_bit = 32;
        config.oom_score_adj = -1001;
        config.conntrack.max_per_core = -1;
        config.conntrack.min = -2;
        config.conntrack.udp_stream_timeout = time("-3s");
        config.client_connection.burst = -4;
    };
    check(
        change,
        &[
            "iptables.masqueradeBit: Invalid value: 32: must be within the range [0, 31]",
            "oomScoreAdj: Invalid value: -1001: must be within the range [-1000, 1000]",
            "conntrack.maxPerCore: Invalid value: -1: must be greater than or equal to 0",
            "conntrack.min: Invalid value: -2: must be greater than or equal to 0",
            "clientConnection.burst: Invalid value: -4: must be greater than or equal to 0",
            "conntrack.udpStreamTimeout: Invalid value: \"-3s\": must be greater than or equal to 0",
        ],
    );
}

#[test]
fn addresses_and_ports() {
    let change: Change = |config| {
        config.bind_address = "host".to_owned();
        config.healthz_bind_address = "host:0".to_owned();
        config.metrics_bind_address = "10.0.0.1".to_owned();
        config.node_port_addresses = vec!["x".to_owned(), "primary".to_owned()];
    };
    check(
        change,
        &[
            "bindAddress: Invalid value: \"host\": not a valid textual representation of an IP address",
            "healthzBindAddress: Invalid value: \"host\": must be a valid IP",
            "healthzBindAddress: Invalid value: \"0\": must be a valid port",
            "metricsBindAddress: Invalid value: \"10.0.0.1\": must be IP:port",
            "nodePortAddresses[0]: Invalid value: \"x\": must be a valid CIDR or one of the keywords 'primary', 'localhost', 'all'",
        ],
    );
    check(|config| config.healthz_bind_address = String::new(), &[]);
}

/// Kubernetes 1.37: mixed with each other and with CIDRs, each once. A CIDR may be there twice.
#[test]
fn keywords_of_node_port_addresses() {
    let found = |list: &[&str]| {
        let mut errors = Errors::default();
        node_port_addresses(
            &mut errors,
            &list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(),
        );
        errors.0.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for fine in [
        &[][..],
        &["primary"],
        &["localhost"],
        &["all", "primary", "localhost"],
        &["primary", "10.0.0.0/8", "localhost", "fd00::/8", "10.0.0.0/8"],
    ] {
        assert_eq!(found(fine), [""; 0], "{fine:?}");
    }
    assert_eq!(
        found(&["primary", "all", "primary", "all", "all"]),
        [
            "nodePortAddresses[2]: Duplicate value: \"primary\"",
            "nodePortAddresses[3]: Duplicate value: \"all\"",
            "nodePortAddresses[4]: Duplicate value: \"all\"",
        ]
    );
}

#[test]
fn cluster_cidrs_and_interfaces() {
    let cidrs = |text: &str| {
        let mut errors = Errors::default();
        cluster_cidrs(&mut errors, text);
        errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(cidrs(""), "");
    assert_eq!(cidrs("10.0.0.0/8,fd00::/64"), "");
    assert!(cidrs("10.0.0.0/8,10.1.0.0/16").contains("dual-stack pair"));
    assert!(cidrs("10.0.0.0/8,fd00::/64,fd01::/64").contains("dual-stack pair"));
    assert!(cidrs("10.0.0.0/8, fd00::/64").contains("clusterCIDR[1]: Invalid value: \" fd00::/64\""));
    check(
        |config| config.detect_local_mode = "Guess".to_owned(),
        &[
            "detectLocalMode: Unsupported value: \"Guess\": supported values: \"ClusterCIDR\", \"NodeCIDR\", \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"",
        ],
    );
    check(
        |config| config.detect_local_mode = "BridgeInterface".to_owned(),
        &["detectLocal.bridgeInterface: Invalid value: \"\": must not be empty"],
    );
    let long: Change = |config| {
        config.detect_local_mode = "InterfaceNamePrefix".to_owned();
        config.detect_local.interface_name_prefix = "a-name-of-16-chr".to_owned();
    };
    check(
        long,
        &[
            "detectLocal.interfaceNamePrefix: Invalid value: \"a-name-of-16-chr\": is longer than 15 bytes, which no interface name is",
        ],
    );
}

#[test]
fn logs_gates_and_hidden_metrics() {
    let change: Change = |config| {
        config.logging.format = "json".to_owned();
        config.logging.verbosity = u32::MAX;
        config.logging.vmodule = vec![crate::config::logging::VModuleItem::default()];
        config.logging.options.text.split_stream = true;
        config.show_hidden_metrics_for_version = "1.2.3".to_owned();
        config.feature_gates.insert("LoggingBetaOptions".to_owned(), false);
    };
    check(
        change,
        &[
            "logging.format: Forbidden: Log format json is disabled, see LoggingBetaOptions feature",
            "logging.vmodule: Forbidden: Only supported for text log format",
            "logging.verbosity: Invalid value: 4294967295: Must be <= 2147483647",
            "logging.vmodule[0]: Required value: File pattern must not be empty",
            "logging.options.text.splitStream: Forbidden: Feature LoggingAlphaOptions is disabled",
            "showHiddenMetricsForVersion: Invalid value: \"1.2.3\": --show-hidden-metrics-for-version must be omitted or name a minor release of Kubernetes, such as '1.36'",
        ],
    );
    let split: Change = |config| {
        config.logging.options.text.split_stream = true;
        config.feature_gates.insert("LoggingAlphaOptions".to_owned(), true);
    };
    check(split, &[]);
}

/// Each release of kube-proxy takes the one before it.
#[test]
fn hidden_metrics_of_any_minor_release() {
    for fine in ["1.30", "1.33", "1.36", "1.38", "2.0"] {
        assert!(is_minor_release(fine), "{fine}");
    }
    for wrong in [
        "",
        "1",
        "1.",
        ".36",
        "v1.36",
        "1.36.1",
        "1.+3",
        "1.-3",
        " 1.36",
        "1.99999999999",
    ] {
        assert!(!is_minor_release(wrong), "{wrong:?}");
    }
}
