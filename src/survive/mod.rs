//! What outlives the process that serves: what the kernel was told, and what was begun. The next process goes on
//! with it (`--supervise`).
//!
//! It is in a memfd, as words of 64 bits, each of which is written at once. A process may be killed between any two
//! stores: all that stands before is there, nothing that stands after. So whatever needs more than one store is
//! either published by the last one or noted first, to be done over ([`slots`]).
//!
//! In this order ([`layout`] has the numbers; one that is not known is refused):
//!
//! ```text
//! header      magic, version, length; what SRC's root is; numbers that go on
//! others      mounts below SRC, by the index that their node numbers have
//! slots       for each request in hand: its number, what its answer gives, what it is about to do
//! given       for each slot the nodes of which its answer gives lookup counts
//! handles     open files and directories: number, node, flags, the way they are read and written
//! nodes       what the kernel remembers: lookup count, number, identity, file handle
//! ```
//!
//! What is not there: contents, names, attributes, locks. Those are SRC's.
//!
//! In reading order: [`words`] (the memory), [`nodes`], [`handles`], [`slots`].

mod handles;
#[cfg(test)]
pub(crate) mod kill;
mod layout;
mod nodes;
mod slots;
mod words;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use crate::sys::shared::Shared;

use layout::{header, node};
use words::Words;

pub use handles::Open;
pub use nodes::{Flag, Node, Place, Reach};
pub use slots::{Entered, Slot};

/// Descriptors that are kept outside of the process: of inodes that can't be found again without. One for each
/// node; another one for the same node takes its place.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// Keeps it, until it is given up or the mount is gone. Nobody waits for whoever keeps it.
    fn keep(&self, node: u64, object: BorrowedFd<'_>) -> io::Result<()>;
    /// It is not needed any more.
    fn give_up(&self, node: u64);
}

/// What a tree is served with that is to outlive its process.
#[derive(Debug)]
pub struct Survival {
    /// What the kernel knows.
    pub state: Arc<State>,
    /// Who keeps descriptors.
    pub keeper: Arc<dyn Keeper>,
    /// Those that were kept for an earlier process, by node.
    pub kept: HashMap<u64, OwnedFd>,
}

