//! What the kernel lets this process do with backing files (`fuse_backing_open`).

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::{Errno, Result};

/// `FUSE_DEV_IOC_BACKING_OPEN`.
const OPEN: libc::Ioctl = 0x4010_e501;

/// `FUSE_DEV_IOC_BACKING_CLOSE`.
const CLOSE: libc::Ioctl = 0x4004_e502;

/// `struct fuse_backing_map`.
#[repr(C)]
struct Map {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Whether backing files may be registered on a connection that has agreed to it, by trying it with what is no
/// file. `EPERM` without `CAP_SYS_ADMIN` in the first user namespace.
pub fn permitted(device: BorrowedFd<'_>) -> Result<()> {
    let nothing = Map {
        fd: -1,
        flags: 0,
        padding: 0,
    };
    // SAFETY: the kernel reads one `struct fuse_backing_map`, which this is.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), OPEN, &raw const nothing) };
    match std::io::Error::last_os_error() {
        _ if result >= 0 => Ok(()),
        error => match Errno::from_io_error(&error) {
            Some(Errno::BADF) => Ok(()),
            Some(errno) => Err(errno),
            None => Err(Errno::IO),
        },
    }
}

/// Gives up a backing file by its number: those who have it open keep it, nobody else can open it. `ENOENT` if there is
/// none of that number.
pub fn close(device: BorrowedFd<'_>, id: u32) -> Result<()> {
    // SAFETY: the kernel reads one number of 32 bits, which this is.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), CLOSE, &raw const id) };
    if result < 0 {
        return Err(super::last_errno());
    }
    Ok(())
}
