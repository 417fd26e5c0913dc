//! Where everything is in the memory, in words of 64 bits: the numbers behind the picture in [`super`]. Whoever
//! changes one of them, or what it means, counts [`VERSION`] up.

/// "loopfs" and a byte that is no text.
pub(super) const MAGIC: u64 = 0x00ff_7366_706f_6f6c;
/// Of all that stands here.
pub(super) const VERSION: u64 = 1;

/// The header's words.
pub(super) mod header {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    pub(crate) const WORDS: usize = 2;
    /// Not 0 once a tree is served from it.
    pub(crate) const IN_USE: usize = 3;
    /// What SRC's root is.
    pub(crate) const ROOT_DEVICE: usize = 4;
    pub(crate) const ROOT_INO: usize = 5;
    /// Words of a node's record.
    pub(crate) const STRIDE: usize = 6;
    /// Pages of nodes, and places of handles, that have ever been used.
    pub(crate) const PAGES: usize = 7;
    pub(crate) const PLACES: usize = 8;
    /// What the next handle's number begins with.
    pub(crate) const NEXT_HANDLE: usize = 9;
    /// The next generation of an inode that has no handle.
    pub(crate) const NEXT_GENERATION: usize = 10;
    /// The key of hashed node numbers: two words.
    pub(crate) const KEY: usize = 11;
    /// How many other mounts have an index.
    pub(crate) const OTHERS: usize = 13;
    /// The highest number of a backing file that was registered.
    pub(crate) const HIGHEST_BACKING: usize = 14;
}

const HEADER: usize = 512;

/// Other mounts below SRC, each with mount id and device, by their index.
pub(super) const OTHERS: usize = HEADER;
pub(super) const MOST_OTHERS: usize = 1 << 13;

/// A word and a half for each thing that a request may leave half-done.
pub(super) mod slot {
    /// The request; 0: free.
    pub(crate) const UNIQUE: usize = 0;
    /// Not 0 when the answer may be on its way.
    pub(crate) const SENDING: usize = 1;
    /// How many lookup counts the answer gives: see [`super::GIVEN`].
    pub(crate) const GIVEN: usize = 2;
    /// The handle that it tells of, or 0.
    pub(crate) const HANDLE: usize = 3;
    /// A change of a count, to be done over: the node's place and 1, or 0 if there is none.
    pub(crate) const REDO: usize = 4;
    /// Its word [`super::node::COUNT`] then.
    pub(crate) const REDO_COUNT: usize = 5;
    /// The place and 1 of a node that it stands instead of, or 0.
    pub(crate) const REDO_INSTEAD: usize = 6;
    /// Which of the counts that were given it is, whose, and how many there are then.
    pub(crate) const REDO_AT: usize = 7;
    pub(crate) const REDO_NODE: usize = 8;
    pub(crate) const REDO_GIVEN: usize = 9;
    /// What it is about to do: a number that says which of the words that follow mean what, or 0.
    pub(crate) const INTENT: usize = 10;
    pub(crate) const ARGUMENTS: usize = 11;
    /// How many of those there are.
    pub(crate) const MOST_ARGUMENTS: usize = 10;
    pub(crate) const WORDS: usize = 24;
}

pub(super) const SLOTS: usize = OTHERS + 2 * MOST_OTHERS;
/// More than there are threads that answer requests: what fuse/workers.rs makes at most, and event loops.
pub(super) const MOST_SLOTS: usize = 1 << 11;

/// For each slot the numbers of the nodes of which lookup counts are given.
pub(super) const GIVEN: usize = SLOTS + slot::WORDS * MOST_SLOTS;
/// More than fit into the largest listing with attributes: 1 MiB, at 160 bytes for an entry.
pub(super) const MOST_GIVEN: usize = 1 << 13;

/// An open file or directory.
pub(super) mod handle {
    /// Its number; 0: free.
    pub(crate) const NUMBER: usize = 0;
    pub(crate) const NODE: usize = 1;
    /// The flags of open(2), whether it is a directory, and whether it is closed already, but for its backing file.
    pub(crate) const FLAGS: usize = 2;
    pub(crate) const DIRECTORY: u64 = 1 << 32;
    pub(crate) const CLOSING: u64 = 1 << 33;
    /// How it is read and written: 0 (not said), or what fuse/backing.rs makes of it.
    pub(crate) const WAY: usize = 3;
    pub(crate) const WORDS: usize = 4;
}

pub(super) const HANDLES: usize = GIVEN + MOST_GIVEN * MOST_SLOTS;
pub(super) const HANDLE_BITS: u32 = 20;
pub(super) const MOST_HANDLES: usize = 1 << HANDLE_BITS;

/// An inode that the kernel remembers.
pub(super) mod node {
    /// Its lookup count, and flags above that; 0: free.
    pub(crate) const COUNT: usize = 0;
    pub(crate) const NUMBER: usize = 1;
    pub(crate) const DEVICE: usize = 2;
    pub(crate) const INO: usize = 3;
    /// The type of its handle (32 bits), the length of that in bytes (8, [`NO_HANDLE`]: none), its `d_type`
    /// (8), when it was made (16).
    pub(crate) const WHAT: usize = 4;
    pub(crate) const NO_HANDLE: u64 = 0xff;
    /// The bytes of its handle, or its generation where it has none.
    pub(crate) const BYTES: usize = 5;
    /// With a handle of up to 24 bytes: ext4, xfs, tmpfs and btrfs.
    pub(crate) const SHORT: usize = 8;
    /// With one of any length: overlayfs.
    pub(crate) const LONG: usize = BYTES + 16;

    pub(crate) const COUNT_BITS: u32 = 48;
}

/// Nodes, in pages of so many.
pub(super) const NODES: usize = HANDLES + handle::WORDS * MOST_HANDLES;
pub(super) const IN_A_PAGE: usize = 64;
/// Room for 67 million short ones, 4 GiB. What is not used costs nothing.
pub(super) const NODE_WORDS: usize = 1 << 29;

/// All of it.
pub(super) const WORDS: usize = NODES + NODE_WORDS;

// A page of short records is a page of memory.
const _: () = assert!(NODES.is_multiple_of(HEADER) && IN_A_PAGE * node::SHORT == HEADER);
const _: () = assert!(slot::ARGUMENTS + slot::MOST_ARGUMENTS <= slot::WORDS);
