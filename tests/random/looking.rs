//! Operations that look, and what a look tells: everything that can be compared between two trees, and
//! with SRC itself where that is the same tree.

use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{Access as Rights, AtFlags, CWD, Dir, accessat};

use super::operation::{Operation, Path, Place, Slot};
use super::raw::next_tick;
use super::world::{Outcome, World, done};

impl World {
    /// Operations that look; `None` if it is another one.
    pub(super) fn looking(&mut self, operation: &Operation) -> Option<Outcome> {
        use Operation::{Access, List, ReadLink, Same, Seek, Stat};
        Some(match operation {
            Stat { on } => self.stat(on),
            Same { one, other } => self.same(one, other),
            Access { path, rights } => self.access(path, *rights),
            ReadLink { path } => fs::read_link(self.path(path))
                .map(|target| target.as_os_str().as_bytes().escape_ascii().to_string()),
            List { path } => self.list(path),
            Seek { slot, after } => self.seek(*slot, *after),
            _ => return None,
        })
    }

    fn stat(&self, on: &Place) -> Outcome {
        let (seen, behind) = match on {
            Place::Slot(slot) => (self.open_file(*slot)?.file.metadata()?, None),
            Place::Path(path) => (
                fs::symlink_metadata(self.path(path))?,
                self.path_behind(path).map(fs::symlink_metadata),
            ),
        };
        let behind = match behind.transpose() {
            // What was written through a mapping may not have reached SRC.
            Ok(Some(behind)) if !self.has_mapping() => unlike(&seen, &behind),
            Ok(_) => String::new(),
            Err(error) => format!("; in SRC: {error}"),
        };
        Ok(summary(&seen) + &behind)
    }

    fn has_mapping(&self) -> bool {
        self.files
            .iter()
            .flatten()
            .any(|open| open.mapping.is_some())
    }

    /// The same path in SRC.
    fn path_behind(&self, path: &Path) -> Option<PathBuf> {
        if path.from.is_some() {
            return None;
        }
        let below = self.path(path);
        let below = below.strip_prefix(&self.top).expect("below the top");
        self.behind.as_ref().map(|top| top.join(below))
    }

    fn same(&self, one: &Path, other: &Path) -> Outcome {
        let number = |path| fs::symlink_metadata(self.path(path)).map(|meta| meta.ino());
        let (one, other) = (number(one)?, number(other)?);
        Ok(if one == other {
            "one file"
        } else {
            "two files"
        }
        .to_owned())
    }

    fn access(&self, path: &Path, rights: u8) -> Outcome {
        let rights = Rights::from_bits_truncate(rights.into());
        accessat(CWD, self.path(path), rights, AtFlags::EACCESS)
            .map_err(io::Error::from)
            .and_then(done)
    }

    fn list(&self, path: &Path) -> Outcome {
        let entries = fs::read_dir(self.path(path))?;
        let mut seen = entries
            .map(|entry| {
                let entry = entry?;
                let (name, kind) = (entry.file_name(), entry.file_type()?);
                Ok(format!("{} {kind:?}", name.display()))
            })
            .collect::<io::Result<Vec<_>>>()?;
        seen.sort();
        Ok(seen.join(", "))
    }

    /// The order of names is the file system's own affair; that the place after a name is followed by
    /// the same names each time is not.
    fn seek(&self, slot: Slot, after: u8) -> Outcome {
        let Some(directory) = &self.directories[slot] else {
            return Ok("nothing open".to_owned());
        };
        let mut directory = Dir::new(directory.try_clone()?)?;
        directory.rewind();
        let all = entries(&mut directory)?;
        let mut names: Vec<_> = all.iter().map(|(name, _)| name.clone()).collect();
        if let Some(place) = usize::from(after).checked_rem(all.len()) {
            directory.seek(all[place].1)?;
            let rest = entries(&mut directory)?;
            if rest != all[place + 1..] && !self.shared {
                return Ok(format!("{all:?}, but after {place}: {rest:?}"));
            }
        }
        names.sort();
        Ok(names.join(" "))
    }