/// Why memory is not taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not ours, or can't be mapped.
    NotOurs,
    /// Another version of the program has another layout.
    Version(u64),
    /// It is about another directory.
    OtherSource,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => write!(f, "this is not the state of a mount"),
            Self::Version(version) => write!(
                f,
                "the state of this mount has layout {version}, and this program knows {}: unmount it, and mount it \
                 anew",
                layout::VERSION
            ),
            Self::OtherSource => write!(f, "the source is not the directory that it was"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// What an answer that was not sent would have given.
#[derive(Debug)]
pub struct Given {
    slot: u32,
    /// The nodes of which it gave a lookup count, the last one first.
    pub nodes: Vec<u64>,
    /// The number of what it opened.
    pub handle: Option<u64>,
}

/// What the kernel knows, in memory that outlives this process.
#[derive(Debug)]
pub struct State {
    words: Words,
    /// Words of a node's record; 0 until a tree is served.
    stride: AtomicUsize,
    nodes: Mutex<nodes::Pool>,
    handles: Mutex<handles::Places>,
    slots: Mutex<slots::Pool>,
    said_full: AtomicBool,
}

impl State {
    /// How many bytes that may come to be. Only what is written to takes memory.
    pub const SIZE: usize = layout::WORDS * size_of::<u64>();

    /// New memory, blank.
    pub fn create() -> io::Result<Self> {
        let words = Words::new(Shared::create("loopfs-state", layout::WORDS)?);
        words.store(header::VERSION, layout::VERSION);
        words.store(header::WORDS, layout::WORDS as u64);
        words.store(header::MAGIC, layout::MAGIC);
        Ok(Self::over(words))
    }

    /// The memory that an earlier process has left. Nothing is changed in it unless it can be read.
    pub fn open(memory: OwnedFd) -> Result<Self, Unreadable> {
        let memory = Shared::map(memory).map_err(|_| Unreadable::NotOurs)?;
        let words = Words::new(memory);
        if words.load(header::MAGIC) != layout::MAGIC {
            return Err(Unreadable::NotOurs);
        }
        let version = words.load(header::VERSION);
        if version != layout::VERSION {
            return Err(Unreadable::Version(version));
        }
        let is_whole =
            words.len() == layout::WORDS && words.load(header::WORDS) == layout::WORDS as u64;
        let stride = words.load(header::STRIDE);
        if !is_whole || ![0, node::SHORT as u64, node::LONG as u64].contains(&stride) {
            return Err(Unreadable::NotOurs);
        }
        Ok(Self::over(words))
    }

    fn over(words: Words) -> Self {
        let stride = usize::try_from(words.load(header::STRIDE)).unwrap_or(0);
        Self {
            words,
            stride: AtomicUsize::new(stride),
            nodes: Mutex::default(),
            handles: Mutex::default(),
            slots: Mutex::default(),
            said_full: AtomicBool::new(false),
        }
    }

    /// Whether nothing was served from it yet.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.words.load(header::IN_USE) == 0
    }

    /// Serves a tree from it that has that root (device and inode number), and inodes with handles of about that many
    /// bytes. What the answers would have given that were not sent is to be taken back, before anything else is done.
    pub fn take_over(&self, root: (u64, u64), handle: usize) -> Result<Vec<Given>, Unreadable> {
        if self.is_blank() {
            let is_short = handle <= (node::SHORT - node::BYTES) * 8;
            let stride = if is_short { node::SHORT } else { node::LONG };
            self.words.store(header::STRIDE, stride as u64);
            self.stride.store(stride, Ordering::Relaxed);
            self.words.store(header::ROOT_DEVICE, root.0);
            self.words.store(header::ROOT_INO, root.1);
            self.words.store(header::IN_USE, 1);
        }
        let was = (
            self.words.load(header::ROOT_DEVICE),
            self.words.load(header::ROOT_INO),
        );
        if was != root {
            return Err(Unreadable::OtherSource);
        }
        self.find_handles();
        let unsent = self.find_slots();
        Ok(unsent
            .into_iter()
            .map(|index| self.given_by(index))
            .collect())
    }

    /// A generation that no inode had before.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.words.count_up(header::NEXT_GENERATION) + 1
    }

    /// The key of hashed numbers; `new` if there is none yet.
    #[must_use]
    pub fn key(&self, new: (u64, u64)) -> (u64, u64) {
        if self.words.load(header::KEY) == 0 {
            self.words.store(header::KEY + 1, new.1);
            self.words.store(header::KEY, new.0.max(1));
        }
        (
            self.words.load(header::KEY),
            self.words.load(header::KEY + 1),
        )
    }

    /// Notes another mount, as the next one that has an index.
    pub fn add_other(&self, (mount, device): (u64, u64)) {
        let count = self.words.load(header::OTHERS);
        if let Some(at) = usize::try_from(count)
            .ok()
            .filter(|at| *at < layout::MOST_OTHERS)
        {
            self.words.store(layout::OTHERS + 2 * at, mount);
            self.words.store(layout::OTHERS + 2 * at + 1, device);
            self.words.store(header::OTHERS, count + 1);
        }
    }

    /// The other mounts, in the order of their indices.
    #[must_use]
    pub fn others(&self) -> Vec<(u64, u64)> {
        let count = usize::try_from(self.words.load(header::OTHERS)).unwrap_or(0);
        let others = 0..count.min(layout::MOST_OTHERS);
        let other = |at: usize| {
            let at = layout::OTHERS + 2 * at;
            (self.words.load(at), self.words.load(at + 1))
        };
        others.map(other).collect()
    }

    fn say_full(&self, what: &str) {
        if !self.said_full.swap(true, Ordering::Relaxed) {
            log::warn!("there are too many {what}: some would not survive a restart");
        }
    }
}

impl AsFd for State {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
