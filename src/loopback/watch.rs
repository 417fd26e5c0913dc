//! What is done to SRC by others, for the kernel to forget what it remembers of it.
//!
//! The file system tells of every change (fanotify(7)) with file handles: an inode is found by its handle,
//! a name by its directory's. So this can be had where the file system knows of every change: not one that
//! others change on another machine.
//!
//! Where inodes are reached by handle, all of the file system is watched. Elsewhere (without privilege) inodes
//! are watched one by one, each since it was asked for first, as long as it keeps its descriptor: that takes no
//! privilege. Not all can be: not what can't be read, and not more than the user may watch.
//!
//! An event may be handled while a request that saw what was before is still being answered: then what is
//! answered must not be kept ([`Watch::moment`]). What happens between the answer and the kernel's taking it
//! up is for whoever tells the kernel, by telling it again a little later.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Loopback;
use super::attr::{Attr, Keep};
use super::crossing::Crossing;
use super::dir::{OpenedDir, Room};
use super::inode::{Identity, Inode, NodeNo};
use super::lately::{Lately, MARKS, none, slot};
use crate::error::{Errno, Tried as _};
use crate::policy;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, lock};
use crate::sys::fanotify::{self, Event, Group};
use crate::sys::features;
use crate::sys::fs::{self, AccessTimes, FileType, Found, Statx, StatxTimestamp};
use crate::sys::handle::Handle;
use crate::sys::mountinfo;
use crate::sys::wake::{self, Wake};

/// Something that the kernel must not remember any longer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// The attributes of an inode, and what is in it; of a directory, its list of names.
    Contents(NodeNo),
    /// Its attributes.
    Attributes(NodeNo),
    /// What a name in a directory leads to.
    Name(NodeNo, OsString),
    /// All: events were lost.
    Everything,
}

/// Why changes of SRC can't be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwatched {
    /// `LOOPFS_FEATURES_OFF` says so.
    SwitchedOff,
    /// A file system that others may change without this machine, or that is made of such ones.
    NotLocal,
    /// fanotify(7) can't be had.
    Refused(Errno),
}

/// Of how many that were opened lately it is known what they were like: two that share a place are read once more.
const OPENED: usize = 1 << 14;

/// A change leaves the times that the last one has set if it follows within the file system's granularity, which is that
/// of the kernel's clock (10 ms at worst): twice that is safe.
const SETTLED: Duration = Duration::from_millis(20);

/// What is known of changes.
#[derive(Debug)]
pub struct Watch {
    /// The root's handle: its inode keeps a descriptor instead.
    root: Handle,
    /// Where inodes are watched one by one: the mount that they are on ([`Identity::mount`]).
    one_by_one: Option<u64>,
    /// It was said that no more can be watched for now.
    said_full: AtomicBool,
    /// Counts what was handled.
    handled: AtomicU64,
    /// When something with this hash was handled last.
    marks: Box<[AtomicU64]>,
    end: Wake,
    /// Until somebody takes them.
    events: Mutex<Option<Events>>,
    /// The same queue, for whoever does not listen.
    queue: OwnedFd,
    /// What was there when it was opened last, as [`state`] has it, of what was opened lately.
    opened: Box<[AtomicU64]>,
    /// Of which pages were written back.
    written_back: Lately,
    /// Which names others have changed.
    others_names: Lately,
    /// It can't go on: nothing is told any more.
    lost: AtomicBool,
}

/// A point in the sequence of events that were handled.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

#[derive(Debug)]
struct Events {
    group: Group,
    /// What is mounted below SRC, where that is shown.
    mounts: Option<Mounts>,
}

/// Where something is mounted below SRC.
#[derive(Debug)]
struct Mounts {
    table: File,
    known: BTreeSet<(PathBuf, u64)>,
}

