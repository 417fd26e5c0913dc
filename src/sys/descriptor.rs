//! What a descriptor stands for, changed under the hands of whoever owns it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

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

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
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
}
