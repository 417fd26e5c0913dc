//! Locks on open files: flock(2), and fcntl(2)'s record locks that belong to an open file
//! description (`F_OFD_SETLK`); and how another thread gets one out of a wait for such a lock.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::FlockOperation;
use rustix::io::{Errno, Result};
use rustix::process::Pid;

use super::{fs, last_errno};

/// What a lock allows others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The same: a read lock.
    Shared,
    /// Nothing: a write lock.
    Exclusive,
}

/// Bytes of a file, the last one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The last byte; [`Self::LAST`] stands for the end of the file, wherever that will be.
    pub end: u64,
}

impl Range {
    /// The largest offset of a file.
    pub const LAST: u64 = i64::MAX.cast_unsigned();
    /// The whole file.
    pub const WHOLE: Self = Self {
        start: 0,
        end: Self::LAST,
    };

    /// Whether the two have a byte in common.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// Whether a call may wait for a lock that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// `EAGAIN` instead.
    No,
    /// Until it is free, or until [`interrupt`] comes: `EINTR`.
    Yes,
}

/// A lock that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// What it allows others.
    pub access: Access,
    /// On which bytes.
    pub range: Range,
    /// The process that holds it, if it belongs to one; an open file's belongs to none.
    pub process: Option<u32>,
}

/// What is open, opened once more: locks of the one are not the other's. For reading and writing if
/// the first one can write, so that locks of both kinds can be set; whether it can.
pub fn open_again(file: BorrowedFd<'_>) -> Result<(OwnedFd, bool)> {
    let flags = rustix::fs::fcntl_getfl(file)?.bits().cast_signed();
    let others = flags & !libc::O_ACCMODE;
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Ok((fs::reopen(file, flags)?, false)),
        // A daemon that is not root may be let write only.
        _ => match fs::reopen(file, others | libc::O_RDWR) {
            Err(Errno::ACCESS) => Ok((fs::reopen(file, flags)?, true)),
            result => Ok((result?, true)),
        },
    }
}

/// flock(2); `None` gives the lock up.
pub fn flock(file: BorrowedFd<'_>, access: Option<Access>, wait: Wait) -> Result<()> {
    let operation = match (access, wait) {
        (None, _) => FlockOperation::Unlock,
        (Some(Access::Shared), Wait::Yes) => FlockOperation::LockShared,
        (Some(Access::Shared), Wait::No) => FlockOperation::NonBlockingLockShared,
        (Some(Access::Exclusive), Wait::Yes) => FlockOperation::LockExclusive,
        (Some(Access::Exclusive), Wait::No) => FlockOperation::NonBlockingLockExclusive,
    };
    rustix::fs::flock(file, operation)
}

/// Sets the record locks of this open file description on `range`: `F_OFD_SETLK`. `None` gives
/// them up.
pub fn set(file: BorrowedFd<'_>, access: Option<Access>, range: Range, wait: Wait) -> Result<()> {
    let mut lock = record(access, range)?;
    let command = match wait {
        Wait::No => libc::F_OFD_SETLK,
        Wait::Yes => libc::F_OFD_SETLKW,
    };
    control(file, command, &mut lock)
}

/// A lock on `range` that keeps this open file description from having `access`: `F_OFD_GETLK`. With
/// `None`, a lock of its own (since Linux 6.8; `EINVAL` before).
pub fn test(file: BorrowedFd<'_>, access: Option<Access>, range: Range) -> Result<Option<Held>> {
    let mut lock = record(access, range)?;
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    let Some(access) = access_of(lock.l_type.into())? else {
        return Ok(None);
    };
    let start = u64::try_from(lock.l_start).map_err(|_| Errno::OVERFLOW)?;
    let len = u64::try_from(lock.l_len).map_err(|_| Errno::OVERFLOW)?;
    let end = match len {
        0 => Range::LAST,
        len => start.saturating_add(len - 1),
    };
    Ok(Some(Held {
        access,
        range: Range { start, end },
        process: u32::try_from(lock.l_pid).ok().filter(|pid| *pid != 0),
    }))
}

