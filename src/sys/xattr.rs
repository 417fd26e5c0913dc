//! Extended attributes of an object by its descriptor: through `/proc/self/fd/N`, which works on
//! every type and, ending at the object itself, on symlinks too (their `trusted.` and `security.`
//! attributes). The calls that take a descriptor refuse one opened with `O_PATH`.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::fs::ProcPath;

/// The kernel's own limit for one value and for the list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LIMIT: usize = 64 * 1024;

/// The answer to a question for an attribute or for the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its size in bytes: the question was a probe with size 0.
    Size(u32),
    /// Its bytes.
    Data(Vec<u8>),
}

/// getxattr(2): `room` 0 asks for the size only; `ERANGE` when `room` is too small.
pub fn get(object: BorrowedFd<'_>, name: &CStr, room: usize) -> Result<Answer> {
    let path = ProcPath::of(object);
    answer(
        room,
        || rustix::fs::getxattr_query(path.as_c_str(), name),
        |data| rustix::fs::getxattr(path.as_c_str(), name, spare_capacity(data)),
    )
}

/// Whether the flags of setxattr(2) say that the attribute must not be there.
#[must_use]
pub fn creates(flags: i32) -> bool {
    XattrFlags::from_bits_retain(flags.cast_unsigned()).contains(XattrFlags::CREATE)
}

/// listxattr(2): names, each with a NUL behind it.
pub fn list(object: BorrowedFd<'_>, room: usize) -> Result<Answer> {
    let path = ProcPath::of(object);
    answer(
        room,
        || rustix::fs::listxattr_query(path.as_c_str()),
        |data| rustix::fs::listxattr(path.as_c_str(), spare_capacity(data)),
    )
}

fn answer(
    room: usize,
    size: impl FnOnce() -> Result<usize>,
    fill: impl FnOnce(&mut Vec<u8>) -> Result<usize>,
) -> Result<Answer> {
    if room == 0 {
        return size()
            .and_then(|size| u32::try_from(size).map_err(|_| Errno::RANGE))
            .map(Answer::Size);
    }
    let mut data = Vec::with_capacity(room.min(LIMIT));
    fill(&mut data)?;
    // The allocator may have given more room than the caller has.
    if data.len() > room {
        Err(Errno::RANGE)
    } else {
        Ok(Answer::Data(data))
    }
}

/// setxattr(2) with the caller's `XATTR_CREATE` or `XATTR_REPLACE`.
pub fn set(object: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    let flags = XattrFlags::from_bits_retain(flags);
    rustix::fs::setxattr(ProcPath::of(object).as_c_str(), name, value, flags)
}

/// removexattr(2).
pub fn remove(object: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::fs::removexattr(ProcPath::of(object).as_c_str(), name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn probe_fetch_and_too_little_room() {
        let file = tempfile::tempfile().unwrap();
        set(file.as_fd(), c"user.loopfs", b"value", 0).unwrap();
        assert_eq!(get(file.as_fd(), c"user.loopfs", 0), Ok(Answer::Size(5)));
        assert_eq!(
            get(file.as_fd(), c"user.loopfs", 5),
            Ok(Answer::Data(b"value".to_vec()))
        );
        assert_eq!(get(file.as_fd(), c"user.loopfs", 4), Err(Errno::RANGE));
        let Answer::Data(names) = list(file.as_fd(), 4096).unwrap() else {
            unreachable!()
        };
        assert!(
            names
                .split(|&byte| byte == 0)
                .any(|name| name == b"user.loopfs")
        );
        remove(file.as_fd(), c"user.loopfs").unwrap();
        assert_eq!(get(file.as_fd(), c"user.loopfs", 0), Err(Errno::NODATA));
    }

    #[test]
    fn a_symlink_has_attributes_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let root = super::super::fs::open_root(dir.path()).unwrap();
        let super::super::fs::Found::Here(link) =
            super::super::fs::open_object(root.as_fd(), c"link").unwrap()
        else {
            unreachable!()
        };
        set(link.as_fd(), c"trusted.loopfs", b"1", 0).unwrap();
        assert_eq!(
            get(link.as_fd(), c"trusted.loopfs", 9),
            Ok(Answer::Data(b"1".to_vec()))
        );
    }
}
