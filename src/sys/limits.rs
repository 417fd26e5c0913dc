//! Limits of this process. One would be taken for its callers': how large a file may get. Theirs are
//! checked by the kernel before a request is sent.
#![allow(unsafe_code)]

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files this process, and who is started by it, may have open at most.
#[must_use]
pub fn most_files() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Lifts the limit on file sizes (`ulimit -f`), as far as this process may, and has a write beyond what is
/// left of it fail with `EFBIG` rather than end the process with SIGXFSZ.
pub fn lift_file_size_limit() {
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
    // What remains is asked for by who wants to tell it.
    let _ = setrlimit(Resource::Fsize, unlimited)
        .or_else(|_| setrlimit(Resource::Fsize, as_far_as_allowed));
}

/// How large a file this process may write, if that is limited.
#[must_use]
pub fn file_size_limit() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// What to do about an error that a limit of this process, or of the system, explains. For what a start takes: a write that is
/// refused has other reasons too.
#[must_use]
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_io_error(error)? {
        Errno::MFILE => "raise the limit on open files (ulimit -n, LimitNOFILE=)",
        Errno::NFILE => "raise the system's limit on open files (sysctl fs.file-max)",
        Errno::FBIG => "raise the limit on file sizes (ulimit -f, LimitFSIZE=)",
        Errno::NOMEM => "raise the limit on memory (ulimit -v, LimitAS=, MemoryMax=), or free some",
        Errno::AGAIN => "raise the limit on processes (ulimit -u, LimitNPROC=, TasksMax=)",
        _ => return None,
    })
}

/// The error in the system's words, and what to do about it where a limit explains it.
#[must_use]
pub fn explained(error: &io::Error) -> String {
    match remedy(error) {
        Some(remedy) => format!("{error}: {remedy}"),
        None => error.to_string(),
    }
}
