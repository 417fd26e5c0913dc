//! What the kernel should forget: the word between the requests that notice and the one who can do
//! something about it, by asking the kernel. When descriptors run short, inodes that keep one each; and at any
//! time those that may be mapped for writing although nobody has them open any more, because nothing of them is
//! remembered as long as they are known ([`Inode::is_mappable`]). The kernel knows of mappings, and forgets none that has one.
//!
//! That asking can't be done from within a request: the kernel may need other requests answered before
//! it has forgotten. So the core says that it is short, and whoever serves it waits for that on a
//! thread of its own.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Loopback;
use super::inode::{Inode, NodeNo};
use crate::sync::{Condvar, Mutex, PoisonError, lock};

/// How long a request waits for relief at most. It comes in a millisecond or so, unless the kernel
/// needs this very request answered first.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long after its first inode a batch of those that nobody has open is closed: whoever has just asked for one of them is
/// to be done with it.
const GATHERING: Duration = Duration::from_millis(10);

/// How many of them there are in a batch at most; the others come up again.
const MOST_GATHERED: usize = 1 << 12;

/// A flag to raise and to wait for.
#[derive(Debug)]
pub struct Shortage {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // they have nothing to do with each other
struct State {
    /// Somebody waits for shortages, or is doing something about one.
    heard: bool,
    /// There will be no more.
    over: bool,
    /// Told, and not heard yet.
    short: bool,
    /// What is being done is about a shortage.
    relieving: bool,
    /// How often something has been done about one.
    reliefs: u64,
    /// Inodes that nobody has open.
    closed: HashSet<NodeNo>,
    /// When there is to be something done about them.
    due: Option<Instant>,
}

/// What there is to be done.
#[derive(Debug)]
struct Wanted {
    /// Descriptors are short.
    short: bool,
    /// Nobody has these open.
    closed: HashSet<NodeNo>,
}

impl Shortage {
    /// Nothing is short, and nobody waits for it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Whether somebody will do something about a shortage.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        lock(&self.state).heard
    }

    /// Descriptors are short. Never waits.
    pub fn tell(&self) {
        lock(&self.state).short = true;
        self.changed.notify_all();
    }

    /// Nobody has an inode open that may be mapped. Never waits.
    fn tell_closed(&self, node: NodeNo) {
        let mut state = lock(&self.state);
        if !state.heard || state.closed.len() >= MOST_GATHERED || !state.closed.insert(node) {
            return;
        }
        if state.due.is_none() {
            state.due = Some(Instant::now() + GATHERING);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits until something has been done about a shortage that was told; false if nobody did in time.
    ///
    /// What the kernel gives back then comes before other requests, to a single event loop too.
    pub fn wait_for_relief(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut state = lock(&self.state);
        let before = state.reliefs;
        while state.heard && state.reliefs == before {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.changed.wait_timeout(state, left);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.reliefs != before
    }

    /// Nobody is to wait any more.
    fn end(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        state.heard = false;
        self.changed.notify_all();
    }

    /// Waits until there is something to be done; `None` when there will be no more. To be called again
    /// when it has been done.
    fn wait(&self) -> Option<Wanted> {
        let mut state = lock(&self.state);
        if state.heard && state.relieving {
            state.reliefs += 1;
            self.changed.notify_all();
        }
        state.heard = !state.over;
        while !state.over && !state.short {
            let left = state
                .due
                .map(|due| due.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.relieving = std::mem::take(&mut state.short);
        state.due = None;
        let closed = std::mem::take(&mut state.closed);
        let short = state.relieving;
        (!state.over).then_some(Wanted { short, closed })
    }
}

impl Default for Shortage {
    fn default() -> Self {
        Self::new()
    }
}

impl Loopback {
    /// Waits until there are inodes for the kernel to forget if it can: when descriptors run short, a part of those that
    /// keep one each. `None` after [`Self::end_of_shortages`].
    #[must_use]
    pub fn next_to_forget(&self) -> Option<Vec<NodeNo>> {
        let Wanted { short, closed } = self.descriptors.shortage().wait()?;
        let mut nodes: Vec<NodeNo> = closed.into_iter().collect();
        if short {
            nodes.extend(self.table.some(Inode::keeps_descriptor));
        }
        Some(nodes)
    }

    /// Nobody has an inode open: has the kernel asked to forget it if it may still be mapped, as far as is known here.
    pub fn is_closed(&self, node: NodeNo) {
        if self
            .table
            .get(node)
            .is_some_and(|inode| inode.is_mappable())
        {
            self.descriptors.shortage().tell_closed(node);
        }
    }

    /// Ends the waiting for the next shortage, now and later.
    pub fn end_of_shortages(&self) {
        self.descriptors.shortage().end();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_relief_waits_until_something_was_done_and_no_longer() {
        let shortage = Shortage::new();
        shortage.tell();
        assert!(!shortage.is_heard() && !shortage.wait_for_relief());
        let rounds = std::thread::scope(|scope| {
            let relieving = scope.spawn(|| {
                let mut rounds = 0;
                while shortage.wait().is_some() {
                    rounds += 1;
                }
                rounds
            });
            while !shortage.is_heard() {
                std::thread::yield_now();
            }
            shortage.tell();
            let relieved = shortage.wait_for_relief();
            shortage.end();
            assert!(relieved || shortage.state.lock().is_ok_and(|state| state.reliefs > 0));
            relieving.join()
        });
        assert!(rounds.is_ok_and(|rounds| rounds > 0));
        shortage.tell();
        assert!(!shortage.is_heard() && !shortage.wait_for_relief());
        assert!(shortage.wait().is_none());
    }

    #[test]
    fn what_nobody_has_open_is_gathered_and_relieves_nobody() {
        let shortage = Shortage::new();
        shortage.tell_closed(NodeNo(6));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| shortage.wait());
            while !shortage.is_heard() {
                std::thread::yield_now();
            }
            for number in [7, 8, 7] {
                shortage.tell_closed(NodeNo(number));
            }
            let wanted = first.join().ok().flatten();
            let wanted = wanted.map(|wanted| (wanted.short, wanted.closed));
            assert_eq!(wanted, Some((false, HashSet::from([NodeNo(7), NodeNo(8)]))));
        });
        shortage.end();
        assert!(shortage.wait().is_none());
        assert!(shortage.state.lock().is_ok_and(|state| state.reliefs == 0));
    }
}
