//! Has the kernel forget what others change in SRC: one thread hears of it, another tells the kernel, which
//! may have to wait for requests that are being served before it has forgotten a name.
//!
//! Everything is told twice, a quarter of a second apart: an answer that was on its way when the kernel was
//! told may reach its cache after that.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::backing::Backings;
use super::line::Line;
use crate::error::Errno;
use crate::loopback::Loopback;
use crate::loopback::inode::NodeNo;
use crate::loopback::watch::{Change, Heard, Unwatched};
use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock};
use crate::sys::fs::device_number;
use crate::sys::mountinfo::{self, DeviceNumber, Entry};
use crate::sys::notify;
use crate::sys::process;

/// How long an answer that was on its way may take to reach the kernel's cache, at most.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// How long nobody listens after something was heard, so that many events come at once.
const PAUSE: Duration = Duration::from_micros(500);

/// The same while the mount itself is in use: each waking up costs those who use it, and most of what is heard is
/// what they do.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// If more has to be told than this, all is forgotten: some tens of megabytes.
const MOST: usize = 1 << 18;

/// Why the kernel can't be told, and what is remembered is remembered for a time only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// `--cache` says so, or times were given.
    NotWanted,
    /// The kernel can't forget all names at once.
    NotInKernel,
    /// Nobody tells us.
    Unwatched(Unwatched),
}

impl Lack {
    /// The reason, and what to do about it.
    pub(super) fn text(self) -> String {
        match self {
            Self::NotWanted => "as --cache or a timeout says".to_owned(),
            Self::NotInKernel => "that takes Linux 6.16".to_owned(),
            Self::Unwatched(Unwatched::SwitchedOff) => {
                "fanotify is switched off by LOOPFS_FEATURES_OFF".to_owned()
            }
            Self::Unwatched(Unwatched::NotLocal) => {
                "the source's file system may change without this machine".to_owned()
            }
            Self::Unwatched(Unwatched::Refused(errno)) => {
                format!("fanotify on the source's file system: {errno}")
            }
        }
    }
}

/// Has `tree` followed, if the kernel that has `device` can be told of changes.
pub(super) fn prepare(tree: &Loopback, device: &OwnedFd) -> Result<(), Lack> {
    // Nothing is remembered yet: this is to see whether it can be done.
    notify::forget_all_names(device.as_fd()).map_err(|_| Lack::NotInKernel)?;
    tree.watch().map_err(Lack::Unwatched)
}

/// The same on a connection that another process has begun, which found out whether it can be done.
pub(super) fn prepare_again(tree: &Loopback, coherent: bool) -> Result<(), Lack> {
    if !coherent {
        return Err(Lack::NotInKernel);
    }
    tree.watch().map_err(Lack::Unwatched)
}

/// What is to be told.
#[derive(Debug, Default)]
struct Batch {
    /// Inodes, each with whether its contents have changed.
    nodes: HashMap<NodeNo, bool>,
    names: HashSet<(NodeNo, OsString)>,
    all: bool,
}

impl Batch {
    fn add(&mut self, change: Change) {
        match change {
            Change::Contents(node) => {
                self.nodes.insert(node, true);
            }
            Change::Attributes(node) => {
                self.nodes.entry(node).or_insert(false);
            }
            Change::Name(parent, name) => {
                self.names.insert((parent, name));
            }
            Change::Everything => self.all = true,
        }
        if self.nodes.len() + self.names.len() > MOST {
            say_too_much();
            *self = Self {
                all: true,
                ..Self::default()
            };
        }
    }

    fn add_all(&mut self, other: Self) {
        let nodes = other.nodes.into_iter().map(|(node, contents)| {
            if contents {
                Change::Contents(node)
            } else {
                Change::Attributes(node)
            }
        });
        let names = other
            .names
            .into_iter()
            .map(|(parent, name)| Change::Name(parent, name));
        nodes.chain(names).for_each(|change| self.add(change));
        self.all |= other.all;
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.names.is_empty() && !self.all
    }
}

fn say_too_much() {
    log::info!("so much has changed in the source at once that the kernel is to forget all of it");
}

/// Between the thread that hears and the one that tells.
#[derive(Debug, Default)]
struct Pending {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    over: bool,
}

