//! Two trees compared: everything that a program can see of a tree, as a map from path to text. A
//! [`View`] has what only two views of one tree have in common, too.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Path below the top -> what it is.
pub(crate) type Snapshot = BTreeMap<PathBuf, String>;

/// Which times take part in a comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    /// None.
    Ignored,
    /// Modification times of everything but directories, to the nanosecond.
    Files,
    /// Modification times of everything, to the nanosecond.
    All,
}

/// Everything below `top` (the top itself too, as `.`).
#[track_caller]
pub(crate) fn snapshot(top: &Path, times: Times) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut first_names = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = top.join(&relative);
        let what = describe(&path, &relative, times, &mut first_names)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if what.starts_with("directory") {
            let mut names: Vec<_> = fs::read_dir(&path)
                .unwrap_or_else(|error| panic!("list {}: {error}", path.display()))
                .map(|entry| entry.expect("directory entry").file_name())
                .collect();
            names.sort();
            pending.extend(names.iter().rev().map(|name| relative.join(name)));
        }
        let key = if relative.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            relative
        };
        snapshot.insert(key, what);
    }
    snapshot
}

/// Fails the test with the lines that differ.
#[track_caller]
pub(crate) fn assert_same(expected: &Snapshot, found: &Snapshot, what: &str) {
    let difference = difference(expected, found);
    assert!(difference.is_empty(), "{what}:\n{difference}");
}

/// What differs, a line for each; empty if nothing does.
pub(crate) fn difference(expected: &Snapshot, found: &Snapshot) -> String {
    let mut text = String::new();
    for (path, left) in expected {
        match found.get(path) {
            None => writeln!(text, "{}: missing; expected {left}", path.display()),
            Some(right) if left != right => {
                writeln!(
                    text,
                    "{}:\n  expected {left}\n  found    {right}",
                    path.display()
                )
            }
            Some(_) => Ok(()),
        }
        .expect("a string");
    }
    for (path, right) in found
        .iter()
        .filter(|(path, _)| !expected.contains_key(*path))
    {
        writeln!(text, "{}: not expected; found {right}", path.display()).expect("a string");
    }
    text
}

fn describe(
    path: &Path,
    relative: &Path,
    times: Times,
    first_names: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<String> {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let mut text = contents(path, &meta)?;
    if !kind.is_dir() {
        write!(text, ", {} links", meta.nlink()).expect("a string");
        if meta.nlink() > 1 {
            let first = first_names
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| relative.into());
            write!(text, " (same as {})", first.display()).expect("a string");
        }
    }
    if times == Times::All || (times == Times::Files && !kind.is_dir()) {
        write!(text, ", modified {}.{:09}", meta.mtime(), meta.mtime_nsec()).expect("a string");
    }
    for (name, value) in xattrs(path)? {
        write!(text, ", {name}={value:02x?}").expect("a string");
    }
    Ok(text)
}

/// Type and contents, mode and owner.
fn contents(path: &Path, meta: &Metadata) -> io::Result<String> {
    let kind = meta.file_type();
    let mut text = match () {
        () if kind.is_dir() => "directory".to_owned(),
        () if kind.is_symlink() => format!(
            "symlink to {}",
            fs::read_link(path)?.as_os_str().as_bytes().escape_ascii()
        ),
        () if kind.is_file() => {
            let content = fs::read(path)?;
            assert_eq!(
                content.len() as u64,
                meta.len(),
                "{}: size and content",
                path.display()
            );
            format!(
                "file of {} bytes, checksum {:016x}",
                content.len(),
                checksum(&content)
            )
        }
        () if kind.is_fifo() => "fifo".to_owned(),
        () if kind.is_socket() => "socket".to_owned(),
        () if kind.is_char_device() => format!("character device {:#x}", meta.rdev()),
        () => format!("block device {:#x}", meta.rdev()),
    };
    write!(
        text,
        ", mode {:o}, owner {}:{}",
        meta.mode(),
        meta.uid(),
        meta.gid()
    )
    .expect("a string");
    Ok(text)
}

/// A tree as stat(2) and readdir(3) show it. Of one tree seen from two places, all of it must be the same.
///
/// It is looked at before anything is read: that changes access times.
#[derive(Debug)]
pub(crate) struct View {
    top: PathBuf,
    /// Path below the top -> attributes.
    seen: BTreeMap<PathBuf, Metadata>,
}

