//! Inodes that the kernel knows nothing of but the number: what it asks for when somebody opens a file
//! handle of MNT (open_by_handle_at(2), an NFS server) and it has forgotten the inode.
//!
//! A handle of MNT holds a node number and a generation. The kernel sends a LOOKUP of `.` "in" that node
//! (`fuse_get_dentry`) and compares the generation of what it gets; for a directory without a place in
//! its cache it asks for `..`, and lists that directory for its name (`reconnect_path`).
//!
//! Such a request may carry any number, an NFS client's invention too, and where SRC is a part of its
//! file system the number may be of something outside. So an inode is given out only if it is known to be
//! in SRC: everything is, where SRC is the whole of a file system; a directory is, if a walk by `..` leads to SRC's
//! root; anything else, which may have many parents and tells of none, if it was looked up through this mount
//! lately. What can't be found so is `ESTALE`.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Loopback;
use super::attr::{Attr, Keep};
use super::descriptors::Descriptors;
use super::inode::{Identity, Inode, NodeNo};
use super::lookup::Entry;
use crate::error::{Errno, Error, Result, Tried};
use crate::survive::State;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, lock};
use crate::sys::by_number::ByNumber;
use crate::sys::dir;
use crate::sys::fs::{self, FileType};
use crate::sys::handle::Handle;

/// How many handles of forgotten inodes are remembered in each of two generations: as many as fit into
/// a table of 32,768 places, 1.3 MB.
const REMEMBERED: usize = 28 << 10;

/// What is needed to find inodes by number.
#[derive(Debug)]
pub struct Export {
    by_number: Option<ByNumber>,
    forgotten: Mutex<Forgotten>,
    next_generation: AtomicU32,
    /// Where generations go on with a later process, if there may be one.
    state: Option<Arc<State>>,
}

/// The handles of the inodes that the kernel has forgotten last. When the newer half is full, the older
/// one goes.
#[derive(Debug, Default)]
struct Forgotten {
    newer: HashMap<NodeNo, Handle>,
    older: HashMap<NodeNo, Handle>,
}

impl Forgotten {
    fn insert(&mut self, number: NodeNo, handle: Handle) {
        if self.newer.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(number, handle);
    }

    fn get(&self, number: NodeNo) -> Option<&Handle> {
        self.newer.get(&number).or_else(|| self.older.get(&number))
    }
}

impl Export {
    /// For a tree whose inodes are reached by `descriptors`.
    #[must_use]
    pub fn new(descriptors: &Descriptors, state: Option<Arc<State>>) -> Self {
        Self {
            by_number: descriptors.mount().and_then(ByNumber::new),
            forgotten: Mutex::default(),
            next_generation: AtomicU32::new(1),
            state,
        }
    }

    /// How inodes are found that the kernel has forgotten, in words for the log.
    #[must_use]
    pub fn describe(&self, by_handle: bool) -> &'static str {
        match &self.by_number {
            Some(way) if way.is_whole() => "forgotten ones are found by number",
            Some(_) => "forgotten directories are found by number",
            None if by_handle => "forgotten ones are found while their handles are remembered",
            None => "forgotten ones are not found by number",
        }
    }

    /// The kernel has forgotten an inode. Its handle is remembered, unless it can be found without.
    pub(super) fn forgotten(&self, inode: &Inode, root: Identity) {
        // Of other devices on the same mount, subvolumes of btrfs, the way by number knows nothing.
        let by_number = |way: &ByNumber| {
            inode.identity().device == root.device
                && (way.is_whole() || inode.kind() == FileType::Directory)
        };
        if let Some(handle) = inode.handle()
            && !self.by_number.as_ref().is_some_and(by_number)
        {
            lock(&self.forgotten).insert(inode.number(), handle.clone());
        }
    }

    /// The generation of an inode that has no handle to be reached by: what tells it apart if its file
    /// system says so, otherwise a number that no earlier one had, so that a file handle never leads to
    /// another inode.
    pub(super) fn generation(&self, object: BorrowedFd<'_>) -> u32 {
        match Handle::identifying(object) {
            // The lower half is what the kernel looks at.
            #[allow(clippy::cast_possible_truncation)]
            Ok(handle) => handle.generation() as u32,
            #[allow(clippy::cast_possible_truncation)]
            Err(_) => match &self.state {
                Some(state) => state.next_generation() as u32,
                None => self.next_generation.fetch_add(1, Ordering::Relaxed),
            },
        }
    }
}

impl Loopback {
    /// LOOKUP of `.`: the inode with that number, known or forgotten.
    pub(super) fn lookup_self(&self, node: NodeNo) -> Result<Entry> {
        if node == NodeNo::ROOT {
            return self.root_entry();
        }
        let object = match self.table.get(node) {
            Some(inode) => fs::duplicate(self.object(&inode)?.fd()).tried("dup")?,
            None => self.forgotten(node)?,
        };
        let entry = self.enter(object)?;
        // The number may be another inode's by now. And where the kernel does not know an inode nobody
        // has it open on MNT: a handle of what has no name any more is stale, as it would be in SRC.
        if entry.lookup.inode().number() == node && entry.attr.nlink > 0 {
            Ok(entry)
        } else {
            Err(Error::STALE)
        }
    }

