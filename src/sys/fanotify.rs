//! What others do to a file system, as the kernel tells of it: fanotify(7) with file handles.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::fs::ProcPath;
use super::handle::Handle;
use super::last_errno;

/// A file's contents or size have changed, or somebody who could write to it, by a mapping too, has closed it.
pub const CONTENTS: u64 = libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
/// An inode's attributes have changed, its number of links among them.
pub const ATTRIBUTES: u64 = libc::FAN_ATTRIB;
/// What a name in a directory leads to has changed.
pub const NAMES: u64 =
    libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
/// Events were lost.
pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// Room for what one read(2) brings: some hundred events.
const BUFFER_SIZE: usize = 64 << 10;

/// A queue of events.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// [`CONTENTS`], [`ATTRIBUTES`], [`NAMES`], [`OVERFLOW`], several of one kind where they were merged.
    pub mask: u64,
    /// Who did it; 0 for a process that this one can't see.
    pub process: u32,
    /// The directory and the name in it, where a name is concerned.
    pub place: Option<(Handle, &'a [u8])>,
    /// The inode that it happened to.
    pub object: Option<Handle>,
}

impl Group {
    /// An empty queue. `EPERM` where it is forbidden and, before Linux 5.13, without `CAP_SYS_ADMIN`; `EINVAL` before Linux
    /// 5.17; `EMFILE` if the user has too many (`fs.fanotify.max_user_groups`).
    pub fn new() -> Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_DFID_NAME_TARGET;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::fanotify_init(flags, 0) };
        if fd == -1 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            buffer: vec![0; BUFFER_SIZE],
        })
    }

    /// Has everything told that happens on the file system of `object`, a descriptor without `O_PATH`. `ENODEV`,
    /// `EXDEV` or `EOPNOTSUPP` where it can't be done, `EPERM` without `CAP_SYS_ADMIN` (fanotify_mark(2)).
    pub fn watch_filesystem(&self, object: BorrowedFd<'_>) -> Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let mask = CONTENTS | ATTRIBUTES | NAMES | libc::FAN_ONDIR;
        let (group, object) = (self.fd.as_raw_fd(), object.as_raw_fd());
        // SAFETY: without a path the kernel reads no memory of ours.
        let result = unsafe { libc::fanotify_mark(group, flags, mask, object, std::ptr::null()) };
        if result == -1 {
            return Err(last_errno());
        }
        Ok(())
    }

    /// The same queue, for [`watch_inode`] and [`ignore_writes`] at any time.
    pub fn queue(&self) -> Result<OwnedFd> {
        super::fs::duplicate(self.fd.as_fd())
    }

    /// The events that wait: none, if none do.
    pub fn read(&mut self) -> Result<impl Iterator<Item = Event<'_>>> {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut self.buffer));
        let count = match read {
            Err(Errno::AGAIN) => 0,
            read => read?,
        };
        let mut rest = self.buffer.get(..count).unwrap_or_default();
        Ok(std::iter::from_fn(move || {
            let (event, after) = parse(rest)?;
            rest = after;
            Some(event)
        }))
    }
}

/// Has told what happens to an inode, and to the names in it if it is a directory, for as long as a descriptor of it is
/// open. It may be opened with `O_PATH`, which is enough: what can't be read can't be watched (`EACCES`). `ENOSPC` if the user
/// watches too many (`fs.fanotify.max_user_marks`), `EINVAL` before Linux 5.19.
pub fn watch_inode(
    queue: BorrowedFd<'_>,
    object: BorrowedFd<'_>,
    is_directory: bool,
) -> Result<()> {
    let mask = ATTRIBUTES
        | if is_directory {
            NAMES | libc::FAN_ONDIR
        } else {
            CONTENTS
        };
    mark(queue, object, libc::FAN_MARK_ADD, mask)
}

/// Has writes to an inode not told, or told again. `object` may be opened with `O_PATH`.
pub fn ignore_writes(queue: BorrowedFd<'_>, object: BorrowedFd<'_>, ignore: bool) -> Result<()> {
    let what = if ignore {
        libc::FAN_MARK_ADD
    } else {
        libc::FAN_MARK_REMOVE
    };
    let flags = what | libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
    mark(queue, object, flags, libc::FAN_MODIFY)
}

/// Changes the mark of an inode, which does not keep it in memory: whoever has it open does.
fn mark(queue: BorrowedFd<'_>, object: BorrowedFd<'_>, flags: u32, mask: u64) -> Result<()> {
    let flags = flags | libc::FAN_MARK_EVICTABLE;
    let path = ProcPath::of(object);
    let (queue, path) = (queue.as_raw_fd(), path.as_c_str());
    // SAFETY: the path is a string that ends with a NUL and outlives the call.
    let result = unsafe { libc::fanotify_mark(queue, flags, mask, libc::AT_FDCWD, path.as_ptr()) };
    if result == -1 {
        return Err(last_errno());
    }
    Ok(())
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let half = u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
    Some(half.into())
}

