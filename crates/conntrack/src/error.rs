//! What can go wrong.

use netlink::{KernelError, TransportError};

use crate::client::Deleted;
use crate::filter::Filter;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused to delete flows that are there. The others that were pointed at are gone.
    #[error("delete {refused} of the {filter}")]
    Delete {
        /// What was listed.
        filter: Filter,
        /// What was done all the same.
        done: Deleted,
        /// How many were refused.
        refused: usize,
        /// The reason of the first.
        source: KernelError,
    },
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
            Self::Delete { source, .. } => Some(source.errno),
            Self::Transport { source, .. } => source.errno(),
        }
    }
}

/// For `map_err`: the transport broke while this was being done.
pub(crate) fn transport(operation: &'static str) -> impl Fn(TransportError) -> Error {
    move |source| Error::Transport { operation, source }
}
