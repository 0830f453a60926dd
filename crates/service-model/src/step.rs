//! Steps of work, counted in tests and under fuzz alone: how they grow with what comes in is what a test of cost asks.
//!
//! A walk over something whose length an object gives calls [`step`] for each thing that it looks at.

#[cfg(not(any(test, fuzzing)))]
#[inline(always)]
pub(crate) fn step() {}

#[cfg(any(test, fuzzing))]
pub(crate) use counted::{count, step};

#[cfg(any(test, fuzzing))]
mod counted {
    use std::cell::Cell;

    thread_local! {
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn step() {
        STEPS.with(|steps| steps.set(steps.get() + 1));
    }

    /// The steps of some work.
    pub(crate) fn count(work: impl FnOnce()) -> u64 {
        let before = STEPS.with(Cell::get);
        work();
        STEPS.with(Cell::get) - before
    }
}