impl Watch {
    fn start(tree: &Loopback) -> Result<Self, Unwatched> {
        if features::is_off("fanotify") {
            return Err(Unwatched::SwitchedOff);
        }
        if !fs::is_local(tree.filesystem) {
            return Err(Unwatched::NotLocal);
        }
        let refused = Unwatched::Refused;
        let group = Group::new().map_err(refused)?;
        let queue = group.queue().map_err(refused)?;
        let object = tree
            .object(&tree.root)
            .map_err(|error| refused(error.errno()))?;
        let one_by_one = if let Some(mount) = tree.descriptors.mount() {
            group.watch_filesystem(mount).map_err(refused)?;
            None
        } else {
            fanotify::watch_inode(queue.as_fd(), object.fd(), true).map_err(refused)?;
            Some(tree.root.identity().mount)
        };
        let root = Handle::identifying(object.fd()).map_err(refused)?;
        let mounts = (tree.crossing == Crossing::Crossed)
            .then(|| Mounts::new(tree))
            .transpose()
            .map_err(refused)?;
        Ok(Self {
            root,
            one_by_one,
            said_full: AtomicBool::new(false),
            handled: AtomicU64::new(0),
            marks: none(MARKS),
            end: Wake::new().map_err(refused)?,
            events: Mutex::new(Some(Events { group, mounts })),
            lost: AtomicBool::new(false),
            queue,
            opened: none(OPENED),
            written_back: Lately::new(),
            others_names: Lately::new(),
        })
    }

    /// Now: to be asked before looking at SRC.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.handled.load(Ordering::SeqCst))
    }

    /// Notes a change, before anybody looks whom it concerns.
    fn mark(&self, key: u64) {
        let now = self.handled.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(slot) = slot(&self.marks, key) {
            slot.store(now, Ordering::SeqCst);
        }
    }

    /// Whether a change of that may have been handled since: to be asked after what was seen can be found
    /// by whoever handles one.
    fn changed(&self, key: u64, since: Moment) -> bool {
        slot(&self.marks, key).is_none_or(|slot| slot.load(Ordering::SeqCst) > since.0)
    }

    /// Whether an inode is as it was when it was opened last; from now on, this opening is the last. `None` is a state that
    /// can't be told from the next one.
    fn is_as_opened_last(&self, key: u64, state: Option<u64>) -> bool {
        let now = state.unwrap_or(0);
        slot(&self.opened, key).is_some_and(|slot| slot.swap(now, Ordering::SeqCst) == now)
            && now != 0
    }

    /// Whether the kernel does not know what an event of our own tells: pages of that inode were written back, which it forgets
    /// if an older answer is on its way.
    fn is_written_back(&self, event: &Event<'_>) -> bool {
        let object = event.object.as_ref();
        object.is_some_and(|object| self.written_back.has(object.generation()))
    }

    /// Others have done something at a name: what the kernel asks for there may be meant for what was there before.
    fn note_others(&self, event: &Event<'_>) {
        if let Some((dir, name)) = &event.place {
            self.others_names.note(name_key(dir.generation(), name));
        }
    }

    /// Whether it may be another inode than the kernel meant that an event of our own tells of.
    fn is_where_others_were(&self, event: &Event<'_>) -> bool {
        let place = event.place.as_ref();
        place.is_some_and(|(dir, name)| self.others_names.has(name_key(dir.generation(), name)))
    }

    /// What stands for an inode of the file system; `None` for one of another, and if nobody is told any more.
    fn key(&self, inode: &Inode) -> Option<u64> {
        if self.lost.load(Ordering::SeqCst) {
            return None;
        }
        match inode.heard_by() {
            Some(handle) => Some(handle.generation()),
            None if inode.number() == NodeNo::ROOT => Some(self.root.generation()),
            None => None,
        }
    }

    /// Has an inode watched from now on, where that is done one by one: what is seen of it later may be kept.
    fn hear_of(&self, tree: &Loopback, inode: &Inode) {
        let is_there = self.one_by_one == Some(inode.identity().mount);
        if !is_there || self.key(inode).is_some() {
            return;
        }
        let Some(object) = inode.object() else {
            return;
        };
        let is_directory = inode.kind() == FileType::Directory;
        let watched = Handle::identifying(object.fd()).and_then(|handle| {
            fanotify::watch_inode(self.queue.as_fd(), object.fd(), is_directory).map(|()| handle)
        });
        match watched {
            Ok(handle) => {
                // Somebody may have looked at it before, and ask only now whether that may be kept.
                self.mark(handle.generation());
                tree.table.hear_of(inode, handle);
            }
            Err(Errno::NOSPC) if !self.said_full.swap(true, Ordering::Relaxed) => log::warn!(
                "no more files can be watched (fs.fanotify.max_user_marks): what changes in others shows when their \
                 entry_timeout and attr_timeout have passed"
            ),
            // One that can't be read.
            Err(_) => {}
        }
    }

    /// How long the kernel may keep what was seen of `inode` since a moment.
    pub(super) fn keep(&self, inode: &Inode, since: Moment) -> Keep {
        self.keep_by(self.key(inode), since)
    }

    /// How long it may keep what a name led to.
    pub(super) fn keep_name(&self, parent: &Inode, name: &[u8], since: Moment) -> Keep {
        match self.key(parent) {
            Some(dir) if self.is_new(dir, since) => Keep::No,
            dir => self.keep_by(dir.map(|dir| name_key(dir, name)), since),
        }
    }

    /// Whether it may have been watched for the first time since: what happened to the names in it just before was not told.
    fn is_new(&self, dir: u64, since: Moment) -> bool {
        self.one_by_one.is_some() && self.changed(dir, since)
    }

    fn keep_by(&self, key: Option<u64>, since: Moment) -> Keep {
        match key {
            None => Keep::Briefly,
            Some(key) if self.changed(key, since) => Keep::No,
            Some(_) => Keep::UntilTold,
        }
    }
}

