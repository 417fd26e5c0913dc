//! Locks that are taken in SRC too (`--forward-locks`): flock(2), and the record locks of fcntl(2), of a
//! process (POSIX) or of an open file (OFD).
//!
//! The kernel hands each lock on with a number for its owner, and tells what ends it: an unlock, the
//! closing of a descriptor by that owner (FLUSH), or the end of an open file (RELEASE). In SRC
//!
//! - flock is taken on the handle's own open file description: the kernel's open file and ours live
//!   and die together;
//! - record locks are OFD locks of an open file description that an owner has for each file that it
//!   locks, a [`Holder`]. Whether the owner is a process or an open file need not be known: closing
//!   ends what was locked by that process, the release what was locked through that open file.
//!
//! All of it rests on the FLUSH of each close: `FOPEN_NOFLUSH` is not for files that are locked so.
//!
//! No call here waits, apart from [`Locks::lock`] and, for a moment, [`Locks::lock_when_released`]: they
//! are for threads that have nothing else to do, and another one ends the long wait through the [`Waiter`].
//!
//! What a lock protects has to be seen as it is: [`Granted`] says when the file is no longer what it was
//! when the kernel's cache of it was known to be true.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Loopback;
use super::deadlock::Blocked;
use super::handle::FileHandle;
use super::inode::NodeNo;
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock};
use crate::sys::lock as sys;

pub use crate::sys::lock::{Access, Held, Range};

/// How long after a close the end of the open file may take to reach us: RELEASE comes when close(2)
/// has returned already (`fuse_file_put`). Its locks are still there meanwhile.
const CLOSING: Duration = Duration::from_millis(250);

/// A file system's clock may stand still for as long: two ticks of the slowest kernel (`HZ` of 100).
const TICK: Duration = Duration::from_millis(20);

/// Which of the two kinds of locks, which don't see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// flock(2), always of the whole file.
    Flock,
    /// fcntl(2).
    Record,
}

/// What a request for a lock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The file.
    pub node: NodeNo,
    /// The open file through which it is asked for.
    pub handle: u64,
    /// The kernel's number for the owner.
    pub owner: u64,
    /// The process that asks; 0 where we don't see it.
    pub process: u32,
    /// Of which kind.
    pub kind: Kind,
    /// On which bytes.
    pub range: Range,
}

/// A lock was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what the kernel remembers of the file may be out of date"]
pub struct Granted {
    /// The file is not what it was when the kernel's cache was known to be true, at the latest request
    /// through this open file: before the owner reads, it has to be thrown away. How the file is now is
    /// for [`Locks::cache_is_true`] afterwards.
    pub changed: Option<Stamp>,
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The lock was free.
    Granted(Granted),
    /// Somebody has it.
    Held {
        /// It may be one that was given up just now by closing the file: until then it is worth waiting.
        until: Option<Instant>,
    },
}

/// What tells two states of a file apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
    /// The file's clock has moved on since the last change: the next one can be told from it.
    settled: bool,
}

/// Locks, by owner and by open file.
#[derive(Debug)]
pub struct Locks {
    tree: Arc<Loopback>,
    table: Mutex<Table>,
    released: Condvar,
    blocked: Blocked,
}

#[derive(Debug, Default)]
struct Table {
    holders: BTreeMap<(NodeNo, u64), Arc<Holder>>,
    /// The open files through which locks were asked for.
    handles: BTreeMap<(NodeNo, u64), Used>,
    /// How many of them have been released, with all that was locked through them.
    releases: u64,
    /// How many are being released: what was locked through them may be still.
    ending: usize,
}

#[derive(Debug, Default)]
struct Used {
    /// Who asked for record locks; some may have none any more.
    owners: Vec<u64>,
    /// The state of the file for which the kernel's cache is true.
    fresh: Option<Stamp>,
    /// When a descriptor of it was closed last.
    closed: Option<Instant>,
}

/// The record locks of one owner on one file.
#[derive(Debug)]
struct Holder {
    file: OwnedFd,
    writable: bool,
    process: AtomicU32,
    /// The open files through which it has asked.
    handles: Mutex<Vec<u64>>,
    /// [`CURRENT`], [`MOVING`] or [`RETIRED`].
    state: AtomicU8,
}

