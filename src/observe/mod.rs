//! Looking at what is served, and breaking it on purpose. The core knows nothing of this.
//!
//! [`Counters`] count what was answered; [`faults`] make chosen operations fail or panic, so that
//! tests can see on a real mount what a bug would cost.

pub mod faults;

use crate::op::Op;
use crate::sync::atomic::{AtomicU64, Ordering};

/// How often something happened to one operation.
#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
}

/// What has been answered since the start, by operation.
#[derive(Debug)]
pub struct Counters {
    by_op: Vec<Counts>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with a value.
    Served,
    /// Answered with an errno.
    Failed,
    /// The operation panicked and was answered with EIO.
    Panicked,
}

impl Counters {
    /// All zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            by_op: Op::ALL.iter().map(|_| Counts::default()).collect(),
        }
    }

    /// Counts one request.
    pub fn count(&self, op: Op, outcome: Outcome) {
        if let Some(counter) = self.counter(op, outcome) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many requests for `op` ended that way.
    #[must_use]
    pub fn get(&self, op: Op, outcome: Outcome) -> u64 {
        self.counter(op, outcome)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How many requests were answered, whichever way.
    #[must_use]
    pub fn answered(&self) -> u64 {
        let outcomes = [Outcome::Served, Outcome::Failed, Outcome::Panicked];
        outcomes.map(|outcome| self.total(outcome)).iter().sum()
    }

    /// How many requests ended that way, whatever they asked for.
    #[must_use]
    pub fn total(&self, outcome: Outcome) -> u64 {
        Op::ALL.iter().map(|&op| self.get(op, outcome)).sum()
    }

    fn counter(&self, op: Op, outcome: Outcome) -> Option<&AtomicU64> {
        let counts = self.by_op.get(op as usize)?;
        Some(match outcome {
            Outcome::Served => &counts.served,
            Outcome::Failed => &counts.failed,
            Outcome::Panicked => &counts.panicked,
        })
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_and_outcome_has_a_counter_of_its_own() {
        let counters = Counters::new();
        counters.count(Op::Lookup, Outcome::Failed);
        counters.count(Op::Ioctl, Outcome::Panicked);
        counters.count(Op::Ioctl, Outcome::Panicked);
        assert_eq!(counters.get(Op::Lookup, Outcome::Failed), 1);
        assert_eq!(counters.get(Op::Lookup, Outcome::Served), 0);
        assert_eq!(counters.total(Outcome::Panicked), 2);
    }
}
