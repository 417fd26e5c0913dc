//! Threads for work that may take long and so belongs on no event loop: made when there is work,
//! gone when there has been none for a while.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock};

/// So many threads at most. Each is a program that waits.
const MOST: usize = 1024;
/// How long a thread waits for more to do.
const LINGER: Duration = Duration::from_secs(1);
/// Enough for a system call and a log line.
const STACK: usize = 256 << 10;

/// Something to do, if there is a thread for it; [`NoThread`] otherwise.
pub(super) type Job = Box<dyn FnOnce(Result<(), NoThread>) + Send>;

/// No thread can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoThread;

/// The threads.
pub(super) struct Workers {
    /// The threads' name.
    name: &'static str,
    state: Mutex<State>,
    more: Condvar,
    most: usize,
}

#[derive(Default)]
struct State {
    /// Never more than there are idle threads.
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// That there are too many was said.
    said: bool,
}

impl Workers {
    pub(super) fn new(name: &'static str) -> Self {
        Self::with_limit(name, MOST)
    }

    fn with_limit(name: &'static str, most: usize) -> Self {
        Self {
            name,
            state: Mutex::default(),
            more: Condvar::new(),
            most,
        }
    }

    /// Has `job` done by a thread, or told at once that none can be had.
    pub(super) fn hand(self: &Arc<Self>, job: Job) {
        let mut state = lock(&self.state);
        if state.idle > state.jobs.len() {
            state.jobs.push_back(job);
            drop(state);
            self.more.notify_one();
            return;
        }
        let full = state.threads >= self.most;
        state.threads += usize::from(!full);
        let said = state.said;
        state.said |= full;
        drop(state);
        if full {
            if !said {
                log::warn!(
                    "{}: {} threads are at work, and no more are made",
                    self.name,
                    self.most
                );
            }
            return job(Err(NoThread));
        }
        // In a place of its own, to get it back if the thread can't be made.
        let place = Arc::new(Mutex::new(Some(job)));
        let (workers, its) = (Arc::clone(self), Arc::clone(&place));
        let builder = thread::Builder::new()
            .name(self.name.to_owned())
            .stack_size(STACK);
        let made = builder.spawn(move || {
            let job = lock(&its).take();
            drop(its);
            workers.work(job);
        });
        if let Err(error) = made {
            lock(&self.state).threads -= 1;
            log::warn!("{}: can't start a thread: {error}", self.name);
            let job = lock(&place).take();
            if let Some(job) = job {
                job(Err(NoThread));
            }
        }
    }

    fn work(&self, first: Option<Job>) {
        let mut next = first;
        while let Some(job) = next {
            job(Ok(()));
            next = self.next();
        }
    }

    /// The next job; `None` when there has been none for so long that this thread is one less now.
    fn next(&self) -> Option<Job> {
        let end = Instant::now() + LINGER;
        let mut state = lock(&self.state);
        state.idle += 1;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let job = state.jobs.pop_front();
            if job.is_some() || left.is_zero() {
                state.idle -= 1;
                state.threads -= usize::from(job.is_none());
                return job;
            }
            state = self
                .more
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Workers")
            .field("threads", &state.threads)
            .field("idle", &state.idle)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    const LONG: Duration = Duration::from_secs(60);

    fn job(sender: &Sender<Result<(), NoThread>>) -> Job {
        let sender = sender.clone();
        Box::new(move |go| sender.send(go).unwrap())
    }

    #[test]
    fn work_is_done_by_as_many_threads_as_it_needs_and_no_more_than_allowed() {
        let workers = Arc::new(Workers::with_limit("test", 2));
        let (sender, told) = channel();
        let (hold, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (started, waits) = channel();
        for _ in 0..2 {
            let (held, started, sender) = (Arc::clone(&held), started.clone(), sender.clone());
            workers.hand(Box::new(move |go| {
                started.send(()).unwrap();
                let _ = lock(&held).recv();
                sender.send(go).unwrap();
            }));
        }
        for _ in 0..2 {
            waits.recv_timeout(LONG).unwrap();
        }
        workers.hand(job(&sender));
        assert_eq!(told.recv_timeout(LONG).unwrap(), Err(NoThread));
        drop(hold);
        for _ in 0..2 {
            assert_eq!(told.recv_timeout(LONG).unwrap(), Ok(()));
        }
    }

    #[test]
    fn an_idle_thread_is_used_again_and_ends_by_itself() {
        let workers = Arc::new(Workers::new("test"));
        let (sender, told) = channel();
        for _ in 0..100 {
            workers.hand(job(&sender));
            assert_eq!(told.recv_timeout(LONG).unwrap(), Ok(()));
        }
        let state = || {
            let state = lock(&workers.state);
            (state.threads, state.idle, state.jobs.len())
        };
        assert!(state().0 < 50, "{workers:?}");
        let end = Instant::now() + LONG;
        while state() != (0, 0, 0) {
            assert!(Instant::now() < end, "{workers:?}");
            std::thread::yield_now();
        }
    }
}
