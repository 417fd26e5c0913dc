//! Asking something that may never answer: a call on a thread of its own, with a time limit.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// What `ask` returned, or `None` if it did not return within `limit`; it is then left to itself.
///
/// Such a thread waits in the kernel for a FUSE daemon. It ends when that daemon answers or its
/// connection goes: whoever asks the own mount must abort the own connection when time is up,
/// because a process can't end while one of its threads waits for a request that the process
/// itself has read and will not answer (`request_wait_answer` in the kernel).
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    // The end of the thread closes the writing end: poll(2) takes a limit, join does not.
    let (ended, ends) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let asker = thread::Builder::new().name("loopfs-ask".into()).spawn(move || {
        let answer = ask();
        drop(ends);
        answer
    })?;
    if !readable(&ended, limit)? {
        return Ok(None);
    }
    asker.join().map(Some).map_err(|_| io::Error::other("the asking thread panicked"))
}

/// Waits until `fd` can be read or its other end is closed; false when `limit` has passed.
pub(crate) fn readable(fd: impl std::os::fd::AsFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back() {
        assert_eq!(within(Duration::from_secs(10), || 7).unwrap(), Some(7));
    }

    #[test]
    fn silence_is_limited() {
        let (silent, _open) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let asked = within(Duration::from_millis(20), move || {
            rustix::io::read(&silent, &mut [0_u8; 1]).is_ok()
        });
        assert_eq!(asked.unwrap(), None);
    }
}
