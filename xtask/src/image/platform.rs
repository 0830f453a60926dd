//! What an image is built for, in the words of those who are asked: Rust, Debian, OCI.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Os, Platform as OciPlatform, PlatformBuilder};

use anyhow::Result;

/// A platform, by its OCI name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Platform {
    Amd64,
    Arm64,
}

impl Platform {
    /// The one of this machine.
    pub(crate) fn here() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    /// Rust's target. The C library is GNU's and linked statically: both platforms build with Debian's compilers.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian packages of the compiler for it on a machine of another kind, each with a file that shows it is there.
    pub(crate) fn cross_compiler(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Amd64 => [
                ("gcc-x86-64-linux-gnu", "x86_64-linux-gnu-gcc"),
                ("libc6-dev-amd64-cross", "/usr/x86_64-linux-gnu/lib/libc.a"),
            ],
            Self::Arm64 => [
                ("gcc-aarch64-linux-gnu", "aarch64-linux-gnu-gcc"),
                ("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.a"),
            ],
        }
    }

    /// Its name after `linux/`, which is also Debian's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    pub(crate) fn oci_arch(self) -> Arch {
        match self {
            Self::Amd64 => Arch::Amd64,
            Self::Arm64 => Arch::ARM64,
        }
    }

    pub(crate) fn oci(self) -> Result<OciPlatform> {
        Ok(PlatformBuilder::default()
            .architecture(self.oci_arch())
            .os(Os::Linux)
            .build()?)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.name())
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "linux/amd64" => Ok(Self::Amd64),
            "linux/arm64" => Ok(Self::Arm64),
            _ => Err(format!("unknown platform {text:?}, must be linux/amd64 or linux/arm64")),
        }
    }
}
