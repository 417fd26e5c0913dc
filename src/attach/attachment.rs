//! "We are mounted", as a value.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Method;
use super::abort::AbortFile;
use super::detach::{self, Detach, Detached, Standing};
use super::error::{AttachError, shown};
use super::kernel;
use super::mountinfo::DeviceNumber;
use super::table::{self, Identity};
use super::target::MadeDirectory;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Our mount in the mount table. Any thread may ask and detach, any number of times.
///
/// Holds no descriptor in the mount: with one, everybody else's `umount` and `fusermount3 -u`
/// would fail with EBUSY. Dropping it detaches the mount lazily if it is still there.
#[derive(Debug)]
pub struct Attachment {
    // Before `made`: fields are dropped in this order, and `drop` below comes before both.
    identity: Identity,
    target: PathBuf,
    method: Method,
    abort: Option<AbortFile>,
    /// Ours was seen to be gone, or is another process's by now. What is gone does not come back: this keeps a recycled
    /// number on kernels without unique ids from being taken for it later.
    gone: AtomicBool,
    /// The steps of two detaches must not mix: the mark that one leaves is the other's licence.
    detaching: Mutex<()>,
    made: Option<MadeDirectory>,
}

impl Attachment {
    pub(super) fn new(
        identity: Identity,
        target: PathBuf,
        method: Method,
        abort: Option<AbortFile>,
        made: Option<MadeDirectory>,
    ) -> Self {
        let (gone, detaching) = (AtomicBool::new(false), Mutex::new(()));
        Self {
            identity,
            target,
            method,
            abort,
            gone,
            detaching,
            made,
        }
    }

    /// True while our mount is in the mount table. Never touches the mount. If the table can't be
    /// read (no memory, no descriptors) nothing is known to have changed: true.
    pub fn is_present(&self) -> bool {
        if self.gone.load(Ordering::Acquire) {
            return false;
        }
        match self.identity.place() {
            Ok(Some(_)) | Err(_) => true,
            Ok(None) => {
                self.gone.store(true, Ordering::Release);
                false
            }
        }
    }

    /// Whether our mount stays in the mount table for `time`; `false` as soon as it leaves.
    pub fn stays(&self, time: Duration) -> bool {
        // Opened before the first look: a change after that wakes the poll.
        let table = File::open("/proc/self/mountinfo");
        let end = Instant::now() + time;
        while self.is_present() {
            let left = end.saturating_duration_since(Instant::now());
            let (false, Ok(table)) = (left.is_zero(), &table) else {
                return true;
            };
            let mut change = [PollFd::new(table, PollFlags::PRI)];
            // EINTR or a time that can't be told: looked at again above.
            let _ = poll(&mut change, Timespec::try_from(left).ok().as_ref());
        }
        false
    }

    /// True while something is mounted on our mount or in it, so that it can't be detached
    /// without taking that along, or on the way to it, so that it can't be reached.
    pub fn is_covered(&self) -> bool {
        self.is_present() && matches!(detach::standing(&self.identity), Ok(Standing::Covered))
    }

    /// Where that is mounted: for a message.
    pub fn upper(&self) -> Vec<PathBuf> {
        if self.is_present() {
            self.identity.upper().unwrap_or_default()
        } else {
            Vec::new()
        }
    }

    /// Takes our mount down, and only ours. Afterwards every answer is [`Detached::AlreadyGone`].
    pub fn detach(&self, how: Detach) -> Result<Detached, AttachError> {
        if !self.is_present() {
            return Ok(Detached::AlreadyGone);
        }
        // Before the others are kept waiting: it may take its time.
        detach::see_the_way(&self.identity)?;
        let _alone = crate::sync::lock(&self.detaching);
        if !self.is_present() {
            return Ok(Detached::AlreadyGone);
        }
        let detached = match (self.method, how) {
            (Method::Fusermount, how) => detach::by_helper(&self.identity, how == Detach::Lazy),
            (_, Detach::Polite) => detach::politely(&self.identity),
            (_, Detach::Lazy) => detach::lazily(&self.identity),
        }?;
        if matches!(detached, Detached::Done | Detached::AlreadyGone) {
            self.gone.store(true, Ordering::Release);
        }
        Ok(detached)
    }

    /// Aborts our connection: whoever waits for the daemon gets ENOTCONN, and serving ends. Works
    /// after a lazy unmount too, and does nothing once the connection has ended.
    ///
    /// Through fusectl; without it (in a user namespace, say) by the beginning of a forced
    /// unmount, which needs privileges and the mount in the table. An error says that neither can
    /// be done: then the connection ends when its device is closed.
    pub fn abort_connection(&self) -> io::Result<()> {
        if let Some(file) = &self.abort {
            return file.abort();
        }
        // Looked for again: fusectl may have been mounted since. The file is opened before the
        // look at the table, so that the mount seen there is the one whose number it bears.
        let file = AbortFile::open(self.identity.device());
        if !self.is_present() {
            let what =
                "the mount has left the table and fusectl was not available when it was made";
            return Err(io::Error::other(what));
        }
        match file {
            Ok(file) => file.abort(),
            Err(error) => self.force_abort().map_err(|forced| {
                let text = format!(
                    "no abort through fusectl ({error}) nor by force ({forced}); is fusectl \
                     mounted at /sys/fs/fuse/connections?"
                );
                io::Error::new(forced.kind(), text)
            }),
        }
    }

    fn force_abort(&self) -> io::Result<()> {
        let _alone = crate::sync::lock(&self.detaching);
        let place = self.identity.place()?.ok_or(Errno::NOENT)?;
        if !table::is_within_reach(&place)? {
            return Err(io::Error::other("a mount on the way to it does not answer"));
        }
        let root = table::open_quietly(&place)?;
        if !self.identity.is_mount_of(&root)? || !self.identity.upper()?.is_empty() {
            return Err(io::Error::other("something is mounted on it"));
        }
        kernel::force_abort(root.as_fd())?;
        Ok(())
    }

    /// Removes MNT if `--mkdir` made it; for after the detach (before, the kernel refuses it). A
    /// directory that somebody filled, or put in its place, is left alone.
    pub fn remove_made_target(&self) {
        if let Some(made) = &self.made {
            made.remove();
        }
    }

    /// Leaves it to another process, which has it as well: nothing more is done to it from here.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Where the mount is now: it moves when a directory on the way to it is renamed. `None` when
    /// it has gone.
    pub fn mount_point(&self) -> Option<PathBuf> {
        if self.is_present() {
            self.identity.place().ok().flatten()
        } else {
            None
        }
    }

    /// MNT, where it was mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Device number of the mount's file system.
    pub fn device_number(&self) -> DeviceNumber {
        self.identity.device()
    }

    /// Its id in mountinfo and fdinfo, which the kernel uses again once it is free.
    pub fn mount_id(&self) -> u64 {
        self.identity.mount_id()
    }

    /// The id that no other mount ever gets, where the kernel has such.
    pub fn unique_mount_id(&self) -> Option<u64> {
        self.identity.unique_id()
    }

    /// How it was mounted.
    pub fn method(&self) -> Method {
        self.method
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What goes with it to whoever takes it over: the abort file, and MNT if it was made.
    pub(super) fn belongings(&self) -> (Option<&AbortFile>, Option<&MadeDirectory>) {
        (self.abort.as_ref(), self.made.as_ref())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.detach(Detach::Lazy) {
            log::error!("{}: {error}", shown(&self.target));
        }
    }
}
