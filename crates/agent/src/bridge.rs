//! Bridges whose traffic passes this node's IP layer by (T31).
//!
//! A client and an endpoint on one bridge: the reply is switched back to the client, and nothing turns its source into
//! the VIP again, unless br_netfilter shows bridged packets to the netfilter hooks.

use std::fs;
use std::path::Path;

use service_model::DetectLocal;
use tracing::warn;

/// Warns, once, where such replies would be lost.
pub(crate) fn warn_where_replies_pass_by(detect_local: &DetectLocal) {
    if let Some(PassedBy { bridges, reason }) = passed_by(Path::new("/"), detect_local) {
        warn!(
            bridges = bridges.join(" "),
            reason, "replies between a client and an endpoint on one bridge pass this node by"
        );
    }
}

#[derive(Debug, PartialEq, Eq)]
struct PassedBy {
    bridges: Vec<String>,
    reason: &'static str,
}

/// `None` where there is no bridge, or bridged packets meet the hooks.
fn passed_by(root: &Path, detect_local: &DetectLocal) -> Option<PassedBy> {
    let reason = match fs::read_to_string(root.join("proc/sys/net/bridge/bridge-nf-call-iptables")) {
        Ok(text) if text.trim() == "0" => "net.bridge.bridge-nf-call-iptables is 0",
        Ok(_) => return None,
        Err(_) => "the module br_netfilter is not loaded: there is no net.bridge.bridge-nf-call-iptables",
    };
    let entries = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    let mut bridges: Vec<_> = entries
        .filter(|entry| entry.path().join("bridge").is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if let DetectLocal::BridgeInterface(name) = detect_local {
        // It may be made later.
        bridges.push(name.to_string());
    }
    bridges.sort_unstable();
    bridges.dedup();
    (!bridges.is_empty()).then_some(PassedBy { bridges, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these interfaces, and the sysctl where there is one.
    fn check(interfaces: &[&str], sysctl: Option<&str>, detect_local: &DetectLocal, expect: Option<(&str, &str)>) {
        let root = tempfile::tempdir().unwrap();
        for interface in interfaces {
            fs::create_dir_all(root.path().join("sys/class/net").join(interface)).unwrap();
        }
        if let Some(value) = sysctl {
            let directory = root.path().join("proc/sys/net/bridge");
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("bridge-nf-call-iptables"), value).unwrap();
        }
        match (passed_by(root.path(), detect_local), expect) {
            (None, None) => {}
            (Some(found), Some((bridges, reason))) => {
                assert_eq!(found.bridges.join(" "), bridges);
                assert!(found.reason.contains(reason), "{found:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn t31_bridges_are_named_where_their_packets_meet_no_hook() {
        let nothing = &DetectLocal::default();
        let bridged = &["cni0/bridge", "docker0/bridge", "eth0"];
        check(&["eth0"], Some("0\n"), nothing, None);
        check(&["eth0"], None, nothing, None);
        check(bridged, Some("1\n"), nothing, None);
        check(bridged, Some("0\n"), nothing, Some(("cni0 docker0", "iptables is 0")));
        check(bridged, None, nothing, Some(("cni0 docker0", "not loaded")));
        // A bridge that is not made yet, and one that is named twice.
        let named = |name: &str| DetectLocal::BridgeInterface(name.into());
        check(&["eth0"], None, &named("br0"), Some(("br0", "not loaded")));
        check(&["eth0"], Some("1\n"), &named("br0"), None);
        check(bridged, None, &named("cni0"), Some(("cni0 docker0", "not loaded")));
    }
}
