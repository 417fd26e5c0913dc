//! Looking at what is served, and breaking it on purpose. The core knows nothing of this.
//!
//! [`Counters`] count what was asked and answered, and how long it took ([`histogram`]), who asks most ([`busy`]) and what
//! is under way; [`faults`] make chosen operations fail or panic, so that tests can see on a real mount what a bug
//! would cost.
//!
//! What it costs each request: two looks at the clock, some five additions to atomics, and a place among those under way;
//! one request of eight is entered in the tables of the busiest, unless somebody is at them. Nothing waits, nothing is
//! allocated. `cargo test --release --lib -- --ignored what_it_costs --nocapture` measures it.

pub mod busy;
pub mod faults;
pub mod histogram;

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::op::Op;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, lock};

use busy::{Busiest, Busy};
use histogram::{Histogram, Times};

/// How many requests under way are known one by one. Others are counted all the same.
const PLACES: usize = 128;

/// How often something happened to one operation.
#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    times: Histogram,
}

/// A request under way: when it began, in nanoseconds since the start, and its operation in the lowest bits; 0: none.
/// Each in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place(AtomicU64);

/// What has been answered since the start, by operation.
#[derive(Debug)]
pub struct Counters {
    start: Instant,
    by_op: Vec<Counts>,
    under_way: Vec<Place>,
    /// Where the next thread looks for a place first.
    next: AtomicUsize,
    busy: Mutex<Busy>,
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

/// A request that was begun and has not ended.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// What it asks for.
    pub op: Op,
    since: Instant,
    /// Where it is noted, and as what.
    place: Option<(usize, u64)>,
}

/// The request that has been under way for longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oldest {
    /// What it asks for.
    pub op: Op,
    /// For how long by now.
    pub age: Duration,
}

thread_local! {
    /// Where this thread looks for a place first.
    static FIRST: Cell<Option<usize>> = const { Cell::new(None) };
    /// What decides which requests are looked at.
    static DICE: Cell<u32> = const { Cell::new(0x9e37_79b9) };
}

