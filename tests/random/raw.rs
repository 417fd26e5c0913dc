//! System calls that neither std nor rustix has, and shared mappings.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::UnshareFlags;

/// truncate(2), by path: no descriptor is involved.
pub(crate) fn truncate(path: &Path, size: u64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    let size = i64::try_from(size).expect("a size");
    // SAFETY: reads the path, a C string that lives longer than the call.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this thread a umask of its own; threads share it until they part.
pub(crate) fn part_from_other_threads() {
    // SAFETY: CLONE_FS concerns the working directory, the root and the umask; no descriptor changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.expect("unshare");
}

/// The clock that file systems take times from, which stands still for some milliseconds at a time.
fn coarse_clock() -> (i64, i64) {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to `time`, which lives longer than the call.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut time) };
    (time.tv_sec, time.tv_nsec)
}

/// Returns when what happens next has another time than what has happened so far.
pub(crate) fn next_tick() {
    let now = coarse_clock();
    while coarse_clock() == now {
        std::thread::yield_now();
    }
}

/// A shared mapping of a whole file from its start. The program itself never touches the memory: the
/// kernel copies from and to it, and answers EFAULT where a program would get SIGBUS because somebody
/// has truncated the file.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: usize,
    length: usize,
}

impl Mapping {
    /// `length` bytes; only for reading unless `write`.
    pub(crate) fn new(file: &File, length: usize, write: bool) -> io::Result<Self> {
        let protection = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at a place that the kernel chooses; nothing existing is touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = address as usize;
        Ok(Self { address, length })
    }

    /// How long it is.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Where `offset` is, and how much of `length` lies within the mapping.
    fn part(&self, offset: usize, length: usize) -> (*mut libc::c_void, usize) {
        let offset = offset.min(self.length);
        let address = (self.address + offset) as *mut libc::c_void;
        (address, length.min(self.length - offset))
    }

    /// Stores `bytes` at `offset`; how many were stored.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<usize> {
        let from = memory()?;
        from.write_all_at(bytes, 0)?;
        let (address, length) = self.part(offset, bytes.len());
        // SAFETY: within the mapping, to which nothing in this program has a reference.
        counted(unsafe { libc::pread(from.as_raw_fd(), address, length, 0) })
    }

    /// Up to `length` bytes from `offset` on.
    pub(crate) fn read(&self, offset: usize, length: usize) -> io::Result<Vec<u8>> {
        let to = memory()?;
        let (address, length) = self.part(offset, length);
        // SAFETY: within the mapping, which lives longer than the call.
        let count = counted(unsafe { libc::pwrite(to.as_raw_fd(), address, length, 0) })?;
        let mut bytes = vec![0; count];
        to.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// msync(2) with MS_SYNC.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapping made in `new`.
        match unsafe { libc::msync(self.address as *mut _, self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; nothing refers to it any more.
        unsafe { libc::munmap(self.address as *mut _, self.length) };
    }
}

fn memory() -> io::Result<File> {
    let memory: OwnedFd = memfd_create("random", MemfdFlags::CLOEXEC)?;
    Ok(memory.into())
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
