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
    /// given, which did not arrive, is taken back first.
    #[must_use]
    pub fn begin(&self, unique: u64) -> Option<Slot> {
        let state = self.state.as_ref()?;
        let slot = state.begin(unique)?;
        if slot.comes_again() {
            self.take_back(state, &slot.given());
        }
        Some(slot)
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
        for open in state.all_open() {
            if let Err(error) = self.open_again(&open) {
                log::debug!("handle {} of node {}: {error}", open.number, open.node);
                lost.files += 1;
            }
        }
        lost
    }

    /// Takes back what an answer gave that did not arrive.
    fn take_back(&self, state: &State, given: &Given) {
        let in_hand = state.enter_left(given);
        for node in &given.nodes {
            self.forget(NodeNo(*node), 1);
        }
        if let Some(handle) = given.handle {
            self.let_go(handle);
            drop(self.files.remove(handle));
            drop(self.dirs.remove(handle));
        }
        drop(in_hand);
        state.taken_back(given);
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
mod tests;
