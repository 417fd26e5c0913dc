//! Our types into fuser's and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, INodeNo, LockOwner, TimeOrNow};

use super::serve::Asker;
use crate::loopback::Caller;
use crate::loopback::attr::{Attr, SetTime, Time};
use crate::loopback::inode::NodeNo;
use crate::loopback::lock::{Asked, Kind, Range};
use crate::sys::fs::FileType;
use crate::sys::memory::OwnMemory;

/// Who asks.
pub(super) fn caller(request: &fuser::Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

/// Who asks, of which node, and in which request.
pub(super) fn asker(request: &fuser::Request, node: INodeNo) -> Asker {
    Asker {
        caller: caller(request),
        node: node.0,
        unique: request.unique().0,
    }
}

/// A request for a lock, as fuser hands it on.
#[derive(Debug)]
pub(super) struct LockRequest<'a> {
    pub request: &'a fuser::Request,
    pub ino: INodeNo,
    pub handle: FileHandle,
    pub owner: LockOwner,
    pub range: Range,
    /// `F_RDLCK` or one of its like.
    pub kind: i32,
    /// The process that asks.
    pub process: u32,
}

impl LockRequest<'_> {
    /// What it asks for.
    pub(super) fn asked(&self, kind: Kind) -> Asked {
        Asked {
            node: node(self.ino),
            handle: self.handle.0,
            owner: self.owner.0,
            process: self.process,
            kind,
            range: self.range,
        }
    }

    /// The beginning of `struct fuse_lk_in` (linux/fuse.h), up to the flags.
    fn arguments(&self) -> [u8; LOCK_FLAGS] {
        let mut bytes = [0; LOCK_FLAGS];
        let words = [
            self.handle.0,
            self.owner.0,
            self.range.start,
            self.range.end,
        ];
        let halves = [self.kind.cast_unsigned(), self.process];
        let words = words.into_iter().flat_map(u64::to_ne_bytes);
        let halves = halves.into_iter().flat_map(u32::to_ne_bytes);
        for (byte, value) in bytes.iter_mut().zip(words.chain(halves)) {
            *byte = value;
        }
        bytes
    }
}

/// Where `lk_flags` is in `struct fuse_lk_in`.
const LOCK_FLAGS: usize = 40;
/// `FUSE_LK_FLOCK`: flock(2), not fcntl(2).
const LK_FLOCK: u32 = 1;
/// A `Request` is the `struct fuse_in_header` that it is read from.
const _: () = assert!(size_of::<fuser::Request>() == 40);

/// Which kind of lock it is, which fuser 0.18.0 knows and does not tell. The message that it has read
/// lies in memory where the request does, with the arguments behind the header. They are read as bytes
/// of this process, not through a reference that is for the header only; and unless everything else in
/// them is what fuser says, they are something else, and nothing is known.
pub(super) fn lock_kind(memory: &OwnMemory, request: &LockRequest<'_>) -> Option<Kind> {
    let address = std::ptr::from_ref(request.request).addr();
    let mut bytes = [0; LOCK_FLAGS + 4];
    memory
        .read(address + size_of::<fuser::Request>(), &mut bytes)
        .ok()?;
    let (arguments, flags) = bytes.split_at(LOCK_FLAGS);
    if arguments != request.arguments() {
        return None;
    }
    let flags = u32::from_ne_bytes(flags.try_into().ok()?);
    Some(if flags & LK_FLOCK == 0 {
        Kind::Record
    } else {
        Kind::Flock
    })
}

/// A node number.
pub(super) fn node(ino: INodeNo) -> NodeNo {
    NodeNo(ino.0)
}

/// A type. What the kernel can't name either is shown as a regular file.
pub(super) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::RegularFile | FileType::Unknown => fuser::FileType::RegularFile,
    }
}

/// Attributes.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH, // macOS only
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0, // macOS only
    }
}

/// Attributes that say "no such name" in an entry reply (node id 0).
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A time for a reply; one that `SystemTime` can't hold becomes the epoch.
fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(secs)
    } else {
        UNIX_EPOCH.checked_add(secs)
    };
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// A time from a setattr. fuser 0.18.0 subtracts seconds and nanoseconds for times before 1970,
/// where the kernel means "back the seconds, then forward the nanoseconds": undone here.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time {
                secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(before) => Time {
                secs: 0_i64.saturating_sub_unsigned(before.duration().as_secs()),
                nanos: before.duration().subsec_nanos(),
            },
        }),
    }
}

/// A device number in the encoding of the FUSE protocol (`new_encode_dev` in the kernel): 12 bits
/// of major, 20 of minor.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Major and minor number from that encoding (`new_decode_dev`).
pub(super) fn decode_device(device: u32) -> (u32, u32) {
    (
        (device & 0xf_ff00) >> 8,
        (device & 0xff) | (device >> 12 & 0xf_ff00),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_protocol() {
        for device in [(0, 0), (8, 1), (259, 300), (4095, 0xf_ffff), (1, 3)] {
            assert_eq!(decode_device(encode_device(device)), device);
        }
        assert_eq!(encode_device((8, 1)), 0x801);
    }

    /// What fuser 0.18.0 makes of a kernel time (its `system_time_from_time`).
    fn as_fuser_reads(secs: i64, nanos: u32) -> TimeOrNow {
        let time = if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        };
        TimeOrNow::SpecificTime(time)
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for (secs, nanos) in [
            (0, 0),
            (5, 1),
            (-1, 0),
            (-1, 500_000_000),
            (-2_000_000_000, 999_999_999),
        ] {
            let expected = SetTime::At(Time { secs, nanos });
            assert_eq!(set_time(as_fuser_reads(secs, nanos)), expected);
        }
    }

    #[test]
    fn times_in_replies_count_forward_from_their_second() {
        let time = system_time(Time {
            secs: -1,
            nanos: 250_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(time).ok(),
            Some(Duration::from_millis(750))
        );
        let time = system_time(Time { secs: 3, nanos: 7 });
        assert_eq!(
            time.duration_since(UNIX_EPOCH).ok(),
            Some(Duration::new(3, 7))
        );
        assert_eq!(
            system_time(Time {
                secs: i64::MIN,
                nanos: 0
            }),
            UNIX_EPOCH
                .checked_sub(Duration::from_secs(i64::MIN.unsigned_abs()))
                .unwrap_or(UNIX_EPOCH)
        );
    }
}
