//! The system calls, thin and typed, without policy. The only place with `unsafe`.
//!
//! Everything that [rustix] wraps safely goes through it; raw calls stand here only where it has
//! none. A function takes file descriptors and at most one name below one of them: no path of SRC
//! is ever put together.
//!
//! In reading order: [`fs`] (objects and names), [`handle`] (inodes for good), [`by_number`] (inodes by
//! number alone), [`dir`] (directory streams), [`xattr`], [`ioctl`] (file flags), [`lock`] (file locks),
//! [`creds`] (acting as the caller), [`rights`] (what a caller may), [`caller`] (what it is up to while it
//! waits), [`mount`] (mount ids and the mount table), [`mountinfo`] (the table as text), [`notify`] (what the
//! FUSE client is told unasked), [`passthrough`] (what it may do with backing files), [`fanotify`] (what others do to a file system), [`wake`] (a bell for poll(2)), [`memory`] (our own, by address), [`shared`] (memory that outlives a process), [`buffers`] (memory that is there at once), [`connection`] (one more device of it), [`ask`] (whether a mount answers),
//! [`process`] (going to the background), [`descriptor`] (one that is made to stand for something else), [`limits`] (of this process, lifted), [`cpu_latency`] (how deeply CPUs sleep), [`features`]
//! (switching newer calls off).

pub mod ask;
pub mod buffers;
pub mod by_number;
pub mod caller;
pub mod connection;
pub mod cpu_latency;
pub mod crash;
pub mod creds;
pub mod descriptor;
pub mod dir;
pub mod fanotify;
pub mod features;
pub mod fs;
pub mod handle;
pub mod ioctl;
pub mod limits;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod notify;
pub mod passthrough;
pub mod probe;
pub mod process;
pub mod rights;
pub mod shared;
pub mod wake;
pub mod xattr;

use rustix::io::Errno;

/// The errno that a raw call has just left.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
