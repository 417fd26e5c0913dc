//! Which open files the kernel reads and writes in SRC by itself (passthrough): one backing id for each
//! inode, shared by all that have it open.
//!
//! The kernel wants all opens of an inode to be of one kind for as long as there is one
//! (`fuse_file_io_open`): the first decides, and who comes later gets the same, even if it could be had
//! otherwise. The last release is told here after the kernel has forgotten which kind it was, so that what is
//! decided here is never changed too early.

use std::collections::HashMap;
use std::io;

use fuser::BackingId;

use crate::config::Io;
use crate::loopback::inode::NodeNo;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, lock};
use crate::sys::creds;
use crate::sys::features;

/// How an open file is read and written.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// By requests, with the kernel's page cache.
    Cached,
    /// By requests, without it.
    Direct,
    /// By the kernel itself, through this backing file.
    Passthrough(Arc<BackingId>),
}

/// What is open, and how.
#[derive(Debug)]
pub(super) struct Backings {
    io: Io,
    /// Why there is no passthrough, if there is none.
    lack: OnceLock<Lack>,
    /// It was said that the kernel refused it for a file.
    said: AtomicBool,
    /// What is open, by inode.
    open: Mutex<HashMap<NodeNo, Node>>,
}

/// Why the kernel does not read and write files by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// `--io` says so.
    NotWanted,
    /// `LOOPFS_FEATURES_OFF` says so.
    SwitchedOff,
    /// Reads are to leave access times alone.
    NoAtime,
    /// It takes `CAP_SYS_ADMIN`, in the first user namespace.
    NotPermitted,
    /// The kernel has not got it.
    NotInKernel,
}

impl Lack {
    /// The reason, and what to do about it.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NotWanted => "as --io says",
            Self::SwitchedOff => "it is switched off by LOOPFS_FEATURES_OFF",
            Self::NoAtime => "with noatime the kernel's own reads would still change access times",
            Self::NotPermitted => {
                "it takes CAP_SYS_ADMIN outside of any user namespace: run it as root"
            }
            Self::NotInKernel => "this kernel has none (Linux 6.9 and later, FUSE_PASSTHROUGH)",
        }
    }
}

#[derive(Debug)]
struct Node {
    opens: usize,
    /// Those of them that may write.
    writers: usize,
    /// What they write is told to nobody.
    unheard: bool,
    way: Way,
}

impl Backings {
    /// For a mount whose files are to be read and written so, and perhaps without changing access times.
    #[must_use]
    pub(super) fn new(io: Io, noatime: bool) -> Self {
        let lack = if matches!(io, Io::Cached | Io::Direct) {
            Some(Lack::NotWanted)
        } else if features::is_off("passthrough") {
            Some(Lack::SwitchedOff)
        } else if noatime {
            Some(Lack::NoAtime)
        } else if !creds::is_admin() {
            Some(Lack::NotPermitted)
        } else {
            None
        };
        Self {
            io,
            lack: lack.map_or_else(OnceLock::new, OnceLock::from),
            said: AtomicBool::new(false),
            open: Mutex::default(),
        }
    }

    /// Why there is no passthrough, if there is none.
    pub(super) fn lack(&self) -> Option<Lack> {
        self.lack.get().copied()
    }

    /// There is none, for this reason.
    pub(super) fn lacks(&self, lack: Lack) {
        let _ = self.lack.set(lack);
    }

    /// How a file that was opened is read and written. `suits`: passthrough may be had for
    /// it, if it is the first; then `register` gets the backing id.
    pub(super) fn opened(
        &self,
        node: NodeNo,
        (suits, writes): (bool, bool),
        register: impl FnOnce() -> io::Result<BackingId>,
    ) -> Way {
        let mut open = lock(&self.open);
        let entry = open.entry(node).or_insert_with(|| Node {
            opens: 0,
            writers: 0,
            unheard: false,
            way: self.way(suits, register),
        });
        entry.opens += 1;
        entry.writers += usize::from(writes);
        entry.way.clone()
    }

    /// The way for the first of those who open an inode. Under the lock, so that there is but one backing id:
    /// registering waits for nobody.
    fn way(&self, suits: bool, register: impl FnOnce() -> io::Result<BackingId>) -> Way {
        if self.io == Io::Direct {
            return Way::Direct;
        }
        if !suits || self.lack().is_some() {
            return Way::Cached;
        }
        match register() {
            Ok(id) => Way::Passthrough(Arc::new(id)),
            Err(error) => {
                self.tell(&error);
                Way::Cached
            }
        }
    }

    fn tell(&self, error: &io::Error) {
        let first = !self.said.swap(true, Ordering::Relaxed);
        // Files of another file system below SRC may still do.
        let level = if first {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(
            level,
            "no passthrough for a file, which is read and written through this process: {error}"
        );
    }

    /// Something was written to an inode: if the kernel does that by itself, of which it knows, `ignore` is to see to it that
    /// no more is heard, and says whether that is so.
    pub(super) fn written(&self, node: NodeNo, ignore: impl FnOnce() -> bool) {
        let mut open = lock(&self.open);
        if let Some(entry) = open.get_mut(&node)
            && entry.writers > 0
            && !entry.unheard
            && matches!(entry.way, Way::Passthrough(_))
        {
            entry.unheard = ignore();
        }
    }

    /// One that opened it has released it; if that was the last of those who wrote unheard, `hear` is to see to it that
    /// writes are heard again.
    pub(super) fn released(&self, node: NodeNo, writes: bool, hear: impl FnOnce()) {
        let mut open = lock(&self.open);
        let mut last = None;
        if let Some(entry) = open.get_mut(&node) {
            entry.opens -= 1;
            entry.writers -= usize::from(writes);
            if entry.writers == 0 && entry.unheard {
                entry.unheard = false;
                hear();
            }
            if entry.opens == 0 {
                last = open.remove(&node);
            }
        }
        // After the lock: the backing id is given back to the kernel.
        drop(open);
        drop(last);
    }
}
