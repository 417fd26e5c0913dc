//! Open files: open, read, write, flush, release, fsync, fallocate, lseek, copy_file_range.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::handle::FileHandle;
use super::inode::{Inode, NodeNo};
use super::replay::Appended;
use super::{Caller, Loopback, itself};
use crate::error::{Errno, Error, Result, Tried};
use crate::policy;
use crate::survive::Flag;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sys::creds;
use crate::sys::fs::{self, FileType, WriteMode, open_flags};

/// The largest read or write that the daemon does in one request, in bytes: more than any kernel
/// asks for (256 pages by default), so that a wrong size can't make us allocate without end.
pub const MAX_TRANSFER: u32 = 16 << 20;

/// The most that one copy_file_range request copies, in bytes: some hundredths of a second without shared
/// extents, and a multiple of every block size.
const MOST_COPIED: u64 = 64 << 20;

/// Offset and length as a signed file offset takes them.
fn range(offset: u64, len: u64) -> Result<()> {
    let end = offset.checked_add(len).ok_or(Error::BAD_RANGE)?;
    i64::try_from(end).map(|_| ()).map_err(|_| Error::BAD_RANGE)
}

/// A file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // they have nothing to do with each other
pub struct Opened {
    /// The number of its handle.
    pub handle: u64,
    /// The file is not what the kernel was told of it last: its size and times are to be asked for anew,
    /// so that who opens it sees what was done in SRC before.
    pub changed: bool,
    /// The kernel may read and write it in SRC by itself. Not where its access time is to be left alone, and
    /// not a program with set-id bits: what becomes of those depends on who writes.
    pub passes: bool,
    /// SRC's file system has nothing to say at close(2).
    pub closes_silently: bool,
    /// The kernel may go on with what it has read of it: it hears when that changes.
    pub kept: bool,
}

/// A file that is open as long as this is held.
#[derive(Debug)]
pub struct ForNow<'a> {
    tree: &'a Loopback,
    handle: u64,
}

impl ForNow<'_> {
    /// The number of its handle.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.handle
    }
}

impl Drop for ForNow<'_> {
    fn drop(&mut self) {
        drop(self.tree.files.remove(self.handle));
    }
}

impl Loopback {
    /// Opens a regular file with the data-related part of open(2)'s flags.
    /// FIFOs, sockets and devices are opened by the kernel and never asked for here.
    ///
    /// Waits for whoever has a lease on the file; with `O_NONBLOCK` it is `EWOULDBLOCK` instead. `are_passed`: files are
    /// read and written by the kernel in SRC where they suit, which keeps nothing of those then.
    pub fn open_file(&self, node: NodeNo, flags: i32, are_passed: bool) -> Result<Opened> {
        let inode = self.inode(node)?;
        if inode.kind() != FileType::RegularFile {
            return Err(Error::WRONG_TYPE);
        }
        let object = self.object(&inode)?;
        let stat = fs::stat(object.fd()).tried("statx")?;
        Self::check_has_name(&inode, &stat)?;
        let changed = inode.differs(&stat);
        let file = self.opened(flags, |flags| fs::reopen(object.fd(), flags))?;
        drop(object);
        let file = self.descriptors.for_caller(file).tried("open")?;
        let passes = self.passes(stat.stx_mode.into());
        let kept = !(are_passed && passes) && self.read_for_all(&inode, file.as_fd(), &stat);
        let handle = self.hold_file(FileHandle::new(Arc::clone(&inode), file), flags);
        Ok(Opened {
            changed,
            kept,
            ..self.as_opened(handle, stat.stx_mode.into(), &inode)
        })
    }