/// What stands for the contents of an inode.
fn state(key: u64, stat: &Statx) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, stat.stx_size).hash(&mut hasher);
    for time in [stat.stx_mtime, stat.stx_ctime] {
        (time.tv_sec, time.tv_nsec).hash(&mut hasher);
    }
    hasher.finish()
}

/// How long before `now` that was; `None` if it is to come.
fn since(time: StatxTimestamp, now: Duration) -> Option<Duration> {
    let time = Duration::new(u64::try_from(time.tv_sec).ok()?, time.tv_nsec);
    now.checked_sub(time)
}

/// What stands for a name in a directory.
fn name_key(dir: u64, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (dir, name).hash(&mut hasher);
    hasher.finish()
}

impl Mounts {
    fn new(tree: &Loopback) -> Result<Self, Errno> {
        let error = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let table = File::open("/proc/self/mountinfo").map_err(error)?;
        let known = below(tree);
        Ok(Self { table, known })
    }

    /// The places where something was mounted or unmounted since.
    fn changed(&mut self, tree: &Loopback) -> BTreeSet<PathBuf> {
        let now = below(tree);
        let changed = now.symmetric_difference(&self.known);
        let changed = changed.map(|(place, _)| place.clone()).collect();
        self.known = now;
        changed
    }
}

/// Where mounts stand below SRC, seen from its root, with their ids.
fn below(tree: &Loopback) -> BTreeSet<(PathBuf, u64)> {
    let path = tree.object(&tree.root).map(|root| fs::path_of(root.fd()));
    let (Ok(Ok(source)), Ok(table)) = (path, mountinfo::read()) else {
        return BTreeSet::new();
    };
    let entries = table.into_iter();
    let below = entries.filter_map(|entry| {
        let place = entry.mount_point.strip_prefix(&source).ok()?;
        (!place.as_os_str().is_empty()).then(|| (place.to_owned(), entry.id))
    });
    below.collect()
}

/// Whose doings were heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Others'.
    Others,
    /// Ours, and perhaps others' as well.
    OurOwn,
    /// It is over, or can't go on.
    NoMore,
}

