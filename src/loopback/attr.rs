//! Attributes: getattr, setattr, access, statfs.

use std::os::fd::BorrowedFd;

use super::inode::{Inode, NodeNo};
use super::{Caller, Loopback};
use crate::error::{Errno, Error, Result, Tried};
use crate::policy;
use crate::sync::Arc;
use crate::sys::fs::{self, FileType, StatVfs, Statx, StatxTimestamp, Timespec, Timestamps};

/// The attributes of an inode, as stat(2) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`, and with fuser the node number in a reply that enters an inode.
    pub ino: NodeNo,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last modification of the contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Type.
    pub kind: FileType,
    /// Permission bits with set-user-id, set-group-id and sticky: `mode & 07777`.
    pub perm: u16,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device node.
    pub rdev: (u32, u32),
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// How long the kernel may remember this.
    pub keep: Keep,
}

/// How long the kernel may remember something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// Not at all: a program with set-id bits, which another user's write takes away in SRC; a file that may be
    /// written to through a mapping in SRC; what has changed already.
    No,
    /// As long as the user says.
    Briefly,
    /// Until it is told of a change.
    UntilTold,
}

/// A point in time: seconds since 1970, negative before, and nanoseconds on top (0 to 999,999,999).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds, always forward in time.
    pub nanos: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(time: StatxTimestamp) -> Self {
        Self {
            secs: time.tv_sec,
            nanos: time.tv_nsec,
        }
    }
}

impl Attr {
    /// `st_mode`.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.kind.as_raw_mode() | u32::from(self.perm)
    }

    /// The attributes in a statx answer for the inode that has the number `ino`.
    #[must_use]
    pub fn new(ino: NodeNo, stat: &Statx) -> Self {
        let mode = stat.stx_mode;
        Self {
            ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.into(),
            mtime: stat.stx_mtime.into(),
            ctime: stat.stx_ctime.into(),
            kind: FileType::from_raw_mode(mode.into()),
            perm: mode & 0o7777,
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            keep: if policy::has_set_id(u32::from(mode)) {
                Keep::No
            } else {
                Keep::Briefly
            },
        }
    }
}

/// A time that utimensat(2) may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_NOW`.
    Now,
    /// A given time.
    At(Time),
}

/// What setattr is to change; `None` leaves it (`UTIME_OMIT` for times).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

impl Changes {
    /// Whether the owner or group is to change, for which there is a right of its own.
    pub(super) fn give_away(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }

    /// Whether only the owner may do this to a file of `mode`: not what comes with another user's write
    /// or truncation, which clears set-id bits, nor the times that go with one. Nor to give it away, which is
    /// for who has the right.
    pub(super) fn take_the_owner(&self, mode: u32) -> bool {
        let given = |time| matches!(time, Some(SetTime::At(_)));
        self.mode
            .is_some_and(|wanted| !policy::only_clears_set_id(mode, wanted))
            || given(self.atime)
            || given(self.mtime)
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, fs::UTIME_OMIT),
        Some(SetTime::Now) => (0, fs::UTIME_NOW),
        Some(SetTime::At(time)) => (time.secs, time.nanos.into()),
    };
    Timespec { tv_sec, tv_nsec }
}

fn mode_of(object: BorrowedFd<'_>) -> Result<u32> {
    let stat = fs::stat(object).tried("statx")?;
    Ok(u32::from(stat.stx_mode))
}

impl Loopback {
    /// The attributes of a node; through the file `handle` where the kernel has it open.
    pub fn getattr(&self, node: NodeNo, handle: Option<u64>) -> Result<Attr> {
        if let Some(file) = handle.and_then(|handle| self.files.get(handle))
            && file.inode.number() == node
        {
            return self.attr_by(&file.inode, file.file());
        }
        let inode = self.inode(node)?;
        self.attr_of(&inode)
    }

    pub(super) fn attr_of(&self, inode: &Arc<Inode>) -> Result<Attr> {
        self.attr_by(inode, self.object(inode)?.fd())
    }

    fn attr_by(&self, inode: &Inode, object: BorrowedFd<'_>) -> Result<Attr> {
        let moment = self.moment();
        let stat = fs::stat(object).tried("statx")?;
        // The root's node number is FUSE's, its st_ino is still SRC's own.
        let root = inode.number() == NodeNo::ROOT;
        let ino = if root {
            NodeNo(self.root_ino())
        } else {
            inode.number()
        };
        let attr = self.shown(inode.identity(), object, Attr::new(ino, &stat));
        Ok(self.seen(moment, inode, attr, &stat))
    }

