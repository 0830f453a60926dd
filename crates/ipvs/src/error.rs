//! What can go wrong with IPVS, VIPs and sysctls.

use std::io;

use netlink::{KernelError, TransportError};

use crate::command::Command;
use crate::vip_command::VipCommand;

/// One request failed, or the way to the kernel broke.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no generic netlink family `IPVS`.
    #[error("look up the generic netlink family IPVS")]
    Family(#[source] KernelError),
    /// The kernel refused a change of a virtual or real server.
    #[error("{command}: {}", command.name())]
    Command {
        /// What was asked.
        command: Box<Command>,
        /// The answer.
        source: KernelError,
    },
    /// The kernel refused a change of a VIP's route or address.
    #[error("{command}")]
    Vip {
        /// What was asked.
        command: VipCommand,
        /// The answer.
        source: KernelError,
    },
    /// The kernel refused another request.
    #[error("{operation}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// The answer.
        source: KernelError,
    },
    /// The transport broke.
    #[error("{operation}")]
    Transport {
        /// What was being done.
        operation: &'static str,
        /// How it broke.
        source: TransportError,
    },
    /// The kernel told something that cannot be read.
    #[error("{0}: unreadable answer")]
    Unreadable(&'static str),
    /// An interface has our device's name but is of another kind.
    #[error("interface {0} exists and is not a dummy device")]
    NotDummy(&'static str),
    /// `kube-ipvs0` is not there.
    #[error("interface {0} does not exist")]
    NoDevice(&'static str),
    /// A file under /proc.
    #[error("{operation} {path}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: Box<str>,
        /// Why it failed.
        source: io::Error,
    },
    /// A line of `/proc/net/ip_vs` that is none.
    #[error("/proc/net/ip_vs: line {0} cannot be read")]
    ProcLine(usize),
    /// The monitor of addresses.
    #[error("follow the node's addresses")]
    Monitor(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Family(source)
            | Self::Command { source, .. }
            | Self::Vip { source, .. }
            | Self::Refused { source, .. } => Some(source.errno),
            Self::Transport { source, .. } => source.errno(),
            Self::File { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The kernel has no IPVS, or no dummy devices.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Family(source) if source.errno == libc::ENOENT) || self.errno() == Some(libc::EOPNOTSUPP)
    }

    /// The process lacks CAP_NET_ADMIN.
    pub fn is_permission(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }

    /// What was to be added is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// What was to be changed or deleted is not there. (ENOENT for a new virtual server means its scheduler.)
    pub fn is_not_found(&self) -> bool {
        match (self, self.errno()) {
            (Self::Command { command, .. }, Some(libc::ENOENT)) => {
                !matches!(**command, Command::NewService(..) | Command::SetService(..))
            }
            (_, errno) => matches!(errno, Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)),
        }
    }

    /// The kernel does not have the scheduler that a virtual server asks for.
    pub fn is_unknown_scheduler(&self) -> bool {
        matches!(self, Self::Command { command, source } if source.errno == libc::ENOENT
            && matches!(**command, Command::NewService(..) | Command::SetService(..)))
    }
}

/// For `map_err`: the transport broke while this was being done.
pub(crate) fn transport(operation: &'static str) -> impl Fn(TransportError) -> Error {
    move |source| Error::Transport { operation, source }
}
