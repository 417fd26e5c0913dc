//! The inodes that the kernel remembers, each with its lookup count.
//!
//! The kernel counts every entry that a reply gave it and gives the counts back with FORGET. A count
//! lives in exactly two places: in a [`LookupRef`] while a reply is being made, or in the table on
//! the kernel's behalf. It is a `NonZeroU64` and taken down with checked arithmetic: it can be
//! neither negative nor zero-but-present. How it is counted, here or where a later process finds it, is
//! [`super::tally`]'s.
// The lint is about keys that change: what counts in a set of inodes is the number, which never does.
#![allow(clippy::mutable_key_type)]

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::os::fd::BorrowedFd;

use super::index::Index;
use super::inode::{Inode, NodeNo};
use super::numbering::Numbering;
use super::tally::{Counting, Tally};
use crate::survive::{Flag, Place};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, lock};
use crate::sys::handle::Handle;
use crate::sys::process;

/// A power of two: the shard of a number is its low bits.
const SHARDS: usize = 64;
/// A shard that has room for no more than this is not made smaller.
const SMALL: usize = 256;
/// After so many inodes have been forgotten it is worth giving their memory back: half a megabyte.
const MANY: usize = 1 << 12;

/// An inode and its count, in a set where it is found by its number: a map would hold the number once
/// more for each.
#[derive(Debug)]
struct Slot {
    inode: Arc<Inode>,
    /// Changed in place, under the lock of the shard: what a set holds can't be borrowed mutably.
    tally: Cell<Tally>,
}

impl Borrow<NodeNo> for Slot {
    fn borrow(&self) -> &NodeNo {
        self.inode.number_ref()
    }
}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inode.number().hash(state);
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.inode.number() == other.inode.number()
    }
}

impl Eq for Slot {}

/// All inodes with a lookup count, and the root, which needs none.
#[derive(Debug)]
pub struct Table {
    root: Arc<Inode>,
    counting: Counting,
    shards: [Mutex<HashSet<Slot>>; SHARDS],
    /// By file handle, if they are to be found so; kept under the locks of the shards.
    index: OnceLock<Index>,
    /// Since memory was given back last.
    forgotten: AtomicUsize,
    /// Where [`Self::some`] goes on.
    next_shard: AtomicUsize,
    aside: Aside,
}

/// Counts of inodes that the kernel does not know, and was never heard to forget ([`Table::set_aside`]). Changed and looked at under
/// the lock of the shard that the inode would be in.
#[derive(Debug, Default)]
struct Aside {
    /// How many there are: mostly none, and then nobody looks.
    number: AtomicUsize,
    tallies: Mutex<HashMap<NodeNo, Tally>>,
}

impl Aside {
    fn insert(&self, node: NodeNo, tally: Tally) {
        let mut tallies = lock(&self.tallies);
        tallies.insert(node, tally);
        self.number.store(tallies.len(), Ordering::Relaxed);
    }

    fn take(&self, node: NodeNo) -> Option<Tally> {
        if self.number.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut tallies = lock(&self.tallies);
        let tally = tallies.remove(&node);
        self.number.store(tallies.len(), Ordering::Relaxed);
        tally
    }
}

impl Table {
    /// A table that knows the root only.
    #[must_use]
    pub fn new(root: Arc<Inode>, counting: Counting) -> Self {
        Self {
            root,
            counting,
            shards: std::array::from_fn(|_| Mutex::new(HashSet::new())),
            index: OnceLock::new(),
            forgotten: AtomicUsize::new(0),
            next_shard: AtomicUsize::new(0),
            aside: Aside::default(),
        }
    }

