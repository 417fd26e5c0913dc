//! What is shown where something is mounted below SRC: that, or the directory that it covers.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Errno, Error, Result};
use crate::sys::mount;

/// Whether mounts below SRC are crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// They are, as `cp -a` does it.
    Crossed,
    /// There are none: the tree is reached through a mount of its own, without those on it.
    Covered,
    /// A mount point can't be entered: there is no way to what it covers.
    Refused,
}

impl Crossing {
    /// The root to serve from, and what it means for mounts below it. With `one_file_system` that is
    /// a copy of SRC's mount (open_tree(2)), which nobody sees, nothing is mounted on, and no later
    /// mount comes to: as with a bind mount, each directory is what the file system has there. It
    /// takes CAP_SYS_ADMIN and Linux 5.12.
    #[must_use]
    pub fn open(source: OwnedFd, one_file_system: bool) -> (OwnedFd, Self) {
        if !one_file_system {
            return (source, Self::Crossed);
        }
        match mount::private_copy(source.as_fd()) {
            Ok(copy) => (copy, Self::Covered),
            Err(_) => (source, Self::Refused),
        }
    }

    /// Checks that what is mounted on a name may be entered.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Crossed => Ok(()),
            Self::Covered | Self::Refused => Err(Error::new(Errno::XDEV, "--one-file-system")),
        }
    }

    /// In words for the log.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Crossed => "mounts below the source are crossed",
            Self::Covered => "mounts below the source are left out",
            Self::Refused => {
                "mounts below the source can't be entered (to show what they cover takes CAP_SYS_ADMIN and Linux 5.12)"
            }
        }
    }
}
