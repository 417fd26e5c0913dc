//! File handles: what identifies an inode to its file system for good, whether anybody has it open
//! or not (name_to_handle_at(2), open_by_handle_at(2)).
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::last_errno;

/// The largest handle that the kernel makes (`MAX_HANDLE_SZ`), in bytes.
const MAX_SIZE: u32 = 128;

/// `AT_HANDLE_FID` of <linux/fcntl.h>: the handle need not be one that can be opened.
const AT_HANDLE_FID: libc::c_int = 0x200;

/// `struct file_handle` with room for any handle.
#[repr(C)]
struct Raw {
    size: u32,
    kind: i32,
    bytes: [u8; MAX_SIZE as usize],
}

/// A file handle. Two of one file system are equal exactly if they are of the same inode: they
/// contain its generation, so an inode number that is used again makes another handle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handle {
    kind: i32,
    bytes: Bytes,
}

/// Bytes that are kept in place up to this length: ext4 makes 8, xfs and tmpfs 12, btrfs 20. With one more
/// the type would take another 8.
const SHORT: usize = 22;

/// The opaque part of a handle. There is one for each inode that the kernel remembers: an allocation
/// for each would cost more than the bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Bytes {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl Bytes {
    fn new(given: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..given.len()), u8::try_from(given.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(given);
                Self::Short { len, bytes }
            }
            _ => Self::Long(given.into()),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Self::Long(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Handle {
    /// The handle of an object. `EOPNOTSUPP` where the file system has none.
    pub fn of(object: BorrowedFd<'_>) -> Result<Self> {
        Self::asked(object, libc::AT_EMPTY_PATH)
    }

    /// What tells an object from any other of its file system, even where nothing can be opened by it
    /// (since Linux 6.5 every file system has that much).
    pub fn identifying(object: BorrowedFd<'_>) -> Result<Self> {
        Self::of(object).or_else(|_| Self::asked(object, libc::AT_EMPTY_PATH | AT_HANDLE_FID))
    }

    /// A handle made of its two parts.
    #[must_use]
    pub fn from_parts(kind: i32, bytes: &[u8]) -> Self {
        let bytes = Bytes::new(bytes);
        Self { kind, bytes }
    }

    /// The part that means something to the file system only.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its type, which says how they are to be read.
    #[must_use]
    pub fn kind(&self) -> i32 {
        self.kind
    }

    fn asked(object: BorrowedFd<'_>, flags: libc::c_int) -> Result<Self> {
        let mut raw = Raw {
            size: MAX_SIZE,
            kind: 0,
            bytes: [0; MAX_SIZE as usize],
        };
        let mut mount_id: libc::c_int = 0;
        // SAFETY: `raw` has the layout of `struct file_handle` and says how many bytes follow its
        // header; the kernel writes no more than those, and one int to `mount_id`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                object.as_raw_fd(),
                c"".as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                flags,
            )
        };
        if result == -1 {
            return Err(last_errno());
        }
        let size = usize::try_from(raw.size).map_err(|_| Errno::OVERFLOW)?;
        let bytes = raw.bytes.get(..size).ok_or(Errno::OVERFLOW)?;
        Ok(Self::from_parts(raw.kind, bytes))
    }

    /// An object descriptor of the inode; `mount` is any descriptor on its mount that was not
    /// opened with `O_PATH`. `ESTALE` when the inode is gone, `EPERM` without `CAP_DAC_READ_SEARCH`.
    pub fn open(&self, mount: BorrowedFd<'_>) -> Result<OwnedFd> {
        let mut raw = Raw {
            size: 0,
            kind: self.kind,
            bytes: [0; MAX_SIZE as usize],
        };
        raw.bytes
            .get_mut(..self.bytes.len())
            .ok_or(Errno::OVERFLOW)?
            .copy_from_slice(&self.bytes);
        raw.size = u32::try_from(self.bytes.len()).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: `raw` has the layout of `struct file_handle` and is only read.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw const raw,
                libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
            )
        };
        if fd == -1 {
            return Err(last_errno());
        }
        let fd = i32::try_from(fd).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// A number that stands for the handle: the same for the same inode whenever it is asked for, and
    /// with near certainty another one for another inode (FNV-1a, 64 bits).
    #[must_use]
    pub fn generation(&self) -> u64 {
        let kind = self.kind.to_ne_bytes();
        kind.iter()
            .chain(self.bytes.iter())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::fs::{self, Found};
    use std::os::fd::AsFd;

    #[test]
    fn short_and_long_bytes_come_back_as_they_were() {
        assert_eq!(size_of::<Handle>(), 32);
        let all: Vec<u8> = (1..=128).collect();
        for len in [0, 1, 8, SHORT - 1, SHORT, SHORT + 1, 128] {
            let given = &all[..len];
            let bytes = Bytes::new(given);
            assert_eq!(&*bytes, given);
            assert_eq!(matches!(bytes, Bytes::Short { .. }), len <= SHORT);
            assert_eq!(bytes, Bytes::new(given));
            if let Some(shorter) = given.get(1..) {
                assert_ne!(bytes, Bytes::new(shorter));
            }
        }
        assert_ne!(Bytes::new(&[0]), Bytes::new(&[0, 0]));
    }

    #[test]
    fn an_inode_is_found_again_by_its_handle_and_a_new_one_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::open_root(dir.path()).unwrap();
        let mount = fs::reopen_dir(root.as_fd()).unwrap();
        let object = |name| match fs::open_object(root.as_fd(), name).unwrap() {
            Found::Here(object) | Found::OtherMount(object) => object,
        };
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        for name in [c"file", c"link"] {
            let object = object(name);
            let handle = Handle::of(object.as_fd()).unwrap();
            let again = handle.open(mount.as_fd()).unwrap();
            let (first, second) = (fs::stat(object.as_fd()), fs::stat(again.as_fd()));
            assert_eq!(first.unwrap().stx_ino, second.unwrap().stx_ino);
            assert_eq!(Handle::of(again.as_fd()).unwrap(), handle);
        }
        let old = Handle::of(object(c"file").as_fd()).unwrap();
        std::fs::remove_file(dir.path().join("file")).unwrap();
        assert_eq!(old.open(mount.as_fd()).unwrap_err(), Errno::STALE);
        std::fs::write(dir.path().join("file"), "y").unwrap();
        let new = Handle::of(object(c"file").as_fd()).unwrap();
        assert_ne!((&new, new.generation()), (&old, old.generation()));
    }
}
