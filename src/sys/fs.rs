//! Objects of a tree by file descriptor, and single names below a directory's descriptor.
//!
//! An *object descriptor* is opened with `O_PATH | O_NOFOLLOW`: it pins the inode whatever its
//! type (symlinks too), needs no permission on the object and opens no device. What must act on
//! the object itself and has no `AT_EMPTY_PATH` form goes through `/proc/self/fd/N`; that link
//! leads to the pinned object, not to wherever its name points by now.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString};
use std::io::{IoSlice, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags,
};
use rustix::io::{Errno, ReadWriteFlags, Result};

use super::{features, last_errno};
use crate::sync::OnceLock;

pub use rustix::fs::{
    Access, AtFlags as At, FileType, RenameFlags, StatVfs, Statx, StatxTimestamp, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT,
};

/// Flags of open(2) that change how data moves, not what is opened: all that a caller's flags may
/// hand on. `O_APPEND` is missing because it is applied to each write (see [`write_at`]), `O_DIRECT`
/// because its alignment rules can't be kept by a buffer that comes from the FUSE device.
const PASSED_ON: i32 = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_NOATIME;

/// `/proc/self/fd/N` as a C string on the stack.
#[derive(Debug)]
pub struct ProcPath {
    text: [u8; 32],
}

impl ProcPath {
    /// The path of `fd` in this process.
    #[must_use]
    pub fn of(fd: BorrowedFd<'_>) -> Self {
        let mut text = [0; 32];
        // 14 bytes of prefix and at most 10 digits leave the last bytes zero: a C string.
        let _ = write!(&mut text[..31], "/proc/self/fd/{}", fd.as_raw_fd());
        Self { text }
    }

    /// The text for a system call.
    #[must_use]
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.text).unwrap_or(c"")
    }

    /// The same as a path, good as long as the descriptor is open.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        OsStr::from_bytes(self.as_c_str().to_bytes()).into()
    }
}

/// Whether a path led nowhere because its symlinks lead to each other.
#[must_use]
pub fn is_too_many_links(error: &std::io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// Opens the directory that a path names, following symlinks: for SRC itself, once, at start.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What [`open_object`] found.
#[derive(Debug)]
pub enum Found {
    /// An object of the directory's own mount.
    Here(OwnedFd),
    /// The root of something mounted on that name. Nothing has asked its file system yet.
    OtherMount(OwnedFd),
}

/// Opens the object behind `name` in `dir` without following it: openat2(2) with `RESOLVE_NO_XDEV`,
/// which tells a mount point apart at no extra call; where openat2 is missing (before 5.6, or a
/// seccomp filter) two statx(2) calls tell.
pub fn open_object(dir: BorrowedFd<'_>, name: &CStr) -> Result<Found> {
    static MISSING: OnceLock<()> = OnceLock::new();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let plain = || rustix::fs::openat(dir, name, flags, Mode::empty());
    if MISSING.get().is_none() && !features::is_off("openat2") {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Found::Here(fd)),
            Err(Errno::XDEV) => return plain().map(Found::OtherMount),
            Err(Errno::NOSYS) => {
                let _ = MISSING.set(());
            }
            // An old seccomp filter, or a FUSE daemon below SRC that says so of this very name.
            Err(Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    let fd = plain()?;
    if mount_of(fd.as_fd())? == mount_of(dir)? {
        Ok(Found::Here(fd))
    } else {
        Ok(Found::OtherMount(fd))
    }
}

/// Where an object lives: mount id (0 on kernels before 5.8) and device, asked without waking the
/// file system, which may be a FUSE daemon: ourselves, even.
pub fn mount_of(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::MNT_ID)?;
    Ok((
        mount_id(&stat),
        device_number(stat.stx_dev_major, stat.stx_dev_minor),
    ))
}

/// `FUSE_SUPER_MAGIC`, see [`filesystem_type`].
pub const FUSE: u64 = 0x6573_5546;

/// `OVERLAYFS_SUPER_MAGIC`, see [`filesystem_type`].
pub const OVERLAY: u64 = 0x794c_7630;

/// Whether file systems of a type are of this machine alone: ext2 to ext4, xfs, btrfs, tmpfs and f2fs. Nobody changes
/// them elsewhere, and close(2) does nothing but close (no `flush` in their `file_operations`).
#[must_use]
pub fn is_local(filesystem: u64) -> bool {
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010].contains(&filesystem)
}

