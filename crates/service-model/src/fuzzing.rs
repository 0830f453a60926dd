//! For fuzz targets alone: the cost of work.

use crate::step::count;

/// The steps that some work takes.
pub fn steps(work: impl FnOnce()) -> u64 {
    count(work)
}
