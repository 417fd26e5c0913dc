//! The system calls on mounts that rustix does not wrap: statmount(2) and listmount(2) (Linux 6.8)
//! with the 64-bit mount id of statx(2) that they speak of, and mount_setattr(2) (5.12).
//!
//! The 64-bit id is never given to a second mount while the machine runs; the one in
//! `/proc/self/mountinfo` is reused at once.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::{Errno, Result};
use rustix::mount::OpenTreeFlags;

use super::features;
use super::mountinfo::DeviceNumber;

/// Numbers of statmount and listmount: alike wherever the kernel's common table of system calls
/// holds; elsewhere the calls count as missing.
const NUMBERS: Option<(libc::c_long, libc::c_long)> = if cfg!(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "x86",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64",
    target_arch = "powerpc64",
    target_arch = "s390x",
    target_arch = "loongarch64",
)) {
    Some((457, 458))
} else {
    None
};

/// What [`statmount`] tells of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountStatus {
    /// The unique id.
    pub id: u64,
    /// The unique id of the mount that it stands on.
    pub parent: u64,
    /// The one in `/proc/self/mountinfo`.
    pub recycled_id: u32,
    /// Device of the file system.
    pub device: DeviceNumber,
    /// Where it is mounted, as seen from this process's root; bytes, unescaped.
    pub mount_point: Vec<u8>,
}

/// The unique 64-bit id of the mount that `fd` was opened through, without a request to a file
/// system's server; `None` on kernels that don't tell it (before 6.8).
pub fn unique_mount_id(fd: impl AsFd) -> Result<Option<u64>> {
    let wanted = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(fd, c"", flags, wanted)?;
    Ok((stat.stx_mask & libc::STATX_MNT_ID_UNIQUE != 0).then_some(stat.stx_mnt_id))
}

/// `struct mnt_id_req` of `<linux/mount.h>` in its first version, which every kernel takes.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    id: u64,
    param: u64,
}

impl Request {
    const SIZE: u32 = 24;

    fn new(id: u64, param: u64) -> Self {
        Self {
            size: Self::SIZE,
            spare: 0,
            id,
            param,
        }
    }
}

// Offsets in `struct statmount`; the strings follow it, each named by its offset among them.
const MASK: usize = 8;
const DEVICE_MAJOR: usize = 16;
const DEVICE_MINOR: usize = 20;
const ID: usize = 40;
const PARENT_ID: usize = 48;
const RECYCLED_ID: usize = 56;
const MOUNT_POINT: usize = 108;
const STRINGS: usize = 512;

const STATMOUNT_SB_BASIC: u64 = 0x01;
const STATMOUNT_MNT_BASIC: u64 = 0x02;
const STATMOUNT_MNT_POINT: u64 = 0x10;
/// What [`MountStatus`] is made of.
const ASKED: u64 = STATMOUNT_SB_BASIC | STATMOUNT_MNT_BASIC | STATMOUNT_MNT_POINT;

