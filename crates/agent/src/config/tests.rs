//! Flags and files beside each other.

use clap::Parser;

use super::own::Fallback;
use super::*;
use crate::cli::Cli;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

pub(super) fn load(flags: &[&str]) -> Result<Configuration> {
    Configuration::load(
        &Cli::try_parse_from(["kube-ipvs"].iter().chain(flags))?
            .daemon
            .configuration,
    )
}

fn with_file(text: &str, flags: &[&str]) -> Result<Configuration> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let config = format!("--config={}", file.path().display());
    load(&[&[config.as_str()], flags].concat())
}

#[test]
fn with_a_file_flags_that_it_covers_are_ignored_and_named() {
    let loaded = with_file(
        &format!("{HEAD}hostnameOverride: Other\nlogging: {{verbosity: 1, vmodule: [{{filePattern: a, verbosity: 1}}]}}\nipvs: {{scheduler: lc}}\n"),
        &[
            "--ipvs-scheduler=sh",
            "--hostname-override= N1 ",
            "--oom-score-adj=5",
            "--healthz-port=0",
            "-v4",
            "--vmodule=b=2",
        ],
    )
    .unwrap();
    assert_eq!(loaded.kube_proxy.ipvs.scheduler, "lc");
    assert_eq!(loaded.kube_proxy.hostname_override, "n1");
    assert_eq!(loaded.kube_proxy.oom_score_adj, -999);
    assert_eq!(loaded.kube_proxy.healthz_bind_address, "0.0.0.0:10256");
    assert_eq!(loaded.kube_proxy.logging.verbosity, 4);
    let patterns: Vec<_> = loaded
        .kube_proxy
        .logging
        .vmodule
        .iter()
        .map(|item| item.file_pattern.as_str())
        .collect();
    assert_eq!(patterns, ["b", "a"]);
    assert_eq!(
        loaded.remarks,
        [
            "with --config these flags are ignored: --ipvs-scheduler, --oom-score-adj, --healthz-port",
            "--healthz-port is deprecated: use --healthz-bind-address"
        ]
    );
}

#[test]
fn a_flag_of_ours_holds_before_the_second_document() {
    let own = "---\napiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIpvsConfiguration\nfallback: none\nrunDir: /a\nvipAddresses: false\n";
    let loaded = with_file(&format!("{HEAD}{own}"), &["--run-dir=/b", "--vip-addresses"]).unwrap();
    assert_eq!(loaded.own.fallback, Fallback::None);
    assert_eq!(loaded.own.run_dir, Path::new("/b"));
    assert!(loaded.own.vip_addresses);
    assert!(loaded.remarks.is_empty(), "{:?}", loaded.remarks);
}

#[test]
fn deprecated_ports_set_those_of_the_addresses_or_turn_the_servers_off() {
    let check = |flags: &[&str], healthz: &str, metrics: &str| {
        let config = load(flags).unwrap().kube_proxy;
        assert_eq!(
            (
                config.healthz_bind_address.as_str(),
                config.metrics_bind_address.as_str()
            ),
            (healthz, metrics)
        );
    };
    check(&[], "0.0.0.0:10256", "127.0.0.1:10249");
    check(&["--healthz-port=0", "--metrics-port=0"], "", "");
    check(
        &[
            "--healthz-bind-address=::",
            "--healthz-port=7",
            "--metrics-bind-address=0.0.0.0",
        ],
        "[::]:7",
        "0.0.0.0:10249",
    );
    // A port that the address has stays, as upstream's.
    check(
        &["--healthz-bind-address=10.0.0.1:5", "--healthz-port=7"],
        "10.0.0.1:5",
        "127.0.0.1:10249",
    );
}

#[test]
fn all_that_is_wrong_is_named_at_once() {
    let error = load(&[
        "--oom-score-adj=2000",
        "--nodeport-addresses=x",
        "--feature-gates=Nope=true",
    ])
    .unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "invalid configuration, 2 values:\n  oomScoreAdj: Invalid value: 2000: must be within the range [-1000, 1000]\n  \
         nodePortAddresses[0]: Invalid value: \"x\": must be a valid CIDR or one of the keywords 'primary', 'localhost', 'all'"
    );
    assert!(load(&["--hostname-override= "]).is_err());
}

#[test]
fn a_mode_that_is_not_said_is_ipvs() {
    let origin = |loaded: Configuration| (loaded.kube_proxy.mode, loaded.mode_origin);
    let default = ("ipvs".to_owned(), ModeOrigin::Default);
    assert_eq!(origin(load(&[]).unwrap()), default);
    assert_eq!(origin(load(&["--proxy-mode="]).unwrap()), default);
    assert_eq!(
        origin(with_file(&format!("{HEAD}mode: \"\"\n"), &["--proxy-mode=iptables"]).unwrap()),
        default
    );
    let said = |mode: &str, origin| (mode.to_owned(), origin);
    assert_eq!(
        origin(load(&["--proxy-mode=ipvs"]).unwrap()),
        said("ipvs", ModeOrigin::Flag)
    );
    let file = with_file(&format!("{HEAD}mode: iptables\n"), &[]).unwrap();
    assert_eq!(origin(file), said("iptables", ModeOrigin::File));
    let error = format!("{:#}", load(&["--proxy-mode=nftables"]).unwrap_err());
    assert!(error.contains("kube-proxy has nftables"), "{error}");
}
