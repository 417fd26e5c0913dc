//! Processes that wait for each other's record locks: EDEADLK, as `posix_locks_deadlock` has it in the
//! kernel. Only what is locked through the mount is known, and only processes count: a lock of an open
//! file may be given up by somebody who does not wait.

use super::lock::{Access, Asked, Locks};
use crate::error::{Error, Result};
use crate::sync::{Mutex, lock};
use crate::sys::caller::waits_for_process_lock;

/// Requests for record locks that wait.
#[derive(Debug, Default)]
pub(super) struct Blocked(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    waiting: Vec<Request>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    number: u64,
    asked: Asked,
    access: Access,
    caller: u32,
}

impl Blocked {
    /// A request is about to wait, until the guard is dropped; EDEADLK if those whom it would wait for
    /// wait for it.
    pub(super) fn enter(
        &self,
        locks: &Locks,
        asked: &Asked,
        access: Access,
        caller: u32,
    ) -> Result<Entry<'_>> {
        // Of two that complete a circle together, the second one to come here finds the first.
        let mut list = lock(&self.0);
        let request = Request {
            number: list.next,
            asked: *asked,
            access,
            caller,
        };
        if list.would_wait_for_itself(locks, &request) {
            return Err(Error::DEADLOCK);
        }
        list.next += 1;
        list.waiting.push(request);
        Ok(Entry {
            blocked: self,
            number: request.number,
        })
    }
}

impl List {
    /// Whether somebody who waits for the owner of `new`, or for one who does, keeps `new` waiting.
    ///
    /// From that end, because as a rule nobody waits for somebody new, and that is all it takes to know.
    fn would_wait_for_itself(&self, locks: &Locks, new: &Request) -> bool {
        let mut waiting = vec![new.asked.owner];
        let mut next = 0;
        while let Some(owner) = waiting.get(next).copied() {
            next += 1;
            for request in &self.waiting {
                if !waiting.contains(&request.asked.owner)
                    && request.waits_for(locks, owner)
                    && waits_for_process_lock(request.caller)
                {
                    waiting.push(request.asked.owner);
                }
            }
        }
        let mut others = waiting.into_iter().skip(1);
        others.any(|owner| new.waits_for(locks, owner)) && waits_for_process_lock(new.caller)
    }
}

impl Request {
    fn waits_for(&self, locks: &Locks, owner: u64) -> bool {
        owner != self.asked.owner
            && locks
                .held_by(self.asked.node, owner)
                .into_iter()
                .any(|(access, range)| {
                    range.meets(self.asked.range)
                        && (access == Access::Exclusive || self.access == Access::Exclusive)
                })
    }
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    blocked: &'a Blocked,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.blocked.0)
            .waiting
            .retain(|request| request.number != self.number);
    }
}
