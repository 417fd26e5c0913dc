//! Which files and which processes ask most, in a bounded table: one request of [`EVERY`] is looked at, and a
//! table of [`PLACES`] counts by "space saving" (Metwally and others, 2005): who is new takes the place of the least.
//! Whoever asks often is in it for certain; counts of others may be too high, never too low.
//!
//! Counted in windows of [`WINDOW`], of which the last whole one and the one under way are told: what was busy a
//! minute ago is no news.

use std::time::Duration;

/// One request of so many is looked at.
pub const EVERY: u32 = 8;
/// How many are kept.
const PLACES: usize = 48;
/// How long a window is.
pub const WINDOW: Duration = Duration::from_secs(5);

/// How often each of some keys came.
#[derive(Debug, Clone, Default)]
struct Places(Vec<(u64, u64)>);

impl Places {
    fn count(&mut self, key: u64) {
        if let Some((_, count)) = self.0.iter_mut().find(|(it, _)| *it == key) {
            *count += 1;
        } else if self.0.len() < PLACES {
            self.0.push((key, 1));
        } else if let Some(least) = self.0.iter_mut().min_by_key(|(_, count)| *count) {
            *least = (key, least.1 + 1);
        }
    }
}

/// The two tables, in two windows.
#[derive(Debug, Default)]
pub(super) struct Busy {
    window: u64,
    now: [Places; 2],
    before: [Places; 2],
}

/// Who asked how often.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Busiest {
    /// Node numbers and requests a second, the busiest first.
    pub nodes: Vec<(u64, f64)>,
    /// Thread ids of callers, likewise.
    pub callers: Vec<(u64, f64)>,
}

impl Busy {
    /// Counts a request that came `at` (since whenever).
    pub(super) fn count(&mut self, at: Duration, node: u64, caller: u64) {
        self.turn(at);
        self.now[0].count(node);
        self.now[1].count(caller);
    }

    /// Begins a new window if it is time.
    fn turn(&mut self, at: Duration) {
        let window = at.as_secs() / WINDOW.as_secs();
        if window > self.window {
            let last = std::mem::take(&mut self.now);
            self.before = if window == self.window + 1 {
                last
            } else {
                Default::default()
            };
            self.window = window;
        }
    }

    pub(super) fn busiest(&mut self, at: Duration) -> Busiest {
        self.turn(at);
        let begin = WINDOW * u32::try_from(self.window.saturating_sub(1)).unwrap_or(u32::MAX);
        let span = at.saturating_sub(begin).as_secs_f64().max(1.0);
        let of = |which: usize| {
            let mut counts: Vec<(u64, u64)> = self.now[which].0.clone();
            for &(key, count) in &self.before[which].0 {
                match counts.iter_mut().find(|(it, _)| *it == key) {
                    Some((_, sum)) => *sum += count,
                    None => counts.push((key, count)),
                }
            }
            counts.sort_by_key(|&(key, count)| (std::cmp::Reverse(count), key));
            #[allow(clippy::cast_precision_loss)] // counts of some seconds
            let rate = |count| (count * u64::from(EVERY)) as f64 / span;
            counts
                .into_iter()
                .map(|(key, count)| (key, rate(count)))
                .collect()
        };
        Busiest {
            nodes: of(0),
            callers: of(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_is_found_among_many() {
        let mut busy = Busy::default();
        let at = Duration::from_secs(1);
        for number in 0..10_000 {
            busy.count(at, 1_000 + number, number % 3);
            busy.count(at, 7, 5);
        }
        let busiest = busy.busiest(at);
        assert_eq!(busiest.nodes.first().map(|it| it.0), Some(7));
        assert_eq!(busiest.callers.first().map(|it| it.0), Some(5));
        assert!(busiest.nodes.len() <= 2 * PLACES);
    }

    #[test]
    fn what_is_over_is_no_news() {
        let mut busy = Busy::default();
        busy.count(Duration::from_secs(1), 7, 5);
        let later = |busy: &mut Busy, seconds| busy.busiest(Duration::from_secs(seconds)).nodes;
        assert_eq!(later(&mut busy, 6).len(), 1, "the window before");
        assert_eq!(later(&mut busy, 11), []);
    }

    #[test]
    fn rates_are_those_of_the_time_that_was_counted() {
        let mut busy = Busy::default();
        for second in 0..8 {
            for _ in 0..10 {
                busy.count(Duration::from_secs(second), 7, 5);
            }
        }
        let rate = busy.busiest(Duration::from_secs(8)).nodes[0].1;
        let right = f64::from(10 * EVERY);
        assert!((rate - right).abs() < right / 10.0, "{rate}");
    }
}