fn control(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: the three commands read and write one `struct flock`, which the pointer is to.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, ptr::from_mut(lock)) };
    if result == -1 {
        Err(last_errno())
    } else {
        Ok(())
    }
}

fn record(access: Option<Access>, range: Range) -> Result<libc::flock> {
    if range.start > range.end || range.end > Range::LAST {
        return Err(Errno::INVAL);
    }
    let offset = |value: u64| i64::try_from(value).map_err(|_| Errno::INVAL);
    let len = match range.end {
        Range::LAST => 0, // whatever the file grows to
        end => end - range.start + 1,
    };
    // SAFETY: a C structure of integers, for which all zero is a value. It has private fields on
    // some systems, hence no literal.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    lock.l_type = i16::try_from(number_of(access)).map_err(|_| Errno::INVAL)?;
    lock.l_whence = 0; // SEEK_SET
    lock.l_start = offset(range.start)?;
    lock.l_len = offset(len)?;
    Ok(lock)
}

/// The kernel's number (`F_RDLCK` and its like) for a lock, or for none.
#[must_use]
pub fn number_of(access: Option<Access>) -> i32 {
    match access {
        None => libc::F_UNLCK,
        Some(Access::Shared) => libc::F_RDLCK,
        Some(Access::Exclusive) => libc::F_WRLCK,
    }
}

/// What the number stands for; `EINVAL` if for nothing.
pub fn access_of(number: i32) -> Result<Option<Access>> {
    match number {
        libc::F_UNLCK => Ok(None),
        libc::F_RDLCK => Ok(Some(Access::Shared)),
        libc::F_WRLCK => Ok(Some(Access::Exclusive)),
        _ => Err(Errno::INVAL),
    }
}

/// The record locks that this open file description holds, from `/proc/self/fdinfo`.
pub fn held(file: BorrowedFd<'_>) -> Result<Vec<(Access, Range)>> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let mut text = String::new();
    File::open(path)
        .and_then(|mut info| info.read_to_string(&mut text))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text.lines().filter_map(record_line).collect())
}

/// A line such as `lock: 3: OFDLCK ADVISORY  WRITE -1 fe:00:1234 100 EOF`.
fn record_line(line: &str) -> Option<(Access, Range)> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    if words.next()? != "OFDLCK" {
        return None;
    }
    let access = match words.nth(1)? {
        "READ" => Access::Shared,
        "WRITE" => Access::Exclusive,
        _ => return None,
    };
    let start = words.nth(2)?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => Range::LAST,
        end => end.parse().ok()?,
    };
    Some((access, Range { start, end }))
}

/// The signal that ends a wait. Its default action is to do nothing: one that comes from elsewhere
/// does no harm, and no library uses it.
const WAKE: libc::c_int = libc::SIGURG;

/// Makes [`interrupt`] end waits, for the whole process: a handler that does nothing, and does not
/// have the system call started again.
pub fn make_waits_interruptible() -> Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: a C structure of integers and pointers, for which all zero is a value: no flags, and so
    // no SA_RESTART.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: the pointer is to a set that is part of `action`.
    unsafe { libc::sigemptyset(&raw mut action.sa_mask) };
    // SAFETY: `action` is initialised, and its handler touches nothing. Nobody else handles this signal.
    let result = unsafe { libc::sigaction(WAKE, &raw const action, ptr::null_mut()) };
    if result == -1 {
        Err(last_errno())
    } else {
        Ok(())
    }
}

/// A thread of this process that [`accept_interrupts`] was called in.
#[derive(Debug, Clone, Copy)]
pub struct Thread(Pid);

impl Thread {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }
}

/// Lets [`interrupt`] reach this thread, whatever mask the process was started with.
pub fn accept_interrupts() -> Result<Thread> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given a pointer to, and can't fail.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: the set is initialised, and the number is a signal's.
    unsafe { libc::sigaddset(&raw mut set, WAKE) };
    // SAFETY: reads the set, and writes no old one.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
    if error == 0 {
        Ok(Thread(rustix::thread::gettid()))
    } else {
        Err(Errno::from_raw_os_error(error))
    }
}

