//! An inode: what it is (its identity) and how it is reached at the moment (a descriptor).
//!
//! The two are apart on purpose. The identity is what outlives a descriptor: it is all that a
//! table in shared memory or the cache of descriptors ([`super::descriptors`]) needs to find the
//! inode again.

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::survive::{Flag, Node, Reach as Found};
use crate::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, lock};
use crate::sys::fs::{self, FileType, Statx};
use crate::sys::handle::Handle;

/// A node number: what the kernel and programs (`st_ino`) know an inode by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeNo(pub u64);

impl NodeNo {
    /// The root of the mount (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// What makes an inode that inode as long as it exists, wherever it is opened from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The mount below SRC through which it is reached (0 before Linux 5.8). One directory reached
    /// through two mounts is two directories to the kernel, which allows a directory one parent.
    pub mount: u64,
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl Identity {
    /// The identity in a statx answer that has `STATX_INO` and, if the kernel knows it, `STATX_MNT_ID`.
    #[must_use]
    pub fn of(stat: &Statx) -> Self {
        Self {
            mount: fs::mount_id(stat),
            device: fs::device_number(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
        }
    }
}

/// An inode that the kernel remembers or that is open. There may be millions: its size is watched by
/// a test.
#[derive(Debug)]
pub struct Inode {
    number: NodeNo,
    identity: Identity,
    reach: Reach,
    /// Its type, as `d_type` has it: in a byte.
    kind: u8,
    /// What was told of its size and times last, as [`stamp`] has it; of a directory, where it was found last,
    /// as [`place`] has it, or 0.
    stamp: AtomicU32,
    /// [`USED`], [`KEPT`], [`TOLD`], [`MAPPABLE`], [`UNHEARD`], [`INHERITED`], [`UNCHANGED`].
    flags: AtomicU8,
    /// When it was made, as [`birth`] has it.
    birth: [u8; 2],
}

/// Used since the cache of descriptors looked last.
const USED: u8 = 1;
/// Its descriptor is not to be closed: its last name has gone, and its handle may lead nowhere by
/// now. Set and read under the lock of its descriptor.
const KEPT: u8 = 2;
/// The kernel was told that it has no name any more.
const TOLD: u8 = 4;
/// Somebody may have mapped it in SRC, by the kernel's own way, to write to it: that changes its times without
/// a word to anybody, and goes on after the file was closed.
const MAPPABLE: u8 = 8;

/// Somebody writes to it in SRC by the kernel's own way, of which the daemon does not hear.
const UNHEARD: u8 = 16;

/// Something of its count is from an earlier process, which may have lost a FORGET: it may be too high. Set and read under the lock of its
/// shard of the table, like the next.
const INHERITED: u8 = 32;

/// Its count is what it was when [`super::table::Table::inherited`] listed it.
const UNCHANGED: u8 = 64;

/// How it is reached.
#[derive(Debug)]
enum Reach {
    /// By a descriptor that it keeps, which also keeps its number from being used again while it is
    /// known.
    Kept {
        object: OwnedFd,
        /// For when it is no longer known.
        generation: u32,
        /// The handle by which others' doings are told of it, if they are ([`super::watch`]). Elsewhere: in place it
        /// would make every inode larger.
        heard_by: OnceLock<Box<Handle>>,
    },
    /// By its file handle, with a descriptor at hand or not.
    ByHandle(Handle, Mutex<Option<Arc<OwnedFd>>>),
}

/// An inode's object descriptor, good for as long as this is held.
#[derive(Debug)]
pub enum Object<'a> {
    /// The inode's own.
    Own(BorrowedFd<'a>),
    /// One that the cache may close meanwhile: not before this is dropped.
    Shared(Arc<OwnedFd>),
}

impl Object<'_> {
    /// For a system call.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(object) => *object,
            Self::Shared(object) => object.as_fd(),
        }
    }
}

/// What became of an inode's descriptor when the cache wanted it.
#[derive(Debug)]
pub enum Release {
    /// Here it is, to be closed; or it had none.
    Free(Option<Arc<OwnedFd>>),
    /// Used meanwhile: ask again later.
    InUse,
    /// It will not be given up.
    Kept,
}

