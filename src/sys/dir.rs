//! Directory streams: getdents64(2) with the kernel's own cookies, which rustix's iterator does
//! not let one keep between two calls.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use rustix::io::{Errno, Result};

/// The directory that a directory is in, with where that is: mount, device and number, asked without
/// waking the file system. Of the root of everything, itself; `ENOENT` where a bind mount does not show
/// it.
pub fn parent(dir: BorrowedFd<'_>) -> Result<(OwnedFd, Statx)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(dir, c"..", flags, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let mask = StatxFlags::INO | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(&parent, c"", flags, mask)?;
    Ok((parent, stat))
}

/// Room for one getdents64 call: several hundred entries.
const BUFFER_SIZE: usize = 32 * 1024;

/// One entry as the file system below gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// `d_ino`.
    pub ino: u64,
    /// `d_off`: the cookie from which the listing goes on after this entry.
    pub next: u64,
    /// `d_type` (`DT_*`).
    pub kind: u8,
    /// The name, without a NUL.
    pub name: &'a [u8],
}

/// An open directory with a read-ahead of entries.
#[derive(Debug)]
pub struct DirStream {
    fd: OwnedFd,
    buffer: Vec<u8>,
    /// Where the next unread entry starts in `buffer`.
    at: usize,
    /// The cookie that belongs to `at`.
    position: u64,
}

impl DirStream {
    /// A stream over a directory that was opened for reading, at its start.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            buffer: Vec::new(),
            at: 0,
            position: 0,
        }
    }

    /// Goes to a cookie that an entry gave, or to 0 for the start. Going where the stream stands
    /// already costs nothing, except at the start: rewinding must see what has changed (POSIX
    /// rewinddir).
    pub fn seek(&mut self, cookie: u64) -> Result<()> {
        if cookie == self.position && cookie != 0 {
            return Ok(());
        }
        self.buffer.clear();
        self.at = 0;
        let offset = i64::try_from(cookie).map_err(|_| Errno::INVAL)?;
        rustix::fs::seek(
            &self.fd,
            rustix::fs::SeekFrom::Start(offset.cast_unsigned()),
        )?;
        self.position = cookie;
        Ok(())
    }

    /// The next entry, which stays the next one until [`Self::advance`] is called; `None` at the end.
    pub fn peek(&mut self) -> Result<Option<RawEntry<'_>>> {
        if self.at >= self.buffer.len() {
            self.fill()?;
            if self.buffer.is_empty() {
                return Ok(None);
            }
        }
        parse(self.buffer.get(self.at..).unwrap_or_default()).map(|(entry, _)| Some(entry))
    }

    /// Steps over the entry that [`Self::peek`] shows.
    pub fn advance(&mut self) {
        if let Ok((entry, len)) = parse(self.buffer.get(self.at..).unwrap_or_default()) {
            let next = entry.next;
            self.at += len;
            self.position = next;
        }
    }

    fn fill(&mut self) -> Result<()> {
        self.at = 0;
        self.buffer.resize(BUFFER_SIZE, 0);
        let count = getdents64(self.fd.as_fd(), &mut self.buffer);
        self.buffer.truncate(*count.as_ref().unwrap_or(&0));
        count.map(|_| ())
    }
}

impl AsFd for DirStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn getdents64(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`, which is borrowed
    // mutably for the whole call.
    let count = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(count).map_err(|_| super::last_errno())
}

/// The first `struct linux_dirent64` in `bytes` and its length, every bound checked.
fn parse(bytes: &[u8]) -> Result<(RawEntry<'_>, usize)> {
    const NAME: usize = 19; // d_ino 8, d_off 8, d_reclen 2, d_type 1
    let word = |at: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let entry = || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
        let name = bytes.get(NAME..len)?;
        let name = name.get(..name.iter().position(|&byte| byte == 0)?)?;
        Some((
            RawEntry {
                ino: word(0)?,
                next: word(8)?,
                kind: *bytes.get(18)?,
                name,
            },
            len,
        ))
    };
    entry().ok_or(Errno::IO)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn stream(dir: &std::path::Path) -> DirStream {
        let root = super::super::fs::open_root(dir).unwrap();
        DirStream::new(super::super::fs::reopen_dir(root.as_fd()).unwrap())
    }

    fn names(stream: &mut DirStream) -> Vec<(Vec<u8>, u64)> {
        let mut all = Vec::new();
        while let Some(entry) = stream.peek().unwrap() {
            all.push((entry.name.to_vec(), entry.next));
            stream.advance();
        }
        all
    }

    #[test]
    fn every_name_comes_once_and_a_cookie_leads_back() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..2000 {
            std::fs::write(dir.path().join(format!("file-{number}")), "").unwrap();
        }
        let mut stream = stream(dir.path());
        let all = names(&mut stream);
        assert_eq!(all.len(), 2002, "with . and ..");
        assert_eq!(
            all.iter()
                .map(|(name, _)| name)
                .collect::<BTreeSet<_>>()
                .len(),
            2002
        );
        stream.seek(all[1000].1).unwrap();
        assert_eq!(names(&mut stream)[..], all[1001..]);
        stream.seek(0).unwrap();
        assert_eq!(names(&mut stream), all);
    }

    #[test]
    fn going_back_to_the_start_sees_what_was_added() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = stream(dir.path());
        assert_eq!(names(&mut stream).len(), 2);
        std::fs::write(dir.path().join("new"), "").unwrap();
        stream.seek(0).unwrap();
        assert_eq!(names(&mut stream).len(), 3);
    }

    #[test]
    fn a_record_that_is_cut_short_is_an_error_and_no_panic() {
        let mut record = vec![0_u8; 24];
        record[16..18].copy_from_slice(&24_u16.to_ne_bytes());
        record[19] = b'a';
        assert!(parse(&record).is_ok());
        for len in 0..24 {
            assert!(parse(&record[..len]).is_err(), "{len} bytes");
        }
        record[16..18].copy_from_slice(&3_u16.to_ne_bytes());
        assert!(parse(&record).is_err(), "shorter than its own header");
    }
}
