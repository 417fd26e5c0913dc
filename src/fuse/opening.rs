//! Opening a file: what its handle is told the kernel with, and which way it is read and written.

use std::io;
use std::os::fd::BorrowedFd;

use fuser::FopenFlags;

use super::backing::{Backing, Backings, Way};
use super::cache::KernelCache;
use crate::error::Result;
use crate::loopback::attr::Keep;
use crate::loopback::create::{Created, NewName};
use crate::loopback::dir::OpenedDir;
use crate::loopback::file::Opened;
use crate::loopback::inode::NodeNo;
use crate::loopback::lookup::Entry;
use crate::loopback::{Caller, Loopback};
use crate::sync::Arc;
use crate::sys::fs::open_flags;

/// A file or directory that was opened.
#[derive(Debug)]
pub(super) struct Opening {
    /// The number of its handle.
    pub(super) handle: u64,
    /// What else the kernel is told of it.
    pub(super) flags: FopenFlags,
    /// What the kernel reads and writes by itself, if it does.
    pub(super) backing: Option<Arc<Backing>>,
}

/// The handle of a file that was opened without a word: no open file has that number.
pub(super) const NO_HANDLE: u64 = 0;

impl Opening {
    /// A file that is to be used as those that were opened without a word.
    pub(super) fn without_handle() -> Self {
        Self {
            handle: NO_HANDLE,
            flags: FopenFlags::FOPEN_KEEP_CACHE,
            backing: None,
        }
    }

    /// A directory.
    pub(super) fn of_directory(opened: OpenedDir) -> Self {
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.told);
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.kept);
        Self {
            handle: opened.handle,
            flags,
            backing: None,
        }
    }
}

/// What it takes to open files.
#[derive(Debug, Clone)]
pub(super) struct Opener {
    pub(super) cache: Arc<KernelCache>,
    pub(super) backings: Arc<Backings>,
    /// Whoever closes a file is to be heard: locks of theirs in SRC end with it.
    pub(super) hears_closes: bool,
    /// The kernel is to open and close files without a word, where that can be had. What it asks of them then has no handle.
    pub(super) is_not_asked: bool,
}

impl Opener {
    /// Opens a file, and sees to it that whoever does finds it as long as it is now. `register` gets the
    /// number of a backing file for it.
    pub(super) fn open(
        &self,
        tree: &Loopback,
        caller: Caller,
        (node, flags): (NodeNo, i32),
        register: impl Fn(BorrowedFd<'_>) -> io::Result<u32>,
    ) -> Result<Opening> {
        let opened = tree.open_file(node, flags, self.backings.lack().is_none())?;
        let (opening, mappable) = self.opening(tree, caller, (node, flags), opened, register);
        if opened.changed || mappable {
            self.cache.drop_attributes(node);
        }
        Ok(opening)
    }

    /// Creates and opens a file.
    pub(super) fn create(
        &self,
        tree: &Loopback,
        caller: Caller,
        (new, flags): (NewName<'_>, i32),
        register: impl Fn(BorrowedFd<'_>) -> io::Result<u32>,
    ) -> Result<(Entry, Opening)> {
        let Created { mut entry, opened } =
            tree.create(caller, new, flags, open_flags::exclusive(flags))?;
        let node = entry.lookup.inode().number();
        let (opening, mappable) = self.opening(tree, caller, (node, flags), opened, register);
        // Nothing can be mapped of an empty file, and what makes it larger asks for its attributes anew.
        if mappable && entry.attr.size != 0 {
            entry.attr.keep = Keep::No;
        }
        Ok((entry, opening))
    }

    /// How the kernel is to use a file that was opened; and whether it may be mapped from now on, without a
    /// word to anybody, in order to write to it.
    fn opening(
        &self,
        tree: &Loopback,
        caller: Caller,
        (node, flags): (NodeNo, i32),
        opened: Opened,
        register: impl Fn(BorrowedFd<'_>) -> io::Result<u32>,
    ) -> (Opening, bool) {
        let handle = opened.handle;
        let register = || {
            let id = tree
                .as_backing(caller, (handle, flags), self.hears_closes, register)
                .map_err(|error| io::Error::from_raw_os_error(error.code()))??;
            tree.note_backing(id);
            Ok(id)
        };
        let writes = open_flags::writes(flags);
        let way = self
            .backings
            .opened(node, (opened.passes, writes), register);
        tree.note_way(handle, way.recorded());
        let (backing, mut told) = match way {
            Way::Passthrough(backing) => (Some(backing), FopenFlags::empty()),
            Way::Direct => (None, FopenFlags::FOPEN_DIRECT_IO),
            Way::Cached if opened.kept => (None, FopenFlags::FOPEN_KEEP_CACHE),
            Way::Cached => (None, FopenFlags::empty()),
        };
        let passed = backing.is_some();
        // Without pages in the kernel's cache close(2) has nothing to write back.
        if passed && opened.closes_silently && !self.hears_closes {
            told |= FopenFlags::FOPEN_NOFLUSH;
        }
        // The kernel's own way keeps the flags of open(2), whatever fcntl(2) makes of them (`fuse_passthrough_open`):
        // requests come with the flags of the moment. Mappings are passed through all the same.
        if passed && open_flags::may_be_taken_away(flags) {
            told |= FopenFlags::FOPEN_DIRECT_IO;
        }
        let mappable = passed && open_flags::reads_and_writes(flags);
        let opening = Opening {
            handle,
            flags: told,
            backing,
        };
        (opening, mappable && tree.becomes_mappable(handle))
    }
}
