//! The flags of kube-proxy, row by row, and ours beside them.

use serde_json::Value;

use super::flag::{Flag, Table};
use super::flag_value::Kind;
use super::kube_proxy::KubeProxyConfiguration;
use super::own::{self, KubeIpvsConfiguration};
use super::tree;

const fn flag(name: &'static str, field: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag {
        name,
        field,
        kind,
        help,
    }
}

/// What decides what is programmed for a Service: the daemon and `plan` take the same.
#[derive(Debug)]
pub(crate) struct ServiceFlags;

#[rustfmt::skip]
impl Table for ServiceFlags {
    const HEADING: &'static str = "Services";
    const FLAGS: &'static [Flag] = &[
        flag("proxy-mode", "mode", Kind::Text, "ipvs (what \"\" means here, too) or iptables"),
        flag("hostname-override", "hostnameOverride", Kind::Text, "Name of the node, instead of the host's name; holds beside --config, too"),
        flag("ipvs-scheduler", "ipvs.scheduler", Kind::Text, "Scheduler of services that name none: rr lc dh sh sed nq wrr wlc lblc lblcr mh fo ovf twos; \"\" = rr"),
        flag("nodeport-addresses", "nodePortAddresses", Kind::List, "Addresses of the node on which NodePorts answer: CIDRs, `primary`, `localhost` (iptables mode alone), `all`; empty = all"),
        flag("iptables-masquerade-bit", "iptables.masqueradeBit", Kind::Int32, "Bit of the packet mark that stands for masquerading, 0 to 31, in both modes"),
        flag("masquerade-all", "iptables.masqueradeAll", Kind::Bool, "Masquerade every client of a cluster IP, in both modes"),
        flag("iptables-localhost-nodeports", "iptables.localhostNodePorts", Kind::Bool, "NodePorts answer on 127.0.0.1 in the mode iptables"),
        flag("detect-local-mode", "detectLocalMode", Kind::Text, "How pods of this node are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix; \"\" = ClusterCIDR"),
        flag("cluster-cidr", "clusterCIDR", Kind::Text, "Pod address range, one CIDR or one of each family, separated by a comma"),
        flag("pod-bridge-interface", "detectLocal.bridgeInterface", Kind::Text, "Bridge of this node's pods, for the mode BridgeInterface"),
        flag("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", Kind::Text, "First letters of the interfaces of this node's pods, for the mode InterfaceNamePrefix"),
        flag("feature-gates", "featureGates", Kind::Gates, "Feature gates, as Name=true or Name=false; AllowServiceExternalIPs, ComponentFlagz, ComponentStatusz and those of logging have an effect, others are accepted"),
    ];

    fn defaults() -> Value {
        tree::of(&KubeProxyConfiguration::defaults())
    }
}

/// What else of kube-proxy's the daemon takes.
#[derive(Debug)]
pub(crate) struct ProxyFlags;

