//! What is told of a running mount, as plain values: the daemon fills them in, the commands show them, and the names of
//! the fields are those of `--json`. They are a promise: fields are added, none is renamed.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How a mount and its daemon are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// The version of loopfs.
    pub version: String,
    /// The directory that is served.
    pub source: Name,
    /// Where it is mounted, or was.
    pub target: Name,
    /// Major and minor device number of the mount, `0:39`.
    pub device: String,
    /// Its id in the mount table.
    pub mount_id: u64,
    /// The id that no other mount ever gets; `null` before Linux 6.8.
    pub unique_mount_id: Option<u64>,
    /// The daemon.
    pub pid: u32,
    /// Its program is no longer the one that lies where it lay.
    pub program_replaced: bool,
    /// `serving`, `draining`, `aborting` or `stopped`.
    pub state: String,
    /// Why it ends, if it does.
    pub cause: Option<String>,
    /// When it began to serve: seconds since 1970.
    pub since: u64,
    /// For how long it has served.
    pub uptime_seconds: f64,
    /// How open files are read and written.
    pub io: Mode,
    /// What makes the kernel ask again.
    pub cache: Mode,
    /// Requests taken up and not answered.
    pub in_flight: u64,
    /// The one of them that has been under way for longest, waiting for locks left out.
    pub oldest_request: Option<Oldest>,
    /// Files and directories that are open.
    pub open_files: u64,
    /// Inodes that the kernel remembers.
    pub inodes: u64,
    /// What the daemon occupies of the memory.
    pub memory_bytes: u64,
    /// Descriptors that it has open.
    pub descriptors: u64,
    /// How many it may have open.
    pub descriptor_limit: u64,
    /// Its threads.
    pub threads: u64,
    /// Requests answered since the start.
    pub requests: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
    /// Requests by operation; those that never came are left out.
    pub operations: Vec<Operation>,
    /// The files that were asked for most of late, the busiest first. Estimated.
    pub busiest_files: Vec<BusyFile>,
    /// The processes that asked most of late, the busiest first. Estimated.
    pub busiest_processes: Vec<BusyProcess>,
}

/// A way of doing something, and why it is not the best one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mode {
    /// As the option is written: `passthrough`, `cached`, `direct`; `coherent`, `ttl`, `none`.
    pub mode: String,
    /// Why it is not `passthrough`, or not `coherent`.
    pub why: Option<String>,
}

/// A request that has not been answered for a while.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Oldest {
    /// What it asks for.
    pub operation: String,
    /// For how long.
    pub seconds: f64,
}

/// What was asked of one operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// Requests answered.
    pub requests: u64,
    /// Those answered with an error.
    pub errors: u64,
    /// How long they took, together.
    pub total_seconds: f64,
    /// Half of them took no longer.
    pub p50_seconds: f64,
    /// Nine of ten took no longer.
    pub p90_seconds: f64,
    /// 99 of a hundred took no longer.
    pub p99_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
    /// The counts behind this, for those who want the share of a time of their own; not in `--json`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<(usize, u64)>,
}

/// A file that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BusyFile {
    /// Its number at the mount, as stat(2) tells it.
    pub inode: u64,
    /// Its path below SRC, if the daemon has it at hand.
    pub path: Option<Name>,
    /// How often it is asked for.
    pub requests_per_second: f64,
}

/// A process that asks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BusyProcess {
    /// Its id, or that of the thread that asked where it has ended.
    pub pid: u64,
    /// Its name.
    pub command: Option<Name>,
    /// How often it asks.
    pub requests_per_second: f64,
}

/// A process that uses the mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub command: Name,
    /// What it uses, in words: `open a/b`, `working directory .`.
    pub uses: Vec<Name>,
}

/// A name of the file system: any bytes. As text, what is not UTF-8 is written `\xff`, and a backslash as two, so
/// that no two names look alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Name(pub OsString);

impl Name {
    /// `name`, as it is.
    pub fn of(name: impl Into<OsString>) -> Self {
        Self(name.into())
    }

    /// It as a path.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            let (byte, tail) = match after {
                [b'\\', tail @ ..] if first == b'\\' => (b'\\', tail),
                [b'x', high, low, tail @ ..] if first == b'\\' => match hex(*high, *low) {
                    Some(byte) => (byte, tail),
                    None => (first, after),
                },
                _ => (first, after),
            };
            bytes.push(byte);
            rest = tail;
        }
        Self(OsString::from_vec(bytes))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        let mut text = String::new();
        for chunk in name.0.as_bytes().utf8_chunks() {
            text.push_str(&chunk.valid().replace('\\', "\\\\"));
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        text
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let name = Name(OsString::from_vec(bytes));
            let text = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<Name>(&text).unwrap(), name);
        }

        #[test]
        fn any_text_is_a_name(text in "(\\\\|x|f|a|ü){0,12}") {
            let _ = Name::from(text);
        }
    }

    #[test]
    fn what_a_daemon_of_another_version_tells_is_understood() {
        let told = r#"{"version":"9.9.9","state":"serving","new":[1,2]}"#;
        let figures: Figures = serde_json::from_str(told).unwrap();
        assert_eq!(figures.version, "9.9.9");
        assert_eq!(figures.operations, []);
    }
}
