//! The choice of mode at start: IPVS, or iptables where the kernel lacks what IPVS needs (L14). Never silently.

use std::fmt;

use dataplane::probe::{Answer, Missing, probe};
use service_model::Scheduler;
use tracing::warn;

use crate::config::Fallback;

/// How Services are programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Ipvs,
    Iptables,
}

/// The mode asked for, the mode in use, and why they differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) requested: Mode,
    pub(crate) effective: Mode,
    /// One sentence; `None` = as requested.
    pub(crate) reason: Option<String>,
}

/// IPVS was asked for, cannot be used, and nothing else is allowed.
#[derive(Debug, thiserror::Error)]
#[error("the IPVS mode cannot be used and --fallback=none: {0}")]
pub(crate) struct NoIpvs(pub(crate) String);

impl Choice {
    /// Asks the kernel where IPVS is requested.
    ///
    /// # Errors
    /// [`NoIpvs`].
    pub(crate) fn make(requested: Mode, scheduler: Scheduler, fallback: Fallback) -> Result<Self, NoIpvs> {
        let answer = match requested {
            Mode::Ipvs => probe(scheduler),
            Mode::Iptables => Answer::Able,
        };
        let choice = Self::of(requested, answer, fallback)?;
        if let Some(reason) = &choice.reason {
            warn!(requested = %choice.requested, effective = %choice.effective, reason, "falling back to another mode");
        }
        Ok(choice)
    }

    /// Without a question to the kernel.
    pub(crate) fn as_requested(requested: Mode) -> Self {
        Self {
            requested,
            effective: requested,
            reason: None,
        }
    }

    fn of(requested: Mode, answer: Answer, fallback: Fallback) -> Result<Self, NoIpvs> {
        match (answer, fallback) {
            (Answer::Able | Answer::Partly, _) => Ok(Self::as_requested(requested)),
            (Answer::Unable(missing), Fallback::Iptables) => Ok(Self {
                requested,
                effective: Mode::Iptables,
                reason: Some(sentence(&missing)),
            }),
            (Answer::Unable(missing), Fallback::None) => Err(NoIpvs(sentence(&missing))),
        }
    }
}

fn sentence(missing: &Missing) -> String {
    missing.to_string()
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipvs => "ipvs",
            Self::Iptables => "iptables",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_is_told_and_left_or_refused() {
        let missing = || {
            Answer::Unable(Missing {
                module: "ip_vs",
                reason: "there is no IPVS".to_owned(),
            })
        };
        let choice = Choice::of(Mode::Ipvs, missing(), Fallback::Iptables).unwrap();
        assert_eq!(choice.effective, Mode::Iptables);
        assert_eq!(choice.reason.as_deref(), Some("there is no IPVS (kernel module ip_vs)"));
        let error = Choice::of(Mode::Ipvs, missing(), Fallback::None).unwrap_err();
        assert!(error.to_string().contains("kernel module ip_vs"), "{error}");
        for answer in [Answer::Able, Answer::Partly] {
            let choice = Choice::of(Mode::Ipvs, answer, Fallback::None).unwrap();
            assert_eq!((choice.effective, choice.reason), (Mode::Ipvs, None));
        }
    }
}