    fn shard(&self, node: NodeNo) -> &Mutex<HashSet<Slot>> {
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

    /// Whether the kernel remembers an inode with that number.
    #[must_use]
    pub fn has(&self, node: NodeNo) -> bool {
        node == NodeNo::ROOT || lock(self.shard(node)).contains(&node)
    }

    /// The root, for a reply: the kernel remembers it without a count.
    pub fn root(self: &Arc<Self>) -> LookupRef {
        LookupRef {
            table: Arc::clone(self),
            inode: Arc::clone(&self.root),
            owned: false,
        }
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
        let enter = |instead_of| Slot {
            inode: Arc::clone(&found),
            tally: Cell::new(self.counting.enter(&found, instead_of)),
        };
        let mut replaced = None;
        let mut shard = lock(self.shard(number));
        let inode = if let Some(known) = shard.get(&number) {
            if known.inode.is(&found) {
                known.inode.is_counted();
                known.tally.set(self.counting.up(known.tally.get()));
                Arc::clone(&known.inode)
            } else {
                let instead = enter(Some(known.tally.get()));
                if known.inode.is_inherited() {
                    found.inherits();
                }
                replaced = shard.replace(instead);
                if let (Some(index), Some(slot)) = (self.index.get(), &replaced) {
                    index.remove(&slot.inode);
                    index.insert(&found);
                }
                Arc::clone(&found)
            }
        } else {
            // What was counted before may still be given back, under the same number; or never.
            let before = self.aside.take(number);
            if before.is_some() {
                found.inherits();
            }
            shard.insert(enter(before));
            if let Some(index) = self.index.get() {
                index.insert(&found);
            }
            Arc::clone(&found)
        };
        drop(shard);
        // After the lock: this may close a descriptor.
        drop(replaced);
        // Where it was entered the table has it too, and there is nothing to give back.
        let spare = Arc::into_inner(found);
        if spare.is_none()
            && inode.keeps_descriptor()
            && let Some(object) = inode.object()
        {
            self.keep(&inode, object.fd());
        }
        (
            LookupRef {
                table: Arc::clone(self),
                inode,
                owned: true,
            },
            spare,
        )
    }

    /// Takes a lookup count on an inode that is known by its number, if it `is_it`.
    pub fn take_again(
        self: &Arc<Self>,
        number: NodeNo,
        is_it: impl FnOnce(&Inode) -> bool,
    ) -> Option<LookupRef> {
        let shard = lock(self.shard(number));
        let known = shard.get(&number).filter(|known| is_it(&known.inode))?;
        known.inode.is_counted();
        known.tally.set(self.counting.up(known.tally.get()));
        let inode = Arc::clone(&known.inode);
        drop(shard);
        Some(LookupRef {
            table: Arc::clone(self),
            inode,
            owned: true,
        })
    }

    /// Gives back `count` lookups of a node: FORGET. More than were taken, or an unknown node, is
    /// the kernel's error: said in the log and survived. The inode, if it is forgotten with this.
    pub fn give_back(&self, node: NodeNo, count: u64) -> Option<Arc<Inode>> {
        if count == 0 || node == NodeNo::ROOT || Numbering::is_no_inode(node) {
            return None;
        }
        let mut shard = lock(self.shard(node));
        let mut kept = false;
        let left = shard.get(&node).map(|slot| {
            kept = self.counting.is_kept(slot.tally.get());
            slot.inode.is_counted();
            let (left, tally) = self.counting.down(slot.tally.get(), count);
            slot.tally.set(tally);
            left
        });
        let left = match left {
            Some(left) => Some(left),
            None => self.aside.take(node).map(|tally| {
                let (left, tally) = self.counting.down(tally, count);
                if left.is_some_and(|left| left > 0) {
                    self.aside.insert(node, tally);
                }
                left
            }),
        };
        let mut removed = None;
        if matches!(left, Some(None | Some(0))) {
            removed = shard.take(&node);
            shrink(&mut shard);
            if let (Some(index), Some(slot)) = (self.index.get(), &removed) {
                index.remove(&slot.inode);
            }
            // Under the lock: the number may be another inode's a moment later, which is kept by that number as well.
            if kept && removed.is_some() {
                self.counting.give_up(node);
            }
        }
        drop(shard);
        if removed.is_some() {
            self.one_less();
        }
        if left.flatten().is_none() {
            log::warn!(
                "the kernel gave back {count} lookups of node {} that it did not have",
                node.0
            );
        }
        // Its descriptor is closed by whoever drops it, after the lock.
        removed.map(|slot| slot.inode)
    }

    /// The inodes of whose counts something is from an earlier process. From now on it is noted if one changes, for
    /// [`Self::set_aside`].
    #[must_use]
    pub fn inherited(&self) -> Vec<NodeNo> {
        let inherited = |shard: &Mutex<HashSet<Slot>>| -> Vec<NodeNo> {
            let shard = lock(shard);
            let inherited = shard.iter().filter(|slot| slot.inode.is_inherited());
            inherited
                .map(|slot| {
                    slot.inode.is_listed();
                    slot.inode.number()
                })
                .collect()
        };
        self.shards.iter().flat_map(inherited).collect()
    }

    /// Whether an inode that becomes known may yet be one of [`Self::inherited`]: there are counts that were set aside.
    #[must_use]
    pub fn has_aside(&self) -> bool {
        self.aside.number.load(Ordering::Relaxed) > 0
    }

    /// The kernel does not know an inode of those that [`Self::inherited`] has listed: it is dropped, but for its count. The
    /// inode, unless something was counted since, or it is in use.
    ///
    /// The count stays because the kernel may yet give it back, for whatever reason: then it is taken down by as much, as it would have been;
    /// and if the number is taken again before that, it is counted together with what is counted then, as where a number is used
    /// again ([`Self::take`]). So no count is ever wrong, not even if the inode should not have been dropped.
    pub(super) fn set_aside(&self, node: NodeNo) -> Option<Arc<Inode>> {
        let mut shard = lock(self.shard(node));
        let slot = shard.get(&node)?;
        let tally = slot.tally.get();
        let is_kept = self.counting.is_kept(tally);
        if !slot.inode.is_unchanged()
            || Arc::strong_count(&slot.inode) > 1
            || !self.counting.set_aside(tally)
        {
            return None;
        }
        let slot = shard.take(&node)?;
        self.aside.insert(node, tally);
        if let Some(index) = self.index.get() {
            index.remove(&slot.inode);
        }
        if is_kept {
            self.counting.give_up(node);
        }
        shrink(&mut shard);
        drop(shard);
        self.one_less();
        Some(slot.inode)
    }

    /// Enters the count of an inode that an earlier process has set aside.
    pub(super) fn enter_aside(&self, node: NodeNo, place: Place) {
        self.aside.insert(node, Tally::of(place));
    }

    /// Has a descriptor of an inode kept outside of this process, if there is somebody who would: it can't be found
    /// again without. Whether it is.
    pub(super) fn keep(&self, inode: &Inode, object: BorrowedFd<'_>) -> bool {
        let kept = self.counting.keep(inode.number(), object);
        if kept {
            self.note(inode, Flag::Kept);
        }
        kept
    }

    /// That is not needed any more.
    pub(super) fn give_up(&self, inode: &Inode) {
        let shard = lock(self.shard(inode.number()));
        let known = shard.get(&inode.number());
        if let Some(slot) = known.filter(|slot| std::ptr::eq(&raw const *slot.inode, inode)) {
            self.counting.note_no_more(slot.tally.get(), Flag::Kept);
            // Under the lock, as above.
            self.counting.give_up(inode.number());
        }
    }

    /// Notes something of an inode for a later process, if it is known.
    pub(super) fn note(&self, inode: &Inode, flag: Flag) {
        let shard = lock(self.shard(inode.number()));
        let known = shard.get(&inode.number());
        if let Some(slot) = known.filter(|slot| std::ptr::eq(&raw const *slot.inode, inode)) {
            self.counting.note(slot.tally.get(), flag);
        }
    }

    /// Enters an inode that an earlier process has counted.
    pub(super) fn enter_again(&self, inode: Inode, place: Place) {
        let slot = Slot {
            tally: Cell::new(Tally::of(place)),
            inode: Arc::new(inode),
        };
        lock(self.shard(slot.inode.number())).insert(slot);
    }

    /// Gives memory back to the system now and then when inodes are forgotten: the allocator by itself
    /// keeps what lies between blocks that are still in use. That is a millisecond's work, more with
    /// more that is known.
    fn one_less(&self) {
        let forgotten = self.forgotten.fetch_add(1, Ordering::Relaxed) + 1;
        if forgotten.is_multiple_of(MANY) && forgotten >= self.len() / 4 {
            self.forgotten.store(0, Ordering::Relaxed);
            process::give_memory_back();
        }
    }

    /// The next quarter or so of the inodes, those that `pick` chooses.
    pub fn some(&self, pick: impl Fn(&Inode) -> bool) -> Vec<NodeNo> {
        const AT_ONCE: usize = SHARDS / 4;
        let first = self.next_shard.fetch_add(AT_ONCE, Ordering::Relaxed);
        let mut found = Vec::new();
        for shard in self
            .shards
            .iter()
            .cycle()
            .skip(first % SHARDS)
            .take(AT_ONCE)
        {
            let shard = lock(shard);
            let picked = shard.iter().filter(|slot| pick(&slot.inode));
            found.extend(picked.map(|slot| slot.inode.number()));
        }
        found
    }

    /// Has inodes found by their handles.
    pub fn index_by_handle(&self) {
        let index = self.index.get_or_init(Index::new);
        // What an earlier process has left. What is taken from now on sees to itself.
        for shard in &self.shards {
            for slot in lock(shard).iter() {
                index.insert(&slot.inode);
            }
        }
    }

    /// The inode with that handle, if the kernel remembers it.
    #[must_use]
    pub fn by_handle(&self, handle: &Handle) -> Option<Arc<Inode>> {
        let number = self.index.get()?.find(handle)?;
        self.get(number)
            .filter(|inode| inode.heard_by() == Some(handle))
    }

    /// Has an inode found by that handle, which keeps a descriptor and is told of from now on. Nothing if it was
    /// forgotten meanwhile.
    pub(super) fn hear_of(&self, inode: &Inode, handle: Handle) {
        let shard = lock(self.shard(inode.number()));
        let known = shard.get(&inode.number());
        if let Some(slot) = known.filter(|slot| std::ptr::eq(&raw const *slot.inode, inode))
            && slot.inode.is_heard(handle)
            && let Some(index) = self.index.get()
        {
            index.insert(&slot.inode);
        }
    }

    /// All of them, the root not counted.
    #[must_use]
    pub fn all(&self) -> Vec<NodeNo> {
        let numbers = |shard: &Mutex<HashSet<Slot>>| -> Vec<NodeNo> {
            let shard = lock(shard);
            shard.iter().map(|slot| slot.inode.number()).collect()
        };
        self.shards.iter().flat_map(numbers).collect()
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

/// Makes a shard smaller that has become mostly empty: to what leaves it half empty, so that it does not
/// grow again at once.
fn shrink(shard: &mut HashSet<Slot>) {
    if shard.capacity() > SMALL && shard.len() < shard.capacity() / 8 {
        shard.shrink_to(shard.len() * 2);
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
            drop(self.table.give_back(self.inode.number(), 1));
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
        Arc::new(Table::new(Arc::new(root), Counting::Here))
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
    fn some_and_some_more_are_all() {
        let table = table();
        for number in 2..1000 {
            take(&table, number).into_kernel();
        }
        let mut found = Vec::new();
        for _ in 0..4 {
            let some = table.some(|inode| inode.number().0 % 2 == 0);
            assert!((100..150).contains(&some.len()), "{}", some.len());
            found.extend(some);
        }
        found.sort();
        let even: Vec<NodeNo> = (2..1000).step_by(2).map(NodeNo).collect();
        assert_eq!(found, even);
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
