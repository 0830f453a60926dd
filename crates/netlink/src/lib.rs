//! The netlink transport: sequence numbers, batches with bounded acknowledgements, dumps, errno with the kernel's
//! own sentence. Knows no family.
//!
//! Reading order: [`batch`] (what is sent), [`socket`] (how it is sent and answered), [`attribute`] (what messages
//! are made of), [`whole`](mod@whole) (lists that a change interrupts), [`monitor`] (what others change), [`error`]. Sockets block: the kernel answers a request before `sendmsg` returns, so nothing waits.

pub mod attribute;
pub mod batch;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod monitor;
pub mod socket;
pub mod whole;

pub use attribute::{Attribute, Attributes};
pub use batch::Batch;
pub use error::{KernelError, TransportError};
pub use monitor::{Monitor, Notification};
pub use socket::{Counters, Socket};
pub use whole::whole;
