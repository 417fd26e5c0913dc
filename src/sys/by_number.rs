//! Inodes by their number alone: file handles put together from it, for file systems that allow it.
//!
//! A handle names an inode's generation too, so that a number that is used again does not lead to the
//! wrong file. Whoever has the number only must get along without it or ask for it: ext4 and btrfs take
//! generation 0 for "any" (`ext4_nfs_get_inode`, `btrfs_get_dentry` in the kernel), xfs tells the
//! generation of an inode (`XFS_IOC_BULKSTAT`). Others, such as tmpfs, have no way.
#![allow(unsafe_code)]

use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::fs;
use super::handle::Handle;

/// `EXT4_SUPER_MAGIC`, which ext2 and ext3 share, as does the code behind it.
const EXT4: u64 = 0xef53;
/// `XFS_SUPER_MAGIC`.
const XFS: u64 = 0x5846_5342;
/// `BTRFS_SUPER_MAGIC`.
const BTRFS: u64 = 0x9123_683e;

/// The root of every ext4 (`EXT4_ROOT_INO`) and of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const EXT4_ROOT: u64 = 2;
const BTRFS_ROOT: u64 = 256;

/// Types of handles: number and generation of 32 bits each; xfs's own with a number of 64 bits;
/// number and subvolume of 64 bits and a generation (`enum fid_type` in <linux/exportfs.h>).
const FILEID_INO32_GEN: i32 = 1;
const FILEID_XFS_INO64_GEN: i32 = 0x81;
const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;

/// How handles are put together for a file system; for btrfs, for one subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Ext4,
    Xfs,
    Btrfs { subvolume: u64 },
}

/// A way to the inodes of a file system by number.
#[derive(Debug, Clone, Copy)]
pub struct ByNumber {
    format: Format,
    whole: bool,
}

impl ByNumber {
    /// The way to the inodes of the file system that the directory `root`, opened for reading, is on;
    /// `None` if there is none. It is tried out.
    #[must_use]
    pub fn new(root: BorrowedFd<'_>) -> Option<Self> {
        let ino = fs::stat(root).ok()?.stx_ino;
        let (format, top) = match fs::filesystem_type(root).ok()? {
            EXT4 => (Format::Ext4, EXT4_ROOT),
            XFS => (Format::Xfs, bulkstat(root, Which::Root).ok()?.0),
            BTRFS => {
                let handle = Handle::of(root).ok()?;
                let subvolume = handle.bytes().get(8..16)?.try_into().ok()?;
                let subvolume = u64::from_ne_bytes(subvolume);
                (Format::Btrfs { subvolume }, BTRFS_ROOT)
            }
            _ => return None,
        };
        let way = Self {
            format,
            whole: ino == top,
        };
        let found = fs::stat(way.open(root, ino).ok()?.as_fd()).ok()?;
        (found.stx_ino == ino).then_some(way)
    }

    /// Whether `root` is the root of all that can be found: its file system's or its subvolume's.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// An object descriptor of the inode that has this number now, through a descriptor of its mount
    /// that was opened for reading. `ESTALE` if there is none.
    pub fn open(&self, mount: BorrowedFd<'_>, ino: u64) -> Result<OwnedFd> {
        self.handle(mount, ino)?.open(mount)
    }

    fn handle(&self, mount: BorrowedFd<'_>, ino: u64) -> Result<Handle> {
        // Each has the byte order of the machine.
        match self.format {
            Format::Ext4 => {
                let ino = u32::try_from(ino).map_err(|_| Errno::STALE)?;
                let bytes = [ino.to_ne_bytes(), [0; 4]].concat();
                Ok(Handle::from_parts(FILEID_INO32_GEN, &bytes))
            }
            Format::Btrfs { subvolume } => {
                let mut bytes = [ino.to_ne_bytes(), subvolume.to_ne_bytes()].concat();
                bytes.extend([0; 4]);
                Ok(Handle::from_parts(FILEID_BTRFS_WITHOUT_PARENT, &bytes))
            }
            Format::Xfs => {
                // It tells of the first inode from that number on.
                let (found, generation) = bulkstat(mount, Which::From(ino))?;
                if found != ino {
                    return Err(Errno::STALE);
                }
                let mut bytes = ino.to_ne_bytes().to_vec();
                bytes.extend(generation.to_ne_bytes());
                Ok(Handle::from_parts(FILEID_XFS_INO64_GEN, &bytes))
            }
        }
    }
}

/// Which inode [`bulkstat`] is to tell of.
#[derive(Debug, Clone, Copy)]
enum Which {
    /// The file system's root.
    Root,
    /// The first from this number on.
    From(u64),
}

/// `struct xfs_bulkstat_req` of xfs_fs.h with room for one answer, as words of 64 bits.
const REQUEST: usize = 8;
const ANSWER: usize = 24;
/// `_IOR('X', 127, struct xfs_bulkstat_req)`: the size in the number is that of the request alone.
const XFS_IOC_BULKSTAT: libc::Ioctl = 0x8040_587f;
/// `XFS_BULK_IREQ_SPECIAL`, and the special inode that is the root (`XFS_BULK_IREQ_SPECIAL_ROOT`).
const SPECIAL: u32 = 4;
const SPECIAL_ROOT: u64 = 1;

/// Number and generation of an inode of an xfs: `ESTALE` if there is none; it takes `CAP_SYS_ADMIN`.
fn bulkstat(mount: BorrowedFd<'_>, which: Which) -> Result<(u64, u32)> {
    let (ino, flags) = match which {
        Which::Root => (SPECIAL_ROOT, SPECIAL),
        Which::From(ino) => (ino, 0),
    };
    let mut words = [0_u64; REQUEST + ANSWER];
    // ino u64, flags u32, icount u32, ocount u32, agno u32, five words of zero; the answer follows.
    let pair = |low: u32, high: u32| {
        let bytes = [low.to_ne_bytes(), high.to_ne_bytes()].concat();
        bytes.try_into().map_or(0, u64::from_ne_bytes)
    };
    words[0] = ino;
    words[1] = pair(flags, 1);
    // SAFETY: the kernel reads REQUEST words at the argument, and because the request has room for one
    // answer writes at most that and ANSWER words more: all of `words`, which is borrowed mutably.
    let result = unsafe { libc::ioctl(mount.as_raw_fd(), XFS_IOC_BULKSTAT, words.as_mut_ptr()) };
    if result == -1 {
        return match super::last_errno() {
            Errno::INVAL => Err(Errno::STALE), // a number that no inode can have
            errno => Err(errno),
        };
    }
    let half = |word: u64, index: usize| -> Option<u32> {
        let bytes = word.to_ne_bytes();
        Some(u32::from_ne_bytes(
            bytes.get(index..index + 4)?.try_into().ok()?,
        ))
    };
    let answers = half(words[2], 0);
    if answers != Some(1) {
        return Err(Errno::STALE);
    }
    // bs_ino is the answer's first word, bs_gen begins its ninth.
    let generation = half(words[REQUEST + 8], 0).ok_or(Errno::IO)?;
    Ok((words[REQUEST], generation))
}
