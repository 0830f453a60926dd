//! Why a request to the API server, or the stream that answered it, ended before its end.

use std::time::Duration;

use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the version is too old")]
    Expired,
    #[error("the server is at version {server}, before {ours}: it was restored")]
    WentBack { server: String, ours: String },
    #[error("an event does not fit what was listed: {0}")]
    Contradiction(String),
    #[error("the server does not stream lists: {0}")]
    NoStreamedLists(String),
    #[error("the server does not know the field of the selector: {0}")]
    UnknownField(String),
    #[error("status {code}: {message}")]
    Status {
        code: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("request")]
    Request(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Silence(Duration),
    #[error("the stream ended within the list")]
    Cut,
    #[error("the response is not what was asked for")]
    Garbled(#[source] serde_json::Error),
    #[error("the reader of events is gone")]
    Closed,
}

/// The object that the API answers a refused request with.
#[derive(Default, Deserialize)]
pub(crate) struct Status {
    #[serde(default)]
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) message: String,
}

impl Failure {
    /// The version to resume from is worth nothing any more.
    pub(crate) fn asks_for_a_list(&self) -> bool {
        matches!(self, Self::Expired | Self::WentBack { .. } | Self::Contradiction(_))
    }

    /// The API server itself answered, and does not ask for patience (429 and 5xx do).
    pub(crate) fn is_an_answer(&self) -> bool {
        self.asks_for_a_list() || matches!(self, Self::Status { code: 400..=428 | 430..=499, .. })
    }

    /// The certificates or credentials in use may be old.
    pub(crate) fn may_be_stale_credentials(&self) -> bool {
        matches!(self, Self::Request(_) | Self::Status { code: 401, .. })
    }
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
