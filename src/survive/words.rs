//! The words, and the order in which they are written: as the program says. A process that is killed has done
//! all that stands before some point, and nothing that stands after it.

use std::os::fd::{AsFd, BorrowedFd};

use crate::sync::atomic::Ordering;
use crate::sys::shared::Shared;

/// The memory.
#[derive(Debug)]
pub(super) struct Words(Shared);

impl Words {
    pub(super) fn new(memory: Shared) -> Self {
        Self(memory)
    }

    pub(super) fn len(&self) -> usize {
        self.0.words().len()
    }

    /// A word; 0 where there is none, which nobody asks for.
    pub(super) fn load(&self, at: usize) -> u64 {
        let word = self.0.words().get(at);
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    pub(super) fn store(&self, at: usize, value: u64) {
        #[cfg(test)]
        if !super::kill::before_a_store() {
            return;
        }
        if let Some(word) = self.0.words().get(at) {
            // What was stored before is stored before this: nothing else is needed against a kill.
            word.store(value, Ordering::Release);
        }
        #[cfg(test)]
        super::kill::after_a_store();
    }

    /// Counts a word up; what it was.
    pub(super) fn count_up(&self, at: usize) -> u64 {
        #[cfg(test)]
        if !super::kill::before_a_store() {
            return 0;
        }
        let word = self.0.words().get(at);
        word.map_or(0, |word| word.fetch_add(1, Ordering::AcqRel))
    }

    /// Gives memory back that holds nothing any more. If that fails it stays.
    pub(super) fn discard(&self, from: usize, count: usize) {
        if let Err(error) = self.0.discard(from, count) {
            log::debug!("the memory that survives stays larger than it need be: {error}");
        }
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
