//! Requests in flight: each holds a [`Pass`] from the moment it is taken up until it is answered.
//!
//! The gate stays open while the daemon drains, because files that are still open after a lazy
//! unmount have to work; it closes when patience is over, right before the connection is cut, so
//! that the cut falls between requests rather than into them.
//!
//! A request costs two read-modify-write operations on one word, and nothing else as long as nobody
//! waits. The word holds the number of passes and two flags. The count can't go below zero: the
//! only thing that decrements it is the drop of a [`Pass`], which only [`Gate::enter`] makes and
//! which can't be copied; an [`OwnedPass`] is one that may go to another thread.
//!
//! Rejected: a compare-and-swap loop in `enter`, which retries under contention where an addition
//! never does; a `Mutex<usize>`, which would put every request of every worker behind one lock.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, lock};

/// No more passes.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// Somebody waits for the count to reach zero: whoever takes it there must say so.
const AWAITED: usize = CLOSED >> 1;
/// Whoever comes now waits until this is taken back.
const HELD: usize = AWAITED >> 1;
/// The rest of the word. Three bits fewer than an address has: more passes than could be in memory.
const COUNT: usize = HELD - 1;

/// Keeps the word that every request writes off the cache line of anything else.
#[repr(align(64))]
struct Word(AtomicUsize);