#[rustfmt::skip]
impl Table for ProxyFlags {
    const HEADING: &'static str = "Daemon";
    const FLAGS: &'static [Flag] = &[
        flag("kubeconfig", "clientConnection.kubeconfig", Kind::Text, "kubeconfig of the API server; neither this nor --master = the pod's own service account"),
        flag("kube-api-content-type", "clientConnection.contentType", Kind::Text, "Accepted without effect: objects are read as JSON"),
        flag("kube-api-qps", "clientConnection.qps", Kind::Float, "Accepted without effect: three watches and some events are all that is asked"),
        flag("kube-api-burst", "clientConnection.burst", Kind::Int32, "Accepted without effect"),
        flag("bind-address", "bindAddress", Kind::Ip, "Address of this node, where it is not to be taken from its Node object; nothing binds to it"),
        flag("healthz-bind-address", "healthzBindAddress", Kind::IpPort, "Where /healthz and /livez are served"),
        flag("metrics-bind-address", "metricsBindAddress", Kind::IpPort, "Where /metrics, /proxyMode and /configz are served"),
        flag("bind-address-hard-fail", "bindAddressHardFail", Kind::Bool, "An address of the two that cannot be bound ends the program, instead of being tried again"),
        flag("profiling", "enableProfiling", Kind::Bool, "Serve /debug/pprof beside /metrics"),
        flag("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Kind::Text, "Accepted without effect, since no metric is hidden: MAJOR.MINOR of Kubernetes"),
        flag("iptables-sync-period", "iptables.syncPeriod", Kind::Duration, "As --ipvs-sync-period, for the mode iptables"),
        flag("iptables-min-sync-period", "iptables.minSyncPeriod", Kind::Duration, "As --ipvs-min-sync-period, for the mode iptables"),
        flag("ipvs-sync-period", "ipvs.syncPeriod", Kind::Duration, "Between two audits of what the kernel holds; not less than --ipvs-min-sync-period"),
        flag("ipvs-min-sync-period", "ipvs.minSyncPeriod", Kind::Duration, "Smallest gap between two commits, such as 1s; changes meanwhile are folded together; 0 = none"),
        flag("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", Kind::List, "Accepted without effect: virtual servers of others are never touched"),
        flag("ipvs-strict-arp", "ipvs.strictARP", Kind::Bool, "Answer ARP only on the interface that has the address (arp_ignore=1, arp_announce=2)"),
        flag("ipvs-tcp-timeout", "ipvs.tcpTimeout", Kind::Duration, "Idle time after which IPVS forgets a TCP connection; 0 = leave the kernel's"),
        flag("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", Kind::Duration, "The same after a FIN; 0 = leave the kernel's"),
        flag("ipvs-udp-timeout", "ipvs.udpTimeout", Kind::Duration, "The same for UDP; 0 = leave the kernel's"),
        flag("oom-score-adj", "oomScoreAdj", Kind::Int32, "How willingly the kernel ends this process where memory is short, -1000 to 1000"),
        flag("conntrack-max-per-core", "conntrack.maxPerCore", Kind::Int32, "Connections that the node tracks, for each processor; 0 = leave the kernel's, and --conntrack-min aside"),
        flag("conntrack-min", "conntrack.min", Kind::Int32, "Connections that the node tracks, at least"),
        flag("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", Kind::Duration, "Idle time after which the node forgets an established TCP connection; 0 = leave the kernel's"),
        flag("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", Kind::Duration, "The same in CLOSE_WAIT; 0 = leave the kernel's"),
        flag("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", Kind::Bool, "Connection tracking takes TCP segments that are out of window, too"),
        flag("conntrack-udp-timeout", "conntrack.udpTimeout", Kind::Duration, "The same for UDP without an answer; 0 = leave the kernel's"),
        flag("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", Kind::Duration, "The same for UDP with answers; 0 = leave the kernel's"),
        flag("config-sync-period", "configSyncPeriod", Kind::Duration, "Accepted without effect: watches need no refreshing"),
        flag("proxy-port-range", "portRange", Kind::Text, "Deprecated, accepted without effect, as by kube-proxy"),
    ];

    fn defaults() -> Value {
        tree::of(&KubeProxyConfiguration::defaults())
    }
}

/// Logs. They hold beside `--config`, too.
#[derive(Debug)]
pub(crate) struct LogFlags;

#[rustfmt::skip]
impl Table for LogFlags {
    const HEADING: &'static str = "Logging";
    const FLAGS: &'static [Flag] = &[
        flag("v", "logging.verbosity", Kind::Level, "Verbosity: below 4 one line a commit, 4 every op, 6 and more everything. RUST_LOG overrides it"),
        flag("logging-format", "logging.format", Kind::Text, "Format of the log on standard error: text or json"),
        flag("vmodule", "logging.vmodule", Kind::VModule, "Accepted without effect: the patterns are names of Go's files"),
        flag("log-flush-frequency", "logging.flushFrequency", Kind::Duration, "Accepted without effect: every line is written at once"),
        flag("log-text-split-stream", "logging.options.text.splitStream", Kind::Bool, "Accepted without effect with the gate LoggingAlphaOptions"),
        flag("log-text-info-buffer-size", "logging.options.text.infoBufferSize", Kind::Quantity, "Accepted without effect with the gate LoggingAlphaOptions"),
        flag("log-json-split-stream", "logging.options.json.splitStream", Kind::Bool, "Accepted without effect with the gate LoggingAlphaOptions"),
        flag("log-json-info-buffer-size", "logging.options.json.infoBufferSize", Kind::Quantity, "Accepted without effect with the gate LoggingAlphaOptions"),
    ];

    fn defaults() -> Value {
        tree::of(&KubeProxyConfiguration::defaults())
    }
}

/// Settings that kube-proxy does not have. They hold beside `--config`, too, and before what the file says.
#[derive(Debug)]
pub(crate) struct OwnFlags;

