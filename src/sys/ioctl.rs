//! The ioctls that read and write a file's flags: `FS_IOC_GETFLAGS` and its relatives, by number,
//! as chattr(1), lsattr(1) and xfs_io(8) send them. No other ioctl is handed on: a number means
//! something else to every driver.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// Size of `struct fsxattr` in bytes (linux/fs.h).
const FSXATTR: usize = 28;

/// A flag ioctl that loopfs hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagIoctl {
    /// `FS_IOC_GETFLAGS`, with the size that the caller's ABI gives a `long`.
    GetFlags,
    /// `FS_IOC_SETFLAGS`.
    SetFlags,
    /// `FS_IOC_FSGETXATTR`.
    GetXattr,
    /// `FS_IOC_FSSETXATTR`.
    SetXattr,
    /// `FS_IOC_GETVERSION`.
    GetVersion,
}

impl FlagIoctl {
    /// What `command` asks for, or `None` when it is nothing for a file system like this one. The
    /// `FS_IOC32_*` numbers differ from the 64-bit ones in the size field alone. Of the setting ones
    /// only this machine's own is taken: the kernel knows that one, and checks the caller and the
    /// mount before it asks.
    #[must_use]
    pub fn of(command: u32) -> Option<Self> {
        const SIZE_FIELD: u32 = 0x3fff_0000;
        const LONG: u32 = if cfg!(target_pointer_width = "64") {
            8
        } else {
            4
        };
        match (command & !SIZE_FIELD, (command & SIZE_FIELD) >> 16) {
            (0x8000_6601, 4 | 8) => Some(Self::GetFlags),
            (0x4000_6602, LONG) => Some(Self::SetFlags),
            (0x8000_7601, 4 | 8) => Some(Self::GetVersion),
            (0x8000_581f, 28) => Some(Self::GetXattr),
            (0x4000_5820, 28) => Some(Self::SetXattr),
            _ => None,
        }
    }
}

/// Runs the ioctl on an open file or directory: `input` is what the caller sent, the answer what
/// it gets back (empty for the setting ones). `EINVAL` for an input of the wrong size.
pub fn run(file: BorrowedFd<'_>, ioctl: FlagIoctl, input: &[u8]) -> Result<Vec<u8>> {
    let mut buffer = [0_u8; FSXATTR];
    let (command, used, answers) = match ioctl {
        // The kernel reads and writes an int for these, whatever the number says.
        FlagIoctl::GetFlags => (libc::FS_IOC_GETFLAGS, 4, true),
        FlagIoctl::GetVersion => (libc::FS_IOC_GETVERSION, 4, true),
        FlagIoctl::SetFlags => (libc::FS_IOC_SETFLAGS, 4, false),
        FlagIoctl::GetXattr => (0x801c_581f, FSXATTR, true),
        FlagIoctl::SetXattr => (0x401c_5820, FSXATTR, false),
    };
    if !answers {
        let sent = input.get(..used).ok_or(Errno::INVAL)?;
        buffer
            .get_mut(..used)
            .ok_or(Errno::INVAL)?
            .copy_from_slice(sent);
    }
    // SAFETY: each of these commands reads or writes at most FSXATTR bytes at its argument, which
    // points to as many bytes of `buffer`, alive for the whole call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, buffer.as_mut_ptr()) };
    if result == -1 {
        return Err(super::last_errno());
    }
    Ok(if answers {
        buffer.get(..used).unwrap_or_default().to_vec()
    } else {
        Vec::new()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn numbers_of_both_word_sizes_are_known_and_others_are_not() {
        assert_eq!(FlagIoctl::of(0x8008_6601), Some(FlagIoctl::GetFlags));
        assert_eq!(FlagIoctl::of(0x8004_6601), Some(FlagIoctl::GetFlags));
        assert_eq!(FlagIoctl::of(0x4008_6602), Some(FlagIoctl::SetFlags));
        assert_eq!(FlagIoctl::of(0x801c_581f), Some(FlagIoctl::GetXattr));
        assert_eq!(FlagIoctl::of(0x401c_5820), Some(FlagIoctl::SetXattr));
        assert_eq!(
            FlagIoctl::of(0x4004_6602),
            None,
            "a number that the kernel does not check"
        );
        assert_eq!(FlagIoctl::of(0x5401), None, "TCGETS");
        assert_eq!(FlagIoctl::of(0x8010_6601), None, "a size that is no long");
    }

    #[test]
    fn a_flag_that_is_set_can_be_read_back() {
        const NODUMP: u32 = 0x40; // FS_NODUMP_FL, linux/fs.h
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.as_file().as_fd();
        let before = run(file, FlagIoctl::GetFlags, &[]).unwrap();
        let flags = u32::from_ne_bytes(before[..].try_into().unwrap());
        run(file, FlagIoctl::SetFlags, &(flags | NODUMP).to_ne_bytes()).unwrap();
        let after = run(file, FlagIoctl::GetFlags, &[]).unwrap();
        assert_eq!(
            u32::from_ne_bytes(after[..].try_into().unwrap()),
            flags | NODUMP
        );
        assert_eq!(run(file, FlagIoctl::SetFlags, &[1]), Err(Errno::INVAL));
    }
}
