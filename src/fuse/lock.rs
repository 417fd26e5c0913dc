//! Locks that reach SRC: what is done on the event loop, and what is left to other threads. That is
//! whatever may wait: for a lock, or for the kernel to throw its cache of the file away, which it may
//! have to write back first, through us.

use fuser::ReplyEmpty;

use super::cache::KernelCache;
use super::convert::{self, LockRequest};
use super::serve::{Asker, Service, Step};
use super::waiters::Waiters;
use super::workers::{NoThread, Workers};
use crate::error::{Error, Result, Tried};
use crate::lifecycle::gate::Gate;
use crate::loopback::inode::NodeNo;
use crate::loopback::lock::{Access, Asked, Attempt, Granted, Held, Kind, Locks, Range, Stamp};
use crate::loopback::{Caller, Loopback};
use crate::op::Op;
use crate::sync::{Arc, OnceLock};
use crate::sys::lock::access_of;
use crate::sys::memory::OwnMemory;

/// A tree's locks, and the threads that it takes to hand them on.
#[derive(Debug)]
pub(super) struct Forward {
    locks: Locks,
    waiters: Arc<Waiters>,
    workers: Arc<Workers>,
    memory: OwnMemory,
    cache: Arc<KernelCache>,
}

/// What can't be done on the event loop.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Wait for the lock.
    Wait(Asked, Access),
    /// Try again when an open file that is being closed has been.
    Retry(Asked, Access),
    /// The lock is there, but not what it protects.
    Refresh(Asked, Stamp),
}

impl Forward {
    /// Locks for files of `tree`.
    pub(super) fn new(
        tree: &Arc<Loopback>,
        gate: &Arc<Gate>,
        cache: &Arc<KernelCache>,
    ) -> std::io::Result<Self> {
        let locks = Locks::new(Arc::clone(tree))
            .map_err(|error| std::io::Error::from_raw_os_error(error.code()))?;
        let memory = OwnMemory::open().map_err(|error| {
            let text = format!("/proc/self/mem, without which locks can't be forwarded: {error}");
            std::io::Error::new(error.kind(), text)
        })?;
        Ok(Self {
            locks,
            waiters: Waiters::new(gate),
            workers: Arc::new(Workers::new("loopfs-lock")),
            memory,
            cache: Arc::clone(cache),
        })
    }

    /// GETLK.
    pub(super) fn test(&self, request: &LockRequest<'_>) -> Result<Option<Held>> {
        let access = access_of(request.kind).tried("reading the kind of lock")?;
        let asked = request.asked(Kind::Record);
        self.locks.test(&asked, access)
    }

    /// SETLK and SETLKW.
    pub(super) fn set(
        self: &Arc<Self>,
        service: &Arc<Service>,
        asker: Asker,
        request: &LockRequest<'_>,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let op = if wait { Op::Setlkw } else { Op::Setlk };
        let begin = |_: &mut ReplyEmpty| self.begin(request, wait);
        let caller = asker.caller;
        service.serve_or_owe(asker, op, reply, begin, |owed, work| {
            let forward = Arc::clone(self);
            self.workers.hand(Box::new(move |go| {
                if let Err(NoThread) = go {
                    forward.undo(work);
                    owed.refuse(Error::no_lock("finding a thread to wait for a lock"));
                } else {
                    owed.answer(|_| forward.finish(caller, work));
                }
            }));
        });
    }

    /// FLUSH, when what it is about has been done.
    pub(super) fn closed(&self, node: NodeNo, handle: u64, owner: u64) {
        self.locks.closed(node, handle, owner);
    }

    /// RELEASE, likewise.
    pub(super) fn released(&self, node: NodeNo, handle: u64) {
        self.locks.released(node, handle);
    }

    /// The connection is gone, and everybody who waited.
    pub(super) fn end(&self) {
        self.waiters.end();
    }

    fn begin(&self, request: &LockRequest<'_>, wait: bool) -> Result<Step<(), Work>> {
        let access = access_of(request.kind).tried("reading the kind of lock")?;
        let asked = request.asked(self.kind(request)?);
        let Some(access) = access else {
            return self.locks.unlock(&asked).map(Step::Done);
        };
        match self.locks.try_lock(&asked, access)? {
            Attempt::Granted(Granted { changed: None }) => Ok(Step::Done(())),
            Attempt::Granted(Granted {
                changed: Some(stamp),
            }) => Ok(Step::Left(Work::Refresh(asked, stamp))),
            Attempt::Held { .. } if wait => Ok(Step::Left(Work::Wait(asked, access))),
            Attempt::Held { until: Some(_) } => Ok(Step::Left(Work::Retry(asked, access))),
            Attempt::Held { until: None } => Err(Error::LOCKED),
        }
    }

    fn kind(&self, request: &LockRequest<'_>) -> Result<Kind> {
        match convert::lock_kind(&self.memory, request) {
            Some(kind) => Ok(kind),
            // flock is always of the whole file.
            None if request.range != Range::WHOLE => Ok(Kind::Record),
            None => {
                static SAID: OnceLock<()> = OnceLock::new();
                SAID.get_or_init(|| {
                    log::error!(
                        "flock and fcntl can't be told apart, so locks of whole files are refused \
                         (ENOLCK); please report this"
                    );
                });
                Err(Error::no_lock("telling flock and fcntl apart"))
            }
        }
    }

    fn finish(&self, caller: Caller, work: Work) -> Result<()> {
        let (asked, granted) = match work {
            Work::Wait(asked, access) => {
                let wait = |waiter: &_| self.locks.lock(&asked, access, waiter);
                (asked, self.waiters.watched(caller.pid, wait)?)
            }
            Work::Retry(asked, access) => (asked, self.locks.lock_when_released(&asked, access)?),
            Work::Refresh(asked, stamp) => (
                asked,
                Granted {
                    changed: Some(stamp),
                },
            ),
        };
        if let Some(stamp) = granted.changed {
            self.refresh(&asked, stamp);
        }
        Ok(())
    }

    /// Has the kernel throw away what it knows of the file's contents and attributes.
    fn refresh(&self, asked: &Asked, stamp: Stamp) {
        match self.cache.drop_contents(asked.node) {
            Ok(()) => self.locks.cache_is_true(asked, stamp),
            // The connection is gone, and the cache with it.
            Err(error) => log::debug!("the kernel's cache of a locked file: {error}"),
        }
    }

    /// The work will not be done: what it began with is taken back.
    fn undo(&self, work: Work) {
        if let Work::Refresh(asked, _) = work
            && let Err(error) = self.locks.unlock(&asked)
        {
            log::warn!("a lock that could not be used can't be given up: {error}");
        }
    }
}