/// The holder is in the table: what is locked here is locked.
const CURRENT: u8 = 0;
/// Its locks are being taken over by another one: what is set now may be left out.
const MOVING: u8 = 1;
/// It is not in the table any more, and has no locks to keep.
const RETIRED: u8 = 2;

impl Locks {
    /// Locks for files of `tree`.
    pub fn new(tree: Arc<Loopback>) -> Result<Self> {
        sys::make_waits_interruptible().tried("sigaction")?;
        Ok(Self {
            tree,
            table: Mutex::default(),
            released: Condvar::new(),
            blocked: Blocked::default(),
        })
    }

    /// A lock that keeps the owner from having `access`, if there is one. With `None` a lock of its
    /// own, where the kernel has that.
    pub fn test(&self, asked: &Asked, access: Option<Access>) -> Result<Option<Held>> {
        let file = self.tree.file(asked.handle)?;
        let holder = lock(&self.table)
            .holders
            .get(&(asked.node, asked.owner))
            .cloned();
        // The handle itself has no record lock.
        let through = holder
            .as_ref()
            .map_or(file.file(), |holder| holder.file.as_fd());
        let found = sys::test(through, access, asked.range).tried("fcntl(F_OFD_GETLK)")?;
        Ok(found.map(|held| Held {
            process: held
                .process
                .or_else(|| self.process_behind(asked, access, held)),
            ..held
        }))
    }

    /// The process that has taken that lock through the mount, if one has: to SRC it is an open file's.
    fn process_behind(&self, asked: &Asked, access: Option<Access>, held: Held) -> Option<u32> {
        let holders: Vec<_> = {
            let table = lock(&self.table);
            let all = table
                .holders
                .range((asked.node, 0)..=(asked.node, u64::MAX));
            all.filter(|((_, owner), _)| (*owner == asked.owner) == access.is_none())
                .map(|(_, holder)| Arc::clone(holder))
                .collect()
        };
        let its = |holder: &Arc<Holder>| {
            let locks = sys::held(holder.file.as_fd()).unwrap_or_default();
            locks
                .into_iter()
                .any(|(access, range)| access == held.access && range.meets(held.range))
        };
        let holder = holders.into_iter().find(its)?;
        Some(holder.process.load(Ordering::Relaxed)).filter(|process| *process != 0)
    }

