//! From frontends to kernel objects: what we want, what the kernel has, the ordered changes between them.
//!
//! Reading order: [`compile`] (frontends → objects), [`rules`] and [`element`] (the policy tables), [`ledger`] with its
//! parts `policy_ledger`, `vip_ledger` and [`drain`] (wanted and present objects), [`refusals`] (what waits for a retry),
//! `agenda` (whose turn it is), [`plan`] (ordered, printable changes),
//! [`commit`] (plan → kernel → ledger), [`kernel`] (the seam), [`live`] and `fake` (its two sides), [`node_port_set`]
//! (what kube-proxy had), [`engine`] (all of it behind four calls), [`survey`] (how much there is).
//!
//! [`iptables`] is the other mode's: the same programs in, another ledger, another text out.
//!
//! Knows neither Kubernetes' API, nor HTTP, nor flags. Reads no clock: the caller says what time it is.

pub mod adoption;
mod agenda;
pub mod commit;
pub mod compile;
pub mod drain;
pub mod element;
pub mod engine;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
pub mod iptables;
pub mod kernel;
pub mod ledger;
pub mod live;
pub mod node_port_set;
pub mod plan;
pub mod plane;
mod policy_ledger;
pub mod probe;
pub mod refusals;
pub mod rules;
mod server_entry;
pub mod slot;
pub mod survey;
mod vip_ledger;

pub use adoption::Drift;
pub use engine::{DataPlane, Settings};
pub use kernel::{Kernel, KernelBroken, OpError, Snapshot};
pub use plan::{Op, Phase, Plan, PolicyCommand};
pub use plane::Plane;
pub use survey::{ObjectKind, Survey};
