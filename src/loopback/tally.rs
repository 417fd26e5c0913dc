//! How lookups are counted: in the table itself, or in memory that outlives this process.

use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;

use super::inode::{Inode, NodeNo};
use crate::survive::{Flag, Keeper, Place, State};
use crate::sync::Arc;

/// Where lookups are counted.
#[derive(Debug)]
pub enum Counting {
    /// In the tallies themselves.
    Here,
    /// In records that a later process finds: a tally is where one is.
    Outliving(Arc<State>, Arc<dyn Keeper>),
}

/// What the table has for an inode's count: that, or where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally(NonZeroU64);

/// In a tally that could be a place: it is a count nevertheless, because there was no room for a record.
const COUNT: u64 = 1 << 63;

impl Tally {
    fn count(count: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(count.saturating_sub(1)))
    }

    /// The one that is counted at `place`.
    pub(super) fn of(place: Place) -> Self {
        Self::count(place.number())
    }

    fn unrecorded(count: u64) -> Self {
        Self::count(COUNT | count)
    }

    fn place(self) -> Option<Place> {
        let number = self.0.get();
        Place::of_number(number).filter(|_| number & COUNT == 0)
    }

    fn unrecorded_count(self) -> u64 {
        self.0.get() & !COUNT
    }
}

impl Counting {
    /// The memory that outlives this process, if there is any.
    #[must_use]
    pub fn state(&self) -> Option<Arc<State>> {
        match self {
            Self::Here => None,
            Self::Outliving(state, _) => Some(Arc::clone(state)),
        }
    }

    fn outliving(&self) -> Option<(&State, &dyn Keeper)> {
        match self {
            Self::Here => None,
            Self::Outliving(state, keeper) => Some((state, keeper.as_ref())),
        }
    }

    /// Where a tally's count is, if that is a record.
    fn record(&self, tally: Tally) -> Option<(&State, Place)> {
        let (state, _) = self.outliving()?;
        Some((state, tally.place()?))
    }

    /// The tally of an inode that becomes known with one lookup; and those of another one in whose place it comes.
    pub(super) fn enter(&self, found: &Inode, instead_of: Option<Tally>) -> Tally {
        let Some((state, _)) = self.outliving() else {
            return instead_of.map_or(Tally::count(1), |before| self.up(before));
        };
        let before = instead_of.and_then(Tally::place);
        if let Some(place) = state.enter(&found.record(), before) {
            return Tally::of(place);
        }
        let count = match (before, instead_of) {
            (Some(place), _) => {
                let count = state.lookups(place);
                state.count_down(place, count);
                count
            }
            (None, Some(before)) => before.unrecorded_count(),
            (None, None) => 0,
        };
        Tally::unrecorded(count + 1)
    }

    /// One lookup more.
    pub(super) fn up(&self, tally: Tally) -> Tally {
        match self.record(tally) {
            Some((state, place)) => {
                state.count_up(place);
                tally
            }
            // 2^63 lookups can't be outstanding; should they be, a count that sticks leaks one inode,
            // a count that wraps would free one in use.
            None => Tally(tally.0.saturating_add(1)),
        }
    }

    /// So many fewer: how many are left, if there were so many. With the last one its record is gone.
    pub(super) fn down(&self, tally: Tally, count: u64) -> (Option<u64>, Tally) {
        if let Some((state, place)) = self.record(tally) {
            return (state.count_down(place, count), tally);
        }
        let mark = if self.outliving().is_some() { COUNT } else { 0 };
        let left = (tally.0.get() & !mark).checked_sub(count);
        let new = left.map_or(tally, |left| Tally::count(mark | left));
        (left, new)
    }

    /// Whether a descriptor of an inode is kept outside of this process.
    pub(super) fn is_kept(&self, tally: Tally) -> bool {
        self.record(tally)
            .is_some_and(|(state, place)| Flag::Kept.is_in(state.flags(place)))
    }

    /// Notes something of an inode.
    pub(super) fn note(&self, tally: Tally, flag: Flag) {
        if let Some((state, place)) = self.record(tally) {
            state.note(place, flag);
        }
    }

    /// It does not hold any more.
    pub(super) fn note_no_more(&self, tally: Tally, flag: Flag) {
        if let Some((state, place)) = self.record(tally) {
            state.note_no_more(place, flag);
        }
    }

    /// Notes that the kernel does not know an inode, but may give its count back. False if that is not noted: it is not from an
    /// earlier process.
    pub(super) fn set_aside(&self, tally: Tally) -> bool {
        let record = self.record(tally);
        if let Some((state, place)) = record {
            state.set_aside(place);
        }
        record.is_some()
    }

    /// Has a descriptor kept outside of this process; whether it is.
    pub(super) fn keep(&self, node: NodeNo, object: BorrowedFd<'_>) -> bool {
        let Some((_, keeper)) = self.outliving() else {
            return false;
        };
        let kept = keeper.keep(node.0, object);
        if let Err(error) = &kept {
            log::debug!("node {} would not survive a restart: {error}", node.0);
        }
        kept.is_ok()
    }

    /// One that is kept is not needed any more.
    pub(super) fn give_up(&self, node: NodeNo) {
        if let Some((_, keeper)) = self.outliving() {
            keeper.give_up(node.0);
        }
    }
}
