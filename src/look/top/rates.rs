//! A mount over time: from two samples of its figures, what came in between.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::mounts::Mount;
use crate::figures::{Figures, Operation};
use crate::observe::histogram::Times;

/// As many rates are remembered for the curve.
const REMEMBERED: usize = 200;

/// What came for one operation since the sample before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) per_second: f64,
    pub(super) errors_per_second: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// The longest since the start.
    pub(super) longest: f64,
}

/// A mount and its last samples.
#[derive(Debug)]
pub(super) struct Watched {
    mount: Mount,
    at: Instant,
    ended: bool,
    rows: Vec<Row>,
    /// Requests a second, the last one last.
    history: VecDeque<u64>,
    /// Answered with an error, a second.
    errors: f64,
}

impl Watched {
    pub(super) fn new(mount: Mount) -> Self {
        Self {
            mount,
            at: Instant::now(),
            ended: false,
            rows: Vec::new(),
            history: VecDeque::new(),
            errors: 0.0,
        }
    }

    pub(super) fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Whether its daemon has ended.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The busiest operations first.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn history(&self) -> &VecDeque<u64> {
        &self.history
    }

    pub(super) fn per_second(&self) -> f64 {
        self.rows.iter().map(|row| row.per_second).sum()
    }

    pub(super) fn errors_per_second(&self) -> f64 {
        self.errors
    }

    /// A new sample; nothing when there is no such mount any more. Another one may have got its numbers.
    pub(super) fn update(&mut self, mount: Option<Mount>) {
        let Some(mount) = mount.filter(|it| it.may_be(&self.mount)) else {
            self.ended = true;
            self.rows.clear();
            return;
        };
        let passed = self.at.elapsed();
        self.at = Instant::now();
        match (&self.mount.figures, &mount.figures) {
            (Some(before), Some(now)) => {
                self.rows = rows(before, now, passed);
                self.errors = self.rows.iter().map(|row| row.errors_per_second).sum();
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // for a curve
                self.history.push_back(self.per_second() as u64);
                if self.history.len() > REMEMBERED {
                    self.history.pop_front();
                }
            }
            _ => self.rows.clear(),
        }
        self.mount = mount;
    }
}

/// What came between two samples.
fn rows(before: &Figures, now: &Figures, passed: Duration) -> Vec<Row> {
    let seconds = passed.as_secs_f64().max(0.001);
    #[allow(clippy::cast_precision_loss)] // of one second
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    let nothing = Operation::default();
    let row = |operation: &Operation| {
        let same = |it: &&Operation| it.name == operation.name;
        let earlier = before.operations.iter().find(same).unwrap_or(&nothing);
        let since = times(operation).since(&times(earlier));
        let share = |share| since.quantile(share).unwrap_or_default().as_secs_f64();
        Row {
            name: operation.name.clone(),
            per_second: rate(operation.requests, earlier.requests),
            errors_per_second: rate(operation.errors, earlier.errors),
            p50: share(0.5),
            p99: share(0.99),
            longest: operation.max_seconds,
        }
    };
    let mut rows: Vec<Row> = now.operations.iter().map(row).collect();
    rows.sort_by(|one, other| other.per_second.total_cmp(&one.per_second));
    rows
}

fn times(operation: &Operation) -> Times {
    // From another process: a number that is no time is none.
    let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Times {
        counts: operation.buckets.clone(),
        sum: time(operation.total_seconds),
        longest: time(operation.max_seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::mounts::tests::mount;
    use super::*;

    fn figures(requests: u64, buckets: &[(usize, u64)]) -> Figures {
        Figures {
            operations: vec![
                Operation {
                    name: "read".to_owned(),
                    requests: 5,
                    ..Operation::default()
                },
                Operation {
                    name: "lookup".to_owned(),
                    requests,
                    errors: requests / 10,
                    max_seconds: 1.0,
                    buckets: buckets.to_vec(),
                    ..Operation::default()
                },
            ],
            ..Figures::default()
        }
    }

    #[test]
    fn another_mount_with_its_numbers_is_not_it() {
        let told = |unique| Figures {
            mount_id: 7,
            unique_mount_id: Some(unique),
            ..Figures::default()
        };
        let mut watched = Watched::new(mount("/mnt", Some(told(1))));
        watched.update(Some(mount("/moved", Some(told(1)))));
        assert!(!watched.ended());
        watched.update(Some(mount("/mnt", Some(told(2)))));
        assert!(watched.ended());
        // Where there are no such ids, or a daemon does not tell of them.
        let other = |target: &str| Mount {
            source: crate::figures::Name::of("/other"),
            ..mount(target, Some(figures(100, &[])))
        };
        let mut watched = Watched::new(mount("/mnt", None));
        watched.update(Some(other("/mnt")));
        assert!(!watched.ended());
        watched.update(Some(mount("/elsewhere", None)));
        assert!(watched.ended());
    }

    #[test]
    fn what_came_in_between_counts() {
        let before = figures(100, &[(40, 100)]);
        let now = figures(300, &[(40, 100), (80, 200)]);
        let rows = rows(&before, &now, Duration::from_secs(2));
        assert_eq!(rows[0].name, "lookup", "the busiest first");
        assert!((rows[0].per_second - 100.0).abs() < 0.1);
        assert!((rows[0].errors_per_second - 10.0).abs() < 0.1);
        assert!(
            rows[0].p50 > 0.000_1,
            "{rows:?}: the quick ones were before"
        );
        assert!(rows[1].per_second < 0.1);
    }

    #[test]
    fn a_daemon_that_was_restarted_counts_from_nothing() {
        let rows = rows(
            &figures(300, &[]),
            &figures(10, &[]),
            Duration::from_secs(1),
        );
        assert!(rows.iter().all(|row| row.per_second < 0.1), "{rows:?}");
    }
}
