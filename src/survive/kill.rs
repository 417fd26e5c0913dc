//! Being killed, for tests: from a certain store on, nothing that this thread stores arrives any more.
//!
//! The models of loom do not use it.
#![cfg_attr(loom, allow(dead_code))]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// When this thread is killed.
#[derive(Debug, Clone, Copy)]
enum Life {
    Immortal,
    /// After so many points; each store has one before and one after it.
    Left(u64),
    Dead,
}

thread_local!(static LIFE: Cell<Life> = const { Cell::new(Life::Immortal) });

/// What a killed thread panics with.
struct Killed;

fn point() {
    match LIFE.get() {
        Life::Left(0) => {
            LIFE.set(Life::Dead);
            // No hook: nothing is to be printed.
            resume_unwind(Box::new(Killed));
        }
        Life::Left(left) => LIFE.set(Life::Left(left - 1)),
        Life::Immortal | Life::Dead => {}
    }
}

/// Whether a store is to be done: the dead don't.
pub(super) fn before_a_store() -> bool {
    if matches!(LIFE.get(), Life::Dead) {
        return false;
    }
    point();
    true
}

pub(super) fn after_a_store() {
    point();
}

/// Does `work` as a process that is killed after `points` points: `None` if it was. What `work` drops when it
/// is unwound changes nothing that survives.
pub(crate) fn killed_after<T>(points: u64, work: impl FnOnce() -> T) -> Option<T> {
    LIFE.set(Life::Left(points));
    let result = catch_unwind(AssertUnwindSafe(work));
    LIFE.set(Life::Immortal);
    match result {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
