//! The mount table of this process, parsed from `/proc/self/mountinfo`, and waiting for it to change.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::process::wait_readable;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    /// The number under which fusectl knows the connection of a FUSE mount.
    pub(crate) minor: u32,
    pub(crate) target: PathBuf,
    /// Options of this mount (`ro`, `nosuid`, ...).
    pub(crate) options: String,
    pub(crate) kind: String,
    pub(crate) source: OsString,
    /// Options of the file system itself (`allow_other`, ...).
    pub(crate) super_options: String,
}

/// Every mount, in the order in which they were made.
pub(crate) fn mounts() -> Vec<Entry> {
    let text = fs::read("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    text.split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect()
}

/// The topmost mount exactly at `target`.
pub(crate) fn mount_at(target: &Path) -> Option<Entry> {
    mounts().into_iter().rfind(|entry| entry.target == target)
}

/// Every mount at or below `directory`, latest first.
pub(crate) fn mounts_below(directory: &Path) -> Vec<Entry> {
    let mut found: Vec<_> = mounts()
        .into_iter()
        .filter(|entry| entry.target.starts_with(directory))
        .collect();
    found.reverse();
    found
}

/// Waits until `condition` holds for the table; false when `limit` passes first.
pub(crate) fn wait_table(limit: Duration, condition: impl Fn() -> bool) -> bool {
    // Opened before the first look: the kernel counts changes for each open file, so what happens
    // between a look and the poll is not lost.
    let table = File::open("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        wait_readable(&[(table.as_fd(), PollFlags::PRI)], left);
    }
}

// 36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/sda rw,errors=continue
fn parse(line: &[u8]) -> Option<Entry> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = string(words.next()?).parse().ok()?;
    let device = string(words.nth(1)?);
    let minor = device.split_once(':')?.1.parse().ok()?;
    let target = PathBuf::from(unescape(words.nth(1)?));
    let options = string(words.next()?);
    words.find(|word| *word == b"-")?;
    Some(Entry {
        id,
        minor,
        target,
        options,
        kind: string(words.next()?),
        source: unescape(words.next()?),
        super_options: string(words.next()?),
    })
}

fn string(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

// The kernel writes blank, tab, newline and backslash as a backslash and three octal digits.
fn unescape(word: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(&string(digits), 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}