/// The mount with unique id `id` in this mount namespace; `ENOENT` if there is none.
pub fn statmount(id: u64) -> Result<MountStatus> {
    let (number, _) = NUMBERS.ok_or(Errno::NOSYS)?;
    let request = Request::new(id, ASKED);
    let mut buffer = vec![0_u8; STRINGS + 512];
    loop {
        // SAFETY: `request` is a struct mnt_id_req whose size field is right and which the kernel
        // only reads; it writes at most `buffer.len()` bytes at `buffer`, which we own.
        let result = unsafe {
            libc::syscall(
                number,
                &raw const request,
                buffer.as_mut_ptr(),
                buffer.len(),
                0_u32,
            )
        };
        match checked(result) {
            Ok(_) => return parse_status(&buffer).ok_or(Errno::NODATA),
            // The strings did not fit. A mount point is no longer than a page in the kernel.
            Err(Errno::OVERFLOW) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads what the kernel put into the buffer; `None` if it did not tell all that was asked.
fn parse_status(buffer: &[u8]) -> Option<MountStatus> {
    if u64_at(buffer, MASK)? & ASKED != ASKED {
        return None;
    }
    let start = usize::try_from(u32_at(buffer, MOUNT_POINT)?).ok()?;
    let text = buffer.get(STRINGS + start..)?;
    let end = text.iter().position(|&byte| byte == 0)?;
    Some(MountStatus {
        id: u64_at(buffer, ID)?,
        parent: u64_at(buffer, PARENT_ID)?,
        recycled_id: u32_at(buffer, RECYCLED_ID)?,
        device: DeviceNumber {
            major: u32_at(buffer, DEVICE_MAJOR)?,
            minor: u32_at(buffer, DEVICE_MINOR)?,
        },
        mount_point: text[..end].to_vec(),
    })
}

fn u64_at(buffer: &[u8], offset: usize) -> Option<u64> {
    buffer
        .get(offset..offset + 8)?
        .try_into()
        .ok()
        .map(u64::from_ne_bytes)
}

fn u32_at(buffer: &[u8], offset: usize) -> Option<u32> {
    let bytes = buffer.get(offset..offset + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// For [`listmount`]: the mount that this process's root is on (`LSMT_ROOT`).
pub const ROOT: u64 = u64::MAX;

/// Unique ids of all mounts below the one called `id`: what is mounted on its root, on its
/// directories, and on those in turn.
pub fn listmount(id: u64) -> Result<Vec<u64>> {
    let (_, number) = NUMBERS.ok_or(Errno::NOSYS)?;
    let mut found = Vec::new();
    loop {
        // Goes on after the last id that the call before told.
        let request = Request::new(id, found.last().copied().unwrap_or(0));
        let mut ids = [0_u64; 32];
        // SAFETY: `request` as for statmount; the kernel writes at most `ids.len()` ids at `ids`.
        let result = unsafe {
            libc::syscall(
                number,
                &raw const request,
                ids.as_mut_ptr(),
                ids.len(),
                0_u32,
            )
        };
        let count = checked(result)?;
        found.extend_from_slice(ids.get(..count).unwrap_or_default());
        if count < ids.len() {
            return Ok(found);
        }
    }
}

/// `struct mount_attr` of `<linux/mount.h>` in its first version.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A copy of the mount that `dir` was opened through, from that directory down: without what is
/// mounted on it, in no mount table, and outside of mount propagation, so that no later mount comes
/// to it. An object descriptor of its root.
pub fn private_copy(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    if features::is_off("private-copy") {
        return Err(Errno::NOSYS);
    }
    let empty_path = AtFlags::EMPTY_PATH.bits();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::from_bits_retain(empty_path);
    let copy = rustix::mount::open_tree(dir, c"", flags)?;
    let private = MountAttributes {
        set: 0,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        user_namespace: 0,
    };
    // SAFETY: the path is a C string, and `private` a struct mount_attr of the length given, which
    // the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_raw_fd(),
            c"".as_ptr(),
            empty_path,
            &raw const private,
            size_of_val(&private),
        )
    };
    checked(result).map(|_| copy)
}

/// The result of a raw system call: a count, or the errno it left.
fn checked(result: libc::c_long) -> Result<usize> {
    usize::try_from(result).map_err(|_| super::last_errno())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    #[test]
    fn the_request_is_as_long_as_it_says() {
        assert_eq!(
            size_of::<Request>(),
            usize::try_from(Request::SIZE).unwrap()
        );
    }

    #[test]
    fn proc_is_found_by_its_unique_id() {
        let proc =
            rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let Some(id) = unique_mount_id(&proc).unwrap() else {
            return; // before 6.8 there is nothing to find
        };
        let status = statmount(id).unwrap();
        assert_eq!(
            (status.id, status.mount_point.as_slice()),
            (id, b"/proc".as_slice())
        );
        assert!(listmount(status.parent).unwrap().contains(&id));
        assert!(listmount(ROOT).unwrap().contains(&id));
        let table = super::super::mountinfo::read().unwrap();
        let line = table
            .iter()
            .find(|line| line.id == u64::from(status.recycled_id));
        assert_eq!(line.unwrap().device, status.device);
    }

    #[test]
    fn an_id_that_was_never_given_is_not_found() {
        match statmount(u64::MAX - 1) {
            Err(Errno::NOENT | Errno::NOSYS) => {}
            other => unreachable!("{other:?}"),
        }
    }
}
