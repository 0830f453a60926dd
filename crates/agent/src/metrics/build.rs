//! What was built, and which gates are open, under Kubernetes' names (component-base, metrics).

use std::env::consts::{ARCH, OS};
use std::fmt;

use super::page::Page;

/// Go's names of architectures, which dashboards know.
fn platform() -> String {
    let arch = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{OS}/{arch}")
}

/// This program's version; what a build of Go has and ours has not is empty.
pub(super) fn write(page: &mut Page<'_>, gates: &[(&'static str, bool)]) -> fmt::Result {
    let labels = [
        ("major", env!("CARGO_PKG_VERSION_MAJOR").to_owned()),
        ("minor", env!("CARGO_PKG_VERSION_MINOR").to_owned()),
        ("git_version", concat!("v", env!("CARGO_PKG_VERSION")).to_owned()),
        ("git_commit", String::new()),
        ("git_tree_state", String::new()),
        ("build_date", String::new()),
        ("go_version", String::new()),
        ("compiler", "rustc".to_owned()),
        ("platform", platform()),
    ];
    page.gauges(
        "kubernetes_build_info",
        "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
        [(labels, 1.0)],
    )?;
    let gate = |(name, open): &(&'static str, bool)| ([("name", *name), ("stage", "")], f64::from(u8::from(*open)));
    page.gauges(
        "kubernetes_feature_enabled",
        "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
        gates.iter().map(gate),
    )
}
