//! Why an operation failed: the errno for the caller and what was tried, for the log. The one
//! place that picks an errno where no system call gave one.

use std::fmt;

pub use rustix::io::Errno;

/// The result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    tried: &'static str,
}

impl Error {
    /// A failure with an errno that a system call gave while trying something.
    #[must_use]
    pub const fn new(errno: Errno, tried: &'static str) -> Self {
        Self { errno, tried }
    }

    /// The kernel names a node or handle that is not (any more) in the tables.
    pub const STALE: Self = Self::new(Errno::STALE, "finding the node");
    /// A handle number that was never given out or was released.
    pub const BAD_HANDLE: Self = Self::new(Errno::BADF, "finding the handle");
    /// A name that no directory entry can have: empty, `.`, `..`, with a slash or a NUL.
    pub const BAD_NAME: Self = Self::new(Errno::INVAL, "reading the name");
    /// A size or offset outside what the system call can take.
    pub const BAD_RANGE: Self = Self::new(Errno::INVAL, "reading size and offset");
    /// An answer that is longer than the caller's buffer.
    pub const NO_ROOM: Self = Self::new(Errno::RANGE, "fitting the answer");
    /// The mount is read-only.
    pub const READ_ONLY: Self = Self::new(Errno::ROFS, "changing a read-only mount");
    /// The connection is being given up.
    pub const CLOSING: Self = Self::new(Errno::NOTCONN, "entering while shutting down");
    /// Our own mount, reached through SRC by a way on which it covers nothing that can be shown.
    pub const OWN_MOUNT: Self = Self::new(Errno::LOOP, "entering our own mount");
    /// An operation on the wrong type of object.
    pub const WRONG_TYPE: Self = Self::new(Errno::INVAL, "using this type of object");
    /// An attribute that is not there, or not shown.
    pub const NO_ATTRIBUTE: Self = Self::new(Errno::NODATA, "finding the attribute");
    /// Somebody else has the lock.
    pub const LOCKED: Self = Self::new(Errno::AGAIN, "locking");
    /// Those who have the lock wait for who asks for it.
    pub const DEADLOCK: Self = Self::new(Errno::DEADLK, "looking at who waits for whom");

    /// A lock that can't be handed on, for a reason that is not the caller's.
    #[must_use]
    pub const fn no_lock(tried: &'static str) -> Self {
        Self::new(Errno::NOLCK, tried)
    }

    /// The errno as a positive number, for who asked. Not `ENOSYS`, which something below SRC may say for itself: from us the
    /// kernel takes it for the whole mount, and never asks again.
    #[must_use]
    pub fn code(self) -> i32 {
        match self.errno {
            Errno::NOSYS => Errno::OPNOTSUPP,
            errno => errno,
        }
        .raw_os_error()
    }

    /// The errno.
    #[must_use]
    pub fn errno(self) -> Errno {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tried, self.errno)
    }
}

impl std::error::Error for Error {}

/// Says what was tried when a system call fails: `call().tried("linkat")?`.
pub trait Tried<T> {
    /// The result with the name of what was tried.
    fn tried(self, what: &'static str) -> Result<T>;
}

impl<T> Tried<T> for rustix::io::Result<T> {
    fn tried(self, what: &'static str) -> Result<T> {
        self.map_err(|errno| Error::new(errno, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_never_told_that_there_is_no_such_operation() {
        let code = |errno| Error::new(errno, "anything").code();
        assert_eq!(code(Errno::NOSYS), Errno::OPNOTSUPP.raw_os_error());
        assert_eq!(code(Errno::NOENT), Errno::NOENT.raw_os_error());
    }
}
