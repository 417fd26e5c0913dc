//! The records of the inodes that the kernel remembers.

use super::State;
use super::layout::{self, header, node};
use super::slots::Change;
use crate::sync::atomic::Ordering;
use crate::sync::lock;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub(super) u32);

impl Place {
    /// As a word of which 0 is none.
    pub(super) fn as_word(place: Option<Self>) -> u64 {
        place.map_or(0, |place| u64::from(place.0) + 1)
    }

    pub(super) fn from_word(word: u64) -> Option<Self> {
        u32::try_from(word.checked_sub(1)?).ok().map(Self)
    }

    /// The same for whoever keeps it in a number that is not 0.
    #[must_use]
    pub fn number(self) -> u64 {
        Self::as_word(Some(self))
    }

    /// The place that gave this [`Self::number`].
    #[must_use]
    pub fn of_number(number: u64) -> Option<Self> {
        Self::from_word(number)
    }
}

/// What is known of an inode besides its count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<B = Vec<u8>> {
    /// Its node number.
    pub number: u64,
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Its type, as `d_type` has it.
    pub kind: u8,
    /// When it was made, as `loopback` puts it.
    pub birth: u16,
    /// How it is reached.
    pub reach: Reach<B>,
}

/// How an inode is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach<B = Vec<u8>> {
    /// By its file handle: type and bytes.
    Handle(i32, B),
    /// By a descriptor that somebody keeps; its generation.
    Descriptor(u32),
}

/// What is noted of an inode, above its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Flag {
    /// A descriptor of it is kept outside of this process: see [`super::Keeper`].
    Kept = 1 << node::COUNT_BITS,
    /// It may be mapped for writing without a word to anybody.
    Mappable = 2 << node::COUNT_BITS,
    /// The kernel does not know it: only the count is of use, should it give that back after all.
    Aside = 4 << node::COUNT_BITS,
}

impl Flag {
    /// Whether it is among `flags`.
    #[must_use]
    pub fn is_in(self, flags: u64) -> bool {
        flags & self as u64 != 0
    }
}

const FLAGS: u64 = !((1 << node::COUNT_BITS) - 1);

/// Which places are free, in this process's own memory.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// For each page a bit for each place that is free.
    pages: Vec<u64>,
    /// Pages that may have a free place; the last comes first.
    roomy: Vec<u32>,
    /// How many have become empty since memory was given back.
    emptied: usize,
}

/// So many pages may be empty before it is worth giving them back.
const EMPTY: usize = 64;

impl Pool {
    /// With those places in use in `pages` pages.
    pub(super) fn new(pages: usize, used: &[Place]) -> Self {
        let mut pool = Self {
            pages: vec![!0; pages],
            ..Self::default()
        };
        for place in used {
            if let Some((page, bit)) = pool.page(*place) {
                *page &= !bit;
            }
        }
        let roomy = |(at, free): (usize, &u64)| (*free != 0).then(|| u32::try_from(at).ok())?;
        pool.roomy = pool.pages.iter().enumerate().filter_map(roomy).collect();
        pool
    }

    fn page(&mut self, Place(place): Place) -> Option<(&mut u64, u64)> {
        let (page, bit) = (place / IN_A_PAGE, place % IN_A_PAGE);
        let page = self.pages.get_mut(usize::try_from(page).ok()?)?;
        Some((page, 1 << bit))
    }

    /// A free place in a page that has one; `None` if there is none.
    fn take(&mut self) -> Option<Place> {
        loop {
            let at = *self.roomy.last()?;
            let page = self.pages.get_mut(usize::try_from(at).ok()?)?;
            if *page == 0 {
                self.roomy.pop();
                continue;
            }
            let bit = page.trailing_zeros();
            *page &= *page - 1;
            return Some(Place(at * IN_A_PAGE + bit));
        }
    }

    fn free(&mut self, place: Place) {
        let at = place.0 / IN_A_PAGE;
        let Some((page, bit)) = self.page(place) else {
            return;
        };
        let (before, now) = (*page, *page | bit);
        *page = now;
        if before == 0 {
            self.roomy.push(at);
        }
        self.emptied += usize::from(now == !0 && before != !0);
    }

