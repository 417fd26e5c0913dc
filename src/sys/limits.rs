//! Limits of this process. One would be taken for its callers': how large a file may get. Theirs are
//! checked by the kernel before a request is sent.
#![allow(unsafe_code)]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files this process, and who is started by it, may have open at most.
#[must_use]
pub fn most_files() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Lifts the limit on file sizes (`ulimit -f`), as far as this process may, and has a write beyond what is
/// left of it fail with `EFBIG` rather than end the process with SIGXFSZ. What is left, if anything.
#[must_use]
pub fn lift_file_size_limit() -> Option<u64> {
    // SAFETY: ignoring a signal installs no handler and touches no memory of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let maximum = getrlimit(Resource::Fsize).maximum;
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let as_far_as_allowed = Rlimit {
        current: maximum,
        maximum,
    };
    // What remains is asked for below.
    let _ = setrlimit(Resource::Fsize, unlimited)
        .or_else(|_| setrlimit(Resource::Fsize, as_far_as_allowed));
    getrlimit(Resource::Fsize).current
}
