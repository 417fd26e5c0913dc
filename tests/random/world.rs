//! One tree on which operations are carried out, and the files that are open in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
    XattrFlags, fallocate, lremovexattr, lsetxattr, mkdirat, mknodat, renameat_with, utimensat,
};

use super::operation::{Allocate, Operation, Rename, SLOTS};
use crate::common::tree::{checksum, pattern, read_all};

/// A tree and its open files.
pub(crate) struct World {
    top: PathBuf,
    open: [Option<File>; SLOTS],
}

impl World {
    /// Works below `top`, with nothing open.
    pub(crate) fn new(top: &Path) -> Self {
        Self {
            top: top.to_owned(),
            open: [const { None }; SLOTS],
        }
    }

    /// Carries `operation` out. The outcome is what a program would have seen: a summary of the
    /// result, or the error.
    pub(crate) fn apply(&mut self, operation: &Operation) -> String {
        match self.try_apply(operation) {
            Ok(seen) => seen,
            Err(error) => error.to_string(),
        }
    }

    fn path(&self, letters: &[u8]) -> PathBuf {
        letters.iter().fold(self.top.clone(), |path, letter| {
            path.join(std::ffi::OsStr::from_bytes(&[*letter]))
        })
    }

    // One arm for each operation: splitting the list would only hide that it is one.
    #[allow(clippy::too_many_lines)]
    fn try_apply(&mut self, operation: &Operation) -> io::Result<String> {
        use Operation::{
            Allocate, Append, Chmod, Chown, Close, Create, Fifo, Link, List, Mkdir, Open, Read,
            RemoveXattr, Rename, Rmdir, SetXattr, SlotRead, SlotStat, SlotTruncate, SlotWrite,
            Stat, Symlink, Times, Truncate, Unlink, Write,
        };
        let done = |()| "done".to_owned();
        match operation {
            Create {
                path,
                mode,
                exclusive,
            } => {
                let mut options = writing();
                options.mode(*mode).create(true).create_new(*exclusive);
                options.open(self.path(path)).map(|_| "done".to_owned())
            }
            Write {
                path,
                offset,
                length,
                seed,
            } => {
                let file = writing().open(self.path(path))?;
                file.write_all_at(&pattern(*seed, usize::from(*length)), u64::from(*offset))
                    .map(done)
            }
            Append { path, length, seed } => {
                let mut options = OpenOptions::new();
                let mut file = options
                    .append(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(self.path(path))?;
                file.write_all(&pattern(*seed, usize::from(*length)))
                    .map(done)
            }
            Truncate { path, size } => writing()
                .open(self.path(path))?
                .set_len(u64::from(*size))
                .map(done),
            Read { path } => {
                let mut options = OpenOptions::new();
                let file = options
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(self.path(path))?;
                let content = read_all(&file)?;
                Ok(format!("{} bytes, {:x}", content.len(), checksum(&content)))
            }
            Mkdir { path, mode } => mkdirat(CWD, self.path(path), Mode::from_raw_mode(*mode))
                .map(done)
                .map_err(Into::into),
            Rmdir { path } => fs::remove_dir(self.path(path)).map(done),
            Unlink { path } => fs::remove_file(self.path(path)).map(done),
            Rename { from, to, how } => {
                let result = renameat_with(CWD, self.path(from), CWD, self.path(to), flags(*how));
                result.map(done).map_err(Into::into)
            }
            Link { from, to } => fs::hard_link(self.path(from), self.path(to)).map(done),
            // A relative target: it leads to the same place in both trees.
            Symlink { target, path } => symlink(
                self.path(target).strip_prefix(&self.top).expect("below"),
                self.path(path),
            )
            .map(done),
            Fifo { path } => {
                let made = mknodat(
                    CWD,
                    self.path(path),
                    FileType::Fifo,
                    Mode::RUSR | Mode::WUSR,
                    0,
                );
                made.map(done).map_err(Into::into)
            }
            Chmod { path, mode } => {
                fs::set_permissions(self.path(path), fs::Permissions::from_mode(*mode)).map(done)
            }
            Chown { path, uid, gid } => {
                lchown(self.path(path), Some((*uid).into()), Some((*gid).into())).map(done)
            }
            Times {
                path,
                seconds,
                nanoseconds,
                access_too,
            } => {
                let path = self.path(path);
                set_times(&path, *seconds, *nanoseconds, *access_too)?;
                // At once: a later operation on a directory gives it a time of the moment.
                let meta = fs::symlink_metadata(&path)?;
                Ok(format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()))
            }
            SetXattr { path, name, length } => {
                let value = pattern(*name, usize::from(*length));
                let set = lsetxattr(self.path(path), xattr(*name), &value, XattrFlags::empty());
                set.map(done).map_err(Into::into)
            }
            RemoveXattr { path, name } => lremovexattr(self.path(path), xattr(*name))
                .map(done)
                .map_err(Into::into),
            Allocate {
                path,
                how,
                offset,
                length,
            } => {
                let file = writing().open(self.path(path))?;
                let result = fallocate(&file, mode(*how), u64::from(*offset), u64::from(*length));
                result.map(done).map_err(Into::into)
            }
            Stat { path } => fs::symlink_metadata(self.path(path)).map(|meta| summary(&meta)),
            List { path } => {
                let entries = fs::read_dir(self.path(path))?;
                let mut names: Vec<_> = entries
                    .map(|entry| entry.map(|entry| entry.file_name()))
                    .collect::<Result<_, _>>()?;
                names.sort();
                Ok(format!("{names:?}"))
            }
            Open { slot, path, write } => {
                let mut options = OpenOptions::new();
                options
                    .read(true)
                    .write(*write)
                    .custom_flags(libc::O_NONBLOCK);
                let file = options.open(self.path(path))?;
                // A FIFO or directory that is open does no harm, but reads and writes of it differ
                // from those of files only in ways that say nothing about loopfs.
                self.open[*slot] = file.metadata()?.is_file().then_some(file);
                Ok("done".to_owned())
            }
            Close { slot } => {
                self.open[*slot] = None;
                Ok("done".to_owned())
            }
            SlotWrite {
                slot,
                offset,
                length,
                seed,
            } => self.with(*slot, |file| {
                file.write_all_at(&pattern(*seed, usize::from(*length)), u64::from(*offset))
                    .map(done)
            }),
            SlotRead { slot } => self.with(*slot, |file| {
                let content = read_all(file)?;
                Ok(format!("{} bytes, {:x}", content.len(), checksum(&content)))
            }),
            SlotTruncate { slot, size } => {
                self.with(*slot, |file| file.set_len(u64::from(*size)).map(done))
            }
            SlotStat { slot } => {
                self.with(*slot, |file| file.metadata().map(|meta| summary(&meta)))
            }
        }
    }

