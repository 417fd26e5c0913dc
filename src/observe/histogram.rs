//! How long things took, as counts in buckets: log-linear, eight to each doubling, so that what is read from one is
//! wrong by six per cent at most. Counting is one addition to an atomic; nothing is locked or allocated.

use std::time::Duration;

use crate::sync::atomic::{AtomicU64, Ordering};

/// Buckets to each doubling, as a power of two.
const FINENESS: u32 = 3;
const STEPS: u64 = 8;
/// The resolution, as a power of two of nanoseconds: 64 ns, less than a request ever takes.
const RESOLUTION: u32 = 6;
/// Up to 2^40 ns, 18 minutes; what takes longer counts as that.
const DOUBLINGS: usize = 31;
/// How many buckets there are.
pub const BUCKETS: usize = (DOUBLINGS + 1) << FINENESS;

/// The bucket of a time.
fn bucket(nanoseconds: u64) -> usize {
    let units = nanoseconds >> RESOLUTION;
    let index = match units.checked_ilog2() {
        Some(highest) if highest >= FINENESS => {
            let step = (units >> (highest - FINENESS)) & (STEPS - 1);
            u64::from(highest - FINENESS + 1) * STEPS + step
        }
        _ => units,
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The middle of a bucket, in nanoseconds.
fn middle(bucket: usize) -> u64 {
    let (doubling, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    let (low, width) = match doubling.checked_sub(1) {
        None => (step, 1),
        Some(exponent) => ((STEPS + step) << exponent, 1 << exponent),
    };
    (low << RESOLUTION) + ((width << RESOLUTION) / 2)
}

/// Counts, added to from any thread.
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<AtomicU64>,
    sum: AtomicU64,
    longest: AtomicU64,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }

    /// Counts one.
    pub fn count(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(counter) = self.buckets.get(bucket(nanoseconds)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
        // A look first: the maximum is seldom a new one, and a look at a shared line is cheap.
        if self.longest.load(Ordering::Relaxed) < nanoseconds {
            self.longest.fetch_max(nanoseconds, Ordering::Relaxed);
        }
    }

    /// What was counted by now. Not the state of one moment: what is counted meanwhile may be in it or not.
    #[must_use]
    pub fn times(&self) -> Times {
        let counted = self
            .buckets
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed));
        let counted = counted.enumerate().filter(|&(_, count)| count > 0);
        Times {
            counts: counted.collect(),
            sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)),
            longest: Duration::from_nanos(self.longest.load(Ordering::Relaxed)),
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// What a histogram counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    /// Buckets that are not empty and what they hold, in ascending order.
    pub counts: Vec<(usize, u64)>,
    /// All times together.
    pub sum: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Times {
    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|&(_, count)| count).sum()
    }

    /// The time that `share` (0 to 1) of them did not exceed; nothing if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )] // 2^53 requests take centuries, and a share of them is no negative number
        let rank = ((self.total() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let (bucket, _) = self.counts.iter().find(|&&(_, count)| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_nanos(middle(*bucket)).min(self.longest))
    }

    /// What was counted since `before`, an earlier state of the same histogram. The longest stays that of all.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |bucket| {
            let found = before.counts.iter().find(|&&(it, _)| it == bucket);
            found.map_or(0, |&(_, count)| count)
        };
        let counts = self.counts.iter();
        Self {
            counts: counts
                .map(|&(bucket, count)| (bucket, count.saturating_sub(earlier(bucket))))
                .filter(|&(_, count)| count > 0)
                .collect(),
            sum: self.sum.saturating_sub(before.sum),
            longest: self.longest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other() {
        let mut last = 0;
        for bucket in 1..BUCKETS {
            assert!(middle(bucket) > last, "{bucket}");
            last = middle(bucket);
        }
        assert_eq!(STEPS, 1 << FINENESS);
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_time_is_told_to_a_sixteenth(nanoseconds in 1_000_u64..1 << 39) {
            let told = middle(bucket(nanoseconds));
            prop_assert!(told.abs_diff(nanoseconds) <= nanoseconds / 16 + 32, "{told}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let histogram = Histogram::new();
        assert_eq!(histogram.times().quantile(0.5), None);
        for microseconds in 1..=1000 {
            histogram.count(Duration::from_micros(microseconds));
        }
        let times = histogram.times();
        assert_eq!(times.total(), 1000);
        assert_eq!(times.sum, Duration::from_micros(500_500));
        assert_eq!(times.longest, Duration::from_millis(1));
        for (share, microseconds) in [(0.5, 500), (0.9, 900), (0.99, 990), (0.001, 1)] {
            let told = times.quantile(share).unwrap_or_default();
            let right = Duration::from_micros(microseconds);
            assert!(told.abs_diff(right) <= right / 16, "{share}: {told:?}");
        }
        assert!(times.quantile(1.0) <= Some(times.longest));
    }

    #[test]
    fn what_came_since_is_told_apart() {
        let histogram = Histogram::new();
        histogram.count(Duration::from_micros(5));
        let before = histogram.times();
        histogram.count(Duration::from_millis(7));
        let since = histogram.times().since(&before);
        assert_eq!(since.total(), 1);
        assert_eq!(since.sum, Duration::from_millis(7));
        assert!(since.quantile(0.5) > Some(Duration::from_millis(6)));
    }
}
