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

/// Who says which mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModeOrigin {
    Flag,
    File,
    /// Nobody: it is the default.
    Default,
}

/// The mode asked for, the mode in use, and why they differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) requested: Mode,
    pub(crate) effective: Mode,
    /// One sentence; `None` = as requested.
    pub(crate) reason: Option<String>,
    /// A file asks for iptables on a node where IPVS would work. kubeadm from 1.37 writes that mode where none was chosen
    /// (kubernetes/kubernetes#139777).
    pub(crate) ipvs_is_idle: bool,
}

/// IPVS was asked for, cannot be used, and nothing else is allowed.
#[derive(Debug, thiserror::Error)]
#[error("the IPVS mode cannot be used and --fallback=none: {0}")]
pub(crate) struct NoIpvs(pub(crate) String);

impl Choice {
    /// Asks the kernel where IPVS is requested, or where it may be meant.
    ///
    /// # Errors
    /// [`NoIpvs`].
    pub(crate) fn make(
        requested: Mode,
        origin: ModeOrigin,
        scheduler: Scheduler,
        fallback: Fallback,
    ) -> Result<Self, NoIpvs> {
        let asks = requested == Mode::Ipvs || origin == ModeOrigin::File;
        let choice = Self::of(requested, asks.then(|| probe(scheduler)), fallback)?;
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
            ipvs_is_idle: false,
        }
    }

    fn of(requested: Mode, answer: Option<Answer>, fallback: Fallback) -> Result<Self, NoIpvs> {
        let as_requested = Self::as_requested(requested);
        match (requested, answer, fallback) {
            (Mode::Ipvs, Some(Answer::Unable(missing)), Fallback::Iptables) => Ok(Self {
                effective: Mode::Iptables,
                reason: Some(sentence(&missing)),
                ..as_requested
            }),
            (Mode::Ipvs, Some(Answer::Unable(missing)), Fallback::None) => Err(NoIpvs(sentence(&missing))),
            (Mode::Iptables, Some(Answer::Able | Answer::Partly), _) => Ok(Self {
                ipvs_is_idle: true,
                ..as_requested
            }),
            _ => Ok(as_requested),
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

    fn unable() -> Answer {
        Answer::Unable(Missing {
            module: "ip_vs",
            reason: "there is no IPVS".to_owned(),
        })
    }

    /// It is obeyed all the same.
    #[test]
    fn the_mode_iptables_of_a_file_is_doubtful_where_ipvs_would_work() {
        let choice = |answer| Choice::of(Mode::Iptables, answer, Fallback::None).unwrap();
        for (answer, idle) in [
            (Some(Answer::Able), true),
            (Some(Answer::Partly), true),
            (Some(unable()), false),
            // A flag is a choice: IPVS is not tried.
            (None, false),
        ] {
            let choice = choice(answer.clone());
            assert_eq!((choice.effective, choice.reason), (Mode::Iptables, None));
            assert_eq!(choice.ipvs_is_idle, idle, "{answer:?}");
        }
    }

    #[test]
    fn a_kernel_that_cannot_is_told_and_left_or_refused() {
        let missing = || Some(unable());
        let choice = Choice::of(Mode::Ipvs, missing(), Fallback::Iptables).unwrap();
        assert_eq!(choice.effective, Mode::Iptables);
        assert_eq!(choice.reason.as_deref(), Some("there is no IPVS (kernel module ip_vs)"));
        let error = Choice::of(Mode::Ipvs, missing(), Fallback::None).unwrap_err();
        assert!(error.to_string().contains("kernel module ip_vs"), "{error}");
        for answer in [Answer::Able, Answer::Partly] {
            let choice = Choice::of(Mode::Ipvs, Some(answer), Fallback::None).unwrap();
            assert_eq!((choice.effective, choice.reason), (Mode::Ipvs, None));
        }
    }
}
