//! The ioctls of chattr(1) and lsattr(1); every other one is `ENOTTY`, as for a file that no
//! driver stands behind.

use std::os::fd::AsFd;

use super::{Caller, Loopback};
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::lock;
use crate::sys::fs;
use crate::sys::ioctl::{self, FlagIoctl};
use crate::sys::mountinfo::{self, Entry};

/// An ioctl that loopfs answers.
#[derive(Debug, Clone, Copy)]
pub struct Ioctl(FlagIoctl);

impl Ioctl {
    /// The ioctl with that number, or `ENOTTY`.
    pub fn new(command: u32) -> Result<Self> {
        FlagIoctl::of(command)
            .map(Self)
            .ok_or(Error::new(Errno::NOTTY, "ioctl"))
    }

    /// Whether it changes the file.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self.0, FlagIoctl::SetFlags | FlagIoctl::SetXattr)
    }
}

impl Loopback {
    /// Runs it on an open file or directory; what the caller gets back. A change as the caller: the kernel
    /// has checked what every file system checks, by what it knew, and SRC may ask for more (ext4 lets who
    /// may use its reserve set `FS_JOURNAL_DATA_FL`).
    pub fn ioctl(
        &self,
        caller: Caller,
        handle: u64,
        is_dir: bool,
        ioctl: Ioctl,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        let as_caller = |object| {
            if !ioctl.changes() {
                return Ok(None);
            }
            self.check_writable()?;
            self.changing_as_owner(caller, object)
        };
        if is_dir {
            let dir = self.dir(handle)?;
            let stream = lock(&dir.stream);
            let _as_caller = as_caller(stream.as_fd())?;
            ioctl::run(stream.as_fd(), ioctl.0, input).tried("ioctl")
        } else {
            let file = self.file(handle)?;
            let _as_caller = as_caller(file.file())?;
            ioctl::run(file.file(), ioctl.0, input).tried("ioctl")
        }
    }

    /// Refuses a change of a read-only mount. Of ioctls only does a kernel before 5.13 leave that to the
    /// file system. A remount may have switched it, so the mount table is asked, each time.
    fn check_writable(&self) -> Result<()> {
        let Some(own) = self.own_mount.get() else {
            return Ok(());
        };
        let table = mountinfo::read().map_err(|_| Error::READ_ONLY)?;
        let number = |entry: &Entry| fs::device_number(entry.device.major, entry.device.minor);
        let read_only = |entry: &Entry| number(entry) == own.device && entry.read_only;
        if table.iter().any(read_only) {
            Err(Error::READ_ONLY)
        } else {
            Ok(())
        }
    }
}
