//! What each request that is in hand may leave half-done: its slot.
//!
//! A thread that works on a request has its slot in hand ([`Slot::enter`]); what it changes meanwhile is noted
//! there. When the answer has been sent, the slot is free again.
//!
//! A process that is killed leaves slots behind. Those whose answer was not about to be sent have what they give
//! taken back at once by the next process; the others may have been answered, and stay as they are unless the
//! request comes again. What a request was about to do is kept for that, until its place is needed.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;

use super::layout::{self, slot};
use super::nodes::Place;
use super::{Given, State};
use crate::sync::{Arc, lock};

/// Set in the number of a request that comes again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

/// Slots that are free, and those that an earlier process has left.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Vec<u32>,
    /// By request.
    left: HashMap<u64, u32>,
    /// The same, the oldest first; some may have been taken since.
    oldest: VecDeque<u64>,
}

impl Pool {
    /// The slot of a request that nobody will ask for any more: so many have come since.
    fn forget_oldest(&mut self) -> Option<u32> {
        loop {
            let request = self.oldest.pop_front()?;
            if let Some(index) = self.left.remove(&request) {
                return Some(index);
            }
        }
    }
}

/// A change of a count by the request in hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) place: Place,
    pub(super) count: u64,
    pub(super) instead_of: Option<Place>,
    pub(super) node: u64,
}

/// What the thread has in hand: of which memory (by its address), and which slot.
#[derive(Debug, Clone, Copy)]
struct InHand {
    state: usize,
    index: u32,
    again: bool,
}

thread_local!(static IN_HAND: Cell<Option<InHand>> = const { Cell::new(None) });

/// The slot of a request, until that is answered.
#[derive(Debug)]
#[must_use = "dropping it says that the request was answered"]
pub struct Slot {
    state: Arc<State>,
    index: u32,
    again: bool,
}

impl Slot {
    /// This thread has the request in hand until the guard is dropped.
    pub fn enter(&self) -> Entered {
        let now = InHand {
            state: self.state.address(),
            index: self.index,
            again: self.again,
        };
        Entered {
            before: IN_HAND.replace(Some(now)),
            _not_send: PhantomData,
        }
    }

    /// The answer is about to be sent: from now on it may have arrived.
    pub fn sending(&self) {
        let at = at(self.index);
        self.state.words.store(at + slot::SENDING, 1);
    }

    /// Whether the request came before, to a process that is gone.
    #[must_use]
    pub fn comes_again(&self) -> bool {
        self.again
    }

    /// What was given by an answer that did not arrive: to be taken back before anything is done.
    #[must_use]
    pub fn given(&self) -> Given {
        self.state.given_by(self.index)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state.clear(self.index);
        lock(&self.state.slots).free.push(self.index);
    }
}

/// A thread has a request in hand.
#[derive(Debug)]
#[must_use = "the request is in hand until this is dropped"]
pub struct Entered {
    before: Option<InHand>,
    _not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        IN_HAND.set(self.before);
    }
}

fn at(index: u32) -> usize {
    layout::SLOTS + usize::try_from(index).unwrap_or(0) * slot::WORDS
}

fn given_at(index: usize) -> usize {
    let slot = (index - layout::SLOTS) / slot::WORDS;
    layout::GIVEN + slot * layout::MOST_GIVEN
}

impl State {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn in_hand(&self) -> Option<InHand> {
        IN_HAND.get().filter(|now| now.state == self.address())
    }

    /// Where the slot is that this thread has in hand.
    pub(super) fn slot_in_hand(&self) -> Option<usize> {
        self.in_hand().map(|now| at(now.index))
    }

    /// A slot for a request. `None` where there are too many: then nothing of it is noted.
    #[must_use]
    pub fn begin(self: &Arc<Self>, unique: u64) -> Option<Slot> {
        let request = unique & !RESENT;
        let mut slots = lock(&self.slots);
        let left = (unique & RESENT != 0).then(|| slots.left.remove(&request));
        if let Some(index) = left.flatten() {
            return Some(Slot {
                state: Arc::clone(self),
                index,
                again: true,
            });
        }
        let index = slots.free.pop().or_else(|| slots.forget_oldest())?;
        drop(slots);
        self.clear(index);
        self.words.store(at(index) + slot::UNIQUE, request);
        Some(Slot {
            state: Arc::clone(self),
            index,
            again: false,
        })
    }

    /// Frees a slot, and makes it ready for the next request.
    fn clear(&self, index: u32) {
        let at = at(index);
        // The first word first: without that, nobody looks at the others.
        for word in [
            slot::UNIQUE,
            slot::SENDING,
            slot::GIVEN,
            slot::HANDLE,
            slot::REDO,
            slot::INTENT,
        ] {
            if self.words.load(at + word) != 0 {
                self.words.store(at + word, 0);
            }
        }
    }

    /// The slots that an earlier process has left, with what was begun finished; those to be taken back from at
    /// once.
    pub(super) fn find_slots(&self) -> Vec<u32> {
        let (mut unsent, mut slots) = (Vec::new(), Pool::default());
        for index in (0..u32::try_from(layout::MOST_SLOTS).unwrap_or(0)).rev() {
            let at = at(index);
            let request = self.words.load(at + slot::UNIQUE);
            if request == 0 {
                self.clear(index);
                slots.free.push(index);
                continue;
            }
            self.redo(at);
            slots.left.insert(request, index);
            slots.oldest.push_back(request);
            if self.words.load(at + slot::SENDING) == 0 {
                unsent.push(index);
            }
        }
        *lock(&self.slots) = slots;
        unsent
    }

