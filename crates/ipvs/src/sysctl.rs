//! Sysctls that IPVS needs, each written only where it differs, and put back on request (L16).

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;

use crate::error::Error;
use crate::old_values::OldValues;

const ROOT: &str = "/proc/sys";

/// A sysctl and the value that we want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below /proc/sys, such as `net/ipv4/vs/conntrack`.
    pub name: &'static str,
    /// The value.
    pub value: Cow<'static, str>,
    /// Which values are as good.
    pub suffices: Suffices,
}

/// Which present values need no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffices {
    /// The same text.
    Same,
    /// A number that is as large or larger; 0 is a limit that does not limit, and so larger than all.
    Limit,
}

impl Sysctl {
    /// Is nothing to be done where this is its value?
    fn is_met_by(&self, present: &str) -> bool {
        let number = |text: &str| text.parse::<u64>().ok();
        match self.suffices {
            Suffices::Same => present == self.value,
            Suffices::Limit => match (number(present), number(&self.value)) {
                (Some(0), Some(_)) => true,
                (Some(present), Some(wanted)) => present >= wanted && wanted != 0,
                _ => false,
            },
        }
    }
}

/// One that had to be changed.
#[derive(Debug)]
pub struct Changed {
    /// Path below /proc/sys.
    pub name: &'static str,
    /// What it was; empty where it could not be read.
    pub old: String,
    /// What it is to be.
    pub new: Cow<'static, str>,
    /// How writing it went.
    pub result: Result<(), Error>,
}

/// What [`ensure`] did.
#[derive(Debug)]
pub struct Ensured {
    /// Those that were not as wanted.
    pub changed: Vec<Changed>,
    /// How keeping their old values went; they are set all the same.
    pub kept: Result<(), Error>,
}

/// One that has our value and had another before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restorable {
    /// Path below /proc/sys.
    pub name: &'static str,
    /// What it was.
    pub old: String,
}

/// Lets NodePorts of the iptables mode answer on 127.0.0.1 (`iptables.localhostNodePorts`, T17).
pub const ROUTE_LOCALNET: Sysctl = Sysctl {
    name: "net/ipv4/conf/all/route_localnet",
    value: Cow::Borrowed("1"),
    suffices: Suffices::Same,
};