/// The magic number of the type of the file system that an object is on, fstatfs(2).
pub fn filesystem_type(object: BorrowedFd<'_>) -> Result<u64> {
    let kind = rustix::fs::fstatfs(object)?.f_type;
    // The field is as wide as a long; magic numbers have 32 bits.
    Ok(kind.cast_unsigned() & 0xffff_ffff)
}

/// What reading does to the access time of something, by the mount that it is read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessTimes {
    /// Nothing: `noatime`, or `nodiratime` for a directory.
    LeftAlone,
    /// It is set where it is not later than the other times, or a day old: `relatime`.
    Relative,
    /// It is set each time: `strictatime`.
    Set,
}

/// That, of an object.
pub fn access_times(object: BorrowedFd<'_>, is_directory: bool) -> Result<AccessTimes> {
    let flags = rustix::fs::fstatvfs(object)?.f_flag;
    let left_alone = flags.contains(StatVfsMountFlags::NOATIME)
        || (is_directory && flags.contains(StatVfsMountFlags::NODIRATIME));
    Ok(if left_alone {
        AccessTimes::LeftAlone
    } else if flags.contains(StatVfsMountFlags::RELATIME) {
        AccessTimes::Relative
    } else {
        AccessTimes::Set
    })
}

/// A device number in the C library's `dev_t` encoding.
#[must_use]
pub fn device_number(major: u32, minor: u32) -> u64 {
    rustix::fs::makedev(major, minor)
}

/// `d_type` (dirent(3), `DT_*`) as a type: the upper four bits of a mode.
#[must_use]
pub fn type_of(d_type: u8) -> FileType {
    FileType::from_raw_mode(u32::from(d_type) << 12)
}

/// A type as `d_type`.
#[must_use]
pub fn d_type(kind: FileType) -> u8 {
    u8::try_from(kind.as_raw_mode() >> 12).unwrap_or(0)
}

/// When the inode in a statx answer was made; `None` where the file system does not say.
#[must_use]
pub fn birth(stat: &Statx) -> Option<StatxTimestamp> {
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    told.then_some(stat.stx_btime)
}

/// The mount id in a statx answer; 0 where the kernel gives none.
#[must_use]
pub fn mount_id(stat: &Statx) -> u64 {
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        0
    } else {
        stat.stx_mnt_id
    }
}

/// All attributes of the object, statx(2).
pub fn stat(fd: BorrowedFd<'_>) -> Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)
}

/// The same of a name in a directory, which is not followed.
pub fn stat_name(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        mask,
    )
}

/// The same, with its birth; a local file system is asked, of what is mounted there only what is known already.
pub fn stat_name_at_rest(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(dir, name, flags, mask)
}

/// Whether the name by which the object was opened has been removed since, as /proc has it: `d_path` says so at the end.
#[must_use]
pub fn is_unlinked(object: BorrowedFd<'_>) -> bool {
    path_of(object).is_ok_and(|path| path.as_os_str().as_bytes().ends_with(b" (deleted)"))
}