    /// Opens a regular file for a single request, where the kernel does not say which files it has open.
    pub fn open_for_now(&self, node: NodeNo, flags: i32) -> Result<ForNow<'_>> {
        let inode = self.inode(node)?;
        if inode.kind() != FileType::RegularFile {
            return Err(Error::WRONG_TYPE);
        }
        let object = self.object(&inode)?;
        let file = self.opened(flags, |flags| fs::reopen(object.fd(), flags))?;
        drop(object);
        let handle = self.files.insert(FileHandle::new(inode, file));
        Ok(ForNow { tree: self, handle })
    }

    /// What there is to know of an open file of that mode.
    pub(super) fn as_opened(&self, handle: u64, mode: u32, inode: &Inode) -> Opened {
        Opened {
            handle,
            changed: false,
            kept: false,
            passes: self.passes(mode),
            closes_silently: fs::is_local(self.filesystem)
                && inode.identity().device == self.root.identity().device,
        }
    }

    /// Whether the kernel may read and write a file of that mode by itself.
    fn passes(&self, mode: u32) -> bool {
        !self.noatime && !policy::has_set_id(mode)
    }

    /// Does `register` with a file that the kernel is to read and write by itself from now on, with this
    /// thread's rights as they are meanwhile: `caller`'s, as in [`Self::changing`], and for whoever has it
    /// open, never those that keep set-id bits.
    ///
    /// The kernel opens it anew for each that opens it, but keeps what is registered until the last of them closes
    /// it. So that is not the handle itself if that `writes`, or locks in SRC come with it: those are to end
    /// when it is closed.
    pub fn as_backing<T>(
        &self,
        caller: Caller,
        (handle, flags): (u64, i32),
        locks: bool,
        register: impl Fn(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Result<io::Result<T>> {
        let file = self.file(handle)?;
        let _as_caller = if self.acts_for_another(caller) {
            self.changing(caller, file.file())?
        } else {
            None
        };
        let register = |backing: BorrowedFd<'_>| {
            creds::without_set_id(|| register(backing)).tried("giving up CAP_FSETID")
        };
        if !locks && !open_flags::writes(flags) {
            return register(file.file());
        }
        if self.backing_by_path.load(Ordering::Relaxed) {
            let object = self.object(&file.inode)?;
            let registered = register(object.fd())?;
            let refused = registered.as_ref().err().and_then(Errno::from_io_error);
            if refused != Some(Errno::BADF) {
                return Ok(registered);
            }
            self.backing_by_path.store(false, Ordering::Relaxed);
        }
        let own = fs::reopen(file.file(), open_flags::READ_ONLY);
        register(own.tried("open as a backing file")?.as_fd())
    }

    /// Notes that an open file may be mapped to write to it, without a word to anybody; whether that is new.
    pub fn becomes_mappable(&self, handle: u64) -> bool {
        self.file(handle).is_ok_and(|file| {
            let is_new = file.inode.becomes_mappable();
            if is_new {
                self.table.note(&file.inode, Flag::Mappable);
            }
            is_new
        })
    }

    /// Opens something with a caller's flags, for [`super::descriptors::Descriptors::for_caller`]; on a mount with `noatime` so that reading leaves its access
    /// time alone, where this process may ask for that: as root, or of a file of its own.
    pub(super) fn opened(
        &self,
        flags: i32,
        open: impl Fn(i32) -> std::result::Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd> {
        if self.noatime {
            match self
                .descriptors
                .with_room(|| open(open_flags::without_access_time(flags)))
            {
                Err(Errno::PERM) => {}
                result => return result.tried("open"),
            }
        }
        self.descriptors.with_room(|| open(flags)).tried("open")
    }

    /// Reads `size` bytes at `offset`; fewer at the end of the file.
    pub fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        range(offset, size.into())?;
        let size = usize::try_from(size.min(MAX_TRANSFER)).map_err(|_| Error::BAD_RANGE)?;
        fs::read_at(self.file(handle)?.file(), offset, size).tried("pread")
    }

    /// Writes `data` at `offset`, or at the end; the number of bytes written. `caller` is `None`
    /// where the kernel writes pages back, which nobody in particular asked for.
    pub fn write(
        &self,
        caller: Option<Caller>,
        handle: u64,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<u32> {
        range(offset, data.len() as u64)?;
        let file = self.file(handle)?;
        let _as_caller = match caller {
            Some(caller) => self.changing(caller, file.file())?,
            None => itself()?,
        };
        let Appended(before) = if mode.append {
            self.appended(file.file(), data)?
        } else {
            Appended(0)
        };
        let rest = data.get(before..).unwrap_or_default();
        let written = fs::write_at(file.file(), offset, rest, mode).tried("pwrite")?;
        u32::try_from(before + written).map_err(|_| Error::BAD_RANGE)
    }

    /// close(2) of one descriptor of the caller: what SRC has to say about what was written.
    pub fn flush(&self, handle: u64) -> Result<()> {
        fs::flush(self.file(handle)?.file()).tried("close")
    }

    /// The last descriptor was closed.
    pub fn release(&self, handle: u64) -> Result<()> {
        self.let_go(handle);
        self.files.remove(handle).map(drop).ok_or(Error::BAD_HANDLE)
    }

    /// fsync(2) or fdatasync(2).
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        fs::sync(self.file(handle)?.file(), data_only).tried("fsync")
    }

    /// fallocate(2) in every mode that SRC has.
    pub fn fallocate(
        &self,
        caller: Caller,
        handle: u64,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        range(offset, len)?;
        let file = self.file(handle)?;
        if self.was_shifted(file.file(), mode, len)? {
            return Ok(());
        }
        let _as_caller = self.changing(caller, file.file())?;
        fs::allocate(file.file(), mode, offset, len).tried("fallocate")
    }

    /// lseek(2) to data or to a hole.
    pub fn lseek(&self, handle: u64, offset: i64, whence: i32) -> Result<i64> {
        // What an offset means that is negative, or past the end, SRC says.
        let file = self.file(handle)?;
        fs::seek_data_or_hole(file.file(), offset, whence).tried("lseek")
    }

    /// copy_file_range(2) between two open files; the number of bytes copied, possibly fewer.
    pub fn copy_range(
        &self,
        caller: Caller,
        from: (u64, u64),
        to: (u64, u64),
        len: u64,
    ) -> Result<u32> {
        // As the system call itself does, a length that is too long is cut, not refused: to what an event
        // loop can do before others have waited long. The caller asks for the rest.
        let len = len.min(MOST_COPIED);
        range(from.1, len)?;
        range(to.1, len)?;
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        let count = usize::try_from(len).map_err(|_| Error::BAD_RANGE)?;
        let _as_caller = self.changing(caller, target.file())?;
        let copied = fs::copy_range((source.file(), from.1), (target.file(), to.1), count)
            .tried("copy_file_range")?;
        u32::try_from(copied).map_err(|_| Error::BAD_RANGE)
    }
}
