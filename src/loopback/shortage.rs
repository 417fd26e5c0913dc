//! When descriptors run short: the word between the requests that notice and the one who can do
//! something about it, by asking the kernel to forget inodes that keep a descriptor each.
//!
//! That asking can't be done from within a request: the kernel may need other requests answered before
//! it has forgotten. So the core says that it is short, and whoever serves it waits for that on a
//! thread of its own.

use std::time::{Duration, Instant};

use super::Loopback;
use super::inode::{Inode, NodeNo};
use crate::sync::{Condvar, Mutex, PoisonError, lock};

/// How long a request waits for relief at most. It comes in a millisecond or so, unless the kernel
/// needs this very request answered first.
const PATIENCE: Duration = Duration::from_millis(50);

/// A flag to raise and to wait for.
#[derive(Debug)]
pub struct Shortage {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody waits for shortages, or is doing something about one.
    heard: bool,
    /// There will be no more.
    over: bool,
    /// Told, and not heard yet.
    short: bool,
    /// How often something has been done.
    reliefs: u64,
}

impl Shortage {
    /// Nothing is short, and nobody waits for it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Whether somebody will do something about a shortage.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        lock(&self.state).heard
    }

    /// Descriptors are short. Never waits.
    pub fn tell(&self) {
        lock(&self.state).short = true;
        self.changed.notify_all();
    }

    /// Waits until something has been done about a shortage that was told; false if nobody did in time.
    ///
    /// What the kernel gives back then comes before other requests, to a single event loop too.
    pub fn wait_for_relief(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut state = lock(&self.state);
        let before = state.reliefs;
        while state.heard && state.reliefs == before {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.changed.wait_timeout(state, left);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.reliefs != before
    }

    /// Nobody is to wait any more.
    fn end(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        state.heard = false;
        self.changed.notify_all();
    }

    /// Waits until somebody tells of a shortage; false when there will be no more. To be called again
    /// when something has been done about it.
    fn wait(&self) -> bool {
        let mut state = lock(&self.state);
        if state.heard {
            state.reliefs += 1;
            self.changed.notify_all();
        }
        state.heard = !state.over;
        while !state.over && !state.short {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.short = false;
        !state.over
    }
}

impl Default for Shortage {
    fn default() -> Self {
        Self::new()
    }
}

impl Loopback {
    /// Waits until descriptors run short; then a part of the inodes that keep one each, for the kernel to
    /// forget what it can of them. `None` after [`Self::end_of_shortages`].
    #[must_use]
    pub fn next_shortage(&self) -> Option<Vec<NodeNo>> {
        let short = self.descriptors.shortage().wait();
        short.then(|| self.table.some(Inode::keeps_descriptor))
    }

    /// Ends the waiting for the next shortage, now and later.
    pub fn end_of_shortages(&self) {
        self.descriptors.shortage().end();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_relief_waits_until_something_was_done_and_no_longer() {
        let shortage = Shortage::new();
        shortage.tell();
        assert!(!shortage.is_heard() && !shortage.wait_for_relief());
        let rounds = std::thread::scope(|scope| {
            let relieving = scope.spawn(|| {
                let mut rounds = 0;
                while shortage.wait() {
                    rounds += 1;
                }
                rounds
            });
            while !shortage.is_heard() {
                std::thread::yield_now();
            }
            shortage.tell();
            let relieved = shortage.wait_for_relief();
            shortage.end();
            assert!(relieved || shortage.state.lock().is_ok_and(|state| state.reliefs > 0));
            relieving.join()
        });
        assert!(rounds.is_ok_and(|rounds| rounds > 0));
        shortage.tell();
        assert!(!shortage.is_heard() && !shortage.wait_for_relief() && !shortage.wait());
    }
}