    /// Which times `operation` changes, of what it names and of the directories that these are in.
    pub(super) fn observe(&mut self, operation: &Operation) -> Outcome {
        // On a mount, what is written through a mapping counts as written when it is written back.
        self.settle()?;
        let subjects = subjects(operation);
        let before: Vec<_> = subjects.iter().map(|subject| self.times(subject)).collect();
        next_tick();
        let seen = self.apply(operation);
        let mut told = match seen {
            Ok(seen) => seen,
            Err(error) => error.to_string(),
        };
        for (subject, before) in subjects.iter().zip(before) {
            let changed = match (before, self.times(subject)) {
                (Ok(before), Ok(after)) if before.ino == after.ino => match () {
                    () if before == after => "no time changed",
                    () if before.modified == after.modified => "ctime changed",
                    () if before.changed == after.changed => "mtime changed",
                    () => "both times changed",
                },
                (Ok(_), Ok(_)) => "is another one",
                (Ok(_), Err(_)) => "is gone",
                (Err(_), Ok(_)) => "is new",
                (Err(_), Err(_)) => "can't be seen",
            };
            write!(told, "; {subject:?} {changed}").expect("a string");
        }
        Ok(told)
    }

    fn times(&self, subject: &Subject) -> io::Result<Seen> {
        let meta = match subject {
            Subject::Slot(slot) => self.open_file(*slot)?.file.metadata(),
            Subject::At(path) => fs::symlink_metadata(self.path(path)),
            Subject::Above(path) => {
                let path = self.path(path);
                fs::symlink_metadata(path.parent().expect("a name in a directory"))
            }
        }?;
        Ok(Seen {
            ino: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

#[derive(PartialEq, Eq)]
struct Seen {
    ino: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What an operation is about, which may get other times.
#[derive(Debug)]
pub(super) enum Subject {
    Slot(Slot),
    At(Path),
    Above(Path),
}

/// Everything that `operation` names.
pub(super) fn subjects(operation: &Operation) -> Vec<Subject> {
    use Operation::*;
    let path = |path: &Path| vec![Subject::At(path.clone()), Subject::Above(path.clone())];
    let place = |on: &Place| match on {
        Place::Path(at) => path(at),
        Place::Slot(slot) => vec![Subject::Slot(*slot)],
    };
    match operation {
        As { operation, .. } | Observe { operation } => subjects(operation),
        Open { path: at, .. }
        | OpenDirectory { path: at, .. }
        | Mkdir { path: at, .. }
        | Rmdir { path: at }
        | Unlink { path: at }
        | Symlink { path: at, .. }
        | Node { path: at, .. }
        | Access { path: at, .. }
        | ReadLink { path: at }
        | List { path: at } => path(at),
        Rename { from, to, .. }
        | Same {
            one: from,
            other: to,
        } => path(from).into_iter().chain(path(to)).collect(),
        Link { from, to, .. } => place(from).into_iter().chain(path(to)).collect(),
        Copy { from, to, .. } => place(from).into_iter().chain(place(to)).collect(),
        Write { on, .. }
        | Append { on, .. }
        | Read { on }
        | ReadPart { on, .. }
        | Truncate { on, .. }
        | Allocate { on, .. }
        | MapWrite { on, .. }
        | MapRead { on, .. }
        | Holes { on }
        | Sync { on, .. }
        | Chmod { on, .. }
        | Chown { on, .. }
        | Times { on, .. }
        | SetXattr { on, .. }
        | GetXattr { on, .. }
        | ListXattrs { on, .. }
        | RemoveXattr { on, .. }
        | SetAcl { on, .. }
        | SetFlags { on, .. }
        | Stat { on } => place(on),
        KeepMapping { slot } | Lock { slot, .. } | SetAppending { slot, .. } => {
            vec![Subject::Slot(*slot)]
        }
        // What is written through a mapping that stays is promised its times when it is synchronised;
        // the rest has nothing to look at.
        KeptWrite { .. }
        | KeptRead { .. }
        | Close { .. }
        | CloseDirectory { .. }
        | Seek { .. }
        | Umask { .. } => Vec::new(),
    }
}

/// Names with the places after them, `.` and `..` included.
fn entries(directory: &mut Dir) -> io::Result<Vec<(String, i64)>> {
    directory
        .map(|entry| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, entry.offset()))
        })
        .collect()
}

/// What stat tells, without what differs from tree to tree.
fn summary(meta: &Metadata) -> String {
    let size = if meta.is_dir() { 0 } else { meta.len() };
    format!(
        "mode {:o}, {}:{}, {} links, device {:#x}, {size} bytes",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.rdev()
    )
}

/// What of an inode in SRC is not as the mount shows it. Allocated blocks are left out: SRC changes
/// them by itself when it writes back.
fn unlike(seen: &Metadata, behind: &Metadata) -> String {
    let all = |meta: &Metadata| {
        format!(
            "{}, inode {}, size {}, modified {}.{:09}, changed {}.{:09}",
            summary(meta),
            meta.ino(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        )
    };
    let (seen, behind) = (all(seen), all(behind));
    if seen == behind {
        String::new()
    } else {
        format!("; MNT says {seen}; SRC says {behind}")
    }
}
