//! What a thread that waits for our answer is up to: whether it has a signal to take, and in which
//! system call it is.
//!
//! The FUSE client tells its server of signals with INTERRUPT, which fuser 0.18.0 answers with ENOSYS;
//! from then on the kernel keeps callers in a wait that no signal ends (`request_wait_answer`).

use std::fs;
use std::io;

use crate::sync::OnceLock;

/// What `/proc/TID/status` says of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Status {
    process: u32,
    threads: u32,
    /// Over, or as good as: it takes no signal any more.
    dead: bool,
    /// Signals sent to this thread that it has not taken.
    own: u64,
    /// Signals sent to its process that no thread of it has taken.
    shared: u64,
    blocked: u64,
}

/// Whether `thread`, which waits for an answer of ours, has been sent a signal that is for it to take:
/// then a call that is answered with `EINTR` ends as the kernel's own would, or is begun again. An
/// error if there is no such thread, or none that we may see.
///
/// Never true for one that has no signal: the kernel would hand `EINTR` on as `ERESTARTSYS`, which no
/// program knows.
pub fn has_signal(thread: u32) -> io::Result<bool> {
    if !proc_counts_as_we_do() {
        let text = "/proc is that of another pid namespace";
        return Err(io::Error::other(text));
    }
    let status = status_of(&format!("/proc/{thread}/status"))?;
    if status.own & !status.blocked != 0 {
        return Ok(true);
    }
    let shared = status.shared & !status.blocked;
    if shared == 0 {
        return Ok(false);
    }
    // Signals to a process go to its first thread unless that one blocks them (`complete_signal`).
    if status.threads == 1 || status.process == thread {
        return Ok(true);
    }
    // Otherwise to any that does not: certain only if there is just this one.
    let mut others = 0;
    for task in fs::read_dir(format!("/proc/{}/task", status.process))? {
        let path = task?.path();
        if path.file_name().and_then(|name| name.to_str()) == Some(&thread.to_string()) {
            continue;
        }
        match status_of(&path.join("status").to_string_lossy()) {
            Ok(other) if !other.dead => others |= shared & !other.blocked,
            // It has ended meanwhile.
            _ => {}
        }
    }
    Ok(shared & !others != 0)
}

/// Whether `thread`, which waits in fcntl(2), waits for a lock of its process (`F_SETLKW`) and not of
/// its open file (`F_OFD_SETLKW`). False where that can't be seen: it takes the right to trace it.
#[must_use]
pub fn waits_for_process_lock(thread: u32) -> bool {
    if !proc_counts_as_we_do() {
        return false;
    }
    // It may not have got round to waiting yet: then it is "running".
    (0..1000).any(|_| {
        let call = fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
        if call.starts_with("running") {
            std::thread::yield_now();
        }
        is_process_lock(&call)
    })
}

/// The number of the call, and its arguments in hexadecimal: the second one is fcntl's command, the
/// same number in every ABI (`F_SETLKW64` is for programs of 32 bits).
fn is_process_lock(call: &str) -> bool {
    const F_SETLKW: u64 = 7;
    const F_SETLKW64: u64 = 14;
    let command = call
        .split(' ')
        .nth(2)
        .and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    matches!(command, Some(F_SETLKW | F_SETLKW64))
}

/// Whether a number stands for the same process in `/proc` and in this process's pid namespace, which
/// is the one that the kernel tells us callers' numbers in.
pub(super) fn proc_counts_as_we_do() -> bool {
    static SAME: OnceLock<bool> = OnceLock::new();
    *SAME.get_or_init(|| {
        let own = fs::read_link("/proc/self").unwrap_or_default();
        own.to_str() == Some(&std::process::id().to_string())
    })
}

fn status_of(path: &str) -> io::Result<Status> {
    parse(&fs::read(path)?).ok_or_else(|| io::Error::other(format!("{path} can't be read")))
}

/// The command's name in it may be no text.
fn parse(status: &[u8]) -> Option<Status> {
    let field = |name: &str| {
        status
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"))
            .and_then(|value| std::str::from_utf8(value).ok())
            .map(str::trim)
    };
    let set = |name| u64::from_str_radix(field(name)?, 16).ok();
    Some(Status {
        process: field("Tgid")?.parse().ok()?,
        threads: field("Threads")?.parse().ok()?,
        dead: field("State")?.starts_with(['Z', 'X']),
        own: set("SigPnd")?,
        shared: set("ShdPnd")?,
        blocked: set("SigBlk")?,
    })
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whatever_the_program_is_called() {
        let text = b"Name:\t\xffSigPnd: 1\nUmask:\t0022\nState:\tD (disk sleep)\nTgid:\t77\nPid:\t78\nThreads:\t2\n\
            SigQ:\t0/1\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000002\n";
        let expected = Status {
            process: 77,
            threads: 2,
            dead: false,
            own: 0x100,
            shared: 0x4000,
            blocked: 2,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse(b"State:\tZ\n"), None);
    }

    #[test]
    fn the_kind_of_lock_is_the_command_of_fcntl() {
        let ours = "72 0x3 0x7 0x7ffd8a 0x0 0x0 0x0 0x7ffd80 0x7f2b\n";
        assert!(is_process_lock(ours));
        for other in [
            "72 0x3 0x26 0x7ffd8a 0x0 0x0 0x0 0x7ffd80 0x7f2b\n",
            "running\n",
            "-1 0x7ffd80 0x7f2b\n",
            "",
        ] {
            assert!(!is_process_lock(other), "{other}");
        }
        assert!(!waits_for_process_lock(0));
    }

    #[test]
    fn this_thread_has_no_signal_and_nobody_is_no_thread() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        assert!(!has_signal(thread.cast_unsigned()).unwrap());
        assert!(has_signal(0).is_err());
    }
}
