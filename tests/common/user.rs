//! Acting as another user for the length of a closure, in this process.

use std::io;
use std::thread;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// A user without any right of its own: `nobody`, by number because names differ.
pub(crate) const NOBODY: u32 = 65_534;
/// Another one: `daemon` on every Debian, but nothing depends on the name.
pub(crate) const OTHER: u32 = 1;

/// Runs `act` with the user and group ids and supplementary groups given, and without capabilities.
///
/// The credentials are those of one thread, made for this and thrown away after it; the C library's
/// own functions would change every thread of the test process.
#[track_caller]
pub(crate) fn as_user<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    act: impl FnOnce() -> T + Send,
) -> T {
    let groups: Vec<Gid> = groups.iter().map(|id| Gid::from_raw(*id)).collect();
    let become_them = || -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    let done = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_them().expect("change to another user");
            act()
        });
        thread.join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
