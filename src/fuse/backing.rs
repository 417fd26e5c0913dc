//! Which open files the kernel reads and writes in SRC by itself (passthrough): one backing id for each
//! inode, shared by all that have it open.
//!
//! The kernel wants all opens of an inode to be of one kind for as long as there is one
//! (`fuse_file_io_open`): the first decides, and who comes later gets the same, even if it could be had
//! otherwise. The last release is told here after the kernel has forgotten which kind it was, so that what is
//! decided here is never changed too early.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::config::Io;
use crate::loopback::Loopback;
use crate::loopback::inode::NodeNo;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, Weak, lock};
use crate::sys::fs::open_flags;
use crate::sys::{creds, features, passthrough};

/// How an open file is read and written.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// By requests, with the kernel's page cache.
    Cached,
    /// By requests, without it.
    Direct,
    /// By the kernel itself, through this backing file.
    Passthrough(Arc<Backing>),
}

/// A backing file, registered until this is dropped. By its number: it outlives a process that is killed, and the next one
/// has to use the same, because the kernel compares.
#[derive(Debug)]
pub(super) struct Backing {
    id: u32,
    device: Weak<OwnedFd>,
}

impl Backing {
    /// Its number on the connection.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // Without the connection there is nothing to give up.
        if let Some(device) = self.device.upgrade()
            && let Err(error) = passthrough::close(device.as_fd(), self.id)
        {
            log::debug!("can't give up backing file {}: {error}", self.id);
        }
    }
}

/// In a record for a later process: [`Way::Cached`], [`Way::Direct`], and [`Way::Passthrough`] with the number of its
/// backing file above.
const CACHED: u64 = 1;
const DIRECT: u64 = 2;
const PASSTHROUGH: u64 = 3;
const ID: u32 = 8;

impl Way {
    /// As it is recorded.
    pub(super) fn recorded(&self) -> u64 {
        match self {
            Self::Cached => CACHED,
            Self::Direct => DIRECT,
            Self::Passthrough(backing) => PASSTHROUGH | u64::from(backing.id) << ID,
        }
    }
}

/// The number of the backing file in what was recorded.
fn backing_of(way: u64) -> Option<u32> {
    let is_passed = way & ((1 << ID) - 1) == PASSTHROUGH;
    u32::try_from(way >> ID).ok().filter(|_| is_passed)
}

