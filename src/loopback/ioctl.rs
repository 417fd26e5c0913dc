//! The ioctls of chattr(1) and lsattr(1); every other one is `ENOTTY`, as for a file that no
//! driver stands behind.

use std::os::fd::AsFd;

use super::{Caller, Loopback};
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::lock;
use crate::sys::ioctl::{self, FlagIoctl};

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
    /// Runs it on an open file or directory, a change as the caller; what the caller gets back.
    pub fn ioctl(
        &self,
        caller: Caller,
        handle: u64,
        is_dir: bool,
        ioctl: Ioctl,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        let as_caller = |inode| {
            ioctl
                .changes()
                .then(|| self.changing_as_owner(caller, inode))
                .transpose()
        };
        if is_dir {
            let dir = self.dir(handle)?;
            let _as_caller = as_caller(&dir.inode)?;
            ioctl::run(lock(&dir.stream).as_fd(), ioctl.0, input).tried("ioctl")
        } else {
            let file = self.file(handle)?;
            let _as_caller = as_caller(&file.inode)?;
            ioctl::run(file.file(), ioctl.0, input).tried("ioctl")
        }
    }
}
