//! Which inodes have a descriptor open. A descriptor for each inode that the kernel remembers would
//! run out after some thousands; where SRC gives file handles, an inode is reopened by its handle
//! when it is needed, and only the ones used lately keep a descriptor.
//!
//! The clock algorithm (second chance): descriptors stand in a queue in the order of their opening;
//! one that comes to the front and was used meanwhile goes back to the end, another is closed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inode::{Identity, Inode, Object, Release};
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::{Arc, Mutex, Weak, lock};
use crate::sys::features;
use crate::sys::fs;
use crate::sys::handle::Handle;

/// At least so many descriptors are kept at hand, however low the limit on open files.
const FEWEST: usize = 16;
/// And at most so many: more would cost memory in the kernel and save little.
const MOST: usize = 1 << 16;

/// The descriptors at hand.
#[derive(Debug)]
pub struct Descriptors {
    /// What handles are opened through, if they can be used.
    mount: Option<Mount>,
    capacity: usize,
    clock: Mutex<VecDeque<Weak<Inode>>>,
}

#[derive(Debug)]
struct Mount {
    /// An open directory: handles can't be opened through an `O_PATH` descriptor.
    fd: OwnedFd,
    /// Mount and device that it is on.
    place: (u64, u64),
}

impl Descriptors {
    /// Descriptors for a tree with that root, in a process that may have `limit` files open, half of
    /// which stay for files that callers open.
    #[must_use]
    pub fn new(root: BorrowedFd<'_>, identity: Identity, limit: u64) -> Self {
        let capacity = usize::try_from(limit / 2)
            .unwrap_or(MOST)
            .clamp(FEWEST, MOST);
        let place = (identity.mount, identity.device);
        // Tried out, because it takes a file system that exports and CAP_DAC_READ_SEARCH, and a
        // mount id, without which another mount of the same device could not be told apart.
        let usable = || {
            if features::is_off("file-handles") || identity.mount == 0 {
                return None;
            }
            let fd = fs::reopen_dir(root).ok()?;
            let again = Handle::of(root).ok()?.open(fd.as_fd()).ok()?;
            let same = Identity::of(&fs::stat(again.as_fd()).ok()?) == identity;
            same.then_some(Mount { fd, place })
        };
        Self {
            mount: usable(),
            capacity,
            clock: Mutex::new(VecDeque::new()),
        }
    }

    /// How inodes are reached, in words for the log.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.mount {
            Some(_) => {
                format!(
                    "inodes are reached by file handle, {} of them kept open",
                    self.capacity
                )
            }
            None => "each inode that the kernel remembers keeps a file open: the source gives no \
                     file handles that this process could open"
                .to_owned(),
        }
    }

    /// Whether inodes are reached by file handle at all.
    #[must_use]
    pub fn by_handle(&self) -> bool {
        self.mount.is_some()
    }

    /// The handle by which an object can be reached later; `None` where it must be kept open. Which
    /// of the two it is never changes for an inode.
    pub fn handle_of(&self, object: BorrowedFd<'_>, identity: Identity) -> Result<Option<Handle>> {
        let place = (identity.mount, identity.device);
        if self.mount.as_ref().is_none_or(|mount| mount.place != place) {
            return Ok(None);
        }
        match Handle::of(object) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::OPNOTSUPP) => Ok(None), // a file system that has handles for some only
            Err(errno) => Err(Error::new(errno, "name_to_handle_at")),
        }
    }

    /// An inode's object descriptor: the one at hand, or a new one by its handle.
    pub fn object<'a>(&self, inode: &'a Arc<Inode>) -> Result<Object<'a>> {
        if let Some(object) = inode.object() {
            return Ok(object);
        }
        let (Some(handle), Some(mount)) = (inode.handle(), &self.mount) else {
            return Err(Error::STALE);
        };
        let object = handle.open(mount.fd.as_fd()).tried("open_by_handle_at")?;
        Ok(self.lend(inode, object))
    }

    /// Has a descriptor of `inode` at hand from now on, and closes others if there are too many.
    pub fn lend<'a>(&self, inode: &'a Arc<Inode>, object: OwnedFd) -> Object<'a> {
        let (object, had_none) = inode.lend(object);
        if had_none {
            self.opened(inode);
        }
        object
    }

    /// Counts an inode that has just got a descriptor.
    pub fn opened(&self, inode: &Arc<Inode>) {
        if inode.handle().is_none() {
            return;
        }
        let mut closing = Vec::new();
        let mut clock = lock(&self.clock);
        clock.push_back(Arc::downgrade(inode));
        // Twice round is enough: the first time takes away each one's second chance.
        for _ in 0..2 * clock.len() {
            if clock.len() <= self.capacity {
                break;
            }
            let Some(oldest) = clock.pop_front() else {
                break;
            };
            let Some(inode) = oldest.upgrade() else {
                continue;
            };
            match inode.release() {
                Release::InUse => clock.push_back(oldest),
                Release::Free(object) => closing.push(object),
                Release::Kept => {}
            }
        }
        drop(clock);
        // Closed here, after the lock.
        drop(closing);
    }
}
