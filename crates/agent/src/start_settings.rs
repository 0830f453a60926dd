//! What is set on the node at start, before anything is served.

use std::time::Duration;

/// Settings of the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StartSettings {
    pub(crate) conntrack: ConntrackSettings,
    /// Of this process; `None` = left alone (`oomScoreAdj`).
    pub(crate) oom_score_adj: Option<i32>,
    /// What needs full privileges is done, then the program ends (`--init-only`).
    pub(crate) init_only: bool,
}

/// Sysctls of connection tracking (`conntrack`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConntrackSettings {
    /// Entries for each processor; 0 = `nf_conntrack_max` is left alone.
    pub(crate) max_per_core: u32,
    /// Entries at least, where `max_per_core` is not 0.
    pub(crate) min: u32,
    /// Zero = left alone, as in those below.
    pub(crate) tcp_established_timeout: Duration,
    pub(crate) tcp_close_wait_timeout: Duration,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: Duration,
    pub(crate) udp_stream_timeout: Duration,
}