    /// Takes a lock if it is free.
    pub fn try_lock(&self, asked: &Asked, access: Access) -> Result<Attempt> {
        let file = self.tree.file(asked.handle)?;
        let mut releases = self.note_use(asked);
        loop {
            let taken = match asked.kind {
                Kind::Flock => sys::flock(file.file(), Some(access), sys::Wait::No).map(|()| true),
                Kind::Record => {
                    let holder = self.holder(asked, &file, access)?;
                    holder.set(Some(access), asked, sys::Wait::No)
                }
            };
            match taken {
                Ok(true) => return Ok(Attempt::Granted(self.granted(asked, &file))),
                Ok(false) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    let (until, now) = self.closing(asked.node);
                    if until.is_some() || now == releases {
                        return Ok(Attempt::Held { until });
                    }
                    releases = now; // it may have been that one's
                }
                Err(errno) => return Err(refused(errno)),
            }
        }
    }

    /// The record locks that an owner has on a file.
    pub(super) fn held_by(&self, node: NodeNo, owner: u64) -> Vec<(Access, Range)> {
        let holder = lock(&self.table).holders.get(&(node, owner)).cloned();
        holder
            .and_then(|holder| sys::held(holder.file.as_fd()).ok())
            .unwrap_or_default()
    }

    /// Takes a lock, waiting for it as long as it takes, or EDEADLK if that would be for ever. For a
    /// thread of its own.
    pub fn lock(&self, asked: &Asked, access: Access, waiter: &Waiter) -> Result<Granted> {
        let file = self.tree.file(asked.handle)?;
        self.note_use(asked);
        let _inside = waiter.enter()?;
        loop {
            let taken = match asked.kind {
                Kind::Flock => {
                    waiter.check()?;
                    sys::flock(file.file(), Some(access), sys::Wait::Yes).map(|()| true)
                }
                Kind::Record => {
                    let holder = self.holder(asked, &file, access)?;
                    waiter.waits_on(&holder)?;
                    let _blocked = self.blocked.enter(self, asked, access, waiter.caller())?;
                    holder.set(Some(access), asked, sys::Wait::Yes)
                }
            };
            match taken {
                Ok(true) => return Ok(self.granted(asked, &file)),
                // Somebody has something to tell us: the loop finds out what.
                Ok(false) | Err(Errno::INTR) => {}
                Err(errno) => return Err(refused(errno)),
            }
        }
    }

    /// Takes a lock that was held a moment ago, if one of the open files that are being closed had it,
    /// or EAGAIN a moment later. For a thread of its own.
    pub fn lock_when_released(&self, asked: &Asked, access: Access) -> Result<Granted> {
        let begin = Instant::now();
        loop {
            let releases = lock(&self.table).releases;
            let until = match self.try_lock(asked, access)? {
                Attempt::Granted(granted) => return Ok(granted),
                // Copies of a descriptor may be closed again and again.
                Attempt::Held { until: Some(until) } if begin.elapsed() < CLOSING => until,
                Attempt::Held { .. } => return Err(Error::LOCKED),
            };
            let mut table = lock(&self.table);
            while table.releases == releases {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                table = self
                    .released
                    .wait_timeout(table, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }

    /// Gives locks up.
    pub fn unlock(&self, asked: &Asked) -> Result<()> {
        let file = self.tree.file(asked.handle)?;
        match asked.kind {
            Kind::Flock => sys::flock(file.file(), None, sys::Wait::No).map_err(refused),
            Kind::Record => {
                let key = (asked.node, asked.owner);
                let holder = || lock(&self.table).holders.get(&key).cloned();
                while let Some(holder) = holder() {
                    if holder.set(None, asked, sys::Wait::No).map_err(refused)? {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// A descriptor of the open file was closed by `owner`: what that process has locked of the file is
    /// free, whichever descriptor it was locked through.
    pub fn closed(&self, node: NodeNo, handle: u64, owner: u64) {
        let holder = {
            let mut table = lock(&self.table);
            if let Some(used) = table.handles.get_mut(&(node, handle)) {
                used.closed = Some(Instant::now());
            }
            table.holders.remove(&(node, owner))
        };
        if let Some(holder) = holder {
            holder.retire();
        }
    }

    /// The open file has ended, and the handle was released: what was locked through it is free.
    pub fn released(&self, node: NodeNo, handle: u64) {
        let mut gone = Vec::new();
        {
            let mut table = lock(&self.table);
            let Some(used) = table.handles.remove(&(node, handle)) else {
                return;
            };
            for owner in used.owners {
                // An owner that has closed it and locks through another one now keeps that.
                let key = (node, owner);
                let through = |holder: &Arc<Holder>| lock(&holder.handles).contains(&handle);
                if table.holders.get(&key).is_some_and(through) {
                    gone.extend(table.holders.remove(&key));
                }
            }
            table.ending += 1;
        }
        for holder in gone {
            holder.retire();
        }
        {
            let mut table = lock(&self.table);
            table.ending -= 1;
            table.releases += 1;
        }
        self.released.notify_all();
    }

    /// What the kernel remembers of the file is true for its state `stamp`.
    pub fn cache_is_true(&self, asked: &Asked, stamp: Stamp) {
        let mut table = lock(&self.table);
        if let Some(used) = table.handles.get_mut(&(asked.node, asked.handle)) {
            used.fresh = Some(stamp).filter(|stamp| stamp.settled);
        }
    }

    /// How many open files were released before.
    fn note_use(&self, asked: &Asked) -> u64 {
        let mut table = lock(&self.table);
        let used = table.handles.entry((asked.node, asked.handle)).or_default();
        if asked.kind == Kind::Record && !used.owners.contains(&asked.owner) {
            used.owners.push(asked.owner);
        }
        table.releases
    }

    fn granted(&self, asked: &Asked, file: &FileHandle) -> Granted {
        let stamp = Stamp::of(file);
        let table = lock(&self.table);
        let used = table.handles.get(&(asked.node, asked.handle));
        let fresh = used.and_then(|used| used.fresh);
        let same = fresh.is_some_and(|fresh| fresh.is(stamp));
        Granted {
            changed: (!same).then_some(stamp),
        }
    }

    /// Until when it is worth waiting for open files of `node` that are being closed, and how many of all have been
    /// released.
    fn closing(&self, node: NodeNo) -> (Option<Instant>, u64) {
        let table = lock(&self.table);
        let now = Instant::now();
        let all = table.handles.range((node, 0)..=(node, u64::MAX));
        let closed = all.filter_map(|(_, used)| used.closed);
        let ending = (table.ending > 0).then_some(now);
        let until = closed
            .chain(ending)
            .max()
            .and_then(|last| last.checked_add(CLOSING))
            .filter(|until| *until > now);
        (until, table.releases)
    }

    /// The owner's holder on that file, made if there is none.
    fn holder(&self, asked: &Asked, file: &FileHandle, access: Access) -> Result<Arc<Holder>> {
        let key = (asked.node, asked.owner);
        let usable = |table: &Table| {
            let holder = table.holders.get(&key)?;
            (access == Access::Shared || holder.writable).then(|| Arc::clone(holder))
        };
        if let Some(holder) = usable(&lock(&self.table)) {
            holder.note_use(asked);
            return Ok(holder);
        }
        let (again, writable) = sys::open_again(file.file()).map_err(|errno| {
            log::debug!("a file can't be opened once more to lock it: {errno}");
            Error::no_lock("opening once more")
        })?;
        let new = Arc::new(Holder {
            file: again,
            writable,
            process: AtomicU32::new(asked.process),
            handles: Mutex::default(),
            state: AtomicU8::new(CURRENT),
        });
        let mut table = lock(&self.table);
        if let Some(holder) = usable(&table) {
            drop(table);
            holder.note_use(asked);
            return Ok(holder); // another thread of the owner was quicker
        }
        let old = table.holders.get(&key).cloned();
        if let Some(old) = &old {
            old.hand_over(&new)?;
        }
        table.holders.insert(key, Arc::clone(&new));
        drop(table);
        if let Some(old) = old {
            old.retire();
        }
        new.note_use(asked);
        Ok(new)
    }
}

/// The errno of a lock that can't be set, other than because somebody has it.
fn refused(errno: Errno) -> Error {
    let errno = match errno {
        // The description could not be opened for what the caller may do.
        Errno::BADF => Errno::NOLCK,
        other => other,
    };
    Error::new(errno, "locking")
}

impl Holder {
    /// Sets its locks on the range that was asked for; false if that may be lost, and has to be done
    /// with the owner's next holder.
    fn set(
        &self,
        access: Option<Access>,
        asked: &Asked,
        wait: sys::Wait,
    ) -> std::result::Result<bool, Errno> {
        sys::set(self.file.as_fd(), access, asked.range, wait)?;
        match self.state.load(Ordering::SeqCst) {
            CURRENT => {
                if asked.process != 0 {
                    self.process.store(asked.process, Ordering::Relaxed);
                }
                return Ok(true);
            }
            MOVING => {} // the locks here are still good for something
            _ => self.unlock_all(),
        }
        Ok(false)
    }

    fn note_use(&self, asked: &Asked) {
        let mut handles = lock(&self.handles);
        if !handles.contains(&asked.handle) {
            handles.push(asked.handle);
        }
    }

    /// Gives all its locks up. Before that it was taken out of the table.
    fn retire(&self) {
        // In this order: who sets a lock after the unlocking finds that it is retired.
        self.state.store(RETIRED, Ordering::SeqCst);
        self.unlock_all();
    }

    /// Not left to the last reference: a thread that waits on it may have one for a while.
    fn unlock_all(&self) {
        if let Err(errno) = sys::set(self.file.as_fd(), None, Range::WHOLE, sys::Wait::No) {
            log::warn!("locks can't be given up before the file is closed: {errno}");
        }
    }

    /// Has `new`, which can write, take the same locks: read locks, as this one can't write, which can be
    /// had twice. Whoever sets another one here meanwhile finds that it has to set it there. Under the
    /// lock of the table.
    fn hand_over(&self, new: &Self) -> Result<()> {
        self.state.store(MOVING, Ordering::SeqCst);
        let copy = || {
            for (access, range) in sys::held(self.file.as_fd())? {
                sys::set(new.file.as_fd(), Some(access), range, sys::Wait::No)?;
            }
            Ok(())
        };
        let result = copy().map_err(refused);
        if result.is_ok() {
            lock(&new.handles).clone_from(&lock(&self.handles));
        } else {
            self.state.store(CURRENT, Ordering::SeqCst);
        }
        result
    }
}

impl Stamp {
    /// The state of a file; one that is like no other if it can't be found out.
    fn of(file: &FileHandle) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let Ok(stat) = crate::sys::fs::stat(file.file()) else {
            return Self::default();
        };
        let time = |time: crate::sys::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        let changed = time(stat.stx_ctime);
        let age = u64::try_from(changed.0)
            .ok()
            .zip(now.ok())
            .and_then(|(secs, now)| now.checked_sub(Duration::new(secs, changed.1)));
        Self {
            size: stat.stx_size,
            modified: time(stat.stx_mtime),
            changed,
            settled: age.is_some_and(|age| age > TICK),
        }
    }

    /// Whether `later` is the same state. If this one had settled, that is certain.
    fn is(self, later: Self) -> bool {
        self.settled
            && (self.size, self.modified, self.changed)
                == (later.size, later.modified, later.changed)
    }
}

/// A thread that may wait for a lock, as others see it.
#[derive(Debug)]
pub struct Waiter {
    caller: u32,
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The wait is to end, with this error.
    ended: Option<Errno>,
    /// The thread, from its entering to its leaving: so it lives as long as it stands here.
    thread: Option<sys::Thread>,
    on: Option<Arc<Holder>>,
}

impl Waiter {
    /// For a calling thread, which waits for our answer meanwhile.
    #[must_use]
    pub fn new(caller: u32) -> Self {
        Self {
            caller,
            state: Mutex::default(),
        }
    }

    /// The calling thread.
    #[must_use]
    pub fn caller(&self) -> u32 {
        self.caller
    }

    /// The wait is to end with this error, if there is no earlier one; [`Self::nudge`] ends it. The lock
    /// may have been granted at this very moment: then it was.
    pub fn end(&self, errno: Errno) {
        lock(&self.state).ended.get_or_insert(errno);
    }

    /// Wakes the thread if there is something for it to see; whether there is. A thread that was just
    /// about to wait misses it: to be called again until the wait is over.
    pub fn nudge(&self) -> bool {
        let state = lock(&self.state);
        let replaced = |holder: &Arc<Holder>| holder.state.load(Ordering::SeqCst) != CURRENT;
        let due = state.ended.is_some() || state.on.as_ref().is_some_and(replaced);
        if let Some(thread) = state.thread.filter(|_| due)
            && let Err(errno) = sys::interrupt(thread)
        {
            log::warn!("a thread that waits for a lock can't be woken: {errno}");
        }
        due
    }

    fn enter(&self) -> Result<Inside<'_>> {
        let thread = sys::accept_interrupts().tried("pthread_sigmask")?;
        lock(&self.state).thread = Some(thread);
        Ok(Inside(self))
    }

    fn check(&self) -> Result<()> {
        match lock(&self.state).ended {
            None => Ok(()),
            Some(errno) => Err(Error::new(errno, "waiting for a lock")),
        }
    }

    fn waits_on(&self, holder: &Arc<Holder>) -> Result<()> {
        lock(&self.state).on = Some(Arc::clone(holder));
        self.check()
    }
}

/// This thread is inside [`Locks::lock`].
struct Inside<'a>(&'a Waiter);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.thread = None;
        state.on = None;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
