//! Callers that wait for a lock, and the watch over them.
//!
//! The kernel keeps a caller until we answer: one that is killed meanwhile stays, unkillable, and one
//! that is sent a signal does not see it (`crate::sys::caller` says why). So a thread looks, some
//! twenty times a second as long as anybody waits, who has a signal to take, and has their wait end
//! with EINTR. It ends all of them when the gate is closed or the connection is gone.
//!
//! Rejected: a wait that is cut into short ones, which would lose its place among those that wait for
//! the same lock each time.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Errno, Error, Result};
use crate::lifecycle::gate::Gate;
use crate::loopback::lock::Waiter;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, lock};
use crate::sys::caller::has_signal;

/// How often the watch looks.
const LOOK: Duration = Duration::from_millis(40);
/// How often it wakes a thread that is to see something, until it has.
const NUDGE: Duration = Duration::from_millis(1);
/// It rests at least so many times as long as it looked: 1000 callers must not cost a CPU.
const REST: u32 = 20;
/// But no longer than this: the looking may have taken long because others had the CPU.
const LONGEST: Duration = Duration::from_millis(500);
/// How long it stays when nobody waits.
const LINGER: Duration = Duration::from_secs(1);

/// Those who wait.
pub(super) struct Waiters {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Arc<Waiter>>,
    watched: bool,
    over: bool,
}

impl Waiters {
    /// Nobody yet. All end when `gate` is closed.
    pub(super) fn new(gate: &Gate) -> Arc<Self> {
        let waiters = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let its = Arc::downgrade(&waiters);
        gate.when_closed(move || {
            if let Some(waiters) = its.upgrade() {
                drop(waiters.over());
            }
        });
        waiters
    }

    /// Runs `wait`, which ends through its [`Waiter`] when the calling thread has a signal to take.
    /// ENOLCK for a caller that can't be watched: it could never be killed.
    pub(super) fn watched<T>(
        self: &Arc<Self>,
        caller: u32,
        wait: impl FnOnce(&Waiter) -> Result<T>,
    ) -> Result<T> {
        if let Err(error) = has_signal(caller) {
            static SAID: OnceLock<()> = OnceLock::new();
            SAID.get_or_init(|| {
                log::warn!(
                    "a program that waits for a lock can't be watched, so it is refused (ENOLCK): \
                     thread {caller}: {error}"
                );
            });
            return Err(Error::no_lock("watching the caller"));
        }
        let waiter = Arc::new(Waiter::new(caller));
        let entered = self.enter(&waiter)?;
        let result = wait(&waiter);
        drop(entered);
        result
    }

    /// Ends all waits, for good: the connection is gone. Returns when they have ended.
    pub(super) fn end(&self) {
        let mut state = self.over();
        while !state.waiting.is_empty() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has all waits end.
    fn over(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.over = true;
        self.changed.notify_all();
        state
    }

    fn enter(self: &Arc<Self>, waiter: &Arc<Waiter>) -> Result<Entered<'_>> {
        let mut state = lock(&self.state);
        if state.over {
            return Err(Error::CLOSING);
        }
        if !state.watched {
            let waiters = Arc::clone(self);
            let builder = thread::Builder::new().name("loopfs-watch".to_owned());
            if let Err(error) = builder.spawn(move || waiters.watch()) {
                log::warn!("can't start the thread that watches callers: {error}");
                return Err(Error::no_lock("watching the caller"));
            }
            state.watched = true;
        }
        state.waiting.push(Arc::clone(waiter));
        drop(state);
        self.changed.notify_all();
        Ok(Entered {
            waiters: self,
            waiter: Arc::clone(waiter),
        })
    }

    fn watch(&self) {
        while let Some(mut state) = self.somebody() {
            let mut pause = LOOK;
            while !state.waiting.is_empty() {
                state = self.rest(state, pause);
                let (waiting, over) = (state.waiting.clone(), state.over);
                drop(state);
                let begin = Instant::now();
                let mut due = false;
                for waiter in &waiting {
                    due |= look(waiter, over);
                }
                pause = if due {
                    NUDGE
                } else {
                    (begin.elapsed() * REST).clamp(LOOK, LONGEST)
                };
                state = lock(&self.state);
            }
        }
    }

    /// Waits until somebody waits; `None` if nobody came for so long that there is no watch any more.
    fn somebody(&self) -> Option<MutexGuard<'_, State>> {
        let end = Instant::now() + LINGER;
        let mut state = lock(&self.state);
        while state.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.watched = false;
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(state)
    }

    /// Lets `pause` pass, or less if all is over.
    fn rest<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        pause: Duration,
    ) -> MutexGuard<'a, State> {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || (state.over && pause > NUDGE) {
                return state;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Ends the wait if it is to end; whether its thread has something to see.
fn look(waiter: &Waiter, over: bool) -> bool {
    if over {
        waiter.end(Error::CLOSING.errno());
    } else if !matches!(has_signal(waiter.caller()), Ok(false)) {
        // Or the caller has gone, which takes the end of the connection.
        waiter.end(Errno::INTR);
    }
    waiter.nudge()
}

/// In the list, until it is dropped.
struct Entered<'a> {
    waiters: &'a Waiters,
    waiter: Arc<Waiter>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.waiters.state);
        state
            .waiting
            .retain(|other| !Arc::ptr_eq(other, &self.waiter));
        let last = state.waiting.is_empty();
        drop(state);
        if last {
            self.waiters.changed.notify_all();
        }
    }
}

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Waiters")
            .field("waiting", &state.waiting.len())
            .field("over", &state.over)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn waiters() -> (Arc<Gate>, Arc<Waiters>) {
        let gate = Arc::new(Gate::new());
        (Arc::clone(&gate), Waiters::new(&gate))
    }

    /// Waits, on behalf of this thread, until somebody ends it.
    fn wait(waiters: &Arc<Waiters>) -> Result<()> {
        let here = crate::sys::lock::accept_interrupts().unwrap();
        waiters.watched(here.number(), |waiter| {
            let begin = Instant::now();
            while !waiter.nudge() {
                assert!(begin.elapsed() < LONG);
                thread::yield_now();
            }
            Err(Error::LOCKED)
        })
    }

    fn until(condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < LONG);
            thread::yield_now();
        }
    }

    #[test]
    fn a_closed_gate_ends_all_waits_and_the_watch_ends_when_nobody_waits() {
        let (gate, waiters) = waiters();
        thread::scope(|scope| {
            let waits = [(); 3].map(|()| scope.spawn(|| wait(&waiters)));
            until(|| lock(&waiters.state).waiting.len() == 3);
            gate.close();
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Err(Error::LOCKED));
            }
        });
        until(|| !lock(&waiters.state).watched);
        assert!(lock(&waiters.state).waiting.is_empty());
    }

    #[test]
    fn the_end_ends_all_waits_and_lets_nobody_begin() {
        let (_, waiters) = waiters();
        thread::scope(|scope| {
            let waits = [(); 3].map(|()| scope.spawn(|| wait(&waiters)));
            until(|| lock(&waiters.state).waiting.len() == 3);
            waiters.end();
            assert!(lock(&waiters.state).waiting.is_empty());
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Err(Error::LOCKED));
            }
        });
        assert_eq!(wait(&waiters), Err(Error::CLOSING));
    }

    #[test]
    fn who_can_t_be_seen_is_not_let_wait() {
        let (_, waiters) = waiters();
        let result: Result<()> = waiters.watched(0, |_| unreachable!());
        assert_eq!(result.unwrap_err().errno(), Errno::NOLCK);
        assert!(!lock(&waiters.state).watched);
    }
}