impl Inode {
    /// An inode under its number, with an object descriptor, what statx said of it, and the file
    /// handle by which it is found without the descriptor, if there is one.
    #[must_use]
    pub fn new(number: NodeNo, stat: &Statx, object: OwnedFd, handle: Option<Handle>) -> Self {
        let reach = match handle {
            None => Reach::Kept {
                object,
                generation: 0,
                heard_by: OnceLock::new(),
            },
            Some(handle) => Reach::ByHandle(handle, Mutex::new(Some(Arc::new(object)))),
        };
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let stamp = match kind {
            FileType::Directory => 0,
            _ => stamp(stat),
        };
        Self {
            number,
            identity: Identity::of(stat),
            reach,
            kind: fs::d_type(kind),
            stamp: AtomicU32::new(stamp),
            flags: AtomicU8::new(0),
            birth: birth(stat),
        }
    }

    /// An inode that an earlier process has known, as it was recorded, reached through `mount`; with `object`, if
    /// that was kept. `None` if it can't be had without.
    #[must_use]
    pub fn recorded(node: Node, flags: u64, mount: u64, object: Option<OwnedFd>) -> Option<Self> {
        let Node {
            number,
            device,
            ino,
            kind,
            birth,
            reach,
        } = node;
        let mut own_flags = INHERITED;
        let mut identity = Identity { mount, device, ino };
        let reach = match reach {
            Found::Handle(kind, bytes) => {
                own_flags |= if object.is_some() { KEPT } else { 0 };
                let object = Mutex::new(object.map(Arc::new));
                Reach::ByHandle(Handle::from_parts(kind, &bytes), object)
            }
            Found::Descriptor(generation) => {
                let object = object?;
                identity = Identity::of(&fs::stat(object.as_fd()).ok()?);
                Reach::Kept {
                    object,
                    generation,
                    heard_by: OnceLock::new(),
                }
            }
        };
        own_flags |= if Flag::Mappable.is_in(flags) {
            MAPPABLE
        } else {
            0
        };
        Some(Self {
            number: NodeNo(number),
            identity,
            reach,
            kind,
            // Of neither it is known what the kernel was told.
            stamp: AtomicU32::new(0),
            flags: AtomicU8::new(own_flags),
            birth: birth.to_ne_bytes(),
        })
    }

    /// What is to be recorded of it for a later process.
    #[must_use]
    pub fn record(&self) -> Node<&[u8]> {
        let reach = match &self.reach {
            Reach::Kept { generation, .. } => Found::Descriptor(*generation),
            Reach::ByHandle(handle, _) => Found::Handle(handle.kind(), handle.bytes()),
        };
        Node {
            number: self.number.0,
            device: self.identity.device,
            ino: self.identity.ino,
            kind: self.kind,
            birth: u16::from_ne_bytes(self.birth),
            reach,
        }
    }

    /// Its node number.
    #[must_use]
    pub fn number(&self) -> NodeNo {
        self.number
    }

    /// The same, where it lies: to find it by.
    pub(super) fn number_ref(&self) -> &NodeNo {
        &self.number
    }

    /// Its identity in SRC.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether `stat` was taken of this inode, and not of another one that had the number before or after; in doubt
    /// it was not.
    #[must_use]
    pub fn was_seen(&self, stat: &Statx) -> bool {
        self.birth != UNKNOWN && self.birth == birth(stat) && self.identity == Identity::of(stat)
    }

    /// Its type, which never changes.
    #[must_use]
    pub fn kind(&self) -> FileType {
        fs::type_of(self.kind)
    }

    /// The kernel is about to be told what `stat` says of it.
    pub fn note(&self, stat: &Statx) {
        // Whoever is told at the same time may be told something older: the kernel sees to that by the order
        // of its requests, and here it costs one question more.
        if self.kind() != FileType::Directory {
            self.stamp.store(stamp(stat), Ordering::Relaxed);
        }
    }

    /// The kernel is about to be told, or knows, that it has this name. Directories alone are noted: they have
    /// one name at most.
    pub fn note_place(&self, parent: NodeNo, name: &CStr) {
        if self.kind() == FileType::Directory {
            self.stamp.store(place(parent, name), Ordering::Relaxed);
        }
    }

