//! Scheduler names, as the kernel spells them (`IP_VS_SCHEDNAME_MAXLEN` in linux/ip_vs.h).

use std::fmt;

/// Longest name, without the terminating NUL (linux/ip_vs.h: `IP_VS_SCHEDNAME_MAXLEN` 16).
const MAX: usize = 15;

/// Name of a scheduler: any that the kernel has or may have one day, without allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchedulerName {
    bytes: [u8; MAX],
    len: u8,
}

impl SchedulerName {
    /// `None` where the text is empty, longer than 15 bytes, or has a byte outside `a-z A-Z 0-9 _ -`.
    pub fn new(name: &str) -> Option<Self> {
        let valid = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b == b'-';
        if name.is_empty() || !name.as_bytes().iter().all(valid) {
            return None;
        }
        let mut bytes = [0; MAX];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self {
            bytes,
            len: u8::try_from(name.len()).ok()?,
        })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..usize::from(self.len))
            .and_then(|b| std::str::from_utf8(b).ok())
            .unwrap_or_default()
    }
}

impl fmt::Display for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