impl Pending {
    fn add(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        for change in changes {
            state.batch.add(change);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn end(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }

    /// Waits for the end, but not longer than that.
    fn pause(&self, time: Duration) {
        let begun = Instant::now();
        let mut state = lock(&self.state);
        while !state.over {
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is to be told now: waits until there is something, or until `deadline`; `None` at the end.
    fn next(&self, deadline: Option<Instant>) -> Option<Batch> {
        let mut state = lock(&self.state);
        loop {
            if state.over {
                return None;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !state.batch.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Some(std::mem::take(&mut state.batch));
            }
            state = match left {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// What it takes.
#[derive(Debug)]
pub(super) struct Follower {
    tree: Arc<Loopback>,
    backings: Arc<Backings>,
    device: Arc<OwnedFd>,
    everything_changed: bool,
}

/// The threads while they run.
#[derive(Debug)]
pub(super) struct Following {
    tree: Arc<Loopback>,
    pending: Arc<Pending>,
    threads: Vec<JoinHandle<()>>,
}

impl Follower {
    /// For a tree that is followed ([`prepare`]), and the connection that it is served on.
    pub(super) fn new(
        tree: &Arc<Loopback>,
        backings: &Arc<Backings>,
        device: &Arc<OwnedFd>,
    ) -> Self {
        Self {
            tree: Arc::clone(tree),
            backings: Arc::clone(backings),
            device: Arc::clone(device),
            everything_changed: false,
        }
    }

    /// Whether it is to begin by telling that everything may have changed.
    pub(super) fn with_everything_changed(self, everything_changed: bool) -> Self {
        Self {
            everything_changed,
            ..self
        }
    }

    /// How changes come to be known.
    pub(super) fn means(&self) -> &'static str {
        if self.tree.watches_one_by_one() {
            "fanotify, of what this process can read"
        } else {
            "fanotify"
        }
    }

    /// Starts the threads. Without them nothing may be remembered until it changes, so that is an error.
    pub(super) fn start(self) -> io::Result<Following> {
        let Self {
            tree,
            backings,
            device,
            everything_changed,
        } = self;
        let pending = Arc::new(Pending::default());
        if everything_changed {
            pending.add(vec![Change::Everything]);
        }
        let mut following = Following {
            tree: Arc::clone(&tree),
            pending: Arc::clone(&pending),
            threads: Vec::new(),
        };
        let (heard, its) = (Arc::clone(&pending), Arc::clone(&tree));
        let hear = move || {
            process::raise_priority();
            let Some(mut changes) = its.changes() else {
                return;
            };
            loop {
                let mut found = Vec::new();
                let whose = changes.next(|change| found.push(change));
                for change in &found {
                    match change {
                        Change::Contents(node) => {
                            backings.written(*node, || its.ignore_writes(*node));
                        }
                        Change::Everything => say_too_much(),
                        _ => {}
                    }
                }
                heard.add(found);
                match whose {
                    Heard::Others => heard.pause(PAUSE),
                    Heard::OurOwn => heard.pause(BUSY_PAUSE),
                    Heard::NoMore => return,
                }
            }
        };
        let (ask, asked) = mpsc::channel();
        let (answer, names) = mpsc::channel();
        let its = Arc::clone(&tree);
        let list = move || {
            for node in asked {
                if answer.send(its.names_in(node)).is_err() {
                    return;
                }
            }
        };
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        following.threads.push(named("loopfs-hear").spawn(hear)?);
        following.threads.push(named("loopfs-list").spawn(list)?);
        let tell = move |line| {
            Teller {
                tree,
                line,
                ask,
                names,
            }
            .tell(&pending);
        };
        let teller = Line::start("loopfs-tell", &device, tell);
        following.threads.push(teller?);
        Ok(following)
    }
}

/// Whoever tells the kernel, on a line of its own: of the tree it asks for numbers only.
struct Teller {
    tree: Arc<Loopback>,
    line: Line,
    /// Where to ask for the names that are in a directory now, and where they come from.
    ask: mpsc::Sender<NodeNo>,
    names: mpsc::Receiver<Vec<OsString>>,
}

impl Teller {
    fn tell(&self, pending: &Pending) {
        process::raise_priority();
        // What was told since the last turn, and before that.
        let (mut young, mut old) = (Batch::default(), Batch::default());
        let mut turn: Option<Instant> = None;
        while let Some(batch) = pending.next(turn) {
            self.tell_batch(&batch);
            young.add_all(batch);
            if turn.is_some_and(|turn| turn <= Instant::now()) {
                self.tell_batch(&old);
                old = std::mem::take(&mut young);
                turn = None;
            }
            if turn.is_none() && !(young.is_empty() && old.is_empty()) {
                turn = Some(Instant::now() + ON_ITS_WAY);
            }
        }
    }

    fn tell_batch(&self, batch: &Batch) {
        if batch.all {
            self.tell_all();
        }
        for (parent, name) in &batch.names {
            self.tell_name(*parent, name);
        }
        for (node, contents) in &batch.nodes {
            self.tell_node(*node, *contents);
        }
    }

    fn tell_name(&self, parent: NodeNo, name: &OsString) {
        // ENOENT: it is not remembered, or not yet: then it is told again.
        let told = |device: BorrowedFd<'_>| notify::expire_name(device, parent.0, name);
        match self.line.tell(told) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => log::debug!("having a name in node {} forgotten: {errno}", parent.0),
        }
    }

    fn tell_node(&self, node: NodeNo, contents: bool) {
        if !self.tree.knows(node) {
            return; // forgotten meanwhile
        }
        let told = |device: BorrowedFd<'_>| notify::forget_inode(device, node.0, contents);
        match self.line.tell(told) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => log::debug!("having node {} forgotten: {errno}", node.0),
        }
    }

    /// Nobody knows what has changed.
    fn tell_all(&self) {
        let nodes = self.tree.all_nodes();
        // With all names the kernel lets go of what is mounted on them.
        if self.is_mounted_on() {
            for &node in &nodes {
                let listed = self.ask.send(node).ok();
                let names = listed.and_then(|()| self.names.recv().ok());
                for name in names.unwrap_or_default() {
                    self.tell_name(node, &name);
                }
            }
        } else if let Err(errno) = self.line.tell(notify::forget_all_names) {
            log::debug!("having all names forgotten: {errno}");
        }
        for node in nodes {
            self.tell_node(node, true);
        }
    }

    /// Whether something is mounted below our mount, as far as can be seen from here.
    fn is_mounted_on(&self) -> bool {
        let table = mountinfo::read().unwrap_or_default();
        let own = self.tree.own_device();
        let is_ours = |entry: &Entry| {
            let DeviceNumber { major, minor } = entry.device;
            own == Some(device_number(major, minor))
        };
        let ours: Vec<u64> = table
            .iter()
            .filter(|entry| is_ours(entry))
            .map(|entry| entry.id)
            .collect();
        own.is_none() || table.is_empty() || table.iter().any(|entry| ours.contains(&entry.parent))
    }
}

impl Following {
    /// Ends it. The connection must have ended: the kernel waits for nothing then, so this does not.
    pub(super) fn end(self) {
        self.tree.end_of_changes();
        self.pending.end();
        // The one that lists ends when the one that tells has.
        for thread in self.threads {
            // It ends by a panic only if this program has a bug, which the hook has told of.
            let _ = thread.join();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_an_inode_is_the_most_that_has_changed() {
        let (mut batch, node) = (Batch::default(), NodeNo(7));
        batch.add(Change::Contents(node));
        batch.add(Change::Attributes(node));
        assert_eq!(batch.nodes.get(&node), Some(&true));
        let mut other = Batch::default();
        other.add(Change::Attributes(node));
        other.add(Change::Name(node, "name".into()));
        other.add_all(batch);
        assert_eq!(other.nodes.get(&node), Some(&true));
        assert_eq!(other.names.len(), 1);
    }

    #[test]
    fn too_much_is_everything() {
        let mut batch = Batch::default();
        for node in 0..=MOST as u64 {
            batch.add(Change::Attributes(NodeNo(node)));
        }
        assert!(batch.all && batch.nodes.is_empty());
    }

    #[test]
    fn who_waits_gets_what_comes_and_hears_of_the_end() {
        let pending = Pending::default();
        pending.add(Vec::new());
        pending.add(vec![Change::Everything]);
        assert!(pending.next(None).is_some_and(|batch| batch.all));
        let now = Some(Instant::now());
        assert!(pending.next(now).is_some_and(|batch| batch.is_empty()));
        pending.end();
        assert!(pending.next(None).is_none());
    }
}
