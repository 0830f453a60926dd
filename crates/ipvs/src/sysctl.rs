//! Sysctls that IPVS needs, each written only where it differs (L16).

use std::fs;
use std::io;
use std::path::Path;

use crate::error::Error;

/// A sysctl and the value that we want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below /proc/sys, such as `net/ipv4/vs/conntrack`.
    pub name: &'static str,
    /// The value.
    pub value: &'static str,
}

/// One that had to be changed.
#[derive(Debug)]
pub struct Changed {
    /// Path below /proc/sys.
    pub name: &'static str,
    /// What it was; empty where it could not be read.
    pub old: String,
    /// What it is to be.
    pub new: &'static str,
    /// How writing it went.
    pub result: Result<(), Error>,
}

/// What kube-proxy sets in IPVS mode, on the kernels that we support (5.10 and newer need no `conn_reuse_mode`).
/// IPv6 forwarding is left alone, as kube-proxy does: it is the network plugin's.
pub fn required(strict_arp: bool) -> Vec<Sysctl> {
    let sysctl = |name, value| Sysctl { name, value };
    let mut all = vec![
        sysctl("net/ipv4/vs/conntrack", "1"),
        sysctl("net/ipv4/vs/expire_nodest_conn", "1"),
        sysctl("net/ipv4/vs/expire_quiescent_template", "1"),
        sysctl("net/ipv4/ip_forward", "1"),
    ];
    if strict_arp {
        all.push(sysctl("net/ipv4/conf/all/arp_ignore", "1"));
        all.push(sysctl("net/ipv4/conf/all/arp_announce", "2"));
    }
    all
}

/// Brings sysctls of this process's network namespace to their values and tells of those that were not.
pub fn ensure(wanted: &[Sysctl]) -> Vec<Changed> {
    ensure_in(Path::new("/proc/sys"), wanted)
}

fn ensure_in(root: &Path, wanted: &[Sysctl]) -> Vec<Changed> {
    let mut changed = Vec::new();
    for Sysctl { name, value } in wanted {
        let path = root.join(name);
        let failed = |operation| {
            let path = path.display().to_string().into();
            move |source: io::Error| Error::File {
                operation,
                path,
                source,
            }
        };
        let (old, result) = match fs::read_to_string(&path) {
            Ok(old) if old.trim() == *value => continue,
            Ok(old) => (old.trim().to_owned(), fs::write(&path, value).map_err(failed("write"))),
            Err(error) => (String::new(), Err(failed("read")(error))),
        };
        changed.push(Changed {
            name,
            old,
            new: value,
            result,
        });
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_only_where_different() {
        let root = std::env::temp_dir().join(format!("kube-ipvs-sysctl-{}", std::process::id()));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/same"), "1\n").unwrap();
        fs::write(root.join("a/other"), "0\n").unwrap();
        let wanted =
            [("a/same", "1"), ("a/other", "1"), ("a/missing", "1")].map(|(name, value)| Sysctl { name, value });
        let changed = ensure_in(&root, &wanted);
        let told: Vec<_> = changed
            .iter()
            .map(|c| (c.name, c.old.as_str(), c.result.is_ok()))
            .collect();
        assert_eq!(told, [("a/other", "0", true), ("a/missing", "", false)]);
        assert_eq!(fs::read_to_string(root.join("a/same")).unwrap(), "1\n");
        assert_eq!(fs::read_to_string(root.join("a/other")).unwrap(), "1");
        assert_eq!(ensure_in(&root, &wanted[..2]).len(), 0);
        fs::remove_dir_all(root).unwrap();
    }
}