    /// Whether a directory has that name as far as the kernel knows.
    #[must_use]
    pub fn may_be_at(&self, parent: NodeNo, name: &CStr) -> bool {
        let noted = self.stamp.load(Ordering::Relaxed);
        noted == 0 || noted == place(parent, name)
    }

    /// Whether `stat` says something else of its size and times than the kernel was told last.
    #[must_use]
    pub fn differs(&self, stat: &Statx) -> bool {
        self.stamp.load(Ordering::Relaxed) != stamp(stat)
    }

    /// Its file handle, if that is how it is reached.
    #[must_use]
    pub fn handle(&self) -> Option<&Handle> {
        match &self.reach {
            Reach::Kept { .. } => None,
            Reach::ByHandle(handle, _) => Some(handle),
        }
    }

    /// The handle by which it is found when the file system tells of it, if it does.
    #[must_use]
    pub fn heard_by(&self) -> Option<&Handle> {
        match &self.reach {
            Reach::Kept { heard_by, .. } => heard_by.get().map(|handle| &**handle),
            Reach::ByHandle(handle, _) => Some(handle),
        }
    }

    /// Notes that the file system tells of it from now on, by that handle. False if that was known.
    pub(super) fn is_heard(&self, handle: Handle) -> bool {
        match &self.reach {
            Reach::Kept { heard_by, .. } => heard_by.set(Box::new(handle)).is_ok(),
            Reach::ByHandle(..) => false,
        }
    }

    /// Whether it keeps a descriptor for as long as it is known.
    #[must_use]
    pub fn keeps_descriptor(&self) -> bool {
        matches!(self.reach, Reach::Kept { .. })
    }

    /// The same with a generation, for an inode without a handle.
    #[must_use]
    pub fn with_generation(mut self, generation: u32) -> Self {
        if let Reach::Kept {
            generation: own, ..
        } = &mut self.reach
        {
            *own = generation;
        }
        self
    }

