//! Who holds the mount, watched while it drains: looked for once a second, and named in the log
//! whenever that has changed.

use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{Level, debug, log, warn};

use super::holders::{Finder, Holder, Report};
use super::state::{Mount, Patience};
use super::{Identity, Shutdown, State};
use crate::sync::{Arc, Mutex, lock};

/// How long after one look the next one follows.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many holders are named.
const NAMED: usize = 10;

/// A search under way: its thread, and where the result will be.
struct Search {
    thread: JoinHandle<()>,
    found: Arc<Mutex<Option<Report>>>,
}

/// Watches who holds one mount. Never waits itself: each search has a thread of its own, because
/// reading /proc may wait for a process that waits for us.
pub(super) struct Watch {
    finder: Finder,
    /// Woken when a search has ended.
    shutdown: Shutdown,
    next: Option<Instant>,
    search: Option<Search>,
    /// Who was last said to hold it, once it has been said.
    told: Option<Vec<Holder>>,
}

impl Watch {
    pub(super) fn new(identity: Identity, shutdown: Shutdown) -> Self {
        let finder = Finder::new(identity);
        Self {
            finder,
            shutdown,
            next: None,
            search: None,
            told: None,
        }
    }

    pub(super) fn target(&self) -> &Path {
        self.finder.target()
    }

    /// To be called right before a lazy detach; see [`Finder::note_links`].
    pub(super) fn note_links(&mut self) {
        self.finder.note_links();
    }

    /// When [`tend`](Self::tend) has to be called if nothing happens before.
    pub(super) fn next_look(&mut self, state: State) -> Option<Instant> {
        if !matches!(state, State::Draining { .. }) {
            self.next = None;
        } else if self.search.is_none() && self.next.is_none() {
            self.next = Some(Instant::now() + LOOK_AGAIN);
        }
        self.next
    }

    /// Tells what a search has found, and starts the next one if it is due.
    pub(super) fn tend(&mut self) {
        let found = self
            .search
            .as_ref()
            .and_then(|search| lock(&search.found).take());
        if let Some(report) = found {
            if let Some(search) = self.search.take() {
                // It has nothing left to do but to end.
                let _ = search.thread.join();
            }
            self.tell(report);
        }
        if self.next.is_some_and(|at| at <= Instant::now()) {
            self.look();
        }
    }

    /// Starts a search unless one is under way.
    pub(super) fn look(&mut self) {
        self.next = None;
        if self.search.is_some() {
            return;
        }
        let found = Arc::new(Mutex::new(None));
        let (finder, slot, shutdown) = (
            self.finder.clone(),
            Arc::clone(&found),
            self.shutdown.clone(),
        );
        let search = move || {
            let report = finder.find();
            *lock(&slot) = Some(report);
            shutdown.wake();
        };
        match thread::Builder::new()
            .name("loopfs-holders".into())
            .spawn(search)
        {
            Ok(thread) => self.search = Some(Search { thread, found }),
            Err(error) => debug!(
                "can't look for who holds {}: {error}",
                self.target().display()
            ),
        }
    }

    fn tell(&mut self, report: Report) {
        let State::Draining {
            patience, mount, ..
        } = self.shutdown.state()
        else {
            return;
        };
        if self.told.as_ref() == Some(&report.holders) {
            return;
        }
        // After an unmount from outside nobody waits for us to end.
        let level = match patience {
            Patience::Drain => Level::Warn,
            Patience::Lazy => Level::Info,
        };
        let target = self.target().display();
        for holder in report.holders.iter().take(NAMED) {
            log!(level, "{target} is held by {holder}");
        }
        if let Some(more @ 1..) = report.holders.len().checked_sub(NAMED) {
            log!(level, "{target} is held by {more} more");
        }
        if report.holders.is_empty() && mount == Mount::Gone {
            log!(
                level,
                "no process is seen to hold {target}; it ends with its last use"
            );
        } else if !report.holders.is_empty() && patience == Patience::Drain {
            log!(level, "a second signal cuts them off at once");
        }
        if report.hidden > 0 {
            debug!("{} processes could not be looked into", report.hidden);
        }
        self.told = Some(report.holders);
    }

    /// Names those who were last seen to hold it.
    pub(super) fn say_who_is_cut_off(&self) {
        for holder in self.told.iter().flatten().take(NAMED) {
            warn!("cut off: {holder}");
        }
    }
}
