//! Asking a file system whether it answers, without being held up if it does not.
//!
//! Whoever waits for a FUSE daemon that has read the request and does not reply can't be woken,
//! not even by SIGKILL (`request_wait_answer` in the kernel). A thread that waits so keeps its
//! whole process from ending; and if that process is the daemon itself, its open `/dev/fuse` keeps
//! the connection alive, so that both wait for ever. Hence the question is put by a process of its
//! own, which holds nothing open but the object in question, and which may be left behind.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsString};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, Result};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Question<'a> {
    /// Can this path be looked up (symlinks at its end not followed)?
    Path(&'a CStr),
    /// What are the attributes of this object, from its server and not from the cache?
    Attributes(BorrowedFd<'a>),
    /// The same of a directory, and can it be opened for reading?
    Directory(BorrowedFd<'a>),
    /// What does the symlink at this path say? To be written to the pipe.
    Link(&'a CStr, BorrowedFd<'a>),
}

/// How long a process that was given up may take to end, so that it leaves no zombie.
const FAREWELL: Duration = Duration::from_millis(500);

/// Asks, and returns what the file system answered; `None` if it did not within `limit`. Then
/// `give_up` is called first: it may end the wait by aborting the connection.
pub fn ask(
    question: Question<'_>,
    limit: Duration,
    give_up: impl FnOnce(),
) -> Result<Option<Result<()>>> {
    // The child must not run our signal handlers: until it has closed its copies of our
    // descriptors, a Ctrl-C on the terminal would be recorded once by each of us.
    let before = block_signals();
    // SAFETY: other threads may hold locks, the allocator's for one, that stay locked in the child
    // for ever; `answer` makes system calls only and never returns.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        answer(question);
    }
    let failed = super::last_errno();
    restore_signals(&before);
    let child = if forked < 0 {
        None
    } else {
        Pid::from_raw(forked)
    }
    .ok_or(failed)?;
    // The child can't be reaped by anybody else, so the number is still the child's.
    let handle = rustix::process::pidfd_open(child, PidfdFlags::empty());
    let asked = handle
        .as_ref()
        .map_err(|&errno| errno)
        .and_then(|handle| outcome(handle, limit));
    if let Ok(None) = asked {
        give_up();
    }
    if !matches!(asked, Ok(Some(_))) {
        let _ = rustix::process::kill_process(child, Signal::KILL);
        // If it is stuck for good it is left to itself, and to init when we have ended.
        let _ = handle.and_then(|handle| outcome(&handle, FAREWELL));
    }
    asked
}

/// What the symlink at `path` says; `None` if that is not answered within `limit`.
pub fn read_link(path: &CStr, limit: Duration) -> Result<Option<Result<OsString>>> {
    // What is written fits into it, so nobody waits there.
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let answered = ask(Question::Link(path, writer.as_fd()), limit, || ())?;
    drop(writer);
    let told = || {
        let mut text = Vec::new();
        let read = std::fs::File::from(reader).read_to_end(&mut text);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(OsString::from_vec(text))
    };
    Ok(answered.map(|answer| answer.and_then(|()| told())))
}

/// Blocks every signal for this thread, and returns which were blocked before.
fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: makes `all` a set, wherever it stood.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was just made a set; the old mask is written to `before`. With these arguments
    // the call can't fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: the call above has written it.
    unsafe { before.assume_init() }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: `before` is a set; the mask in force is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
}

/// The child's part. Its end tells the answer: no errno of Linux needs more than eight bits.
fn answer(question: Question<'_>) -> ! {
    let kept = match question {
        Question::Path(_) => None,
        Question::Attributes(object) | Question::Directory(object) | Question::Link(_, object) => {
            Some(object.as_raw_fd())
        }
    };
    let code = match close_all_but(kept).and_then(|()| put(question)) {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error(),
    };
    // SAFETY: ends the process at once, without the exit handlers, which belong to the parent.
    unsafe { libc::_exit(code) }
}

fn put(question: Question<'_>) -> Result<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    let attributes = |object| rustix::fs::statx(object, c"", flags, StatxFlags::BASIC_STATS);
    match question {
        Question::Path(path) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map(drop)
        }
        Question::Attributes(object) => attributes(object).map(drop),
        Question::Directory(directory) => {
            attributes(directory)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            rustix::fs::openat(directory, c".", flags, Mode::empty()).map(drop)
        }
        Question::Link(path, pipe) => {
            // The kernel gives no longer one (`PATH_MAX`).
            let mut space = [MaybeUninit::uninit(); 4096];
            let (text, _) = rustix::fs::readlinkat_raw(CWD, path, &mut space)?;
            rustix::io::write(pipe, text).map(drop)
        }
    }
}

/// Closes the parent's descriptors in the child, so that it keeps no connection, no pipe and no
/// mount alive.
fn close_all_but(kept: Option<i32>) -> Result<()> {
    let Some(kept) = kept.and_then(|fd| libc::c_uint::try_from(fd).ok()) else {
        return close_range(0, libc::c_uint::MAX);
    };
    if let Some(below) = kept.checked_sub(1) {
        close_range(0, below)?;
    }
    close_range(kept + 1, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<()> {
    // SAFETY: the process is the child of `ask`, which uses none of these and returns to nobody.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) } {
        0 => Ok(()),
        _ => Err(super::last_errno()),
    }
}

/// Waits for the child, within `limit`.
fn outcome(child: &OwnedFd, limit: Duration) -> Result<Option<Result<()>>> {
    if !readable(child, limit)? {
        return Ok(None);
    }
    let ended = loop {
        match rustix::process::waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            ended => break ended?,
        }
    };
    match ended.and_then(|status| status.exit_status()) {
        Some(0) => Ok(Some(Ok(()))),
        Some(code) => Ok(Some(Err(Errno::from_raw_os_error(code)))),
        None => Err(Errno::INTR), // a signal ended it: nothing was answered
    }
}

/// Waits until `fd` is readable or at its end; false when `limit` has passed.
pub fn readable(fd: impl AsFd, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::pipe::PipeFlags;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn answers_come_back() {
        assert_eq!(ask(Question::Path(c"/proc"), LONG, || ()), Ok(Some(Ok(()))));
        assert_eq!(
            ask(Question::Path(c"/no/such"), LONG, || ()),
            Ok(Some(Err(Errno::NOENT)))
        );
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open("/proc/self/stat", flags, Mode::empty()).unwrap();
        assert_eq!(
            ask(Question::Attributes(file.as_fd()), LONG, || ()),
            Ok(Some(Ok(())))
        );
        assert_eq!(
            ask(Question::Directory(file.as_fd()), LONG, || ()),
            Ok(Some(Err(Errno::NOTDIR)))
        );
    }

    #[test]
    fn a_link_is_read() {
        let link = |path| read_link(path, LONG).unwrap().unwrap();
        assert_eq!(link(c"/proc/self/root"), Ok("/".into()));
        assert_eq!(link(c"/proc"), Err(Errno::INVAL));
        assert_eq!(link(c"/no/such"), Err(Errno::NOENT));
    }

    #[test]
    fn waiting_has_a_limit() {
        let (silent, open) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert_eq!(readable(&silent, Duration::from_millis(10)), Ok(false));
        drop(open);
        assert_eq!(readable(&silent, LONG), Ok(true));
    }
}