    /// Changes attributes; the new ones. `handle` is the open file of an ftruncate(2).
    ///
    /// The kernel has checked the caller's rights, and sends the mode without set-id bits along
    /// with a change of owner or size that costs them; all but a set-group-id bit without group
    /// execution, which SRC clears because the caller is not in the group. Owner before mode, because
    /// chown(2) clears those bits; times last, because everything else touches them.
    pub fn setattr(
        &self,
        caller: Caller,
        node: NodeNo,
        changes: &Changes,
        handle: Option<u64>,
    ) -> Result<Attr> {
        let inode = self.inode(node)?;
        let as_caller = self.changing_to(caller, self.object(&inode)?.fd(), changes)?;
        let mut mode = changes.mode;
        if changes.uid.is_some() || changes.gid.is_some() {
            let object = self.object(&inode)?;
            let before = mode.map(|_| mode_of(object.fd())).transpose()?;
            fs::set_owner(object.fd(), changes.uid, changes.gid).tried("chown")?;
            // What SRC has just cleared is not to come back with the mode.
            if let (Some(mode), Some(before)) = (&mut mode, before) {
                *mode = policy::without_cleared(*mode, before, mode_of(object.fd())?);
            }
        } else if *changes == Changes::default() {
            self.set_nothing(caller, &inode)?;
        }
        if let Some(mode) = mode {
            fs::set_mode(self.object(&inode)?.fd(), mode).tried("chmod")?;
        }
        if let Some(size) = changes.size {
            self.set_size(&inode, size, handle)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            fs::set_times(self.object(&inode)?.fd(), &times).tried("utimensat")?;
        }
        drop(as_caller);
        self.attr_of(&inode)
    }

    /// What is left of a chown(2) of neither owner nor group, or comes before a write to a file with set-id
    /// bits and capabilities: FUSE has no way to say which. From the owner it costs as much either way, and
    /// from root it is taken for a chown, which clears those bits. For anybody else nothing is done: if it
    /// was a chown it was not theirs to do, and if it was a write, SRC clears the bits when it comes.
    fn set_nothing(&self, caller: Caller, inode: &Arc<Inode>) -> Result<()> {
        let object = self.object(inode)?;
        if caller.uid != 0 && fs::stat(object.fd()).tried("statx")?.stx_uid != caller.uid {
            return Ok(());
        }
        fs::set_owner(object.fd(), None, None).tried("chown")
    }

    fn set_size(&self, inode: &Arc<Inode>, size: u64, handle: Option<u64>) -> Result<()> {
        if i64::try_from(size).is_err() {
            return Err(Error::BAD_RANGE);
        }
        if inode.kind() != FileType::RegularFile {
            return Err(Error::WRONG_TYPE);
        }
        match handle {
            Some(handle) => fs::set_size(self.file(handle)?.file(), size).tried("ftruncate"),
            None => Self::set_size_by_name(self.object(inode)?.fd(), size),
        }
    }

    /// truncate(2), or the truncation of an open(2) with `O_TRUNC`, which FUSE does not tell apart. The
    /// latter marks the times of an empty file too, which not every file system does by itself: where a
    /// file is truncated to nothing that is nothing already, it is the likelier one. Without privilege
    /// that mark can't be set on a file of somebody else, and is left out.
    fn set_size_by_name(object: BorrowedFd<'_>, size: u64) -> Result<()> {
        let was_empty = size == 0 && fs::stat(object).tried("statx")?.stx_size == 0;
        fs::truncate(object, size).tried("truncate")?;
        if !was_empty {
            return Ok(());
        }
        let now = Timestamps {
            last_access: timespec(None),
            last_modification: timespec(Some(SetTime::Now)),
        };
        match fs::set_times(object, &now) {
            Err(Errno::PERM) => Ok(()),
            result => result.tried("utimensat"),
        }
    }

    /// access(2), asked only where the kernel does not check permissions itself: with this
    /// process's own rights, which are then the only ones there are.
    pub fn access(&self, node: NodeNo, mask: i32) -> Result<()> {
        let inode = self.inode(node)?;
        fs::check_access(self.object(&inode)?.fd(), mask).tried("faccessat2")
    }

    /// The figures of the file system that the node is on.
    pub fn statfs(&self, node: NodeNo) -> Result<StatVfs> {
        let inode = self.inode(node)?;
        fs::stat_filesystem(self.object(&inode)?.fd()).tried("fstatvfs")
    }
}
