//! What happened lately, by hashes of what it happened to, in little memory: two that share a place are taken for one, which costs a
//! question more.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering};

/// How many marks there are of what changed lately: two changes that share one cost a question more.
pub(super) const MARKS: usize = 1 << 12;

/// How much later something may be heard of, and the kernel be told, on a busy machine.
const LATELY: Duration = Duration::from_secs(10);

/// When something happened to what, as far as that is not long ago.
#[derive(Debug)]
pub(super) struct Lately {
    begun: Instant,
    /// When it did last, in milliseconds since this began; 0 if never.
    at: Box<[AtomicU64]>,
}

impl Lately {
    pub(super) fn new() -> Self {
        let begun = Instant::now();
        Self {
            begun,
            at: none(MARKS),
        }
    }

    /// It happens now.
    pub(super) fn note(&self, key: u64) {
        if let Some(slot) = slot(&self.at, key) {
            slot.store(self.now(), Ordering::SeqCst);
        }
    }

    /// Whether it has happened lately, or to something that shares its place.
    pub(super) fn has(&self, key: u64) -> bool {
        let at = slot(&self.at, key).map_or(0, |slot| slot.load(Ordering::SeqCst));
        at != 0 && u128::from(self.now().saturating_sub(at)) <= LATELY.as_millis()
    }

    /// At least 1.
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).map_or(u64::MAX, |now| now.max(1))
    }
}

/// So many places in which nothing has happened.
pub(super) fn none(slots: usize) -> Box<[AtomicU64]> {
    (0..slots).map(|_| AtomicU64::new(0)).collect()
}

/// The place of something.
pub(super) fn slot(slots: &[AtomicU64], key: u64) -> Option<&AtomicU64> {
    // Any of its bits are as good as others.
    #[allow(clippy::cast_possible_truncation)]
    let at = (key as usize).checked_rem(slots.len())?;
    slots.get(at)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_has_happened_is_told_from_what_has_not() {
        let lately = Lately::new();
        assert!(!lately.has(7));
        lately.note(7);
        assert!(lately.has(7) && !lately.has(8));
        assert!(lately.has(7 + MARKS as u64), "it shares the place");
    }
}
