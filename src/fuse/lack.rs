//! Says in the log that programs get `EMFILE` because this process has too many files open: of all
//! errors that a program can get from here, the one that somebody can do something about.

use std::time::{Duration, Instant};

use crate::error::{Errno, Error};
use crate::op::Op;
use crate::sync::{Mutex, lock};
use crate::sys::process;

/// How long the log is silent after it has told.
const SILENCE: Duration = Duration::from_secs(60);

/// When it was told last.
#[derive(Debug, Default)]
pub(super) struct Lack {
    told: Mutex<Option<Instant>>,
}

impl Lack {
    /// `op` fails with `error`: tells if it is for want of descriptors and was not told lately.
    pub(super) fn tell(&self, op: Op, error: Error) {
        if matches!(error.errno(), Errno::MFILE | Errno::NFILE) && self.is_time() {
            log::warn!(
                "{op}: {error}. This process may have {} files open; raise its hard limit (ulimit -Hn, \
                 LimitNOFILE= in a unit), or serve, as root, a source that gives file handles",
                process::file_limit()
            );
        }
    }

    fn is_time(&self) -> bool {
        let mut told = lock(&self.told);
        let is_time = told.is_none_or(|told| told.elapsed() >= SILENCE);
        if is_time {
            *told = Some(Instant::now());
        }
        is_time
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_told_once_and_other_errors_never() {
        let lack = Lack::default();
        lack.tell(Op::Open, Error::STALE);
        assert!(lack.is_time());
        lack.tell(Op::Open, Error::new(Errno::MFILE, "open"));
        assert!(!lack.is_time());
    }
}