    /// The pages that are empty, as runs, if there are enough of them.
    fn emptied(&mut self) -> Vec<(usize, usize)> {
        if self.emptied < EMPTY.max(self.pages.len() / 4) {
            return Vec::new();
        }
        self.emptied = 0;
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, _) in self
            .pages
            .iter()
            .enumerate()
            .filter(|(_, free)| **free == !0)
        {
            match runs.last_mut() {
                Some((from, count)) if *from + *count == at => *count += 1,
                _ => runs.push((at, 1)),
            }
        }
        runs
    }
}

#[allow(clippy::cast_possible_truncation)] // 64
const IN_A_PAGE: u32 = layout::IN_A_PAGE as u32;

impl State {
    fn stride(&self) -> usize {
        self.stride.load(Ordering::Relaxed)
    }

    fn at(&self, Place(place): Place) -> usize {
        layout::NODES + usize::try_from(place).unwrap_or(usize::MAX / 64) * self.stride()
    }

    fn in_page(&self) -> usize {
        layout::IN_A_PAGE * self.stride()
    }

    /// A free place; `None` when there is no more room, which is said once.
    fn place(&self) -> Option<Place> {
        let mut pool = lock(&self.nodes);
        if let Some(place) = pool.take() {
            return Some(place);
        }
        let pages = pool.pages.len();
        if (pages + 1) * self.in_page() > layout::NODE_WORDS {
            drop(pool);
            self.say_full("inodes");
            return None;
        }
        self.words.store(header::PAGES, pages as u64 + 1);
        pool.pages.push(!0);
        pool.roomy.push(u32::try_from(pages).ok()?);
        pool.take()
    }

    fn free(&self, place: Place) {
        let mut pool = lock(&self.nodes);
        pool.free(place);
        let runs = pool.emptied();
        // Under the lock, so that nobody uses them before they are given back.
        for (page, count) in runs {
            let from = layout::NODES + page * self.in_page();
            self.words.discard(from, count * self.in_page());
        }
    }