    /// LOOKUP of `..`: the directory that a directory is in.
    pub(super) fn lookup_parent(&self, node: NodeNo) -> Result<Entry> {
        let inode = self.inode(node)?;
        if inode.kind() != FileType::Directory {
            return Err(Error::WRONG_TYPE);
        }
        if node == NodeNo::ROOT {
            return self.root_entry();
        }
        let (parent, place) = dir::parent(self.object(&inode)?.fd()).tried("opening ..")?;
        let place = Identity::of(&place);
        if place == self.root.identity() {
            return self.root_entry();
        }
        // At the top there is nothing above: a directory that was moved out of SRC.
        if place == inode.identity() {
            return Err(Error::STALE);
        }
        self.check_inside(parent.as_fd(), place)?;
        self.enter(parent)
    }

    /// An object descriptor of an inode that the kernel has forgotten and that is in SRC.
    fn forgotten(&self, node: NodeNo) -> Result<OwnedFd> {
        let mount = self.descriptors.mount().ok_or(Error::STALE)?;
        let remembered = lock(&self.export.forgotten).get(node).cloned();
        let way = self.export.by_number;
        let (object, is_inside) = match (&remembered, way) {
            (Some(handle), _) => (handle.open(mount), true),
            (None, Some(way)) => (way.open(mount, node.0), way.is_whole()),
            (None, None) => return Err(Error::STALE),
        };
        let object = object.tried("open_by_handle_at")?;
        let stat = fs::stat(object.as_fd()).tried("statx")?;
        let identity = Identity::of(&stat);
        if identity == self.root.identity() || self.numbering.number(identity) != node {
            return Err(Error::STALE);
        }
        if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
            self.check_inside(object.as_fd(), identity)?;
        } else if !is_inside {
            return Err(Error::STALE);
        }
        Ok(object)
    }

    /// Checks that the way up from a directory leads to SRC's root. Whoever moves directories about
    /// meanwhile can show one as being in SRC that is not, but also can move it there.
    fn check_inside(&self, directory: BorrowedFd<'_>, identity: Identity) -> Result<()> {
        let mut above: Option<OwnedFd> = None;
        let mut place = identity;
        while place != self.root.identity() {
            let at = above.as_ref().map_or(directory, AsFd::as_fd);
            let (parent, stat) = match dir::parent(at) {
                // In a mount that shows a part of its file system, there is no way up from outside
                // of that part (`path_connected` in the kernel).
                Err(Errno::NOENT) => return Err(Error::STALE),
                parent => parent.tried("opening ..")?,
            };
            let next = Identity::of(&stat);
            if next == place {
                return Err(Error::STALE); // the top of everything
            }
            (above, place) = (Some(parent), next);
        }
        Ok(())
    }

    fn root_entry(&self) -> Result<Entry> {
        let stat = fs::stat(self.object(&self.root)?.fd()).tried("statx")?;
        Ok(Entry {
            lookup: self.table.root(),
            attr: Attr::new(NodeNo::ROOT, &stat),
            name: Keep::Briefly,
        })
    }

    /// The kernel no longer remembers `count` lookups of a node.
    pub fn forget(&self, node: NodeNo, count: u64) {
        if let Some(inode) = self.table.give_back(node, count) {
            self.export.forgotten(&inode, self.root.identity());
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::MetadataExt as _;

    /// The kernel asks for `..` of a directory without a place, so it would find out by itself. It need not.
    #[test]
    fn a_number_from_outside_is_stale_whatever_it_is_of() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source/inside", "outside"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("outside/file"), "").unwrap();
        let settings = super::super::Settings {
            file_limit: 64,
            one_file_system: false,
            noatime: false,
        };
        let tree = Loopback::open(&dir.path().join("source"), &settings).unwrap();
        let by_number = |name: &str| {
            let ino = std::fs::metadata(dir.path().join(name)).unwrap().ino();
            tree.lookup(NodeNo(ino), OsStr::new("."))
                .map(|entry| entry.attr.ino.0)
                .map_err(Error::errno)
        };
        for name in ["outside", "outside/file", "", "source", "source/../.."] {
            assert_eq!(by_number(name), Err(Errno::STALE), "{name:?}");
        }
        // Where there is a way at all, what is inside is found.
        if tree.export.by_number.is_some() {
            assert!(by_number("source/inside").is_ok());
        }
        let root = tree.lookup(NodeNo::ROOT, OsStr::new(".")).unwrap();
        assert_eq!(root.attr.ino, NodeNo::ROOT);
        let inside = tree.lookup(NodeNo::ROOT, OsStr::new("inside")).unwrap();
        let above = tree.lookup(inside.attr.ino, OsStr::new("..")).unwrap();
        assert_eq!(above.attr.ino, NodeNo::ROOT);
        std::fs::rename(
            dir.path().join("source/inside"),
            dir.path().join("outside/moved"),
        )
        .unwrap();
        let above = tree.lookup(inside.attr.ino, OsStr::new(".."));
        assert_eq!(above.unwrap_err().errno(), Errno::STALE, "moved out");
    }

    #[test]
    fn the_last_forgotten_are_remembered_and_no_more_than_two_halves() {
        let file = tempfile::tempfile().unwrap();
        let handle = Handle::of(file.as_fd()).unwrap();
        let mut forgotten = Forgotten::default();
        let many = u64::try_from(REMEMBERED * 3).unwrap();
        for number in 0..many {
            forgotten.insert(NodeNo(number), handle.clone());
        }
        assert!(forgotten.newer.len() + forgotten.older.len() <= 2 * REMEMBERED);
        let known = (0..many).filter(|number| forgotten.get(NodeNo(*number)).is_some());
        let known: Vec<u64> = known.collect();
        assert!(known.len() > REMEMBERED);
        assert_eq!(known.last(), Some(&(many - 1)));
        assert_eq!(known.last().unwrap() - known[0] + 1, known.len() as u64);
    }
}
