//! The schedulers a user can name (T21). How the kernel is told about them is `dataplane`'s business.

use std::fmt;
use std::str::FromStr;

macro_rules! schedulers {
    ($($variant:ident $name:literal $doc:literal,)*) => {
        /// A scheduler that the kernel has: `ipvs.scheduler`, annotation `kube-ipvs.io/scheduler`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Scheduler {
            $(#[doc = $doc] $variant,)*
        }

        impl Scheduler {
            /// All of them, in the order of the kernel's documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The kernel's name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl FromStr for Scheduler {
            type Err = UnknownScheduler;

            fn from_str(text: &str) -> Result<Self, UnknownScheduler> {
                match text {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(UnknownScheduler(text.into())),
                }
            }
        }
    };
}

schedulers! {
    RoundRobin "rr" "Round robin; the default.",
    LeastConnection "lc" "Least connections.",
    DestinationHashing "dh" "Hash of the destination.",
    SourceHashing "sh" "Hash of the source.",
    ShortestExpectedDelay "sed" "Shortest expected delay.",
    NeverQueue "nq" "Never queue.",
    WeightedRoundRobin "wrr" "Weighted round robin.",
    WeightedLeastConnection "wlc" "Weighted least connections.",
    LocalityBasedLeastConnection "lblc" "Locality-based least connections.",
    LocalityBasedLeastConnectionReplicated "lblcr" "Locality-based least connections with replication.",
    Maglev "mh" "Maglev hashing.",
    FailOver "fo" "Highest weight that is available.",
    Overflow "ovf" "First server until its weight in connections is reached, then the next.",
    PowerOfTwoChoices "twos" "The better of two picked at random.",
}

impl Scheduler {
    /// The memory that it takes for each virtual server, in real servers (T39): what was measured on Linux 7.2 with 20 real
    /// servers each, rounded up.
    pub fn weight(self) -> usize {
        match self {
            // ip_vs_mh.c: a table of 4,093 pointers, and it is computed anew at each change.
            Self::Maglev => 64,
            // ip_vs_lblc.c, ip_vs_lblcr.c: a table of 1,024 buckets.
            Self::LocalityBasedLeastConnection | Self::LocalityBasedLeastConnectionReplicated => 32,
            _ => 0,
        }
    }

    /// What an operator ought to know who chooses it: it lives on weights that differ, and every endpoint has the weight
    /// 1. `None` = it does what its name says.
    pub fn at_equal_weights(self) -> Option<&'static str> {
        match self {
            // net/netfilter/ipvs/ip_vs_fo.c, Linux 7.2: the first of the highest weight.
            Self::FailOver => Some("all endpoints have the same weight, so one of them gets every connection"),
            // ip_vs_ovf.c: passed over where `activeconns > weight`.
            Self::Overflow => Some(
                "all endpoints have the weight 1, so each takes two open connections; further ones are refused where all \
                 have two",
            ),
            _ => None,
        }
    }
}

impl Default for Scheduler {
    /// kube-proxy's default.
    fn default() -> Self {
        Self::RoundRobin
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no scheduler of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheduler {0:?}, must be one of rr, lc, dh, sh, sed, nq, wrr, wlc, lblc, lblcr, mh, fo, ovf, twos")]
pub struct UnknownScheduler(pub Box<str>);