    /// A record for an inode that has become known, with a lookup count that the request in hand gives and, where
    /// it has taken the place of another one with the same number, that one's. `None` where there is no room.
    ///
    /// This and what follows is to be called under a lock that nobody else changes this node's count under.
    pub fn enter(&self, found: &Node<&[u8]>, instead_of: Option<Place>) -> Option<Place> {
        let bytes = match found.reach {
            Reach::Handle(_, bytes) => bytes,
            Reach::Descriptor(_) => &[],
        };
        if bytes.len() > (self.stride() - node::BYTES) * 8 {
            return None;
        }
        let place = self.place()?;
        let at = self.at(place);
        let before = instead_of.map_or(0, |place| self.lookups(place));
        self.words.store(at + node::NUMBER, found.number);
        self.words.store(at + node::DEVICE, found.device);
        self.words.store(at + node::INO, found.ino);
        let (kind, len) = match found.reach {
            Reach::Handle(kind, bytes) => (kind.cast_unsigned(), bytes.len() as u64),
            Reach::Descriptor(_) => (0, node::NO_HANDLE),
        };
        let what = u64::from(kind)
            | len << 32
            | u64::from(found.kind) << 40
            | u64::from(found.birth) << 48;
        self.words.store(at + node::WHAT, what);
        if let Reach::Descriptor(generation) = found.reach {
            self.words.store(at + node::BYTES, generation.into());
        }
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            if let Some(place) = word.get_mut(..chunk.len()) {
                place.copy_from_slice(chunk);
            }
            self.words
                .store(at + node::BYTES + index, u64::from_ne_bytes(word));
        }
        self.give(Change {
            place,
            count: before.saturating_add(1),
            instead_of,
            node: found.number,
        });
        if let Some(old) = instead_of {
            self.free(old);
        }
        Some(place)
    }

    /// One more lookup count on an inode, which the request in hand gives.
    pub fn count_up(&self, place: Place) {
        let at = self.at(place);
        let count = self.words.load(at + node::COUNT);
        self.give(Change {
            place,
            count: count.saturating_add(1),
            instead_of: None,
            node: self.words.load(at + node::NUMBER),
        });
    }

    /// Gives `count` lookup counts back; how many are left. `None` if there were not so many: then none is.
    /// With the last one the record is free.
    pub fn count_down(&self, place: Place, count: u64) -> Option<u64> {
        let at = self.at(place) + node::COUNT;
        let word = self.words.load(at);
        let left = (word & !FLAGS).checked_sub(count);
        let new = match left {
            Some(left) if left > 0 => word & FLAGS | left,
            _ => 0,
        };
        let number = self.words.load(self.at(place) + node::NUMBER);
        if count != 1 || !self.take_back(place, new, number) {
            self.words.store(at, new);
        }
        if new == 0 {
            self.free(place);
        }
        left
    }

    /// The count of an inode.
    #[must_use]
    pub fn lookups(&self, place: Place) -> u64 {
        self.words.load(self.at(place) + node::COUNT) & !FLAGS
    }

    /// What was noted of it.
    #[must_use]
    pub fn flags(&self, place: Place) -> u64 {
        self.words.load(self.at(place) + node::COUNT) & FLAGS
    }

    /// Notes something of it.
    pub fn note(&self, place: Place, flag: Flag) {
        let at = self.at(place) + node::COUNT;
        self.words.store(at, self.words.load(at) | flag as u64);
    }

    /// Notes that it does not hold any more.
    pub fn note_no_more(&self, place: Place, flag: Flag) {
        let at = self.at(place) + node::COUNT;
        self.words.store(at, self.words.load(at) & !(flag as u64));
    }

    /// Notes that the kernel does not know it, and nothing else of it any more.
    pub fn set_aside(&self, place: Place) {
        self.set_count(place, self.lookups(place) | Flag::Aside as u64);
    }

    /// Sets a count, and the flags above it.
    pub(super) fn set_count(&self, place: Place, word: u64) {
        self.words.store(self.at(place) + node::COUNT, word);
    }

    /// The inodes that are known, each with its place. To be called before anything is entered.
    #[must_use]
    pub fn known(&self) -> Vec<(Place, Node)> {
        let pages = self.words.load(header::PAGES);
        let pages = usize::try_from(pages).unwrap_or(0);
        let most = layout::NODE_WORDS.checked_div(self.in_page());
        let pages = pages.min(most.unwrap_or(0));
        let places = u32::try_from(pages * layout::IN_A_PAGE).unwrap_or(0);
        let all = (0..places).map(Place);
        let known: Vec<_> = all
            .filter(|place| self.lookups(*place) > 0)
            .map(|place| (place, self.node(place)))
            .collect();
        let used: Vec<Place> = known.iter().map(|(place, _)| *place).collect();
        *lock(&self.nodes) = Pool::new(pages, &used);
        known
    }

    fn node(&self, place: Place) -> Node {
        let at = self.at(place);
        let what = self.words.load(at + node::WHAT);
        let [k0, k1, k2, k3, len, kind, b0, b1] = what.to_le_bytes();
        let reach = if u64::from(len) == node::NO_HANDLE {
            let generation = self.words.load(at + node::BYTES);
            Reach::Descriptor(u32::try_from(generation).unwrap_or(0))
        } else {
            let words = (0..usize::from(len).div_ceil(8)).map(|index| at + node::BYTES + index);
            let mut bytes: Vec<u8> = words
                .flat_map(|at| self.words.load(at).to_ne_bytes())
                .collect();
            bytes.truncate(len.into());
            Reach::Handle(i32::from_le_bytes([k0, k1, k2, k3]), bytes)
        };
        Node {
            number: self.words.load(at + node::NUMBER),
            device: self.words.load(at + node::DEVICE),
            ino: self.words.load(at + node::INO),
            kind,
            birth: u16::from_le_bytes([b0, b1]),
            reach,
        }
    }
}