/// Counts requests in flight, and can turn new ones away.
pub struct Gate {
    word: Word,
    /// How many wait for the count to reach zero. `AWAITED` is set exactly while it is not zero;
    /// both change under this lock.
    waiters: Mutex<usize>,
    idle: Condvar,
    /// Rings under the lock of `waiters` when those who are held up are to look again.
    let_go: Condvar,
    at_close: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Gate {
    /// An open gate that nobody has passed.
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: Word(AtomicUsize::new(0)),
            waiters: Mutex::new(0),
            idle: Condvar::new(),
            let_go: Condvar::new(),
            at_close: OnceLock::new(),
        }
    }

    /// A pass for one request, or nothing once the gate is closed.
    #[must_use]
    pub fn enter(&self) -> Option<Pass<'_>> {
        // Counted first and asked then: after `close` returned, whoever was not counted before is
        // turned away. Acquire pairs with the release in `close`.
        let before = self.word.0.fetch_add(1, Ordering::Acquire);
        let pass = Pass { gate: self };
        if before & (CLOSED | HELD) == 0 {
            return Some(pass);
        }
        // Turned away, the pass is dropped like any other: that wakes a waiter who saw it.
        drop(pass);
        if before & CLOSED != 0 {
            return None;
        }
        self.wait_until_let_go();
        self.enter()
    }

    #[cold]
    fn wait_until_let_go(&self) {
        let mut waiters = lock(&self.waiters);
        while self.word.0.load(Ordering::Acquire) & (CLOSED | HELD) == HELD {
            waiters = self
                .let_go
                .wait(waiters)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Holds up every request from now on, and waits until those in flight are answered, at most for `timeout`; whether they are.
    #[must_use]
    pub fn hold_up(&self, timeout: Duration) -> bool {
        self.word.0.fetch_or(HELD, Ordering::AcqRel);
        self.wait_idle(timeout)
    }

    /// Lets those go on who were held up.
    pub fn let_go(&self) {
        self.word.0.fetch_and(!HELD, Ordering::Release);
        self.wake_held();
    }

    fn wake_held(&self) {
        let _waiters = lock(&self.waiters);
        self.let_go.notify_all();
    }

    /// The same pass for a request that may be answered by another thread.
    #[must_use]
    pub fn enter_owned(self: &Arc<Self>) -> Option<OwnedPass> {
        let pass = self.enter()?;
        // The owned one goes down in its place.
        std::mem::forget(pass);
        Some(OwnedPass(Arc::clone(self)))
    }

    /// Turns away every request from now on. Passes that are out stay good.
    pub fn close(&self) {
        self.word.0.fetch_or(CLOSED, Ordering::Release);
        self.wake_held();
        if let Some(hook) = self.at_close.get() {
            hook();
        }
    }

    /// Has `hook` called whenever the gate is closed, for requests that would wait for long. Only the
    /// first one that is given counts.
    pub fn when_closed(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.at_close.set(Box::new(hook));
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.word.0.load(Ordering::Relaxed) & COUNT
    }

    /// Waits until no request is in flight, at most for `timeout`; whether that came true. On an
    /// open gate the next request may have entered before the caller looks.
    #[must_use]
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let mut waiters = lock(&self.waiters);
        *waiters += 1;
        // From here on the last pass announces itself. It needs the lock for that, which is held
        // until the wait gives it up, so the announcement can't fall between the look and the wait.
        let mut word = self.word.0.fetch_or(AWAITED, Ordering::AcqRel);
        while word & COUNT != 0 {
            let Some(left) = timeout.checked_sub(start.elapsed()) else {
                break;
            };
            waiters = self
                .idle
                .wait_timeout(waiters, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            word = self.word.0.load(Ordering::Acquire);
        }
        *waiters -= 1;
        if *waiters == 0 {
            self.word.0.fetch_and(!AWAITED, Ordering::Relaxed);
        }
        word & COUNT == 0
    }

    #[cold]
    fn announce_idle(&self) {
        let _waiters = lock(&self.waiters);
        self.idle.notify_all();
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = self.word.0.load(Ordering::Relaxed);
        f.debug_struct("Gate")
            .field("in_flight", &(word & COUNT))
            .field("closed", &(word & CLOSED != 0))
            .finish_non_exhaustive()
    }
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
#[must_use = "a request is in flight only as long as its pass is kept"]
pub struct Pass<'gate> {
    gate: &'gate Gate,
}

/// One request in flight, wherever it goes, until it is dropped.
#[derive(Debug)]
#[must_use = "a request is in flight only as long as its pass is kept"]
pub struct OwnedPass(Arc<Gate>);

impl Drop for OwnedPass {
    fn drop(&mut self) {
        drop(Pass { gate: &self.0 });
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // Release: what the request did happens before what follows a `wait_idle` that saw it go.
        let before = self.gate.word.0.fetch_sub(1, Ordering::Release);
        if before & (AWAITED | COUNT) == AWAITED | 1 {
            self.gate.announce_idle();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn whoever_waits_for_long_is_told_of_the_close() {
        let gate = Arc::new(Gate::new());
        let told = Arc::new(AtomicUsize::new(0));
        let its = (Arc::downgrade(&gate), Arc::clone(&told));
        gate.when_closed(move || {
            let turns_away = |gate: Arc<Gate>| gate.enter().is_none();
            assert!(its.0.upgrade().is_none_or(turns_away));
            its.1.fetch_add(1, Ordering::Relaxed);
        });
        drop(gate.enter());
        assert_eq!(told.load(Ordering::Relaxed), 0);
        gate.close();
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn counts_what_is_inside_and_nothing_else() {
        let gate = Gate::new();
        let (one, two) = (gate.enter(), gate.enter());
        assert!(one.is_some() && two.is_some());
        assert_eq!(gate.in_flight(), 2);
        gate.close();
        assert!(gate.enter().is_none());
        assert_eq!(gate.in_flight(), 2, "who is turned away does not count");
        drop(one);
        assert_eq!(gate.in_flight(), 1);
        assert!(!gate.wait_idle(Duration::ZERO));
        drop(two);
        assert!(gate.wait_idle(Duration::ZERO));
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn an_owned_pass_counts_like_any_other_on_whatever_thread_it_ends() {
        let gate = Arc::new(Gate::new());
        let pass = gate.enter_owned();
        assert!(pass.is_some());
        assert_eq!(gate.in_flight(), 1);
        gate.close();
        assert!(gate.enter_owned().is_none());
        assert_eq!(gate.in_flight(), 1, "who is turned away does not count");
        thread::spawn(move || drop(pass));
        assert!(gate.wait_idle(LONG));
    }

    #[test]
    fn who_is_held_up_goes_on_when_let_go_and_is_turned_away_when_it_closes() {
        for closes in [false, true] {
            let gate = Gate::new();
            let inside = gate.enter();
            assert!(!gate.hold_up(Duration::ZERO));
            let (told, entered) = std::sync::mpsc::channel();
            thread::scope(|scope| {
                let come = || told.send(gate.enter().is_some());
                scope.spawn(come);
                assert!(entered.recv_timeout(Duration::from_millis(50)).is_err());
                drop(inside);
                assert!(gate.wait_idle(LONG));
                if closes {
                    gate.close();
                } else {
                    gate.let_go();
                }
                assert_eq!(entered.recv_timeout(LONG), Ok(!closes));
            });
        }
    }

    #[test]
    fn waiting_ends_with_the_last_pass() {
        let gate = Gate::new();
        let entered = Barrier::new(5);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let pass = gate.enter();
                    entered.wait();
                    drop(pass);
                });
            }
            entered.wait();
            gate.close();
            assert!(gate.wait_idle(LONG));
        });
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn an_open_gate_can_be_waited_for_again_and_again_by_several() {
        let gate = Gate::new();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..500).for_each(|_| drop(gate.enter())));
                scope.spawn(|| (0..500).for_each(|_| assert!(gate.wait_idle(LONG))));
            }
        });
        assert_eq!(
            format!("{gate:?}"),
            "Gate { in_flight: 0, closed: false, .. }"
        );
        assert_eq!(gate.word.0.into_inner(), 0, "no flag stays behind");
    }
}