/// The path by which the object was opened, as it is by now: to be looked at, not to be followed.
pub fn path_of(object: BorrowedFd<'_>) -> Result<PathBuf> {
    let path = rustix::fs::readlink(ProcPath::of(object).as_c_str(), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

/// Opens the object itself for I/O with the data-related part of a caller's open(2) flags. With
/// `O_NONBLOCK` it is `EWOULDBLOCK` instead of waiting for whoever has a lease on the file (fcntl(2),
/// `F_SETLEASE`); the descriptor does not keep that flag.
pub fn reopen(object: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let path = ProcPath::of(object);
    let open = |flags: i32| {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC;
        let file = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
        if flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
        }
        Ok(file)
    };
    let passed_on = flags & (PASSED_ON | libc::O_NONBLOCK);
    match open(passed_on) {
        // An append-only file (`chattr +a`) can be opened for writing in no other way.
        Err(Errno::PERM) if open_flags::append(flags) => open(passed_on | libc::O_APPEND),
        result => result,
    }
}

/// An object descriptor for what `fd` has open.
pub fn reopen_object(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(ProcPath::of(fd).as_c_str(), flags, Mode::empty())
}

/// Opens the directory for listing and fsync.
pub fn reopen_dir(object: BorrowedFd<'_>) -> Result<OwnedFd> {
    reopen_dir_with(object, 0)
}

/// The same with a caller's flags, of which only `O_NOATIME` matters.
pub fn reopen_dir_with(object: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain((flags & libc::O_NOATIME).cast_unsigned())
        | OFlags::RDONLY
        | OFlags::DIRECTORY
        | OFlags::CLOEXEC;
    rustix::fs::openat(object, c".", flags, Mode::empty())
}

/// Creates and opens a regular file; `EEXIST` when anything at all has that name.
pub fn create(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain((flags & PASSED_ON).cast_unsigned())
        | OFlags::CREATE
        | OFlags::EXCL
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
}

/// mkdirat(2).
pub fn make_dir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
}

/// mknodat(2); the type is in `mode`.
pub fn make_node(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> Result<()> {
    let kind = FileType::from_raw_mode(mode);
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device)
}

/// symlinkat(2).
pub fn make_symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::fs::symlinkat(target, dir, name)
}

/// linkat(2) of an object: by its descriptor through /proc, which needs no `CAP_DAC_READ_SEARCH`
/// as `AT_EMPTY_PATH` does.
pub fn make_link(object: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let from = ProcPath::of(object);
    rustix::fs::linkat(
        rustix::fs::CWD,
        from.as_c_str(),
        dir,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}

/// unlinkat(2) of anything but a directory.
pub fn remove_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
}

/// unlinkat(2) of an empty directory.
pub fn remove_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// renameat2(2).
pub fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    flags: RenameFlags,
) -> Result<()> {
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags)
}

/// The target of the symlink that `object` is, readlinkat(2) with an empty path.
pub fn read_link(object: BorrowedFd<'_>) -> Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(object, c"", Vec::new())?.into_bytes())
}

/// chmod of the object. `ELOOP` or `EOPNOTSUPP` for a symlink.
pub fn set_mode(object: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let path = ProcPath::of(object);
    let mode = Mode::from_raw_mode(mode & 0o7777);
    rustix::fs::chmodat(rustix::fs::CWD, path.as_c_str(), mode, AtFlags::empty())
}

/// chown of the object, symlinks themselves included. `None` leaves an id as it is.
pub fn set_owner(object: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    // -1 means "leave it" to the kernel and is no id.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    let uid = uid.map(rustix::fs::Uid::from_raw);
    let gid = gid.map(rustix::fs::Gid::from_raw);
    rustix::fs::chownat(object, c"", uid, gid, AtFlags::EMPTY_PATH)
}

/// utimensat(2) of the object, symlinks themselves included.
pub fn set_times(object: BorrowedFd<'_>, times: &Timestamps) -> Result<()> {
    match rustix::fs::utimensat(object, c"", times, AtFlags::EMPTY_PATH) {
        // Before 5.8 utimensat(2) did not know AT_EMPTY_PATH.
        Err(Errno::INVAL) => {
            let path = ProcPath::of(object);
            rustix::fs::utimensat(rustix::fs::CWD, path.as_c_str(), times, AtFlags::empty())
        }
        result => result,
    }
}

