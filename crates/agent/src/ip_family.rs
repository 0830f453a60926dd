//! Which IP families this node has, asked once at start as kube-proxy does (`platformCheckSupported`, Kubernetes 1.37).
//!
//! A family that the node has not is not programmed: the kernel would refuse each write of it.

use std::fs;
use std::path::Path;

use service_model::Family;
use tracing::info;

/// There when the kernel knows IPv6.
const INTERFACES: &str = "/proc/net/if_inet6";
/// `1` = IPv6 is off on every interface.
const DISABLED: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// Those of this process's network namespace. What cannot be read turns nothing off.
pub(crate) fn of_node() -> &'static [Family] {
    of(Path::new(INTERFACES), Path::new(DISABLED))
}

/// For the log, where one is missing.
pub(crate) fn tell(families: &[Family]) {
    if !families.contains(&Family::V6) {
        info!("this node has no IPv6, or net.ipv6.conf.all.disable_ipv6 is 1: IPv6 is not programmed");
    }
}

fn of(interfaces: &Path, disabled: &Path) -> &'static [Family] {
    let is_disabled = || fs::read_to_string(disabled).is_ok_and(|text| text.trim() == "1");
    if interfaces.exists() && !is_disabled() {
        Family::BOTH
    } else {
        Family::V4_ALONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_there_unless_it_is_missing_or_off() {
        let folder = tempfile::tempdir().unwrap();
        let (interfaces, disabled) = (folder.path().join("if_inet6"), folder.path().join("disable_ipv6"));
        assert_eq!(of(&interfaces, &disabled), [Family::V4]);
        fs::write(&interfaces, "").unwrap();
        assert_eq!(of(&interfaces, &disabled), [Family::V4, Family::V6]);
        for (text, expect) in [("0\n", Family::BOTH), ("1\n", Family::V4_ALONE), ("", Family::BOTH)] {
            fs::write(&disabled, text).unwrap();
            assert_eq!(of(&interfaces, &disabled), expect, "{text:?}");
        }
    }
}