/// What is done to SRC by others, as long as there is somebody to be told.
#[derive(Debug)]
pub struct Changes<'a> {
    tree: &'a Loopback,
    watch: &'a Watch,
    events: Events,
    /// So many times reading what has happened, events of our own are told as well: one was at a name that others had changed, and
    /// the others of that operation (where it was moved to, what was replaced there) are in no doubt by themselves.
    doubtful: u8,
}

/// An operation's events come at once, but may be read in two parts.
const DOUBTFUL: u8 = 2;

impl Changes<'_> {
    /// Waits until something changes and tells of all that has; how it went.
    pub fn next(&mut self, mut tell: impl FnMut(Change)) -> Heard {
        self.next_or_error(&mut tell).unwrap_or_else(|errno| {
            log::error!("what changes in the source can't be followed any more: {errno}");
            self.watch.lost.store(true, Ordering::SeqCst);
            tell(Change::Everything);
            Heard::NoMore
        })
    }

    fn next_or_error(&mut self, tell: &mut impl FnMut(Change)) -> Result<Heard, Errno> {
        let Events { group, mounts } = &mut self.events;
        let table = mounts.as_ref().map(|mounts| mounts.table.as_fd());
        let [over, _, remounted] = wake::wait(&self.watch.end, group.as_fd(), table)?;
        if over {
            return Ok(Heard::NoMore);
        }
        if let Some(mounts) = mounts.as_mut().filter(|_| remounted) {
            let places = mounts.changed(self.tree);
            let changes = places.iter().filter_map(|place| self.tree.name_at(place));
            changes.for_each(&mut *tell);
        }
        let own = std::process::id();
        let mut heard = Heard::Others;
        for event in group.read()? {
            if event.process == own {
                heard = Heard::OurOwn;
                if self.watch.is_where_others_were(&event) {
                    self.doubtful = DOUBTFUL;
                }
                if self.doubtful == 0 {
                    if self.watch.is_written_back(&event) {
                        self.watch.tell_of_object(self.tree, &event, false, tell);
                    }
                    continue;
                }
            } else {
                self.watch.note_others(&event);
            }
            self.watch.translate(self.tree, &event, tell);
        }
        self.doubtful = self.doubtful.saturating_sub(1);
        Ok(heard)
    }
}

impl Watch {
    fn translate(&self, tree: &Loopback, event: &Event<'_>, tell: &mut impl FnMut(Change)) {
        let Event { mask, place, .. } = event;
        if mask & fanotify::OVERFLOW != 0 {
            tell(Change::Everything);
        }
        if let Some((dir, name)) = place
            && mask & fanotify::NAMES != 0
        {
            let key = dir.generation();
            self.mark(key);
            self.mark(name_key(key, name));
            if let Some(dir) = self.node_of(tree, dir) {
                tell(Change::Name(dir, OsStr::from_bytes(name).to_owned()));
                tell(Change::Contents(dir));
            }
        }
        self.tell_of_object(tree, event, mask & fanotify::CONTENTS != 0, tell);
    }

    /// Tells of the inode of an event, and of its contents or not.
    fn tell_of_object(
        &self,
        tree: &Loopback,
        event: &Event<'_>,
        is_contents: bool,
        tell: &mut impl FnMut(Change),
    ) {
        let Some(object) = &event.object else {
            return;
        };
        self.mark(object.generation());
        if let Some(node) = self.node_of(tree, object) {
            tell(if is_contents {
                Change::Contents(node)
            } else {
                Change::Attributes(node)
            });
        }
    }

    fn node_of(&self, tree: &Loopback, handle: &Handle) -> Option<NodeNo> {
        if *handle == self.root {
            return Some(NodeNo::ROOT);
        }
        tree.table.by_handle(handle).map(|inode| inode.number())
    }
}

