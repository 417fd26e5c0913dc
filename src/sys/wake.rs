//! A bell for a thread that waits in poll(2): eventfd(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Result;

/// Stays readable from the first ring until it is silenced.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// One that has not rung.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Rings.
    pub fn ring(&self) {
        // EAGAIN: the counter is at its limit, so it rings already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// To be called before looking for what it rang for.
    pub fn silence(&self) {
        // EAGAIN: it did not ring.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// Waits until `bell` has rung, `queue` can be read or the mount table behind `table` has changed; which of
/// them.
pub fn wait(
    bell: &Wake,
    queue: BorrowedFd<'_>,
    table: Option<BorrowedFd<'_>>,
) -> Result<[bool; 3]> {
    let mut fds = vec![
        PollFd::new(bell, PollFlags::IN),
        PollFd::from_borrowed_fd(queue, PollFlags::IN),
    ];
    fds.extend(table.map(|table| PollFd::from_borrowed_fd(table, PollFlags::PRI)));
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    Ok([0, 1, 2].map(|at| {
        fds.get(at)
            .is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty())
    }))
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