impl View {
    /// Everything below `top`, itself included, under an empty path.
    pub(crate) fn of(top: &Path) -> io::Result<Self> {
        let mut seen = BTreeMap::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let path = top.join(&relative);
            let meta = fs::symlink_metadata(&path).map_err(|error| at(&path, &error))?;
            if meta.is_dir() {
                for entry in fs::read_dir(&path).map_err(|error| at(&path, &error))? {
                    let entry = entry?;
                    // From the listing, where there is a type in it: DirEntry asks nothing more.
                    let (ino, kind) = (entry.ino(), entry.file_type()?);
                    let path = entry.path();
                    let meta = fs::symlink_metadata(&path).map_err(|error| at(&path, &error))?;
                    if (ino, kind) != (meta.ino(), meta.file_type()) {
                        let (found, expected) = ((meta.ino(), meta.file_type()), (ino, kind));
                        return Err(io::Error::other(format!(
                            "{}: listed as {expected:?}, and stat says {found:?}",
                            path.display()
                        )));
                    }
                    pending.push(relative.join(entry.file_name()));
                }
            }
            seen.insert(relative, meta);
        }
        Ok(Self {
            top: top.to_owned(),
            seen,
        })
    }

    /// What was seen.
    pub(crate) fn seen(&self) -> &BTreeMap<PathBuf, Metadata> {
        &self.seen
    }

    /// All of it as text, contents and extended attributes, too, which are read now.
    ///
    /// Access times of directories are left out, because looking changes them, and allocated blocks,
    /// because the file system does when it writes back: see [`Self::blocks`].
    pub(crate) fn describe(&self) -> io::Result<Snapshot> {
        let describe = |(relative, meta): (&PathBuf, &Metadata)| {
            let path = self.top.join(relative);
            let mut text = contents(&path, meta).map_err(|error| at(&path, &error))?;
            write!(
                text,
                ", {} links, inode {}, size {}, blocks of {}, device {:#x}, modified {}.{:09}, changed {}.{:09}",
                meta.nlink(),
                meta.ino(),
                meta.len(),
                meta.blksize(),
                meta.rdev(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            )
            .expect("a string");
            if !meta.is_dir() {
                write!(text, ", accessed {}.{:09}", meta.atime(), meta.atime_nsec())
                    .expect("a string");
            }
            for (name, value) in xattrs(&path).map_err(|error| at(&path, &error))? {
                write!(text, ", {name}={value:02x?}").expect("a string");
            }
            Ok((relative.clone(), text))
        };
        self.seen.iter().map(describe).collect()
    }

    /// How many blocks are allocated for each.
    pub(crate) fn blocks(&self) -> Snapshot {
        let blocks =
            |(path, meta): (&PathBuf, &Metadata)| (path.clone(), meta.blocks().to_string());
        self.seen.iter().map(blocks).collect()
    }

    /// What no tree may be like: a file with more or fewer links than names, a directory with two
    /// names, or with other links than its subdirectories have (some file systems don't count
    /// these, and say 1).
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut names: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
        for (path, meta) in &self.seen {
            names.entry(meta.ino()).or_default().push(path);
        }
        let mut faults = Vec::new();
        for names in names.values() {
            let meta = &self.seen[names[0]];
            let expected = if meta.is_dir() {
                let below = |path: &Path| path.parent() == Some(names[0]);
                let entries = self.seen.iter().filter(|(path, _)| below(path));
                let directories = entries.filter(|(_, meta)| meta.is_dir()).count();
                2 + directories as u64
            } else {
                names.len() as u64
            };
            let uncounted = meta.is_dir() && meta.nlink() == 1;
            if (meta.nlink() != expected && !uncounted) || (meta.is_dir() && names.len() > 1) {
                faults.push(format!("{names:?}: {} links", meta.nlink()));
            }
        }
        faults
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Extended attributes of `path` itself, sorted by name.
pub(crate) fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    names.truncate(length);
    let mut found = BTreeMap::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.insert(name.to_string_lossy().into_owned(), value);
    }
    Ok(found)
}

/// FNV-1a: enough to tell two contents apart in a message.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Bytes that differ from place to place, the same on each call with the same arguments.
pub(crate) fn pattern(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u32::from(seed) | 0x100;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

/// Reads a whole file that is open already, from its start.
pub(crate) fn read_all(mut file: &fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut file)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
