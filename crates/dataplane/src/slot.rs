//! One object's two sides: the value that we want and the value that the kernel is known to have.

/// Wanted and present value of one object. `None` = the object should not exist, does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot<V> {
    /// What we want.
    pub wanted: Option<V>,
    /// What the kernel has, as far as we were told.
    pub has: Option<V>,
}

/// The change that brings the present value to the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference<V> {
    /// Absent, wanted.
    Add(V),
    /// Present with another value.
    Set(V),
    /// Present, not wanted.
    Delete,
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self {
            wanted: None,
            has: None,
        }
    }
}

impl<V: Copy + PartialEq> Slot<V> {
    /// What is left to do; `None` where both sides agree.
    pub fn difference(&self) -> Option<Difference<V>> {
        match (self.wanted, self.has) {
            (Some(wanted), None) => Some(Difference::Add(wanted)),
            (Some(wanted), Some(has)) if wanted != has => Some(Difference::Set(wanted)),
            (None, Some(_)) => Some(Difference::Delete),
            _ => None,
        }
    }

    /// Neither wanted nor present: the entry can be forgotten.
    pub fn is_vacant(&self) -> bool {
        self.wanted.is_none() && self.has.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_of_every_pair() {
        let check = |wanted, has, expect| assert_eq!(Slot { wanted, has }.difference(), expect);
        check(None, None, None);
        check(Some(1), None, Some(Difference::Add(1)));
        check(Some(1), Some(1), None);
        check(Some(1), Some(2), Some(Difference::Set(1)));
        check(None, Some(2), Some(Difference::Delete));
    }
}