    fn with(
        &self,
        slot: usize,
        act: impl FnOnce(&File) -> io::Result<String>,
    ) -> io::Result<String> {
        self.open[slot]
            .as_ref()
            .map_or_else(|| Ok("nothing open".to_owned()), act)
    }
}

/// What stat tells, without numbers that differ from tree to tree.
fn summary(meta: &fs::Metadata) -> String {
    let size = if meta.is_dir() { 0 } else { meta.len() };
    format!(
        "mode {:o}, {}:{}, {} links, {size} bytes",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink()
    )
}

/// For writing; not waiting for the other end if it is a FIFO.
fn writing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    options
}

fn set_times(path: &Path, seconds: i32, nanoseconds: u32, access_too: bool) -> io::Result<()> {
    let time = Timespec {
        tv_sec: seconds.into(),
        tv_nsec: nanoseconds.into(),
    };
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: if access_too { time } else { omit },
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
}

fn xattr(name: u8) -> String {
    let namespace = if name == 2 { "trusted" } else { "user" };
    format!("{namespace}.name-{name}")
}

fn flags(how: Rename) -> RenameFlags {
    match how {
        Rename::Plain => RenameFlags::empty(),
        Rename::NoReplace => RenameFlags::NOREPLACE,
        Rename::Exchange => RenameFlags::EXCHANGE,
        Rename::Whiteout => RenameFlags::WHITEOUT,
    }
}

fn mode(how: Allocate) -> FallocateFlags {
    match how {
        Allocate::Extend => FallocateFlags::empty(),
        Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
        Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocate::Zero => FallocateFlags::ZERO_RANGE,
    }
}