    /// What tells it from an earlier inode with the same number; 0 for the root. The kernel looks at 32
    /// bits of it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match &self.reach {
            Reach::Kept { generation, .. } => (*generation).into(),
            Reach::ByHandle(handle, _) => handle.generation(),
        }
    }

    /// Whether `other`, found under the same number, is this one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        // Without handles the known one's descriptor keeps its number from being used again.
        self.identity == other.identity && self.handle() == other.handle()
    }

    /// Its descriptor, if one is open.
    #[must_use]
    pub fn object(&self) -> Option<Object<'_>> {
        match &self.reach {
            Reach::Kept { object, .. } => Some(Object::Own(object.as_fd())),
            Reach::ByHandle(_, object) => {
                // Only the clock of the cache goes by it: no order with anything else is needed.
                self.flags.fetch_or(USED, Ordering::Relaxed);
                lock(object).clone().map(Object::Shared)
            }
        }
    }

    /// The descriptor that it has at hand, for longer than it may.
    #[must_use]
    pub fn shared_object(&self) -> Option<Arc<OwnedFd>> {
        match self.object()? {
            Object::Own(_) => None,
            Object::Shared(object) => Some(object),
        }
    }

    /// The number of its descriptor, if one is open, without counting as a use.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        match &self.reach {
            Reach::Kept { object, .. } => Some(object.as_raw_fd()),
            Reach::ByHandle(_, object) => lock(object).as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// Gives it a descriptor to have at hand; the one that it has by now, and whether it had none.
    pub fn lend(&self, object: OwnedFd) -> (Object<'_>, bool) {
        match &self.reach {
            Reach::Kept { object: own, .. } => (Object::Own(own.as_fd()), false),
            Reach::ByHandle(_, slot) => {
                let mut slot = lock(slot);
                let had_none = slot.is_none();
                let object = slot.get_or_insert_with(|| Arc::new(object));
                (Object::Shared(Arc::clone(object)), had_none)
            }
        }
    }

    /// Keeps a descriptor of it open from now on.
    pub fn keep(&self, object: Arc<OwnedFd>) {
        if let Reach::ByHandle(_, slot) = &self.reach {
            let mut slot = lock(slot);
            slot.get_or_insert(object);
            self.flags.fetch_or(KEPT, Ordering::Relaxed);
        }
    }

    /// Whether a descriptor of it is kept because its last name has gone.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.has(KEPT)
    }

    /// Whether the kernel was told before that it has no name any more; from now on it was.
    pub fn was_told(&self) -> bool {
        self.flags.fetch_or(TOLD, Ordering::Relaxed) & TOLD != 0
    }

    /// Notes that it may be mapped from now on; whether that is new.
    pub fn becomes_mappable(&self) -> bool {
        self.flags.fetch_or(MAPPABLE, Ordering::Relaxed) & MAPPABLE == 0
    }

    /// Whether it may change without the kernel or this process being told.
    #[must_use]
    pub fn is_mappable(&self) -> bool {
        self.has(MAPPABLE | UNHEARD)
    }

    /// Notes whether writes to it are told to nobody.
    pub fn set_unheard(&self, unheard: bool) {
        if unheard {
            self.flags.fetch_or(UNHEARD, Ordering::Relaxed);
        } else {
            self.flags.fetch_and(!UNHEARD, Ordering::Relaxed);
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Its count changes.
    pub(super) fn is_counted(&self) {
        if self.is_unchanged() {
            self.flags.fetch_and(!UNCHANGED, Ordering::Relaxed);
        }
    }

    /// Its count begins with one that is from an earlier process.
    pub(super) fn inherits(&self) {
        self.flags.fetch_or(INHERITED, Ordering::Relaxed);
    }

    /// Whether something of its count is from an earlier process.
    pub(super) fn is_inherited(&self) -> bool {
        self.has(INHERITED)
    }

    /// It is listed: [`Self::is_unchanged`] until its count changes.
    pub(super) fn is_listed(&self) {
        self.flags.fetch_or(UNCHANGED, Ordering::Relaxed);
    }

    /// Whether its count is what it was when it was listed last.
    pub(super) fn is_unchanged(&self) -> bool {
        self.has(UNCHANGED)
    }

    /// Asks for its descriptor back.
    pub fn release(&self) -> Release {
        match &self.reach {
            Reach::Kept { .. } => Release::Kept,
            Reach::ByHandle(_, slot) => {
                let mut slot = lock(slot);
                if self.has(KEPT) {
                    Release::Kept
                } else if self.flags.fetch_and(!USED, Ordering::Relaxed) & USED != 0 {
                    Release::InUse
                } else {
                    Release::Free(slot.take())
                }
            }
        }
    }

    /// The descriptor of an inode that nobody else has.
    #[must_use]
    pub fn into_object(self) -> Option<OwnedFd> {
        match self.reach {
            Reach::Kept { object, .. } => Some(object),
            Reach::ByHandle(_, slot) => {
                let object = slot
                    .into_inner()
                    .unwrap_or_else(crate::sync::PoisonError::into_inner);
                object.and_then(Arc::into_inner)
            }
        }
    }
}

/// Size, modification and change of a file in 32 bits: two states of one file have the same with a chance
/// of one in four thousand million.
fn stamp(stat: &Statx) -> u32 {
    let mut hasher = DefaultHasher::new();
    stat.stx_size.hash(&mut hasher);
    for time in [stat.stx_mtime, stat.stx_ctime] {
        (time.tv_sec, time.tv_nsec).hash(&mut hasher);
    }
    low(hasher.finish())
}

/// A name in a directory in 32 bits, which are never 0.
fn place(parent: NodeNo, name: &CStr) -> u32 {
    let mut hasher = DefaultHasher::new();
    (parent.0, name).hash(&mut hasher);
    low(hasher.finish()) | 1
}

/// It is not known when something was made.
const UNKNOWN: [u8; 2] = [0; 2];

/// When an inode was made, in 16 bits, which are never 0.
fn birth(stat: &Statx) -> [u8; 2] {
    let Some(time) = fs::birth(stat) else {
        return UNKNOWN;
    };
    let mut hasher = DefaultHasher::new();
    (time.tv_sec, time.tv_nsec).hash(&mut hasher);
    let [a, b, ..] = (low(hasher.finish()) | 1).to_ne_bytes();
    [a, b]
}

/// Any 32 bits of a hash are as good as others.
fn low(hash: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation)]
    let low = hash as u32;
    low
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// With its two reference counts, and 8 bytes of the allocator's, 112 bytes.
    #[test]
    fn an_inode_is_small() {
        assert_eq!(size_of::<Inode>(), 88);
    }
}