/// How far from the highest number that was noted there may be others which a process that was killed has got and not
/// noted: the kernel counts up, and each event loop gets one at a time.
const UNNOTED: u32 = 64;

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
    /// The connection, while there is one.
    device: Weak<OwnedFd>,
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
    pub(super) fn new(io: Io, noatime: bool, device: &Arc<OwnedFd>) -> Self {
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
            device: Arc::downgrade(device),
        }
    }

    /// Goes on with what an earlier process has left open, and gives up the backing files that nobody has.
    pub(super) fn go_on(&self, tree: &Loopback) {
        let mut open = lock(&self.open);
        let before = tree.was_open();
        let is_file = before.iter().filter(|one| !one.directory);
        for one in is_file.filter(|one| !one.closing) {
            let node = open.entry(NodeNo(one.node)).or_insert_with(|| Node {
                opens: 0,
                writers: 0,
                unheard: false,
                way: self.way_again(one.way),
            });
            node.opens += 1;
            node.writers += usize::from(open_flags::writes(one.flags));
        }
        let has_it = |id: u32| {
            let is_it =
                |node: &Node| matches!(&node.way, Way::Passthrough(backing) if backing.id == id);
            open.values().any(is_it)
        };
        let highest = tree.highest_backing();
        let unnoted = highest.saturating_sub(UNNOTED)..highest.saturating_add(UNNOTED);
        let left = before.iter().filter_map(|one| backing_of(one.way));
        for id in left
            .chain(unnoted.filter(|_| highest > 0))
            .filter(|id| !has_it(*id))
        {
            // Most of them are not there any more, which is as well.
            drop(self.backing(id));
        }
        for one in before.iter().filter(|one| one.closing) {
            tree.let_go(one.number);
        }
    }

    fn way_again(&self, way: u64) -> Way {
        match backing_of(way) {
            Some(id) => Way::Passthrough(Arc::new(self.backing(id))),
            None if way == DIRECT => Way::Direct,
            None => Way::Cached,
        }
    }

    fn backing(&self, id: u32) -> Backing {
        let device = Weak::clone(&self.device);
        Backing { id, device }
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
        register: impl FnOnce() -> io::Result<u32>,
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
    fn way(&self, suits: bool, register: impl FnOnce() -> io::Result<u32>) -> Way {
        if self.io == Io::Direct {
            return Way::Direct;
        }
        if !suits || self.lack().is_some() {
            return Way::Cached;
        }
        match register() {
            Ok(id) => Way::Passthrough(Arc::new(self.backing(id))),
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

    /// Whether anybody has an inode open.
    pub(super) fn is_open(&self, node: NodeNo) -> bool {
        lock(&self.open).contains_key(&node)
    }

    /// One that opened it has released it; if that was the last of those who wrote unheard, `hear` is to see to it that
    /// writes are heard again. If it was the last of all, the way is over: the backing file is given up when it is dropped.
    pub(super) fn released(&self, node: NodeNo, writes: bool, hear: impl FnOnce()) -> Option<Way> {
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
        last.map(|node| node.way)
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::fd::BorrowedFd;
    use std::path::Path;

    use super::*;
    use crate::loopback::Settings;
    use crate::survive::{Keeper, State, Survival};

    /// Nothing without a name is open here.
    #[derive(Debug)]
    struct Nobody;

    impl Keeper for Nobody {
        fn keep(&self, _: u64, _: BorrowedFd<'_>) -> io::Result<()> {
            Ok(())
        }

        fn give_up(&self, _: u64) {}
    }

    fn serve(source: &Path, state: &State) -> Loopback {
        let memory = state.as_fd().try_clone_to_owned().unwrap();
        let survival = Survival {
            state: Arc::new(State::open(memory).unwrap()),
            keeper: Arc::new(Nobody),
            kept: HashMap::new(),
        };
        let settings = Settings {
            file_limit: 1024,
            one_file_system: false,
            noatime: false,
        };
        Loopback::open_to_survive(source, &settings, survival).unwrap()
    }

    const READ: i32 = 0; // O_RDONLY, open(2)
    const WRITE: i32 = 1;

    #[test]
    fn a_process_goes_on_with_the_ways_that_files_are_open_in() {
        let (source, state) = (tempfile::tempdir().unwrap(), State::create().unwrap());
        let tree = serve(source.path(), &state);
        let open = |name: &str, flags: &[i32], way: u64| {
            std::fs::write(source.path().join(name), "").unwrap();
            let found = tree.lookup(NodeNo::ROOT, OsStr::new(name)).unwrap();
            let node = found.attr.ino;
            found.lookup.into_kernel();
            let handle = |flags: &i32| {
                let handle = tree.open_file(node, *flags, true).unwrap().handle;
                tree.note_way(handle, way);
                handle
            };
            let handles: Vec<u64> = flags.iter().map(handle).collect();
            (node, handles)
        };
        let passed = |id| {
            let device = Weak::new();
            Way::Passthrough(Arc::new(Backing { id, device })).recorded()
        };
        let (passes, _) = open("passes", &[READ, WRITE], passed(7));
        let (direct, _) = open("direct", &[READ], Way::Direct.recorded());
        let (cached, _) = open("cached", &[WRITE], Way::Cached.recorded());
        // Closed, but the backing file was not given up yet.
        let (closing, handles) = open("closing", &[READ], passed(9));
        tree.note_closing(handles[0]);
        // Somebody else has that one open.
        let (_, handles) = open("passes", &[READ], passed(7));
        tree.note_closing(handles[0]);
        tree.opendir(NodeNo::ROOT, READ).unwrap();
        tree.note_backing(9);
        drop(tree);

        let tree = serve(source.path(), &state);
        let device = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let backings = Backings::new(Io::Auto, false, &device);
        backings.go_on(&tree);
        let still_open = tree.was_open();
        assert!(still_open.iter().all(|one| !one.closing));
        assert_eq!(still_open.len(), 5, "and the directory");
        assert!(!backings.is_open(closing) && !backings.is_open(NodeNo::ROOT));
        // Whoever opens it now has it in the same way.
        let again = |node| {
            let register = || panic!("it is open already");
            backings.opened(node, (true, false), register)
        };
        assert!(matches!(again(passes), Way::Passthrough(it) if it.id() == 7));
        assert!(matches!(again(direct), Way::Direct));
        assert!(matches!(again(cached), Way::Cached));
        // Its writers are known too.
        let mut ignored = false;
        backings.written(passes, || {
            ignored = true;
            true
        });
        assert!(ignored);
        let mut heard = false;
        assert!(backings.released(passes, false, || heard = true).is_none());
        assert!(!heard, "somebody writes still");
        assert!(backings.released(passes, true, || heard = true).is_none());
        assert!(heard);
        let last = backings.released(passes, false, || {});
        assert!(matches!(last, Some(Way::Passthrough(it)) if it.id() == 7));
        assert!(!backings.is_open(passes));
        assert!(backings.released(direct, false, || {}).is_none());
        assert!(backings.released(direct, false, || {}).is_some());
    }
}
