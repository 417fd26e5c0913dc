//! One more descriptor of a connection to the FUSE client in the kernel (`fuse_device_clone`).

#![allow(unsafe_code)]

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Result;

use super::fs::ProcPath;
use super::{features, last_errno};

/// `FUSE_DEV_IOC_CLONE`.
const CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// A device of its own for the connection that `device` is open on: what is read from one device and not answered ends when
/// that one is closed, whoever has the other one open. `EACCES` where this user may not open /dev/fuse.
pub fn another_device(device: BorrowedFd<'_>) -> Result<OwnedFd> {
    if features::is_off("another-device") {
        return Err(rustix::io::Errno::ACCESS);
    }
    let path = ProcPath::of(device);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let another = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
    let number = device.as_raw_fd().unsigned_abs();
    // SAFETY: the kernel reads one number of 32 bits, which this is.
    let result = unsafe { libc::ioctl(another.as_fd().as_raw_fd(), CLONE, &raw const number) };
    if result == -1 {
        return Err(last_errno());
    }
    Ok(another)
}
