//! The records of open files and directories.

use super::State;
use super::layout::{self, handle, header, slot};
use crate::sync::lock;

/// An open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The number that the kernel knows it by.
    pub number: u64,
    /// The node that is open.
    pub node: u64,
    /// The flags of open(2).
    pub flags: i32,
    /// Whether it is a directory.
    pub directory: bool,
    /// It is closed but for its backing file.
    pub closing: bool,
    /// How it is read and written, as `fuse` puts it; 0 if it was not said.
    pub way: u64,
}

/// Which places are free, in this process's own memory.
#[derive(Debug, Default)]
pub(super) struct Places {
    free: Vec<u32>,
    used: u32,
}

const PLACE: u64 = (1 << layout::HANDLE_BITS) - 1;

/// The place that a handle's number tells, which nobody is believed to have invented: what is found there has to
/// have the same number.
fn at(number: u64) -> usize {
    layout::HANDLES + usize::try_from(number & PLACE).unwrap_or(0) * handle::WORDS
}

impl State {
    /// A record of something that was opened, of which the request in hand tells; its number, which no other one
    /// ever has. `None` where there is no room.
    pub fn opened(&self, node: u64, flags: i32, directory: bool) -> Option<u64> {
        let place = {
            let mut places = lock(&self.handles);
            match places.free.pop() {
                Some(place) => place,
                None if places.used as usize >= layout::MOST_HANDLES => {
                    drop(places);
                    self.say_full("open files");
                    return None;
                }
                None => {
                    places.used += 1;
                    self.words.store(header::PLACES, places.used.into());
                    places.used - 1
                }
            }
        };
        let sequence = self.words.count_up(header::NEXT_HANDLE) + 1;
        let number = sequence << layout::HANDLE_BITS | u64::from(place);
        // First of all it is said that it will be: if it is there, and the answer was not sent, it is closed.
        if let Some(at) = self.slot_in_hand() {
            self.words.store(at + slot::HANDLE, number);
        }
        let at = at(number);
        self.words.store(at + handle::NODE, node);
        let kind = if directory { handle::DIRECTORY } else { 0 };
        self.words
            .store(at + handle::FLAGS, u64::from(flags.cast_unsigned()) | kind);
        self.words.store(at + handle::WAY, 0);
        self.words.store(at + handle::NUMBER, number);
        Some(number)
    }

    /// The record of an open file or directory.
    #[must_use]
    pub fn open_one(&self, number: u64) -> Option<Open> {
        let at = at(number);
        if number == 0 || self.words.load(at + handle::NUMBER) != number {
            return None;
        }
        let flags = self.words.load(at + handle::FLAGS);
        // The lower half, as it was put there.
        #[allow(clippy::cast_possible_truncation)]
        let lower = flags as u32;
        Some(Open {
            number,
            node: self.words.load(at + handle::NODE),
            flags: lower.cast_signed(),
            directory: flags & handle::DIRECTORY != 0,
            closing: flags & handle::CLOSING != 0,
            way: self.words.load(at + handle::WAY),
        })
    }

    /// Notes how it is read and written.
    pub fn note_way(&self, number: u64, way: u64) {
        if self.open_one(number).is_some() {
            self.words.store(at(number) + handle::WAY, way);
        }
    }

    /// Notes that it is closed but for its backing file, which others may have open too.
    pub fn note_closing(&self, number: u64) {
        if self.open_one(number).is_some() {
            let at = at(number) + handle::FLAGS;
            self.words.store(at, self.words.load(at) | handle::CLOSING);
        }
    }

    /// Notes the number of a backing file that was registered.
    pub fn note_backing(&self, id: u32) {
        if self.words.load(header::HIGHEST_BACKING) < id.into() {
            self.words.store(header::HIGHEST_BACKING, id.into());
        }
    }

    /// The highest such number, or one that others have noted at the same time.
    #[must_use]
    pub fn highest_backing(&self) -> u32 {
        u32::try_from(self.words.load(header::HIGHEST_BACKING)).unwrap_or(0)
    }

    /// It was closed.
    pub fn closed(&self, number: u64) {
        if self.open_one(number).is_some() {
            self.words.store(at(number) + handle::NUMBER, 0);
            lock(&self.handles)
                .free
                .push(u32::try_from(number & PLACE).unwrap_or(0));
        }
    }

    /// All that are open, and those that are about to be closed.
    #[must_use]
    pub fn all_open(&self) -> Vec<Open> {
        let one = |place| self.open_one(self.number_at(place));
        (0..self.places_used()).filter_map(one).collect()
    }

    /// Finds the places that are free. To be called before anything is opened or closed.
    pub(super) fn find_handles(&self) {
        let used = self.places_used();
        let free = (0..used).rev().filter(|place| self.number_at(*place) == 0);
        *lock(&self.handles) = Places {
            free: free.collect(),
            used,
        };
    }

    fn places_used(&self) -> u32 {
        let used = self.words.load(header::PLACES);
        u32::try_from(used.min(layout::MOST_HANDLES as u64)).unwrap_or(0)
    }

    /// The number of what is open at a place; 0 if nothing is.
    fn number_at(&self, place: u32) -> u64 {
        let number = self.words.load(at(place.into()) + handle::NUMBER);
        if number & PLACE == u64::from(place) {
            number
        } else {
            0
        }
    }
}
