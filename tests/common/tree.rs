//! Two trees compared: everything that a program can see of a tree, as a map from path to text.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
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
