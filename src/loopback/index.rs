//! Inodes by their file handles, for whoever hears of one from SRC's file system. A number for each: the
//! table has the rest.

use std::collections::HashMap;

use super::inode::{Inode, NodeNo};
use crate::sync::{Mutex, lock};
use crate::sys::handle::Handle;

/// A power of two.
const SHARDS: usize = 16;

/// Node numbers by what stands for a handle ([`Handle::generation`]). Should that be the same for two, the
/// later one is found.
#[derive(Debug)]
pub(super) struct Index([Mutex<HashMap<u64, NodeNo>>; SHARDS]);

impl Index {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, NodeNo>> {
        // The mask keeps the index below SHARDS, so the truncation loses nothing that counts.
        #[allow(clippy::cast_possible_truncation, clippy::indexing_slicing)]
        &self.0[key as usize & (SHARDS - 1)]
    }

    /// Enters an inode, if it is heard of by a handle.
    pub(super) fn insert(&self, inode: &Inode) {
        if let Some(handle) = inode.heard_by() {
            let key = handle.generation();
            lock(self.shard(key)).insert(key, inode.number());
        }
    }

    /// Takes it out.
    pub(super) fn remove(&self, inode: &Inode) {
        if let Some(handle) = inode.heard_by() {
            let key = handle.generation();
            let mut shard = lock(self.shard(key));
            shard.remove(&key);
            if shard.capacity() > 1 << 12 && shard.len() < shard.capacity() / 8 {
                let room = shard.len() * 2;
                shard.shrink_to(room);
            }
        }
    }

    /// Under which number an inode with that handle may be known.
    pub(super) fn find(&self, handle: &Handle) -> Option<NodeNo> {
        let key = handle.generation();
        lock(self.shard(key)).get(&key).copied()
    }
}
