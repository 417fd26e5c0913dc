//! Descriptors by their numbers: what one stands for, changed under the hands of whoever owns it, and those that this process was
//! started with.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::FdFlags;

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

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

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
}
