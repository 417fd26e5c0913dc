//! `--low-latency`: CPUs are kept from sleeping deeply while requests come, so that a request does not wait
//! for one to wake up. That takes power, so it ends when they pause; the first one after a pause waits.

use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crate::observe::Counters;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, OnceLock};
use crate::sys::cpu_latency::NoDeepSleep;

/// Without requests for so long they have paused.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether requests come, and the thread that acts on it.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// There were none for a while, and the thread wants to hear of the next.
    paused: AtomicBool,
    over: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The thread while it runs.
#[derive(Debug)]
pub(super) struct Waking {
    awake: Arc<Awake>,
    thread: JoinHandle<()>,
}

impl Awake {
    /// A request has come.
    pub(super) fn touch(&self) {
        // None of this orders anything else: a request that is missed is followed by another, or was the last.
        if self.paused.load(Ordering::Relaxed) && self.paused.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Starts the thread. Without it everything works as without the option.
    pub(super) fn start(self: &Arc<Self>, counters: Arc<Counters>) -> Option<Waking> {
        let awake = Arc::clone(self);
        let builder = thread::Builder::new().name("loopfs-awake".to_owned());
        let thread = builder
            .spawn(move || awake.run(&counters))
            .inspect_err(|error| log::warn!("can't start the thread for --low-latency: {error}"))
            .ok()?;
        let _ = self.thread.set(thread.thread().clone());
        Some(Waking {
            awake: Arc::clone(self),
            thread,
        })
    }

    fn run(&self, counters: &Counters) {
        while !self.over.load(Ordering::Relaxed) {
            match NoDeepSleep::request() {
                Ok(_held) => self.while_requests_come(counters),
                Err(error) => return log::warn!("--low-latency has no effect any more: {error}"),
            }
            self.paused.store(true, Ordering::Relaxed);
            while self.paused.load(Ordering::Relaxed) && !self.over.load(Ordering::Relaxed) {
                thread::park();
            }
        }
    }

    fn while_requests_come(&self, counters: &Counters) {
        let mut before = None;
        while !self.over.load(Ordering::Relaxed) {
            let answered = counters.answered();
            if before == Some(answered) {
                return;
            }
            before = Some(answered);
            thread::park_timeout(PAUSE);
        }
    }
}

impl Waking {
    /// Nothing comes any more.
    pub(super) fn end(self) {
        self.awake.over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            log::error!("the thread for --low-latency panicked; please report this");
        }
    }
}
