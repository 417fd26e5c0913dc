//! System calls that neither std nor rustix has, and memory as the system sees it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::Mode;
use rustix::pipe::{IoSliceRaw, SpliceFlags, vmsplice};
use rustix::thread::UnshareFlags;

/// truncate(2), by path: no descriptor is involved.
pub(crate) fn truncate(path: &Path, size: u64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    let size = i64::try_from(size).expect("a size");
    // SAFETY: reads the path, a C string that lives longer than the call.
    done(unsafe { libc::truncate(path.as_ptr(), size) })
}

/// lseek(2) with any offset: the crates have none for negative ones.
pub(crate) fn lseek(file: &File, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: no memory is involved.
    match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
        -1 => Err(io::Error::last_os_error()),
        found => Ok(found),
    }
}

/// readahead(2).
pub(crate) fn readahead(file: &File, offset: i64, count: usize) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    match unsafe { libc::readahead(file.as_raw_fd(), offset, count) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// sync_file_range(2).
pub(crate) fn sync_file_range(file: &File, offset: i64, count: i64, flags: u32) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    done(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, count, flags) })
}

/// vmsplice(2) of all of `bytes`, which must not change before they are read from the pipe.
pub(crate) fn give(pipe: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    let slices = [IoSliceRaw::from_slice(bytes)];
    // SAFETY: the pages are only lent (no `GIFT`), and readable for as long as `bytes` is borrowed.
    unsafe { vmsplice(pipe, &slices, SpliceFlags::empty()) }
}

/// Runs `act` with that umask, on this thread alone: threads share it until they part.
pub(crate) fn with_umask<T>(mask: u32, act: impl FnOnce() -> T) -> T {
    // SAFETY: CLONE_FS concerns the working directory, the root and the umask; no descriptor changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.expect("unshare");
    rustix::process::umask(Mode::from_raw_mode(mask));
    act()
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The part of `buffer` that begins at a multiple of 4,096, `length` bytes: what O_DIRECT takes.
pub(crate) fn aligned(buffer: &mut [u8], length: usize) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(4_096);
    &mut buffer[start..start + length]
}

/// A mapping of a part of a file.
pub(crate) struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// The first `length` bytes, readable and writable.
    pub(crate) fn new(file: &File, length: usize, shared: bool) -> io::Result<Self> {
        Self::at(file, 0, length, shared)
    }

    /// `length` bytes from `offset` on, which is a multiple of the page size.
    pub(crate) fn at(file: &File, offset: u64, length: usize, shared: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Self::with(file, offset, length, shared, protection)
    }

    /// The first `length` bytes, private, readable and executable. Not to be written.
    pub(crate) fn executable(file: &File, length: usize) -> io::Result<Self> {
        Self::with(file, 0, length, false, libc::PROT_READ | libc::PROT_EXEC)
    }

    fn with(
        file: &File,
        offset: u64,
        length: usize,
        shared: bool,
        protection: libc::c_int,
    ) -> io::Result<Self> {
        let offset = i64::try_from(offset).expect("an offset");
        let kind = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        // SAFETY: a new mapping at a place that the kernel chooses; nothing existing is touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                kind,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, length })
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `length` readable and writable bytes until drop, borrowed with
        // `self`; the tests change the file only between their accesses to it.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.length) }
    }

    /// msync(2) with MS_SYNC.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapping made in `new`.
        done(unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no slice of it is alive.
        unsafe { libc::munmap(self.address, self.length) };
    }
}
