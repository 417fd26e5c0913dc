//! The inodes that the kernel remembers, each with its lookup count.
//!
//! The kernel counts every entry that a reply gave it and gives the counts back with FORGET. A count
//! lives in exactly two places: in a [`LookupRef`] while a reply is being made, or in the table on
//! the kernel's behalf. It is a `NonZeroU64` and taken down with checked arithmetic: it can be
//! neither negative nor zero-but-present.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU64;

use super::inode::{Inode, NodeNo};
use super::numbering::Numbering;
use crate::sync::{Arc, Mutex, lock};

/// A power of two: the shard of a number is its low bits.
const SHARDS: usize = 64;

#[derive(Debug)]
struct Slot {
    inode: Arc<Inode>,
    lookups: NonZeroU64,
}

/// All inodes with a lookup count, and the root, which needs none.
#[derive(Debug)]
pub struct Table {
    root: Arc<Inode>,
    shards: [Mutex<HashMap<NodeNo, Slot>>; SHARDS],
}

impl Table {
    /// A table that knows the root only.
    #[must_use]
    pub fn new(root: Arc<Inode>) -> Self {
        Self {
            root,
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }

    fn shard(&self, node: NodeNo) -> &Mutex<HashMap<NodeNo, Slot>> {
        // The mask keeps the index below SHARDS, so the truncation loses nothing that counts.
        #[allow(clippy::cast_possible_truncation, clippy::indexing_slicing)]
        &self.shards[node.0 as usize & (SHARDS - 1)]
    }

    /// The inode with that number, if the kernel remembers it.
    #[must_use]
    pub fn get(&self, node: NodeNo) -> Option<Arc<Inode>> {
        if node == NodeNo::ROOT {
            return Some(Arc::clone(&self.root));
        }
        lock(self.shard(node))
            .get(&node)
            .map(|slot| Arc::clone(&slot.inode))
    }

    /// Takes a lookup count on the inode with the number of `found`, entering `found` if there is
    /// none. Also gives `found` back where it was not needed, with its descriptor.
    ///
    /// If the number is known for another inode, that one is gone from SRC and its number was used
    /// again: `found` takes its place. The kernel tells the two apart by generation and gives the
    /// counts of both back under this number.
    pub fn take(self: &Arc<Self>, found: Inode) -> (LookupRef, Option<Inode>) {
        let number = found.number();
        let found = Arc::new(found);
        let mut replaced = None;
        let inode = match lock(self.shard(number)).entry(number) {
            Entry::Occupied(mut known) => {
                let slot = known.get_mut();
                // 2^64 lookups can't be outstanding; should they be, a count that sticks leaks one
                // inode, a count that wraps would free one in use.
                slot.lookups = slot.lookups.saturating_add(1);
                if !slot.inode.is(&found) {
                    replaced = Some(std::mem::replace(&mut slot.inode, Arc::clone(&found)));
                }
                Arc::clone(&slot.inode)
            }
            Entry::Vacant(place) => {
                let slot = Slot {
                    inode: Arc::clone(&found),
                    lookups: NonZeroU64::MIN,
                };
                Arc::clone(&place.insert(slot).inode)
            }
        };
        // After the lock: this may close a descriptor.
        drop(replaced);
        // Where it was entered the table has it too, and there is nothing to give back.
        let spare = Arc::into_inner(found);
        (
            LookupRef {
                table: Arc::clone(self),
                inode,
                owned: true,
            },
            spare,
        )
    }

    /// Gives back `count` lookups of a node: FORGET. More than were taken, or an unknown node, is
    /// the kernel's error: said in the log and survived.
    pub fn give_back(&self, node: NodeNo, count: u64) {
        if count == 0 || node == NodeNo::ROOT || Numbering::is_no_inode(node) {
            return;
        }
        let mut removed = None;
        let known = match lock(self.shard(node)).entry(node) {
            Entry::Vacant(_) => false,
            Entry::Occupied(mut slot) => {
                let lookups = slot.get().lookups.get();
                match lookups.checked_sub(count).map(NonZeroU64::new) {
                    Some(Some(rest)) => slot.get_mut().lookups = rest,
                    Some(None) | None => removed = Some(slot.remove()),
                }
                lookups >= count
            }
        };
        // The inode's descriptor is closed here, after the lock.
        drop(removed);
        if !known {
            log::warn!(
                "the kernel gave back {count} lookups of node {} that it did not have",
                node.0
            );
        }
    }

    /// How many inodes have a lookup count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether the kernel remembers nothing but the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One lookup count, owned. Dropping it gives the count back; [`Self::into_kernel`] hands it over.
#[derive(Debug)]
#[must_use = "dropping it gives the lookup count back"]
pub struct LookupRef {
    table: Arc<Table>,
    inode: Arc<Inode>,
    owned: bool,
}

impl LookupRef {
    /// The inode that it counts for.
    #[must_use]
    pub fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }

    /// From now on the kernel owns the count and gives it back with FORGET. To be called where the
    /// reply is sent and nowhere else.
    pub fn into_kernel(mut self) {
        self.owned = false;
    }
}

impl Drop for LookupRef {
    fn drop(&mut self) {
        if self.owned {
            self.table.give_back(self.inode.number(), 1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::fs::{self, Statx};
    use crate::sys::handle::Handle;
    use std::os::fd::{AsFd, OwnedFd};

    fn some_object() -> (Statx, OwnedFd) {
        let object = fs::open_root(std::path::Path::new("/")).unwrap();
        (fs::stat(object.as_fd()).unwrap(), object)
    }

    fn table() -> Arc<Table> {
        let (stat, object) = some_object();
        let root = Inode::new(NodeNo::ROOT, &stat, object, None);
        Arc::new(Table::new(Arc::new(root)))
    }

    fn take(table: &Arc<Table>, number: u64) -> LookupRef {
        let (stat, object) = some_object();
        table
            .take(Inode::new(NodeNo(number), &stat, object, None))
            .0
    }

    #[test]
    fn a_reply_that_is_not_sent_gives_its_count_back() {
        let table = table();
        drop(take(&table, 7));
        assert!(table.is_empty());
        let first = take(&table, 7);
        take(&table, 7).into_kernel();
        drop(first);
        assert_eq!(table.len(), 1);
        table.give_back(NodeNo(7), 1);
        assert!(table.is_empty());
    }

    #[test]
    fn the_kernels_counts_end_where_they_began() {
        let table = table();
        for _ in 0..5 {
            take(&table, 9).into_kernel();
        }
        table.give_back(NodeNo(9), 3);
        assert!(table.get(NodeNo(9)).is_some());
        table.give_back(NodeNo(9), 2);
        assert!(table.get(NodeNo(9)).is_none());
    }

    #[test]
    fn too_many_forgets_neither_wrap_nor_panic() {
        let table = table();
        take(&table, 3).into_kernel();
        table.give_back(NodeNo(3), u64::MAX);
        table.give_back(NodeNo(3), 1);
        table.give_back(NodeNo::ROOT, 100);
        table.give_back(NodeNo(3), 0);
        assert!(table.is_empty());
        assert!(table.get(NodeNo::ROOT).is_some());
    }

    #[test]
    fn an_inode_in_use_outlives_its_count() {
        let table = table();
        let held = Arc::clone(take(&table, 5).inode());
        assert!(table.get(NodeNo(5)).is_none());
        let object = held.object().unwrap();
        assert!(fs::stat(object.fd()).is_ok());
    }

    /// An inode of its own under a number of our choice, as if its file system had used the number again.
    fn by_handle(number: u64) -> Inode {
        let file = tempfile::NamedTempFile::new().unwrap();
        let object = fs::reopen_object(file.as_file().as_fd()).unwrap();
        let stat = fs::stat(object.as_fd()).unwrap();
        let handle = Handle::of(object.as_fd()).unwrap();
        Inode::new(NodeNo(number), &stat, object, Some(handle))
    }

    #[test]
    fn a_number_that_is_used_again_is_another_node_to_the_kernel() {
        let table = table();
        let (old, spare) = table.take(by_handle(7));
        assert!(spare.is_none());
        let (new, spare) = table.take(by_handle(7));
        assert!(spare.is_none(), "it took the place of the old one");
        assert_ne!(old.inode().generation(), new.inode().generation());
        let now = table.get(NodeNo(7)).unwrap();
        assert!(now.is(new.inode()) && !now.is(old.inode()));
        old.into_kernel();
        new.into_kernel();
        table.give_back(NodeNo(7), 1);
        assert_eq!(table.len(), 1);
        table.give_back(NodeNo(7), 1);
        assert!(
            table.is_empty(),
            "the counts of both are given back under the one number"
        );
    }

    #[test]
    fn what_was_found_and_known_already_comes_back_with_its_descriptor() {
        let table = table();
        let (stat, object) = some_object();
        let known = Inode::new(NodeNo(4), &stat, object, None);
        let (first, spare) = table.take(known);
        assert!(spare.is_none());
        let (stat, object) = some_object();
        let (_second, spare) = table.take(Inode::new(NodeNo(4), &stat, object, None));
        assert!(spare.unwrap().into_object().is_some());
        drop(first);
    }
}