impl Loopback {
    /// Follows what is done to SRC by others from now on: what is found after this may be kept
    /// ([`Keep::UntilTold`]), if [`Self::changes`] are listened to. To be called before anything is served.
    pub fn watch(&self) -> Result<(), Unwatched> {
        let watch = Watch::start(self)?;
        self.table.index_by_handle();
        // A second call could only come from a bug in fuse/mod.rs; the first one stays right.
        let _ = self.watch.set(watch);
        Ok(())
    }

    /// Whether changes are followed of what can be read and was asked for twice, of nothing else.
    #[must_use]
    pub fn watches_one_by_one(&self) -> bool {
        let watch = self.watch.get();
        watch.is_some_and(|watch| watch.one_by_one.is_some())
    }

    /// What is done to SRC by others, for one to listen to; `None` if nobody follows it, or somebody does.
    #[must_use]
    pub fn changes(&self) -> Option<Changes<'_>> {
        let watch = self.watch.get()?;
        let events = lock(&watch.events).take()?;
        Some(Changes {
            tree: self,
            watch,
            events,
            doubtful: 0,
        })
    }

    /// The kernel is about to have pages of a mapping of `node` written to SRC. It takes the times that it knows for out of date
    /// afterwards, but believes an answer that comes later, however long ago that looked (`fuse_writepage_end` does not make a new
    /// version of the attributes, as other writes do). So it is told, as of what others do.
    pub fn writes_back(&self, node: NodeNo) {
        if let (Some(watch), Ok(inode)) = (self.watch.get(), self.inode(node))
            && let Some(key) = watch.key(&inode)
        {
            watch.written_back.note(key);
        }
    }

    /// Has writes to a file not told any more: the kernel that does them by itself knows of its own, and is to
    /// remember none of its attributes meanwhile. False if that can't be.
    #[must_use]
    pub fn ignore_writes(&self, node: NodeNo) -> bool {
        let (Some(watch), Ok(inode)) = (self.watch.get(), self.inode(node)) else {
            return false;
        };
        inode.set_unheard(true);
        let ignored = self.object(&inode).is_ok_and(|object| {
            fanotify::ignore_writes(watch.queue.as_fd(), object.fd(), true).is_ok()
        });
        inode.set_unheard(ignored);
        ignored
    }

    /// Has them told again. What the kernel was told meanwhile may be out of date.
    pub fn hear_writes(&self, node: NodeNo) {
        if let (Some(watch), Ok(inode)) = (self.watch.get(), self.inode(node)) {
            let heard = self.object(&inode).and_then(|object| {
                fanotify::ignore_writes(watch.queue.as_fd(), object.fd(), false)
                    .tried("fanotify_mark")
            });
            match heard {
                Ok(()) => inode.set_unheard(false),
                // It stays unheard, and nothing of it is remembered.
                Err(error) => log::debug!("hearing of node {} again: {error}", node.0),
            }
        }
    }

    /// Ends the listening, now and later.
    pub fn end_of_changes(&self) {
        if let Some(watch) = self.watch.get() {
            watch.end.ring();
        }
    }

    /// Whether the kernel may remember an inode.
    #[must_use]
    pub fn knows(&self, node: NodeNo) -> bool {
        self.table.has(node)
    }

    /// All inodes that the kernel remembers, and the root.
    #[must_use]
    pub fn all_nodes(&self) -> Vec<NodeNo> {
        let mut all = self.table.all();
        all.push(NodeNo::ROOT);
        all
    }

    /// The names that are in a directory now: for who can't tell which of them have changed.
    #[must_use]
    pub fn names_in(&self, node: NodeNo) -> Vec<OsString> {
        let mut names = Vec::new();
        if let Ok(OpenedDir { handle, .. }) = self.opendir(node, fs::open_flags::READ_ONLY) {
            let list = self.readdir(handle, 0, |listed| {
                names.push(listed.name.to_owned());
                Room::Taken
            });
            let _ = (list, self.releasedir(handle));
        }
        names
    }

    /// How long the kernel may keep that a name in a directory does not exist, as was seen since a moment. It has the
    /// directory locked until it knows, and hears of the name's coming afterwards.
    #[must_use]
    pub fn keep_absence(&self, parent: NodeNo, since: Option<Moment>) -> Keep {
        let (Some(watch), Some(since), Ok(parent)) = (self.watch.get(), since, self.inode(parent))
        else {
            return Keep::Briefly;
        };
        match watch.key(&parent) {
            None => Keep::Briefly,
            Some(dir) if watch.is_new(dir, since) => Keep::No,
            Some(_) => Keep::UntilTold,
        }
    }

    /// Whether the kernel hears of changes of `inode`.
    pub(super) fn is_followed(&self, inode: &Inode) -> bool {
        let watch = self.watch.get();
        watch.is_some_and(|watch| watch.key(inode).is_some())
    }

    /// Whether the kernel may go on with what it has read of `inode`, which was opened just now and of which `stat` was seen
    /// since it asked for that: nothing has changed since it was opened last, and reading in SRC once more would
    /// leave the access time alone. If it may not, it has to be told so.
    pub(super) fn read_for_all(&self, inode: &Inode, object: BorrowedFd<'_>, stat: &Statx) -> bool {
        let watch = self.watch.get();
        let Some((watch, key)) = watch.and_then(|watch| Some((watch, watch.key(inode)?))) else {
            return false;
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let Ok(now) = now else {
            return false;
        };
        let is_settled = since(stat.stx_ctime, now).is_some_and(|age| age >= SETTLED);
        let is_directory = inode.kind() == FileType::Directory;
        watch.is_as_opened_last(key, is_settled.then(|| state(key, stat)))
            && match fs::access_times(object, is_directory) {
                Ok(AccessTimes::LeftAlone) => true,
                Ok(AccessTimes::Relative) => {
                    let [atime, mtime, ctime] = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime]
                        .map(|time| (time.tv_sec, time.tv_nsec));
                    i64::try_from(now.as_secs())
                        .is_ok_and(|now| !policy::relatime_sets(atime, mtime, ctime, now))
                }
                _ => false,
            }
    }

    /// Now, if changes are followed.
    #[must_use]
    pub fn moment(&self) -> Option<Moment> {
        self.watch.get().map(Watch::moment)
    }

    /// `attr` with how long the kernel may keep it, seen since a moment.
    pub(super) fn kept_since(&self, since: Option<Moment>, inode: &Inode, attr: &mut Attr) {
        if let (Some(watch), Some(since), Keep::Briefly) = (self.watch.get(), since, attr.keep) {
            attr.keep = watch.keep(inode, since);
            watch.hear_of(self, inode);
        }
    }

    /// How long it may keep that `name` leads to `inode`, seen since a moment.
    pub(super) fn name_kept_since(
        &self,
        since: Option<Moment>,
        (parent, name): (&Inode, &CStr),
        inode: &Inode,
    ) -> Keep {
        match (self.watch.get(), since) {
            // What is mounted there may be unmounted.
            (Some(watch), Some(since)) if watch.key(inode).is_some() => {
                watch.keep_name(parent, name.to_bytes(), since)
            }
            _ => Keep::Briefly,
        }
    }

    /// The name at a place below the root, if the kernel may remember it.
    fn name_at(&self, place: &Path) -> Option<Change> {
        let (parent, name) = (place.parent()?, place.file_name()?);
        let mut dir = Arc::clone(&self.root);
        for name in parent {
            let name = super::name::Name::new(name).ok()?;
            let object = self.object(&dir).ok()?;
            let Found::Here(found) = fs::open_object(object.fd(), name.as_c_str()).ok()? else {
                return None;
            };
            let number = self.number_of(found.as_fd())?;
            drop(object);
            dir = self.table.get(number)?;
        }
        Some(Change::Name(dir.number(), name.to_owned()))
    }

    fn number_of(&self, object: BorrowedFd<'_>) -> Option<NodeNo> {
        let stat = fs::stat(object).ok()?;
        Some(self.numbering.number(Identity::of(&stat)))
    }
}
