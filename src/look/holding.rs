//! Who uses a mount. The search reads /proc, never the mount; what it reads of a process that hangs may take its time, so
//! a thread does it and is left alone when it takes too long.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::mounts::Mount;
use crate::figures::{Holder, Name};
use crate::lifecycle::holders::{self, Finder};

/// How long a search may take: much more than it does on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) holders: Vec<Holder>,
    /// How many processes could not be looked into.
    pub(super) hidden: usize,
    /// It was given up.
    pub(super) unfinished: bool,
}

/// Who uses `mount`.
pub(super) fn find(mount: &Mount) -> Found {
    find_within(mount, PATIENCE)
}

/// The same, given up after `limit`.
pub(super) fn find_within(mount: &Mount, limit: Duration) -> Found {
    let finder = Finder::new(mount.identity());
    let (tell, told) = mpsc::channel();
    let search = move || {
        // Nobody listens any more if it took too long.
        let _ = tell.send(finder.find());
    };
    let started = thread::Builder::new().spawn(search);
    match started.is_ok().then(|| told.recv_timeout(limit)) {
        Some(Ok(report)) => Found {
            holders: report.holders.iter().map(holder).collect(),
            hidden: report.hidden,
            unfinished: false,
        },
        _ => Found {
            unfinished: true,
            ..Found::default()
        },
    }
}

fn holder(holder: &holders::Holder) -> Holder {
    Holder {
        pid: holder.pid,
        command: Name::of(&holder.command),
        uses: holder.uses.iter().map(words).collect(),
    }
}

/// A use with the bytes of its path as they are.
fn words(it: &holders::Use) -> Name {
    use holders::Use;
    let (what, path) = match it {
        Use::WorkingDirectory(path) => ("working directory ", path),
        Use::Root(path) => ("root directory ", path),
        Use::Program(path) => ("runs ", path),
        Use::File(path) => ("open ", path),
        Use::Mapping(path) => ("mapped ", path),
        Use::MountedAt(path) => ("also mounted at ", path),
    };
    let mut text = std::ffi::OsString::from(what);
    text.push(path);
    Name::of(text)
}
