//! An inode: what it is (its identity) and how it is reached at the moment (a descriptor).
//!
//! The two are apart on purpose. The identity is what outlives a descriptor: it is all that a
//! table in shared memory or a cache of descriptors needs to find the inode again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::fs::{self, FileType, Statx};

/// A node number: what the kernel and programs (`st_ino`) know an inode by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeNo(pub u64);

impl NodeNo {
    /// The root of the mount (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// What makes an inode that inode, wherever it is opened from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The mount below SRC through which it is reached (0 before Linux 5.8). One directory reached
    /// through two mounts is two directories to the kernel, which allows a directory one parent.
    pub mount: u64,
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl Identity {
    /// The identity in a statx answer that has `STATX_INO` and, if the kernel knows it, `STATX_MNT_ID`.
    #[must_use]
    pub fn of(stat: &Statx) -> Self {
        Self {
            mount: fs::mount_id(stat),
            device: fs::device_number(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
        }
    }
}

/// An inode that the kernel remembers or that is open.
#[derive(Debug)]
pub struct Inode {
    number: NodeNo,
    identity: Identity,
    kind: FileType,
    object: OwnedFd,
}

impl Inode {
    /// An inode under its number, with an object descriptor and what statx said of it.
    #[must_use]
    pub fn new(number: NodeNo, stat: &Statx, object: OwnedFd) -> Self {
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        Self {
            number,
            identity: Identity::of(stat),
            kind,
            object,
        }
    }

    /// Its node number.
    #[must_use]
    pub fn number(&self) -> NodeNo {
        self.number
    }

    /// Its identity in SRC.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its type, which never changes.
    #[must_use]
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// A descriptor opened with `O_PATH` that leads to it whatever its name is by now.
    #[must_use]
    pub fn object(&self) -> BorrowedFd<'_> {
        self.object.as_fd()
    }
}
