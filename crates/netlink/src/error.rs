//! What can go wrong: the kernel refuses one message, or the way to the kernel breaks.

use std::fmt;
use std::io;

/// The kernel's answer to one message: an errno and, where it gave one, its own sentence (extended acknowledgement).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// `errno`, positive.
    pub errno: i32,
    /// `NLMSGERR_ATTR_MSG`.
    pub sentence: Option<Box<str>>,
}

/// The transport broke: what the kernel did with the messages is unknown.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A socket call.
    #[error("netlink: {operation}")]
    Socket {
        /// Which.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answers did not fit the socket's receive buffer, or a datagram did not fit ours.
    #[error("netlink: answers were lost (receive buffer overrun)")]
    Overrun,
    /// An answer that is no netlink message.
    #[error("netlink: malformed answer: {0}")]
    Malformed(&'static str),
    /// The kernel refused a request that has one answer for all (a dump).
    #[error("netlink: {0}")]
    Refused(KernelError),
    /// The tables changed while they were dumped (`NLM_F_DUMP_INTR`): the dump is to be repeated.
    #[error("netlink: the dump was interrupted by a change")]
    Interrupted,
}

impl TransportError {
    /// Answers were lost.
    pub fn is_overrun(&self) -> bool {
        matches!(self, Self::Overrun)
    }

    /// The errno, where the kernel or a socket call gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket { source, .. } => source.raw_os_error(),
            Self::Refused(error) => Some(error.errno),
            _ => None,
        }
    }
}

/// Those that netlink families use; errno.h and asm-generic/errno.h.
const NAMES: &[(i32, &str, &str)] = &[
    (libc::EPERM, "EPERM", "operation not permitted"),
    (libc::ENOENT, "ENOENT", "no such entry"),
    (libc::ESRCH, "ESRCH", "no such process"),
    (libc::EINTR, "EINTR", "interrupted"),
    (libc::EIO, "EIO", "input/output error"),
    (libc::ENXIO, "ENXIO", "no such device or address"),
    (libc::E2BIG, "E2BIG", "too big"),
    (libc::EAGAIN, "EAGAIN", "try again"),
    (libc::ENOMEM, "ENOMEM", "out of memory"),
    (libc::EACCES, "EACCES", "permission denied"),
    (libc::EBUSY, "EBUSY", "busy"),
    (libc::EEXIST, "EEXIST", "exists"),
    (libc::ENODEV, "ENODEV", "no such device"),
    (libc::EINVAL, "EINVAL", "invalid argument"),
    (libc::ENOSPC, "ENOSPC", "no space left"),
    (libc::ERANGE, "ERANGE", "out of range"),
    (libc::EMSGSIZE, "EMSGSIZE", "message too long"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP", "operation not supported"),
    (libc::EAFNOSUPPORT, "EAFNOSUPPORT", "address family not supported"),
    (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL", "address not available"),
    (libc::ENETUNREACH, "ENETUNREACH", "network unreachable"),
    (libc::ENOBUFS, "ENOBUFS", "no buffer space"),
    (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT", "protocol not supported"),
    (libc::ETIMEDOUT, "ETIMEDOUT", "timed out"),
];

impl fmt::Display for KernelError {
    /// `no such process (ESRCH)`, with the kernel's sentence behind it where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(errno, ..)| *errno == self.errno) {
            Some((_, name, text)) => write!(f, "{text} ({name})")?,
            None => write!(f, "errno {}", self.errno)?,
        }
        match &self.sentence {
            Some(sentence) => write!(f, ": {sentence}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for KernelError {}