/// What kube-proxy sets in IPVS mode, on the kernels that we support. `conn_reuse_mode` is not among it: kube-proxy
/// clears it below 5.9 only, where reuse of a port broke connections (k/k#93297, fixed by 35dfb013149f), and we support
/// 5.10 and newer. IPv6 forwarding is left alone, as kube-proxy does: it is the network plugin's.
pub fn required(strict_arp: bool) -> Vec<Sysctl> {
    let sysctl = |name, value| Sysctl {
        name,
        value: Cow::Borrowed(value),
        suffices: Suffices::Same,
    };
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

/// Brings sysctls of this process's network namespace to their values, and tells of those that were not. Old values are
/// kept before anything is written, where they are to be; the first one of each stays the one that is kept.
pub fn ensure(wanted: &[Sysctl], kept: Option<&OldValues>) -> Ensured {
    ensure_in(Path::new(ROOT), wanted, kept)
}

/// What [`restore`] is to be called for: sysctls that still have the value that [`ensure`] gave them. One that somebody
/// else has changed since is theirs.
///
/// # Errors
/// Where the old values cannot be read.
pub fn restorable(kept: &OldValues) -> Result<Vec<Restorable>, Error> {
    restorable_in(Path::new(ROOT), kept)
}

/// Gives a sysctl its old value.
///
/// # Errors
/// Where it cannot be written.
pub fn restore(sysctl: &Restorable) -> Result<(), Error> {
    restore_in(Path::new(ROOT), sysctl)
}

fn ensure_in(root: &Path, wanted: &[Sysctl], kept: Option<&OldValues>) -> Ensured {
    let read = |sysctl: &Sysctl| match read(root, sysctl.name) {
        Ok(old) if sysctl.is_met_by(&old) => None,
        Ok(old) => Some((sysctl.clone(), old, Ok(()))),
        Err(error) => Some((sysctl.clone(), String::new(), Err(error))),
    };
    let differing: Vec<_> = wanted.iter().filter_map(read).collect();
    let readable = differing.iter().filter(|(.., result)| result.is_ok());
    let kept = kept.map_or(Ok(()), |kept| {
        kept.keep(readable.map(|(sysctl, old, _)| (sysctl.name, old.as_str())))
    });
    let set = |(sysctl, old, result): (Sysctl, String, Result<(), Error>)| Changed {
        name: sysctl.name,
        old,
        result: result.and_then(|()| write(root, sysctl.name, &sysctl.value)),
        new: sysctl.value,
    };
    Ensured {
        changed: differing.into_iter().map(set).collect(),
        kept,
    }
}

fn restorable_in(root: &Path, kept: &OldValues) -> Result<Vec<Restorable>, Error> {
    let old = kept.read()?;
    let ours = required(true).into_iter().chain([ROUTE_LOCALNET]);
    Ok(ours
        .filter_map(|Sysctl { name, value, .. }| {
            let old = old.get(name).filter(|old| **old != value)?;
            (read(root, name).ok()? == value).then(|| Restorable { name, old: old.clone() })
        })
        .collect())
}

fn restore_in(root: &Path, sysctl: &Restorable) -> Result<(), Error> {
    write(root, sysctl.name, &sysctl.old)
}

fn read(root: &Path, name: &str) -> Result<String, Error> {
    let path = root.join(name);
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    Ok(text.trim().to_owned())
}

fn write(root: &Path, name: &str, value: &str) -> Result<(), Error> {
    let path = root.join(name);
    fs::write(&path, value).map_err(failed("write", &path))
}

/// For `map_err`: this could not be done to a file.
pub(crate) fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::File {
        operation,
        path: path.as_str().into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder with sysctls, and one for what is kept.
    fn folder(name: &str, sysctls: &[(&str, &str)]) -> (PathBuf, OldValues) {
        let root = std::env::temp_dir().join(format!("kube-ipvs-sysctl-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (name, value) in sysctls {
            let path = root.join("sys").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        let kept = OldValues::at(root.join("run/kube-ipvs/sysctls"));
        (root.join("sys"), kept)
    }

    fn one((name, value): (&'static str, &'static str)) -> Sysctl {
        Sysctl {
            name,
            value: value.into(),
            suffices: Suffices::Same,
        }
    }

    /// A limit is raised and never lowered.
    #[test]
    fn a_limit_is_never_lowered() {
        let after = |before: &str, wanted: &'static str| {
            let (root, _) = folder("limit", &[("max", before)]);
            let sysctl = Sysctl {
                suffices: Suffices::Limit,
                ..one(("max", wanted))
            };
            let changed = ensure_in(&root, &[sysctl], None).changed.len();
            (changed, fs::read_to_string(root.join("max")).unwrap())
        };
        assert_eq!(after("131072\n", "262144"), (1, "262144".to_owned()));
        assert_eq!(after("262144\n", "262144"), (0, "262144\n".to_owned()));
        assert_eq!(after("2097152\n", "262144"), (0, "2097152\n".to_owned()));
        // No limit at all (nf_conntrack_core.c, __nf_conntrack_alloc).
        assert_eq!(after("0\n", "262144"), (0, "0\n".to_owned()));
        assert_eq!(after("many\n", "262144"), (1, "262144".to_owned()));
    }

    #[test]
    fn l16_written_only_where_different() {
        let (root, kept) = folder("ensure", &[("a/same", "1\n"), ("a/other", "0\n")]);
        let wanted = [("a/same", "1"), ("a/other", "1"), ("a/missing", "1")].map(one);
        let ensured = ensure_in(&root, &wanted, Some(&kept));
        let told: Vec<_> = ensured
            .changed
            .iter()
            .map(|c| (c.name, c.old.as_str(), c.result.is_ok()))
            .collect();
        assert_eq!(told, [("a/other", "0", true), ("a/missing", "", false)]);
        assert_eq!(fs::read_to_string(root.join("a/same")).unwrap(), "1\n");
        assert_eq!(fs::read_to_string(root.join("a/other")).unwrap(), "1");
        assert_eq!(
            kept.read().unwrap(),
            [("a/other".to_owned(), "0".to_owned())].into(),
            "what was right, or cannot be read, is not kept"
        );
        assert_eq!(ensure_in(&root, &wanted[..2], Some(&kept)).changed.len(), 0);
    }

    #[test]
    fn l16_what_is_still_ours_gets_its_first_value_back() {
        let (forward, conntrack, ignore) = (
            "net/ipv4/ip_forward",
            "net/ipv4/vs/conntrack",
            "net/ipv4/conf/all/arp_ignore",
        );
        let localnet = ROUTE_LOCALNET.name;
        let found = [(forward, "0\n"), (conntrack, "0\n"), (ignore, "2\n"), (localnet, "0\n")];
        let (root, kept) = folder("restore", &found);
        let wanted = [(forward, "1"), (conntrack, "1"), (ignore, "1"), (localnet, "1")];
        let wanted = wanted.map(one);
        assert!(ensure_in(&root, &wanted, Some(&kept)).kept.is_ok());
        // Somebody has another value meanwhile, and a second start sets it again: the first one is what it was.
        fs::write(root.join(ignore), "8").unwrap();
        assert_eq!(ensure_in(&root, &wanted, Some(&kept)).changed.len(), 1);
        // This one is somebody else's now.
        fs::write(root.join(conntrack), "2").unwrap();
        let restorable = restorable_in(&root, &kept).unwrap();
        let names: Vec<_> = restorable.iter().map(|r| (r.name, r.old.as_str())).collect();
        assert_eq!(names, [(forward, "0"), (ignore, "2"), (localnet, "0")]);
        for sysctl in &restorable {
            restore_in(&root, sysctl).unwrap();
        }
        assert_eq!(fs::read_to_string(root.join(ignore)).unwrap(), "2");
        assert_eq!(restorable_in(&root, &kept).unwrap(), []);
        kept.forget().unwrap();
        kept.forget().unwrap();
        assert_eq!(kept.read().unwrap().len(), 0);
    }

    #[test]
    fn l16_values_that_cannot_be_kept_are_set_all_the_same() {
        let (root, _) = folder("unkept", &[("a", "0\n"), ("file", "")]);
        let nowhere = OldValues::at(root.join("file/below/a/file"));
        let ensured = ensure_in(&root, &[one(("a", "1"))], Some(&nowhere));
        assert!(ensured.kept.is_err() && ensured.changed[0].result.is_ok());
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
        // Where nothing is to be changed nothing is to be kept.
        let again = ensure_in(&root, &[one(("a", "1"))], Some(&nowhere));
        assert!(again.kept.is_ok() && again.changed.is_empty());
    }
}
