//! Descriptors by their numbers: what one stands for, changed under the hands of whoever owns it, and those that this process was
//! started with.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::fs::FileType;
use rustix::io::FdFlags;

use crate::sync::OnceLock;

/// The first descriptor that is not a standard stream.
const FIRST: u32 = 3;

/// Has the number of `old` stand for what `new` is open on, from now on. Its owner keeps owning that number, and closes it
/// like any other; what it was open on is closed now.
pub fn replace(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open. No number changes hands: `old` is one that its owner goes on owning, so nothing that is
    // somebody else's is closed, now or later.
    let result = unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes a descriptor that this process was started with, to be inherited no further. `EINVAL` for one that would not have been
/// inherited: it is this program's own, or was taken already.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(rustix::io::Errno::INVAL.into());
    }
    // SAFETY: not used beyond the two calls below, which fail for a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(rustix::io::Errno::INVAL.into());
    }
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody in this program owns it: what this program opens is marked from the beginning, as
    // it is itself from now on.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// How many of the standard streams belong to whoever started this process, which is going to leave them.
static BORROWED: OnceLock<u32> = OnceLock::new();

/// The first `number` standard streams will be left to whoever started this process: no thread is to keep them.
pub fn streams_are_borrowed(number: u32) {
    // It is said once.
    let _ = BORROWED.set(number);
}

/// Gives this thread a table of descriptors of its own, with `kept` in it and nothing else but the standard streams that are
/// this process' own: what other threads open and close is none of its business any more, and the other way round.
///
/// From now on the thread must not use, nor be the one to drop, whatever owns another descriptor: the number means nothing
/// here, or something else. Threads that it starts are like it.
pub fn leave_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().unsigned_abs();
    // What is above is not even copied.
    close_range(kept + 1, u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    if kept > FIRST {
        close_range(FIRST, kept - 1, 0)?;
    }
    // What is written to them from now on is lost, on this thread.
    if let Some(last) = BORROWED.get().and_then(|number| number.checked_sub(1)) {
        close_range(0, last, 0)?;
    }
    Ok(())
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: with the flag, or after a call with it, the table is this thread's alone: what other threads own stays open for
    // them, and this one promises not to use it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The FUSE connection that a descriptor is of, by its fdinfo (proc(5)): the minor number of its mount's device. Not every kernel tells.
#[must_use]
pub fn fuse_connection(info: &str) -> Option<u32> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("fuse_connection:"))?;
    line.trim().parse().ok()
}

/// Whether a descriptor is of /dev/fuse.
#[must_use]
pub fn is_of_fuse(device: BorrowedFd<'_>) -> bool {
    // misc, and FUSE_MINOR in linux/miscdevice.h.
    let fuse = rustix::fs::makedev(10, 229);
    rustix::fs::fstat(device).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == fuse
    })
}

/// The same of one of this process's own.
#[must_use]
pub fn own_fuse_connection(device: BorrowedFd<'_>) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()));
    fuse_connection(&info.ok()?)
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::{AsFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_with_a_table_of_its_own_keeps_nothing_open_and_closes_nothing() {
        let (mut kept, mut kept_peer) = UnixStream::pair().unwrap();
        let (mut other, mut other_peer) = UnixStream::pair().unwrap();
        let number = kept.as_raw_fd();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (told, hear) = std::sync::mpsc::channel();
        let alone = thread::spawn(move || {
            // SAFETY: in this thread's table it is this thread's.
            let own = unsafe { OwnedFd::from_raw_fd(number) };
            leave_all_but(own.as_fd()).unwrap();
            told.send(()).unwrap();
            let _ = wait.recv();
            File::from(own).write_all(b"from the thread").unwrap();
        });
        hear.recv().unwrap();
        // It does not keep this open ...
        other.write_all(b"last").unwrap();
        drop(other);
        let mut text = String::new();
        other_peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last");
        // ... and has closed its own of the other only.
        drop(go);
        alone.join().unwrap();
        kept.write_all(b", and from here").unwrap();
        // SAFETY: it is owned here.
        drop(unsafe { OwnedFd::from_raw_fd(kept.into_raw_fd()) });
        let mut text = String::new();
        kept_peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "from the thread, and from here");
    }

    #[test]
    fn who_owns_it_goes_on_with_what_it_stands_for_now() {
        let (mut first, first_peer) = UnixStream::pair().unwrap();
        let (second, mut second_peer) = UnixStream::pair().unwrap();
        replace(first.as_fd(), second.as_fd()).unwrap();
        drop(second);
        first.write_all(b"over here").unwrap();
        drop(first);
        let mut text = String::new();
        second_peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "over here");
        // The end that it stood for was closed with the replacement.
        assert_eq!((&first_peer).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_was_inherited_is_taken_once_and_nothing_else_is() {
        let own = File::open("/dev/null").unwrap();
        assert!(inherited(own.as_raw_fd()).is_err(), "this program's own");
        let number = rustix::io::dup(&own).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(number);
        let taken = inherited(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(inherited(number).is_err(), "taken already");
        drop(taken);
        assert!(inherited(0).is_err());
        assert!(inherited(-1).is_err());
    }

    #[test]
    fn the_connection_of_a_descriptor() {
        let info = "pos:\t0\nflags:\t0102002\nmnt_id:\t29\nino:\t80\nfuse_connection:\t41\n";
        assert_eq!(fuse_connection(info), Some(41));
        assert_eq!(fuse_connection("pos:\t0\n"), None);
    }
}
