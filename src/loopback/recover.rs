//! The beginning of a process that may have a successor, and of that one.
//!
//! What the kernel knows is recorded in memory that outlives the process (`survive`). The next one finds the inodes
//! by their handles when they are asked for; those that have none, or none any more, and everything that was
//! open, it opens again here.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::handle::{DirHandle, FileHandle};
use super::inode::{Inode, NodeNo};
use super::tally::Counting;
use super::{Loopback, Settings};
use crate::error::{Error, Result};
use crate::survive::{Flag, Given, Open, Slot, State, Survival, Unreadable};
use crate::sync::{Arc, Mutex};
use crate::sys::dir::DirStream;
use crate::sys::fs::{self, open_flags};
use crate::sys::handle::Handle;

/// Why a tree can't be opened to be gone on with.
#[derive(Debug)]
pub enum Unopened {
    /// SRC can't be opened.
    Source(Error),
    /// What an earlier process has left can't be gone on with.
    State(Unreadable),
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::State(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Unopened {}

/// What of an earlier process's doings could not be gone on with.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Lost {
    inodes: usize,
    files: usize,
}

impl Loopback {
    /// The same as [`Self::open`], with everything recorded for a later process; if an earlier one has left
    /// something, this one goes on with it.
    pub fn open_to_survive(
        source: &Path,
        settings: &Settings,
        survival: Survival,
    ) -> std::result::Result<Self, Unopened> {
        let Survival {
            state,
            keeper,
            kept,
        } = survival;
        let counting = Counting::Outliving(Arc::clone(&state), Arc::clone(&keeper));
        let tree = Self::open_counting(source, settings, counting).map_err(Unopened::Source)?;
        let root = tree.root.identity();
        let handle = tree.object(&tree.root).map_err(Unopened::Source)?;
        let handle = Handle::of(handle.fd()).map_or(0, |handle| handle.bytes().len());
        let unsent = state
            .take_over((root.device, root.ino), handle)
            .map_err(Unopened::State)?;
        let lost = tree.recover(&state, unsent, kept, |node| keeper.give_up(node));
        if lost != Lost::default() {
            log::warn!(
                "{} inodes and {} open files did not survive the restart: who uses them gets ESTALE or EBADF",
                lost.inodes,
                lost.files
            );
        }
        Ok(tree)
    }

    /// Whether what is done is recorded for a later process.
    #[must_use]
    pub fn survives(&self) -> bool {
        self.state.is_some()
    }

    /// A request is taken up, perhaps for a second time, in another process than before: then what its answer had
    /// given, which did not arrive, is taken back first. What was opened then is not any more, but for its backing file.
    #[must_use]
    pub fn begin(&self, unique: u64) -> Option<(Slot, Option<Open>)> {
        let state = self.state.as_ref()?;
        let slot = state.begin(unique)?;
        let closed = slot.comes_again().then(|| {
            let given = slot.given();
            self.take_back(state, &given)
        });
        Some((slot, closed.flatten()))
    }

    /// What an earlier process had open, and what it was about to close.
    #[must_use]
    pub fn was_open(&self) -> Vec<Open> {
        let state = self.state.as_ref();
        state.map_or_else(Vec::new, |state| state.all_open())
    }

    /// Notes how an open file is read and written, for a later process.
    pub fn note_way(&self, handle: u64, way: u64) {
        if let Some(state) = &self.state {
            state.note_way(handle, way);
        }
    }

    /// Notes that a file is closed but for its backing file.
    pub fn note_closing(&self, handle: u64) {
        if let Some(state) = &self.state {
            state.note_closing(handle);
        }
    }

    /// Notes the number of a backing file.
    pub fn note_backing(&self, id: u32) {
        if let Some(state) = &self.state {
            state.note_backing(id);
        }
    }

    /// The highest number of a backing file that was noted.
    #[must_use]
    pub fn highest_backing(&self) -> u32 {
        let state = self.state.as_ref();
        state.map_or(0, |state| state.highest_backing())
    }

    /// The inodes of whose counts something is from an earlier process: whoever asks the kernel may find that it does not know some of
    /// them.
    #[must_use]
    pub fn inherited(&self) -> Vec<NodeNo> {
        self.table.inherited()
    }

    /// Whether there may be some of those again, although there are none.
    #[must_use]
    pub fn may_inherit(&self) -> bool {
        self.table.has_aside()
    }

    /// The kernel does not know an inode of those that were listed last. Whether it was dropped: its count may have changed meanwhile.
    pub fn set_aside(&self, node: NodeNo) -> bool {
        self.table.set_aside(node).is_some()
    }

    fn recover(
        &self,
        state: &Arc<State>,
        unsent: Vec<Given>,
        mut kept: HashMap<u64, OwnedFd>,
        give_up: impl Fn(u64),
    ) -> Lost {
        let mut lost = Lost::default();
        let mount = self.descriptors.mount_id();
        for (place, node) in state.known() {
            let flags = state.flags(place);
            if Flag::Aside.is_in(flags) {
                self.table.enter_aside(NodeNo(node.number), place);
                continue;
            }
            let is_kept = Flag::Kept.is_in(flags);
            let object = kept.remove(&node.number).filter(|_| is_kept);
            if let Some(inode) = Inode::recorded(node, flags, mount, object) {
                self.table.enter_again(inode, place);
            } else {
                lost.inodes += 1;
                state.count_down(place, state.lookups(place));
            }
        }
        // Kept for inodes that were forgotten in that very moment.
        kept.into_keys().for_each(give_up);
        for given in unsent {
            self.take_back(state, &given);
        }
        for open in state.all_open().iter().filter(|open| !open.closing) {
            if let Err(error) = self.open_again(open) {
                log::debug!("handle {} of node {}: {error}", open.number, open.node);
                lost.files += 1;
            }
        }
        lost
    }

    /// Takes back what an answer gave that did not arrive; what it opened, which is closed but for its backing file.
    fn take_back(&self, state: &State, given: &Given) -> Option<Open> {
        let in_hand = state.enter_left(given);
        for node in &given.nodes {
            self.forget(NodeNo(*node), 1);
        }
        let open = given.handle.and_then(|handle| state.open_one(handle));
        if let Some(open) = open {
            drop(self.files.remove(open.number));
            drop(self.dirs.remove(open.number));
            if open.way == 0 {
                self.let_go(open.number);
            } else {
                self.note_closing(open.number);
            }
        }
        drop(in_hand);
        state.taken_back(given);
        open
    }

    /// Opens what was open in an earlier process.
    fn open_again(&self, open: &Open) -> Result<()> {
        let inode = self.inode(NodeNo(open.node))?;
        let object = self.object(&inode)?;
        if open.directory {
            let flags = open.flags;
            let fd = self.opened(flags, |flags| fs::reopen_dir_with(object.fd(), flags))?;
            drop(object);
            let stream = Mutex::new(DirStream::new(fd));
            self.dirs
                .insert_as(open.number, DirHandle { inode, stream });
            return Ok(());
        }
        // Nobody is waited for: who has a lease on it by now has it for good.
        let flags = open_flags::without_waiting(open.flags);
        let file = self.opened(flags, |flags| fs::reopen(object.fd(), flags))?;
        drop(object);
        self.files
            .insert_as(open.number, FileHandle::new(inode, file));
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests;
