//! What was built, under our own name, and which gates are open, under Kubernetes' (component-base, metrics).
//!
//! `kubernetes_build_info` is of programs that Kubernetes releases. This one is none, and the alert `KubeVersionMismatch` of
//! kubernetes-mixin counts the `git_version`s of that metric: whatever ours said, it would fire as long as it is scraped.

use std::env::consts::{ARCH, OS};
use std::fmt;

use super::page::Page;
use crate::config::{FeatureGate, KUBERNETES_RELEASE};

/// Go's names of architectures, which dashboards know.
fn platform() -> String {
    let arch = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{OS}/{arch}")
}

/// Commit and date are empty in a build without a git repository.
pub(super) fn write(page: &mut Page<'_>, gates: &[FeatureGate]) -> fmt::Result {
    let labels = [
        ("version", concat!("v", env!("CARGO_PKG_VERSION")).to_owned()),
        ("git_commit", env!("KUBE_IPVS_COMMIT").to_owned()),
        ("git_commit_date", env!("KUBE_IPVS_COMMIT_DATE").to_owned()),
        ("platform", platform()),
        ("kubernetes", KUBERNETES_RELEASE.to_owned()),
    ];
    page.gauges(
        "kube_ipvs_build_info",
        "1, with the version of this program, the commit that it is built from, and the release of Kubernetes whose kube-proxy it follows.",
        [(labels, 1.0)],
    )?;
    let gate = |gate: &FeatureGate| {
        let labels = [("name", gate.name), ("stage", gate.stage.label())];
        (labels, f64::from(u8::from(gate.enabled)))
    };
    page.gauges(
        "kubernetes_feature_enabled",
        "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
        gates.iter().map(gate),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::config::in_use;
    use crate::metrics::Metrics;
    use crate::mode::{Choice, Mode};
    use crate::progress::Progress;

    /// The expression of `KubeVersionMismatch` (kubernetes-mixin) looks at this name, in every job but DNS.
    #[test]
    fn the_build_is_told_under_our_own_name() {
        let choice = Choice::as_requested(Mode::Iptables);
        let page = Arc::new(Metrics::new(
            choice,
            Arc::new(Progress::new()),
            in_use(&Default::default()),
        ))
        .render();
        assert!(!page.contains("kubernetes_build_info"), "{page}");
        let line = page
            .lines()
            .find(|line| line.starts_with("kube_ipvs_build_info{"))
            .unwrap();
        let label = |name: &str| {
            let rest = line.split_once(&format!("{name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0
        };
        assert_eq!(label("version"), concat!("v", env!("CARGO_PKG_VERSION")));
        // A tree without git has neither.
        let (commit, date) = (label("git_commit"), label("git_commit_date"));
        assert_eq!(commit.is_empty(), date.is_empty());
        if !commit.is_empty() {
            assert!(
                commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{commit}"
            );
            assert!(date.parse::<jiff::Timestamp>().is_ok(), "{date}");
        }
        let gate = "kubernetes_feature_enabled{name=\"ComponentFlagz\",stage=\"BETA\"} 1";
        assert!(page.lines().any(|line| line.starts_with(gate)), "{page}");
    }
}
