//! A thread that tells the kernel what may keep it waiting: a line of its own.
//!
//! The kernel takes locks for what it is told, and waits for whoever has them: a program that looks a name up has the directory,
//! one that reads a file has the page, until it is answered. Nothing interrupts that wait, not even SIGKILL, so a process that is
//! killed meanwhile does not end before the answer comes. Whom that must not keep from happening is whoever gives that answer:
//!
//! - the next process of a mount with `--supervise`, which begins when the last one works for nobody any more. What tells the
//!   supervisor so is that the socket between the two is closed, by the end of all threads that share it;
//! - without one the kernel, which answers with an error what was read from a device when that is closed.
//!
//! So such a thread shares no descriptors with the others, and has a device of its own. Nothing that owns a descriptor may be used
//! or dropped on it: it works on numbers and names.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::sync::Arc;
use crate::sys::{connection, crash, descriptor};

/// What such a thread speaks through.
#[derive(Debug)]
pub(super) struct Line(OwnedFd);

impl Line {
    /// Starts a thread that does `work` with a line to the kernel. `device` is the connection's, which somebody else has open for
    /// longer.
    pub(super) fn start(
        name: &str,
        device: &Arc<OwnedFd>,
        work: impl FnOnce(Self) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let device = Arc::clone(device);
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let line = Self::of_this_thread(device);
                match line {
                    Ok(line) => {
                        let _ = tell.send(Ok(()));
                        drop(tell);
                        work(line);
                    }
                    Err(error) => drop(tell.send(Err(error))),
                }
            })?;
        // Without a word it has died of a panic.
        told.recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))?;
        Ok(thread)
    }

    fn of_this_thread(shared: Arc<OwnedFd>) -> io::Result<Self> {
        let own = match connection::another_device(shared.as_fd()) {
            Ok(own) => own,
            Err(errno) => {
                log::debug!(
                    "a device is shared by who serves and who tells of changes: /dev/fuse: {errno}"
                );
                shared.try_clone()?
            }
        };
        drop(shared);
        let line = Self(own);
        descriptor::leave_all_but(line.0.as_fd())?;
        Ok(line)
    }

    /// Says something to the kernel, on the connection, for as long as that takes.
    pub(super) fn tell<T>(&self, what: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        let _call = crash::Call::begin();
        what(self.0.as_fd())
    }
}