/// truncate(2) of the object. Opening it instead would be no good: a file that was emptied is written out
/// when it is closed next (`auto_da_alloc` in ext4(5), and in xfs and btrfs alike), and that is to be the
/// close by whoever writes the new content.
pub fn truncate(object: BorrowedFd<'_>, size: u64) -> Result<()> {
    let path = ProcPath::of(object);
    let size = libc::off_t::try_from(size).map_err(|_| Errno::FBIG)?;
    // SAFETY: reads a path, which is a C string that lives longer than the call.
    match unsafe { libc::truncate(path.as_c_str().as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// ftruncate(2).
pub fn set_size(file: BorrowedFd<'_>, size: u64) -> Result<()> {
    rustix::fs::ftruncate(file, size)
}

/// faccessat2(2) of the object with the effective ids of this thread; access(2) through /proc
/// before 5.8.
pub fn check_access(object: BorrowedFd<'_>, mask: i32) -> Result<()> {
    let access = Access::from_bits_retain(mask.cast_unsigned());
    match rustix::fs::accessat(object, c"", access, AtFlags::EMPTY_PATH | AtFlags::EACCESS) {
        Err(Errno::NOSYS | Errno::INVAL) => {
            let path = ProcPath::of(object);
            rustix::fs::accessat(rustix::fs::CWD, path.as_c_str(), access, AtFlags::empty())
        }
        result => result,
    }
}

/// fstatvfs(3) of the file system that the object is on.
pub fn stat_filesystem(object: BorrowedFd<'_>) -> Result<StatVfs> {
    rustix::fs::fstatvfs(object)
}

/// What a mount does not let its files do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a flag of its own
pub struct Restrictions {
    /// Set-user-ID bits and file capabilities have no effect.
    pub nosuid: bool,
    /// Device nodes can't be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Symlinks are not followed.
    pub nosymfollow: bool,
}

impl Restrictions {
    fn of(flags: StatVfsMountFlags) -> Self {
        /// `ST_NOSYMFOLLOW`, Linux 5.10.
        const NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);
        Self {
            nosuid: flags.contains(StatVfsMountFlags::NOSUID),
            nodev: flags.contains(StatVfsMountFlags::NODEV),
            noexec: flags.contains(StatVfsMountFlags::NOEXEC),
            nosymfollow: flags.contains(NOSYMFOLLOW),
        }
    }
}

/// Those of the mount that the directory at `path` is on, statvfs(3).
pub fn restrictions_at(path: &std::path::Path) -> Result<Restrictions> {
    rustix::fs::statvfs(path).map(|stat| Restrictions::of(stat.f_flag))
}

/// Those of the mount that an object was reached through, fstatvfs(3).
pub fn restrictions_of(object: BorrowedFd<'_>) -> Result<Restrictions> {
    rustix::fs::fstatvfs(object).map(|stat| Restrictions::of(stat.f_flag))
}

/// pread(2) until `size` bytes are read or the file ends.
pub fn read_at(file: BorrowedFd<'_>, offset: u64, size: usize) -> Result<Vec<u8>> {
    let mut data = Vec::with_capacity(size);
    while data.len() < size {
        let at = offset
            .checked_add(data.len() as u64)
            .ok_or(Errno::OVERFLOW)?;
        // The spare capacity may be larger than asked for; what is past `size` is cut off below.
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut data), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) if data.is_empty() => return Err(errno),
            Err(_) => break, // what was read comes first; the error comes back with the next read
        }
    }
    data.truncate(size);
    Ok(data)
}

/// How a write(2) is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteMode {
    /// At the end of the file, wherever that is by now, as `O_APPEND` has it (`RWF_APPEND`).
    pub append: bool,
    /// Durable when it returns, as `O_DSYNC` has it (`RWF_DSYNC`).
    pub sync: bool,
}

