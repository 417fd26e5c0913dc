//! How many event loops may be kept by something that takes long: all but one.

use std::num::NonZeroUsize;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// The event loops that may be kept.
#[derive(Debug)]
pub(super) struct Spare(AtomicUsize);

/// One of them is kept, until this is dropped.
#[derive(Debug)]
#[must_use = "the event loop counts as free once this is dropped"]
pub(super) struct Kept<'a>(&'a Spare);

impl Spare {
    /// Of so many in all.
    pub(super) fn of(loops: NonZeroUsize) -> Self {
        Self(AtomicUsize::new(loops.get() - 1))
    }

    /// One, if there is one.
    pub(super) fn take(&self) -> Option<Kept<'_>> {
        let one_less = |spare: usize| spare.checked_sub(1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less)
            .ok()
            .map(|_| Kept(self))
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_stays_free() {
        let three = Spare::of(NonZeroUsize::new(3).unwrap());
        let first = three.take().unwrap();
        let second = three.take().unwrap();
        assert!(three.take().is_none());
        drop(first);
        let third = three.take().unwrap();
        assert!(three.take().is_none());
        drop((second, third));
        assert!(three.take().is_some());
    }

    #[test]
    fn the_only_one_is_never_kept() {
        assert!(Spare::of(NonZeroUsize::MIN).take().is_none());
    }
}