impl Counters {
    /// All zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            by_op: Op::ALL.iter().map(|_| Counts::default()).collect(),
            under_way: (0..PLACES).map(|_| Place::default()).collect(),
            next: AtomicUsize::new(0),
            busy: Mutex::default(),
        }
    }

    /// A request has come, for `node`, from the thread `caller`.
    pub fn begin(&self, op: Op, node: u64, caller: u32) -> Begun {
        let since = Instant::now();
        let at = since.saturating_duration_since(self.start);
        if drawn()
            // Whoever is at it counts for both; `Poisoned` can't be, nothing in there panics.
            && let Ok(mut busy) = self.busy.try_lock()
        {
            busy.count(at, node, u64::from(caller));
        }
        Begun {
            op,
            since,
            place: self.take_place(op, at),
        }
    }

    /// It has ended.
    pub fn end(&self, begun: Begun, outcome: Outcome) {
        self.leave(begun);
        if let Some(counts) = self.by_op.get(begun.op as usize) {
            counts.times.count(begun.since.elapsed());
            counts.of(outcome).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It is no longer under way, whatever becomes of it. Doing so twice changes nothing.
    pub fn leave(&self, begun: Begun) {
        if let Some((place, value)) = begun.place
            && let Some(place) = self.under_way.get(place)
            && place.0.load(Ordering::Relaxed) == value
        {
            place.0.store(0, Ordering::Relaxed);
        }
    }

    fn take_place(&self, op: Op, at: Duration) -> Option<(usize, u64)> {
        let first = FIRST.get().unwrap_or_else(|| {
            let first = self.next.fetch_add(1, Ordering::Relaxed) % PLACES;
            FIRST.set(Some(first));
            first
        });
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX >> 6);
        // Never 0: operations are counted from 1 here.
        let value = (at << 6) | (op as u64 + 1);
        let (before, after) = self.under_way.split_at(first.min(PLACES));
        let place = after.iter().chain(before).position(|place| {
            // A look first: the one after is for those who share the line.
            place.0.load(Ordering::Relaxed) == 0
                && place
                    .0
                    .compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
        })?;
        Some(((first + place) % PLACES, value))
    }

    /// The request that has been under way for longest, those that wait for a lock left out: they may wait.
    #[must_use]
    pub fn oldest(&self) -> Option<Oldest> {
        let values = self
            .under_way
            .iter()
            .map(|place| place.0.load(Ordering::Relaxed));
        let begun = values.filter_map(|value| {
            let op = usize::try_from((value & 63).checked_sub(1)?).ok()?;
            Some((*Op::ALL.get(op)?, Duration::from_nanos(value >> 6)))
        });
        let (op, at) = begun
            .filter(|&(op, _)| op != Op::Setlkw)
            .min_by_key(|&(_, at)| at)?;
        let age = self.start.elapsed().saturating_sub(at);
        Some(Oldest { op, age })
    }

    /// Who asked most of late.
    #[must_use]
    pub fn busiest(&self) -> Busiest {
        lock(&self.busy).busiest(self.start.elapsed())
    }

    /// How long the requests for `op` took.
    #[must_use]
    pub fn times(&self, op: Op) -> Times {
        let counts = self.by_op.get(op as usize);
        counts
            .map(|counts| counts.times.times())
            .unwrap_or_default()
    }

    /// For how long has been counted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// How many requests for `op` ended that way.
    #[must_use]
    pub fn get(&self, op: Op, outcome: Outcome) -> u64 {
        let counts = self.by_op.get(op as usize);
        counts.map_or(0, |counts| counts.of(outcome).load(Ordering::Relaxed))
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
}

impl Counts {
    fn of(&self, outcome: Outcome) -> &AtomicU64 {
        match outcome {
            Outcome::Served => &self.served,
            Outcome::Failed => &self.failed,
            Outcome::Panicked => &self.panicked,
        }
    }
}

/// True once in [`busy::EVERY`] times, at no period that a program's requests could have too: xorshift.
fn drawn() -> bool {
    let mut state = DICE.get();
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    DICE.set(state);
    state.is_multiple_of(busy::EVERY)
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_operation_and_outcome_has_a_counter_of_its_own() {
        let counters = Counters::new();
        let count = |op, outcome| counters.end(counters.begin(op, 1, 2), outcome);
        count(Op::Lookup, Outcome::Failed);
        count(Op::Ioctl, Outcome::Panicked);
        count(Op::Ioctl, Outcome::Panicked);
        assert_eq!(counters.get(Op::Lookup, Outcome::Failed), 1);
        assert_eq!(counters.get(Op::Lookup, Outcome::Served), 0);
        assert_eq!(counters.total(Outcome::Panicked), 2);
        assert_eq!(counters.times(Op::Ioctl).total(), 2);
        assert_eq!(counters.times(Op::Read).total(), 0);
    }

    #[test]
    fn what_is_under_way_longest_is_known() {
        let counters = Counters::new();
        assert_eq!(counters.oldest(), None);
        let waiting = counters.begin(Op::Setlkw, 1, 2);
        let first = counters.begin(Op::Lookup, 1, 2);
        let second = counters.begin(Op::Setlk, 1, 2);
        let op = || counters.oldest().map(|oldest| oldest.op);
        assert_eq!(op(), Some(Op::Lookup), "waiting for a lock is no news");
        counters.end(first, Outcome::Served);
        assert_eq!(op(), Some(Op::Setlk));
        // In the place that is free again; leaving twice does not take it away.
        let third = counters.begin(Op::Read, 1, 2);
        counters.leave(first);
        counters.leave(second);
        assert_eq!(op(), Some(Op::Read));
        counters.leave(third);
        counters.leave(waiting);
        assert_eq!(op(), None);
    }

    #[test]
    fn more_under_way_than_there_are_places_are_counted_all_the_same() {
        let counters = Counters::new();
        let begun: Vec<Begun> = (0..2 * PLACES)
            .map(|_| counters.begin(Op::Read, 1, 2))
            .collect();
        for begun in begun {
            counters.end(begun, Outcome::Served);
        }
        assert_eq!(counters.get(Op::Read, Outcome::Served), 2 * PLACES as u64);
        assert_eq!(counters.oldest(), None);
    }

    #[test]
    fn the_busiest_are_those_who_ask_most() {
        let counters = Counters::new();
        for number in 0..4000 {
            let (node, caller) = if number % 4 == 0 { (9, 90) } else { (7, 70) };
            counters.end(counters.begin(Op::Read, node, caller), Outcome::Served);
        }
        let busiest = counters.busiest();
        let keys = |list: &[(u64, f64)]| list.iter().map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(keys(&busiest.nodes), [7, 9]);
        assert_eq!(keys(&busiest.callers), [70, 90]);
    }

    #[test]
    #[ignore = "a measurement: prints what a request pays"]
    #[allow(clippy::print_stdout)]
    fn what_it_costs() {
        const ROUNDS: u32 = 2_000_000;
        // Of the processor, which others may use as well: schedstat, proc_pid_schedstat(5).
        let used = || {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
            let first = text.split(' ').next().and_then(|text| text.parse().ok());
            Duration::from_nanos(first.unwrap_or(0))
        };
        let counters = Counters::new();
        let run = || {
            let begin = used();
            for number in 0..ROUNDS {
                let begun = counters.begin(Op::Lookup, u64::from(number % 64), number % 8);
                counters.end(begun, Outcome::Served);
            }
            used().saturating_sub(begin) / ROUNDS
        };
        println!("a request: {:?}", run());
        std::thread::scope(|scope| {
            let both = [scope.spawn(run), scope.spawn(run)];
            let both = both.map(|thread| thread.join().unwrap_or_default());
            println!("a request beside another thread: {both:?}");
        });
        let begin = used();
        for _ in 0..ROUNDS {
            std::hint::black_box(Instant::now());
        }
        println!(
            "a look at the clock: {:?}",
            used().saturating_sub(begin) / ROUNDS
        );
    }
}