/// The first `struct fanotify_event_metadata` in `bytes` with what belongs to it, and what comes after;
/// every bound checked. A record that can't be read ends the list.
fn parse(bytes: &[u8]) -> Option<(Event<'_>, &[u8])> {
    // event_len 4, vers 1, reserved 1, metadata_len 2, mask 8, fd 4, pid 4
    let len = usize::try_from(word(bytes, 0)?).ok()?;
    let header = half(bytes, 6)?;
    let mask = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let process = word(bytes, 20)?;
    if len < header || header < 24 {
        return None;
    }
    let mut records = bytes.get(header..len)?;
    let mut event = Event {
        mask,
        process,
        place: None,
        object: None,
    };
    while !records.is_empty() {
        // info_type 1, pad 1, len 2, fsid 8, handle_bytes 4, handle_type 4, handle, name
        let record = records.get(..half(records, 2)?.max(4))?;
        records = records.get(record.len()..)?;
        let handle = || {
            let size = usize::try_from(word(record, 12)?).ok()?;
            let kind = word(record, 16)?.cast_signed();
            let rest = record.get(20..)?;
            Some((
                Handle::from_parts(kind, rest.get(..size)?),
                rest.get(size..)?,
            ))
        };
        match *record.first()? {
            libc::FAN_EVENT_INFO_TYPE_FID => event.object = Some(handle()?.0),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
                let (dir, name) = handle()?;
                let end = name.iter().position(|&byte| byte == 0)?;
                match name.get(..end)? {
                    b"." => event.object = Some(dir), // the directory itself is concerned
                    name => event.place = Some((dir, name)),
                }
            }
            _ => {}
        }
    }
    Some((event, bytes.get(len..)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An event with the records given, each a type and what follows its header.
    fn event(mask: u64, records: &[(u8, &[u8])]) -> Vec<u8> {
        let mut tail = Vec::new();
        for (kind, body) in records {
            let len = u16::try_from(body.len() + 4).unwrap();
            tail.extend([*kind, 0]);
            tail.extend(len.to_ne_bytes());
            tail.extend(*body);
        }
        let mut bytes = u32::try_from(tail.len() + 24)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend([3, 0]);
        bytes.extend(24_u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(77_u32.to_ne_bytes());
        bytes.extend(tail);
        bytes
    }

    fn handle(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend(4_u32.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(b"abcd");
        bytes.extend(name);
        bytes
    }

    #[test]
    fn events_are_read_one_after_the_other() {
        let named = event(
            libc::FAN_CREATE,
            &[(2, &handle(b"name\0\0\0")), (1, &handle(b""))],
        );
        let plain = event(libc::FAN_MODIFY, &[(1, &handle(b"")), (9, b"whatever")]);
        let bytes = [named, plain, event(OVERFLOW, &[])].concat();
        let (first, rest) = parse(&bytes).unwrap();
        let object = Handle::from_parts(1, b"abcd");
        assert_eq!(first.place, Some((object.clone(), b"name".as_slice())));
        assert_eq!((first.mask, first.process), (libc::FAN_CREATE, 77));
        assert_eq!(first.object, Some(object.clone()));
        let (second, rest) = parse(rest).unwrap();
        assert_eq!((second.place, second.object), (None, Some(object)));
        let (third, rest) = parse(rest).unwrap();
        assert_eq!((third.mask, rest), (OVERFLOW, b"".as_slice()));
    }

    #[test]
    fn what_is_cut_short_is_left_out_and_no_panic() {
        let whole = event(libc::FAN_CREATE, &[(2, &handle(b"name\0"))]);
        assert!(parse(&whole).is_some());
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_none(), "{len} bytes");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 5, 255] {
                let mut bad = whole.clone();
                bad[at] = byte;
                let _ = parse(&bad);
            }
        }
    }

    #[test]
    fn what_happens_on_a_file_system_is_told_with_the_handles_of_name_to_handle_at() {
        use crate::sys::fs;
        let dir = tempfile::tempdir().unwrap();
        let root = fs::open_root(dir.path()).unwrap();
        let open = fs::reopen_dir(root.as_fd()).unwrap();
        let mut group = Group::new().unwrap();
        group.watch_filesystem(open.as_fd()).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let file = std::fs::File::open(dir.path().join("file")).unwrap();
        let (dir_handle, handle) = (
            Handle::of(root.as_fd()).unwrap(),
            Handle::of(file.as_fd()).unwrap(),
        );
        let ours = |event: &Event<'_>| event.process == std::process::id();
        let (mut made, mut written) = (false, false);
        // Others use the file system as well.
        for event in group.read().unwrap().filter(ours) {
            made |= event.mask & NAMES != 0
                && event.place == Some((dir_handle.clone(), b"file".as_slice()))
                && event.object.as_ref() == Some(&handle);
            written |= event.mask & CONTENTS != 0 && event.object.as_ref() == Some(&handle);
        }
        assert!(made && written);
        assert_eq!(group.read().unwrap().filter(ours).count(), 0);
    }
}
