//! What can go wrong.

use netlink::{KernelError, TransportError};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a command; the whole transaction was undone.
    #[error("{command}")]
    Command {
        /// The command, as text.
        command: String,
        /// Its place in the transaction, from 0.
        place: usize,
        /// The kernel's reason.
        source: KernelError,
    },
    /// The kernel refused the transaction as a whole.
    #[error("commit the transaction")]
    Commit(#[source] KernelError),
    /// There were fewer answers than messages.
    #[error("the transaction was not answered")]
    Unanswered,
    /// The kernel refused a question, or the transport broke.
    #[error("{operation}")]
    Transport {
        /// What was being done.
        operation: &'static str,
        /// Why.
        source: TransportError,
    },
}

impl Error {
    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Command { source, .. } | Self::Commit(source) => Some(source.errno),
            Self::Unanswered => None,
            Self::Transport { source, .. } => source.errno(),
        }
    }
}

/// For `map_err`: the transport broke while this was being done.
pub(crate) fn transport(operation: &'static str) -> impl Fn(TransportError) -> Error {
    move |source| Error::Transport { operation, source }
}