    pub(super) fn given_by(&self, index: u32) -> Given {
        let at = at(index);
        let count = usize::try_from(self.words.load(at + slot::GIVEN)).unwrap_or(0);
        let nodes = (0..count.min(layout::MOST_GIVEN)).rev();
        let nodes = nodes.map(|index| self.words.load(given_at(at) + index));
        Given {
            slot: index,
            nodes: nodes.filter(|node| *node != 0).collect(),
            handle: Some(self.words.load(at + slot::HANDLE)).filter(|handle| *handle != 0),
        }
    }

    /// This thread has a slot in hand that an earlier process left.
    pub fn enter_left(&self, given: &Given) -> Entered {
        let now = InHand {
            state: self.address(),
            index: given.slot,
            again: true,
        };
        Entered {
            before: IN_HAND.replace(Some(now)),
            _not_send: PhantomData,
        }
    }

    /// All that a slot gave has been taken back.
    pub fn taken_back(&self, given: &Given) {
        let at = at(given.slot);
        self.words.store(at + slot::HANDLE, 0);
        self.words.store(at + slot::SENDING, 0);
    }

    /// Changes a count, and notes in the slot in hand that its answer gives it.
    pub(super) fn give(&self, change: Change) {
        let flags = self.flags(change.place);
        let word = flags | change.count;
        let given = self.slot_in_hand().map(|at| {
            let given = self.words.load(at + slot::GIVEN);
            (at, given)
        });
        match given {
            Some((at, given)) if given < layout::MOST_GIVEN as u64 => {
                self.do_journaled(at, change, word, (given, given + 1));
            }
            _ => {
                self.set_count(change.place, word);
                if let Some(old) = change.instead_of {
                    self.set_count(old, 0);
                }
            }
        }
    }

    /// Takes back a count that the request in hand gave, with `word` as the count's word; false if it gave none.
    pub(super) fn take_back(&self, place: Place, word: u64, node: u64) -> bool {
        let Some(at) = self.slot_in_hand() else {
            return false;
        };
        let given = self.words.load(at + slot::GIVEN);
        let list = given_at(at);
        let find = |index: &u64| {
            let index = usize::try_from(*index).unwrap_or(0);
            self.words.load(list + index) == node
        };
        let Some(index) = (0..given).rev().find(find) else {
            return false;
        };
        let left = if index + 1 == given { index } else { given };
        let change = Change {
            place,
            count: word,
            instead_of: None,
            node: 0,
        };
        self.do_journaled(at, change, word, (index, left));
        true
    }

    fn do_journaled(&self, at: usize, change: Change, word: u64, (index, given): (u64, u64)) {
        let instead = Place::as_word(change.instead_of);
        self.words.store(at + slot::REDO_COUNT, word);
        self.words.store(at + slot::REDO_INSTEAD, instead);
        self.words.store(at + slot::REDO_AT, index);
        self.words.store(at + slot::REDO_NODE, change.node);
        self.words.store(at + slot::REDO_GIVEN, given);
        self.words
            .store(at + slot::REDO, Place::as_word(Some(change.place)));
        self.redo(at);
    }

    /// Does the change that a slot says, which may have been done already, or in part.
    fn redo(&self, at: usize) {
        let Some(place) = Place::from_word(self.words.load(at + slot::REDO)) else {
            return;
        };
        self.set_count(place, self.words.load(at + slot::REDO_COUNT));
        if let Some(old) = Place::from_word(self.words.load(at + slot::REDO_INSTEAD)) {
            self.set_count(old, 0);
        }
        let index = self.words.load(at + slot::REDO_AT);
        let index = usize::try_from(index)
            .unwrap_or(0)
            .min(layout::MOST_GIVEN - 1);
        let node = self.words.load(at + slot::REDO_NODE);
        self.words.store(given_at(at) + index, node);
        let given = self.words.load(at + slot::REDO_GIVEN);
        self.words.store(at + slot::GIVEN, given);
        self.words.store(at + slot::REDO, 0);
    }

    /// Whether this thread has a request in hand.
    #[must_use]
    pub fn is_in_hand(&self) -> bool {
        self.in_hand().is_some()
    }

    /// Notes what the request in hand is about to do: a number that is not 0, and what else it takes to see later
    /// whether it was done.
    pub fn intend(&self, what: u64, arguments: &[u64]) {
        let Some(at) = self.slot_in_hand() else {
            return;
        };
        for (index, argument) in arguments.iter().take(slot::MOST_ARGUMENTS).enumerate() {
            self.words.store(at + slot::ARGUMENTS + index, *argument);
        }
        self.words.store(at + slot::INTENT, what);
    }

    /// What the request in hand was about to do when it came before; `None` if it did not come before, or had not
    /// got so far.
    #[must_use]
    pub fn intended(&self) -> Option<(u64, [u64; slot::MOST_ARGUMENTS])> {
        let now = self.in_hand().filter(|now| now.again)?;
        let at = at(now.index);
        let what = self.words.load(at + slot::INTENT);
        let argument = |index| self.words.load(at + slot::ARGUMENTS + index);
        (what != 0).then(|| (what, std::array::from_fn(argument)))
    }
}
