//! The kube-proxies that are compared with, each of its release. The newest is in the control plane and always there;
//! older ones are programs of their own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use testbed::control_plane::program;
use testbed::go::release::KUBE_PROXIES;

/// A real kube-proxy.
pub(crate) struct Release {
    /// 37 of 1.37.2.
    pub(crate) minor: u16,
    /// The program, and the words that lead to kube-proxy in it.
    words: Vec<OsString>,
}

impl Release {
    fn new(words: Vec<OsString>) -> Self {
        let mut release = Self { minor: 0, words };
        let output = release.command().arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let minor = text
            .strip_prefix("Kubernetes v1.")
            .and_then(|text| text.split('.').next()?.parse().ok());
        release.minor = minor.unwrap_or_else(|| panic!("{text:?} is no version of Kubernetes 1"));
        release
    }

    /// Oldest first; each minor release once.
    pub(crate) fn all() -> Vec<Self> {
        let older = std::env::var_os(KUBE_PROXIES).unwrap_or_default();
        let paths: Vec<_> = std::env::split_paths(&older)
            .filter(|path| *path != PathBuf::new())
            .collect();
        let mut all: Vec<_> = paths
            .into_iter()
            .map(|path| Self::new(vec![path.into_os_string()]))
            .collect();
        all.push(Self::newest());
        assert!(all.is_sorted_by(|a, b| a.minor < b.minor));
        all
    }

    /// That of the control plane.
    pub(crate) fn newest() -> Self {
        Self::new(vec![program().unwrap().into_os_string(), "kube-proxy".into()])
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }
}