#[rustfmt::skip]
impl Table for OwnFlags {
    const HEADING: &'static str = "Beyond kube-proxy";
    const FLAGS: &'static [Flag] = &[
        flag("vip-addresses", "vipAddresses", Kind::Bool, "VIPs are addresses on kube-ipvs0 as well as local routes; false: routes only"),
        flag("fallback", "fallback", Kind::OneOf(own::FALLBACKS), "What is done where the kernel lacks what the IPVS mode needs: iptables = its mode, none = exit status 3"),
        flag("drain-timeout", "drainTimeout", Kind::Duration, "How long a TCP endpoint that is gone may keep its connections before it is removed; 0 = as long as they live. A Service says otherwise by the annotation kube-ipvs.io/drain-timeout"),
        flag("real-servers-per-service", "limits.realServersPerService", Kind::Int32, "Endpoints that a Service may have, counted at each of its addresses and ports; one with more is not served"),
        flag("source-ranges-per-service", "limits.sourceRangesPerService", Kind::Int32, "Source ranges that a Service may have, counted at each address and port that they restrict; one with more admits nobody there"),
        flag("allowed-schedulers", "allowedSchedulers", Kind::List, "Schedulers that the annotation kube-ipvs.io/scheduler may name; empty = every one"),
        flag("external-ip-ranges", "externalIPRanges", Kind::List, "CIDRs in which external IPs of Services must be; empty = anywhere, and who may create Services may take any address from this node"),
        flag("load-balancer-ip-ranges", "loadBalancerIPRanges", Kind::List, "CIDRs in which load-balancer addresses of Services must be; empty = anywhere"),
        flag("iptables-forward-accept", "iptablesForwardAccept", Kind::OneOf(own::FORWARD_ACCEPTS), "Accept replies of services in iptables' FORWARD chain: auto = where its policy is DROP, always, never"),
        flag("second-instance", "secondInstance", Kind::OneOf(own::SECOND_INSTANCES), "What a kube-ipvs does that finds another one serving in its network namespace: wait = take over when it ends, not ready until then; exit = an error"),
        flag("deny-exec", "denyExec", Kind::Bool, "In the IPVS mode the process forbids itself to start programs (seccomp), for a node that --init-only set up: no accepts in others' chains, nothing of kube-proxy's is removed, no credential plugins"),
    ];

    fn defaults() -> Value {
        tree::of(&KubeIpvsConfiguration::default())
    }
}

/// Where the daemon keeps what cleanup needs.
#[derive(Debug)]
pub(crate) struct RunFlags;

#[rustfmt::skip]
impl Table for RunFlags {
    const HEADING: &'static str = "Beyond kube-proxy";
    const FLAGS: &'static [Flag] = &[
        flag("run-dir", "runDir", Kind::Text, "Directory of the host in which the old values of sysctls are kept, for cleanup; one that goes with a reboot"),
    ];

    fn defaults() -> Value {
        tree::of(&KubeIpvsConfiguration::default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::flag::{Flags, parsed};
    use super::*;

    /// Every field that a row names is one, and takes what the row's kind makes of the default.
    fn check<T: Table>(extra: &[&str]) {
        let defaults = T::defaults();
        for flag in T::FLAGS {
            let text = flag.kind.write(tree::get(&defaults, flag.field));
            let argument = format!("--{}={text}", flag.name);
            let flags: Flags<T> = parsed(&[&argument]).unwrap();
            assert_eq!(flags.names().collect::<Vec<_>>(), [flag.name]);
            let over: Value = flags.over(&defaults);
            let (before, after) = (tree::get(&defaults, flag.field), tree::get(&over, flag.field));
            let absent = before.is_null() && (text.is_empty() || text == "false");
            assert!(before == after || absent, "{argument}: {before} {after}");
        }
        for argument in extra {
            assert_ne!(
                parsed::<T>(&[argument]).unwrap().over(&defaults),
                defaults,
                "{argument}"
            );
        }
    }

    #[test]
    fn rows_fit_their_fields() {
        check::<ServiceFlags>(&["--feature-gates=A=true", "--nodeport-addresses=primary"]);
        check::<ProxyFlags>(&["--ipvs-exclude-cidrs=10.0.0.0/8"]);
        check::<LogFlags>(&["--vmodule=a=1", "--log-text-split-stream", "-v4", "-v=4"]);
        check::<OwnFlags>(&["--vip-addresses=false"]);
        check::<RunFlags>(&["--run-dir=/x"]);
        // The typed configuration takes them all, too.
        let flags: Flags<LogFlags> = parsed(&["--vmodule=a=1", "--log-json-info-buffer-size=1Ki"]).unwrap();
        let typed = flags.over(&KubeProxyConfiguration::defaults());
        assert_eq!(typed.logging.vmodule.len(), 1);
        assert!(!typed.logging.options.json.info_buffer_size.is_zero());
    }
}