/// pwritev2(2) of all of `data`; the number of bytes written if an error stops it part-way.
pub fn write_at(file: BorrowedFd<'_>, offset: u64, data: &[u8], mode: WriteMode) -> Result<usize> {
    let mut flags = ReadWriteFlags::empty();
    flags.set(ReadWriteFlags::APPEND, mode.append);
    flags.set(ReadWriteFlags::DSYNC, mode.sync);
    let mut done = 0;
    while done < data.len() {
        let rest = data.get(done..).unwrap_or_default();
        let at = offset.checked_add(done as u64).ok_or(Errno::FBIG)?;
        let written = if flags.is_empty() {
            rustix::io::pwrite(file, rest, at)
        } else {
            rustix::io::pwritev2(file, &[IoSlice::new(rest)], at, flags)
        };
        match written {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// What close(2) would report for this file, without giving it up: closing a duplicate runs the
/// file system's own flush.
pub fn flush(file: BorrowedFd<'_>) -> Result<()> {
    close(duplicate(file)?)
}

/// Another descriptor of the same open file.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

/// close(2) with its error, which dropping an [`OwnedFd`] would lose.
pub fn close(fd: OwnedFd) -> Result<()> {
    // SAFETY: the descriptor is owned, and given up by `into_raw_fd`: nobody else uses or closes it.
    let result = unsafe { libc::close(fd.into_raw_fd()) };
    match result {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// fsync(2) or fdatasync(2).
pub fn sync(file: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    if data_only {
        rustix::fs::fdatasync(file)
    } else {
        rustix::fs::fsync(file)
    }
}

/// fallocate(2); `mode` as the caller gave it.
pub fn allocate(file: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Result<()> {
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    rustix::fs::fallocate(file, mode, offset, len)
}

/// Whether a mode of fallocate(2) moves what comes after the range: done twice, it does so twice.
#[must_use]
pub fn shifts(mode: i32) -> bool {
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    mode.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE)
}

/// lseek(2) for `SEEK_DATA` and `SEEK_HOLE`; any other `whence` is the caller's own affair: EINVAL.
pub fn seek_data_or_hole(file: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<i64> {
    if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
        return Err(Errno::INVAL);
    }
    // rustix takes no negative offsets, of which file systems think differently.
    // SAFETY: no memory is involved.
    match unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) } {
        -1 => Err(last_errno()),
        found => Ok(found),
    }
}

/// copy_file_range(2) from and to explicit offsets; the number of bytes copied.
pub fn copy_range(
    from: (BorrowedFd<'_>, u64),
    to: (BorrowedFd<'_>, u64),
    len: usize,
) -> Result<usize> {
    let (mut off_in, mut off_out) = (from.1, to.1);
    rustix::fs::copy_file_range(from.0, Some(&mut off_in), to.0, Some(&mut off_out), len)
}

/// Whether /proc shows this process's own descriptors, without which no object could be reopened.
#[must_use]
pub fn proc_works() -> bool {
    rustix::fs::open(
        c"/proc/self/fd",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(rustix::fs::fstatfs)
    .is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Raises the soft limit on open files to the hard one, which is the administrator's word. The limit
/// now in force.
#[must_use]
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // It can't fail for a limit that is not raised; if it does, the one in force is the answer.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Has the table of open files made for `number` of them at once; no more than the limit. Otherwise the kernel doubles it
/// again and again, and as soon as a process has threads each time waits until all of them have seen that
/// (`expand_fdtable`, `synchronize_rcu`): ten milliseconds in the middle of a request. It takes eight bytes for each.
/// `fd` is any, which is open anyway.
pub fn make_room_for_files(fd: BorrowedFd<'_>, number: u64) {
    let highest = i32::try_from(number.saturating_sub(1));
    // Where it can't be had it comes when it is needed.
    let _ = highest.map(|highest| rustix::io::fcntl_dupfd_cloexec(fd, highest));
}

/// What a caller's open(2) flags say.
pub mod open_flags {
    /// `O_EXCL`.
    #[must_use]
    pub fn exclusive(flags: i32) -> bool {
        flags & libc::O_EXCL != 0
    }

    /// The same with `O_NOATIME`.
    #[must_use]
    pub fn without_access_time(flags: i32) -> i32 {
        flags | libc::O_NOATIME
    }

    /// The same with `O_NONBLOCK`.
    #[must_use]
    pub fn without_waiting(flags: i32) -> i32 {
        flags | libc::O_NONBLOCK
    }

    /// `O_NONBLOCK`.
    #[must_use]
    pub fn waits(flags: i32) -> bool {
        flags & libc::O_NONBLOCK == 0
    }

    /// `O_RDONLY`.
    pub const READ_ONLY: i32 = libc::O_RDONLY;

    /// The same for writing alone, and to wait for that.
    #[must_use]
    pub fn for_writing(flags: i32) -> i32 {
        flags & !(libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_WRONLY
    }

    /// The same for reading alone, and to wait for that.
    #[must_use]
    pub fn for_reading(flags: i32) -> i32 {
        flags & !(libc::O_ACCMODE | libc::O_NONBLOCK) | READ_ONLY
    }

    /// `O_WRONLY` or `O_RDWR`.
    #[must_use]
    pub fn writes(flags: i32) -> bool {
        flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// `O_RDWR`.
    #[must_use]
    pub fn reads_and_writes(flags: i32) -> bool {
        flags & libc::O_ACCMODE == libc::O_RDWR
    }

    /// `O_APPEND`.
    #[must_use]
    pub fn append(flags: i32) -> bool {
        flags & libc::O_APPEND != 0
    }

    /// `O_APPEND` or `O_DIRECT`: what fcntl(2), `F_SETFL`, can take away from an open file.
    #[must_use]
    pub fn may_be_taken_away(flags: i32) -> bool {
        flags & (libc::O_APPEND | libc::O_DIRECT) != 0
    }

    /// `O_DSYNC`, which `O_SYNC` contains.
    #[must_use]
    pub fn data_sync(flags: i32) -> bool {
        flags & libc::O_DSYNC != 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn proc_path_is_the_descriptors_own() {
        let file = tempfile::tempfile().unwrap();
        let path = ProcPath::of(file.as_fd());
        let expected = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(path.as_c_str().to_str().unwrap(), expected);
    }

    #[test]
    fn a_read_gives_what_is_there_and_no_more_than_asked() {
        let file = tempfile::tempfile().unwrap();
        let mode = WriteMode {
            append: false,
            sync: false,
        };
        assert_eq!(write_at(file.as_fd(), 0, b"hello world", mode), Ok(11));
        assert_eq!(read_at(file.as_fd(), 6, 3).unwrap(), b"wor");
        assert_eq!(read_at(file.as_fd(), 6, 4096).unwrap(), b"world");
        assert_eq!(read_at(file.as_fd(), 4096, 16).unwrap(), b"");
    }

    #[test]
    fn an_appending_write_goes_to_the_end_whatever_offset_it_carries() {
        let file = tempfile::tempfile().unwrap();
        let plain = WriteMode {
            append: false,
            sync: false,
        };
        let append = WriteMode {
            append: true,
            sync: true,
        };
        write_at(file.as_fd(), 0, b"abc", plain).unwrap();
        write_at(file.as_fd(), 0, b"def", append).unwrap();
        write_at(file.as_fd(), 0, b"X", plain).unwrap();
        assert_eq!(read_at(file.as_fd(), 0, 16).unwrap(), b"Xbcdef");
    }

    #[test]
    fn a_mount_point_is_told_apart_with_and_without_openat2() {
        let root = open_root(std::path::Path::new("/")).unwrap();
        assert!(matches!(
            open_object(root.as_fd(), c"proc"),
            Ok(Found::OtherMount(_))
        ));
        assert!(matches!(
            open_object(root.as_fd(), c"etc"),
            Ok(Found::Here(_))
        ));
        assert_ne!(
            mount_of(root.as_fd()).unwrap(),
            mount_of(open_root(std::path::Path::new("/proc")).unwrap().as_fd()).unwrap()
        );
    }

    #[test]
    fn a_symlink_is_opened_itself() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let root = open_root(dir.path()).unwrap();
        let Found::Here(link) = open_object(root.as_fd(), c"link").unwrap() else {
            unreachable!("no mount there")
        };
        assert_eq!(read_link(link.as_fd()).unwrap(), b"/etc/passwd");
        assert_eq!(
            reopen(link.as_fd(), libc::O_RDONLY).unwrap_err(),
            Errno::LOOP
        );
    }
}