/// The models. Each runs on the gate, where it has to hold, and on a twin with one mistake, where
/// loom has to find the order of events that breaks it: a model that passes on the twin as well
/// would say nothing about the gate.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;
    use loom::cell::UnsafeCell;
    use loom::thread;

    /// loom has no clock: it never lets a wait time out, so a wake-up that is lost is a deadlock,
    /// which loom reports.
    const LONG: Duration = Duration::from_secs(3600);

    /// What a model needs of a gate.
    trait Turnstile: Send + Sync + 'static {
        fn new() -> Self;
        fn enter(&self) -> bool;
        fn leave(&self);
        fn close(&self);
        fn wait_idle(&self);
    }

    impl Turnstile for Gate {
        fn new() -> Self {
            Gate::new()
        }
        fn enter(&self) -> bool {
            Gate::enter(self).map(std::mem::forget).is_some()
        }
        fn leave(&self) {
            drop(Pass { gate: self });
        }
        fn close(&self) {
            Gate::close(self);
        }
        fn wait_idle(&self) {
            assert!(Gate::wait_idle(self, LONG));
        }
    }

    /// Two workers, and a control thread that closes the gate, waits, and then does what nobody
    /// inside may see: it takes away what the workers use.
    fn nobody_is_inside_after_close_and_wait<T: Turnstile>() {
        loom::model(|| {
            let gate = Arc::new(T::new());
            let used = Arc::new(UnsafeCell::new(0));
            let worker = {
                let (gate, used) = (Arc::clone(&gate), Arc::clone(&used));
                move || {
                    if gate.enter() {
                        used.with(|_| ());
                        gate.leave();
                    }
                }
            };
            let workers = [thread::spawn(worker.clone()), thread::spawn(worker)];
            gate.close();
            gate.wait_idle();
            used.with_mut(|_| ());
            for worker in workers {
                worker.join().unwrap();
            }
        });
    }

    /// The gate stays open: the wake-up must come all the same, to everybody who waits.
    fn waiting_always_ends<T: Turnstile>() {
        loom::model(|| {
            let gate = Arc::new(T::new());
            let threads = [
                thread::spawn({
                    let gate = Arc::clone(&gate);
                    move || {
                        if gate.enter() {
                            gate.leave();
                        }
                    }
                }),
                thread::spawn({
                    let gate = Arc::clone(&gate);
                    move || gate.wait_idle()
                }),
            ];
            gate.wait_idle();
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    /// A request, and a control thread that holds it up, does what nobody inside may see, and lets it go. A second
    /// request would take this model hours.
    fn nobody_is_inside_while_it_is_held_up(hold_up: fn(&Gate), let_go: fn(&Gate)) {
        loom::model(move || {
            let gate = Arc::new(Gate::new());
            let used = Arc::new(UnsafeCell::new(0));
            let its = (Arc::clone(&gate), Arc::clone(&used));
            let request = thread::spawn(move || {
                let pass = its.0.enter();
                assert!(pass.is_some());
                its.1.with(|_| ());
            });
            hold_up(&gate);
            used.with_mut(|_| ());
            let_go(&gate);
            request.join().unwrap();
        });
    }

    #[test]
    fn the_gate_holds_up_and_lets_go() {
        nobody_is_inside_while_it_is_held_up(|gate| assert!(gate.hold_up(LONG)), Gate::let_go);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_catches_who_does_not_wait_for_those_inside() {
        nobody_is_inside_while_it_is_held_up(
            |gate| {
                gate.word.0.fetch_or(HELD, Ordering::AcqRel);
            },
            Gate::let_go,
        );
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn the_model_catches_who_lets_go_without_waking() {
        nobody_is_inside_while_it_is_held_up(
            |gate| assert!(gate.hold_up(LONG)),
            |gate| {
                gate.word.0.fetch_and(!HELD, Ordering::Release);
            },
        );
    }

    #[test]
    fn the_gate_keeps_its_promise() {
        nobody_is_inside_after_close_and_wait::<Gate>();
    }

    #[test]
    fn the_gate_wakes_everybody() {
        waiting_always_ends::<Gate>();
    }

    /// A gate whose steps can be replaced by wrong ones.
    struct Twin<const MISTAKE: u8>(Gate);

    /// Asks whether the gate is open first, and counts then.
    const ASKS_BEFORE_COUNTING: u8 = 1;
    /// What the request did need not be visible to whoever waited for it.
    const LEAVES_RELAXED: u8 = 2;
    /// Looks at the count first, and asks to be woken then.
    const ASKS_TO_BE_WOKEN_LATE: u8 = 3;
    /// Announces the end without the lock that the waiter looks under.
    const ANNOUNCES_WITHOUT_LOCK: u8 = 4;

    impl<const MISTAKE: u8> Turnstile for Twin<MISTAKE> {
        fn new() -> Self {
            Twin(Gate::new())
        }
        fn enter(&self) -> bool {
            if MISTAKE != ASKS_BEFORE_COUNTING {
                return Turnstile::enter(&self.0);
            }
            let open = self.0.word.0.load(Ordering::Acquire) & CLOSED == 0;
            if open {
                self.0.word.0.fetch_add(1, Ordering::Acquire);
            }
            open
        }
        fn leave(&self) {
            let gate = &self.0;
            let ordering = match MISTAKE {
                LEAVES_RELAXED => Ordering::Relaxed,
                ANNOUNCES_WITHOUT_LOCK => Ordering::Release,
                _ => return Turnstile::leave(gate),
            };
            let before = gate.word.0.fetch_sub(1, ordering);
            if before & (AWAITED | COUNT) == AWAITED | 1 {
                if MISTAKE == LEAVES_RELAXED {
                    gate.announce_idle();
                } else {
                    gate.idle.notify_all();
                }
            }
        }
        fn close(&self) {
            self.0.close();
        }
        fn wait_idle(&self) {
            if MISTAKE != ASKS_TO_BE_WOKEN_LATE {
                return Turnstile::wait_idle(&self.0);
            }
            let mut waiters = lock(&self.0.waiters);
            if self.0.word.0.load(Ordering::Acquire) & COUNT == 0 {
                return;
            }
            self.0.word.0.fetch_or(AWAITED, Ordering::AcqRel);
            waiters = self
                .0
                .idle
                .wait(waiters)
                .unwrap_or_else(PoisonError::into_inner);
            drop(waiters);
        }
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_catches_who_asks_before_counting() {
        nobody_is_inside_after_close_and_wait::<Twin<ASKS_BEFORE_COUNTING>>();
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_catches_who_leaves_without_release() {
        nobody_is_inside_after_close_and_wait::<Twin<LEAVES_RELAXED>>();
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn the_model_catches_who_asks_to_be_woken_late() {
        waiting_always_ends::<Twin<ASKS_TO_BE_WOKEN_LATE>>();
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn the_model_catches_who_announces_without_the_lock() {
        waiting_always_ends::<Twin<ANNOUNCES_WITHOUT_LOCK>>();
    }
}