/// Ends the wait of a thread of this process, if it is waiting at this moment. A thread that is about
/// to wait misses it: to be repeated until the thread has noticed. The caller sees to it that the
/// thread lives.
pub fn interrupt(thread: Thread) -> Result<()> {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    let thread = thread.0.as_raw_nonzero().get();
    // SAFETY: sends a signal that has a handler or does nothing, to a thread of this process only.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, WAKE) };
    if result == -1 {
        Err(last_errno())
    } else {
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn two_opens() -> (tempfile::NamedTempFile, File) {
        let first = tempfile::NamedTempFile::new().unwrap();
        let second = first.reopen().unwrap();
        (first, second)
    }

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn record_locks_belong_to_the_open_file() {
        let (first, second) = two_opens();
        let (a, b) = (first.as_file().as_fd(), second.as_fd());
        let exclusive = Some(Access::Exclusive);
        set(a, exclusive, range(10, 19), Wait::No).unwrap();
        set(a, exclusive, range(15, 30), Wait::No).unwrap();
        assert_eq!(
            set(b, exclusive, range(30, 40), Wait::No),
            Err(Errno::AGAIN)
        );
        set(b, exclusive, range(31, Range::LAST), Wait::No).unwrap();
        let found = test(b, Some(Access::Shared), Range::WHOLE)
            .unwrap()
            .unwrap();
        assert_eq!(
            (found.access, found.range),
            (Access::Exclusive, range(10, 30))
        );
        assert_eq!(found.process, None);
        assert_eq!(held(a).unwrap(), [(Access::Exclusive, range(10, 30))]);
        assert_eq!(
            held(b).unwrap(),
            [(Access::Exclusive, range(31, Range::LAST))]
        );
        set(a, None, Range::WHOLE, Wait::No).unwrap();
        assert_eq!(held(a).unwrap(), []);
        assert_eq!(test(b, exclusive, Range::WHOLE).unwrap(), None);
    }

    #[test]
    fn impossible_ranges_are_refused() {
        let (first, _) = two_opens();
        let file = first.as_file().as_fd();
        for bad in [
            range(5, 4),
            range(Range::LAST + 1, Range::LAST),
            range(0, u64::MAX),
        ] {
            assert_eq!(set(file, None, bad, Wait::No), Err(Errno::INVAL), "{bad:?}");
        }
        set(file, None, range(Range::LAST, Range::LAST), Wait::No).unwrap();
        set(file, None, range(0, Range::LAST - 1), Wait::No).unwrap();
    }

    #[test]
    fn an_interrupt_ends_a_wait_and_leaves_no_lock() {
        make_waits_interruptible().unwrap();
        let (first, second) = two_opens();
        let exclusive = Some(Access::Exclusive);
        set(first.as_file().as_fd(), exclusive, Range::WHOLE, Wait::No).unwrap();
        flock(first.as_file().as_fd(), exclusive, Wait::No).unwrap();
        for record in [true, false] {
            let (tell, told) = channel();
            let file = second.try_clone().unwrap();
            let waiter = std::thread::spawn(move || {
                tell.send(accept_interrupts().unwrap()).unwrap();
                if record {
                    set(file.as_fd(), exclusive, Range::WHOLE, Wait::Yes)
                } else {
                    flock(file.as_fd(), exclusive, Wait::Yes)
                }
            });
            let thread = told.recv().unwrap();
            let (over, end) = channel::<()>();
            while !waiter.is_finished() {
                interrupt(thread).unwrap();
                let _ = end.recv_timeout(Duration::from_millis(1));
            }
            drop(over);
            assert_eq!(waiter.join().unwrap(), Err(Errno::INTR));
        }
        assert_eq!(held(second.as_fd()).unwrap(), []);
    }

    #[test]
    fn lines_that_are_no_record_lock_are_passed_over() {
        for line in [
            "pos:\t0",
            "lock:\t1: FLOCK  ADVISORY  READ 18426 fe:00:10305569 0 EOF",
            "lock:\t1: POSIX  ADVISORY  READ 18426 fe:00:10305569 0 EOF",
            "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10305569 x EOF",
        ] {
            assert_eq!(record_line(line), None, "{line}");
        }
    }
}
