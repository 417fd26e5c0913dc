//! How soon a process that serves is started again after it died, and when no more: pure, the clock is the caller's.
//!
//! Each death counts for a minute. With as many of them as [`Limit::Times`] allows, something is wrong that a restart does not mend. A
//! process that crashed by itself is likely to do so again, so its next one waits, longer from time to time. One that
//! somebody killed (SIGKILL: a user, the kernel short of memory) did nothing wrong, and programs wait for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::RestartLimit;

/// For how long a death counts.
const COUNTS_FOR: Duration = Duration::from_secs(60);
/// The pause after the first crash; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// By SIGKILL.
    Killed,
    /// By itself.
    Crashed,
}

/// What follows from a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next one is started, after this pause.
    After(Duration),
    /// No more.
    GiveUp,
}

/// The deaths of late.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: RestartLimit,
    deaths: VecDeque<(Instant, Death)>,
}

impl Pace {
    pub(crate) fn new(limit: RestartLimit) -> Self {
        Self::after(limit, Vec::new())
    }

    /// That knows of earlier deaths.
    pub(crate) fn after(limit: RestartLimit, deaths: Vec<(Instant, Death)>) -> Self {
        Self {
            limit,
            deaths: deaths.into(),
        }
    }

    /// The deaths that it knows of, the oldest first.
    pub(crate) fn deaths(&self) -> Vec<(Instant, Death)> {
        self.deaths.iter().copied().collect()
    }

    /// Somebody died.
    pub(crate) fn died(&mut self, how: Death, now: Instant) -> Next {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= COUNTS_FOR;
        while self.deaths.front().is_some_and(|(at, _)| old(at)) {
            self.deaths.pop_front();
        }
        self.deaths.push_back((now, how));
        if let RestartLimit::Times(most) = self.limit
            && self.deaths.len() > most as usize
        {
            return Next::GiveUp;
        }
        match how {
            Death::Killed => Next::After(Duration::ZERO),
            Death::Crashed => Next::After(self.pause()),
        }
    }

    fn pause(&self) -> Duration {
        let crashes = self.deaths.iter().filter(|(_, how)| *how == Death::Crashed);
        // The first one may have been an accident.
        let doublings = match crashes.count() {
            0 | 1 => return Duration::ZERO,
            more => u32::try_from(more - 2).unwrap_or(u32::MAX),
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_are_waited_for_longer_and_longer_and_then_given_up() {
        let mut pace = Pace::new(RestartLimit::Times(10));
        let now = Instant::now();
        let pauses: Vec<Next> = (0..11).map(|_| pace.died(Death::Crashed, now)).collect();
        let after = |millis| Next::After(Duration::from_millis(millis));
        let expected = [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(pauses[..10], expected.map(after));
        assert_eq!(pauses[10], Next::GiveUp);
    }

    #[test]
    fn who_was_killed_is_followed_at_once() {
        let mut pace = Pace::new(RestartLimit::Times(3));
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(pace.died(Death::Killed, now), Next::After(Duration::ZERO));
        }
        assert_eq!(pace.died(Death::Killed, now), Next::GiveUp);
    }

    #[test]
    fn deaths_that_another_one_saw_count() {
        let mut pace = Pace::new(RestartLimit::Times(2));
        let now = Instant::now();
        pace.died(Death::Killed, now);
        pace.died(Death::Killed, now);
        let mut next = Pace::after(RestartLimit::Times(2), pace.deaths());
        assert_eq!(next.died(Death::Killed, now), Next::GiveUp);
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let mut pace = Pace::new(RestartLimit::Times(1));
        let mut now = Instant::now();
        for _ in 0..20 {
            assert_eq!(pace.died(Death::Crashed, now), Next::After(Duration::ZERO));
            now += COUNTS_FOR;
        }
    }

    #[test]
    fn without_a_limit_it_is_never_given_up() {
        let mut pace = Pace::new(RestartLimit::Never);
        let now = Instant::now();
        for _ in 0..1000 {
            assert_ne!(pace.died(Death::Crashed, now), Next::GiveUp);
        }
        assert_eq!(pace.died(Death::Crashed, now), Next::After(LONGEST_PAUSE));
    }
}
