//! Which inodes have a descriptor open. A descriptor for each inode that the kernel remembers would
//! run out after some thousands; where SRC gives file handles, an inode is reopened by its handle
//! when it is needed, and only the ones used lately keep a descriptor.
//!
//! The clock algorithm (second chance): descriptors stand in a queue in the order of their opening;
//! one that comes to the front and was used meanwhile goes back to the end, another is closed.
//!
//! Where handles can't be used each inode does keep its descriptor, and there may be too few. Then
//! the kernel is asked to forget some ([`super::shortage`]), and before the last are gone, new inodes
//! are refused with `EMFILE`, so that what is known and open can go on being used.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::inode::{Identity, Inode, Object, Release};
use super::shortage::Shortage;
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::{Arc, Mutex, Weak, lock};
use crate::sys::features;
use crate::sys::fs;
use crate::sys::handle::Handle;

/// At least so many descriptors are kept at hand, however low the limit on open files.
const FEWEST: usize = 16;
/// And at most so many: more would cost memory in the kernel and save little.
const MOST: usize = 1 << 16;
/// For so many the kernel's table has room from the start.
const AT_FIRST: u64 = 1 << 14;
/// Descriptors that a new file takes: the open file, and the inode's. One for somebody else's meanwhile.
const FOR_A_NEW_FILE: usize = 3;
/// How often somebody waits for the kernel to forget before an inode is refused.
const ROUNDS: usize = 20;
/// An inode would have to keep a descriptor, and there are too few.
const TOO_MANY: Error = Error::new(
    Errno::MFILE,
    "keeping a file open for an inode, because the source gives no file handles for it",
);

/// The descriptors at hand.
#[derive(Debug)]
pub struct Descriptors {
    /// What handles are opened through, if they can be used.
    mount: Option<Mount>,
    shares: Shares,
    clock: Mutex<VecDeque<Weak<Inode>>>,
    shortage: Shortage,
}

#[derive(Debug)]
struct Mount {
    /// An open directory: handles can't be opened through an `O_PATH` descriptor.
    fd: OwnedFd,
    /// The mount that it is on. Its device does not matter: each subvolume of btrfs has its own, and all
    /// of them can be reached through one mount.
    id: u64,
}

/// How the descriptors that this process may have are shared out. The kernel gives a new one the lowest
/// number that is free: its number says how many are in use, whatever for, and nobody has to count.
#[derive(Debug, Clone, Copy)]
struct Shares {
    /// So many are at hand at most for inodes that have handles.
    cache: usize,
    /// From this number on they are short: fewer at hand, and the kernel is asked to forget.
    short: u64,
    /// Below this number an inode that has no handle may keep one: the rest is for open files.
    kept: u64,
    /// And below this one while the kernel is about to forget others.
    kept_for_now: u64,
    /// Below this number callers' open files may have one. The last few are for what a request needs for
    /// a moment.
    held: u64,
}

impl Shares {
    fn of(limit: u64) -> Self {
        let for_a_moment = (limit / 16).max(16).min(limit / 4);
        let held = limit.saturating_sub(for_a_moment);
        let eighths = |count| held / 8 * count;
        Self {
            cache: usize::try_from(eighths(3)).map_or(MOST, |cache| cache.clamp(FEWEST, MOST)),
            short: eighths(4),
            kept: eighths(6),
            kept_for_now: eighths(7),
            held,
        }
    }
}

/// How many descriptors are in use where this is the number of a new one.
fn in_use(descriptor: RawFd) -> u64 {
    descriptor.unsigned_abs().into()
}

fn is_lack(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE)
}

impl Descriptors {
    /// Descriptors for a tree with that root, in a process that may have `limit` files open, more than
    /// half of which stay for files that callers open.
    #[must_use]
    pub fn new(root: BorrowedFd<'_>, identity: Identity, limit: u64) -> Self {
        // Tried out, because it takes a file system that exports and CAP_DAC_READ_SEARCH, and a
        // mount id, without which another mount of the same device could not be told apart.
        let usable = || {
            if features::is_off("file-handles") || identity.mount == 0 {
                return None;
            }
            // A FUSE server forgets what its kernel does, and a handle leads nowhere then, even while
            // somebody uses our inode for it.
            if fs::filesystem_type(root).ok()? == fs::FUSE {
                return None;
            }
            let fd = fs::reopen_dir(root).ok()?;
            let again = Handle::of(root).ok()?.open(fd.as_fd()).ok()?;
            let same = Identity::of(&fs::stat(again.as_fd()).ok()?) == identity;
            let id = identity.mount;
            same.then_some(Mount { fd, id })
        };
        fs::make_room_for_files(root, limit.min(AT_FIRST));
        Self {
            mount: usable(),
            shares: Shares::of(limit),
            clock: Mutex::new(VecDeque::new()),
            shortage: Shortage::new(),
        }
    }

    /// How inodes are reached, in words for the log.
    #[must_use]
    pub fn describe(&self) -> String {
        let Shares { cache, kept, .. } = self.shares;
        match &self.mount {
            Some(_) => format!("inodes are reached by file handle, {cache} of them kept open"),
            None => format!(
                "each inode that the kernel remembers keeps a file open, {kept} at most: the source \
                 gives no file handles that this process could open"
            ),
        }
    }

    /// What handles are opened through: a descriptor of SRC's mount; `None` where they can't be.
    #[must_use]
    pub fn mount(&self) -> Option<BorrowedFd<'_>> {
        self.mount.as_ref().map(|mount| mount.fd.as_fd())
    }

    /// The id of that mount; 0 where there is none.
    #[must_use]
    pub fn mount_id(&self) -> u64 {
        self.mount.as_ref().map_or(0, |mount| mount.id)
    }

    /// Whether inodes are reached by file handle at all.
    #[must_use]
    pub fn by_handle(&self) -> bool {
        self.mount.is_some()
    }

    /// Whether that inode is on the mount that handles can be opened on.
    fn reaches(&self, identity: Identity) -> bool {
        let mount = self.mount.as_ref();
        mount.is_some_and(|mount| mount.id == identity.mount)
    }

    /// The handle by which an object can be reached later; `None` where it must be kept open. Which
    /// of the two it is never changes for an inode.
    pub fn handle_of(&self, object: BorrowedFd<'_>, identity: Identity) -> Result<Option<Handle>> {
        if !self.reaches(identity) {
            return Ok(None);
        }
        match Handle::of(object) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::OPNOTSUPP) => Ok(None), // a file system that has handles for some only
            Err(errno) => Err(Error::new(errno, "name_to_handle_at")),
        }
    }

    /// An inode's object descriptor: the one at hand, or a new one by its handle.
    pub fn object<'a>(&self, inode: &'a Arc<Inode>) -> Result<Object<'a>> {
        if let Some(object) = inode.object() {
            return Ok(object);
        }
        let (Some(handle), Some(mount)) = (inode.handle(), &self.mount) else {
            return Err(Error::STALE);
        };
        let object = self
            .with_room(|| handle.open(mount.fd.as_fd()))
            .tried("open_by_handle_at")?;
        Ok(self.lend(inode, object))
    }

    /// Has a descriptor of `inode` at hand from now on, and closes others if there are too many.
    pub fn lend<'a>(&self, inode: &'a Arc<Inode>, object: OwnedFd) -> Object<'a> {
        let (object, had_none) = inode.lend(object);
        if had_none {
            self.opened(inode);
        }
        object
    }

    /// Counts an inode that has just become known, with its descriptor. `EMFILE` where it would keep
    /// that one and too few are left.
    pub fn admit(&self, inode: &Arc<Inode>) -> Result<()> {
        if !inode.keeps_descriptor() {
            self.opened(inode);
            return Ok(());
        }
        let number = inode.descriptor().map_or(0, in_use);
        self.relieve(number);
        if number >= self.shares.short {
            self.shortage.tell();
        }
        if number >= self.shares.kept {
            self.shortage.wait_for_relief();
        }
        if number < self.most_kept() {
            return Ok(());
        }
        self.relieved(|| self.number_after(inode, 1))
    }

    /// Counts an inode that has just got a descriptor.
    pub fn opened(&self, inode: &Arc<Inode>) {
        if inode.keeps_descriptor() {
            return;
        }
        let in_use = inode.descriptor().map_or(0, in_use);
        let mut clock = lock(&self.clock);
        clock.push_back(Arc::downgrade(inode));
        let closing = release(&mut clock, self.shares.cache);
        // Closed here, after the lock.
        drop(clock);
        drop(closing);
        self.relieve(in_use);
    }

    /// Opens something, and where descriptors have run out, once more after each time that some of
    /// those at hand could be closed.
    pub fn with_room<T>(
        &self,
        open: impl Fn() -> std::result::Result<T, Errno>,
    ) -> std::result::Result<T, Errno> {
        loop {
            match open() {
                Err(errno) if is_lack(errno) => {
                    if !self.close_some(0) {
                        self.shortage.tell();
                        return Err(errno);
                    }
                }
                result => return result,
            }
        }
    }

    /// What was opened for a caller to hold: not with one of the last few descriptors. To be called when nothing
    /// else is held for its sake.
    pub fn for_caller(&self, mut file: OwnedFd) -> std::result::Result<OwnedFd, Errno> {
        while in_use(file.as_raw_fd()) >= self.shares.held {
            if !self.close_some(0) {
                self.shortage.tell();
                return Err(Errno::MFILE);
            }
            file = fs::duplicate(file.as_fd())?;
        }
        let number = in_use(file.as_raw_fd());
        self.relieve(number);
        if number >= self.shares.short && !self.by_handle() {
            self.shortage.tell();
        }
        if number >= self.shares.kept_for_now && !self.by_handle() {
            self.shortage.wait_for_relief();
        }
        Ok(file)
    }

    /// Checks that there will be a descriptor for an inode that is about to be made in `dir`, if it is to
    /// keep one: once it is made, it would be too late to say `EMFILE`.
    pub fn check_room(&self, dir: &Arc<Inode>) -> Result<()> {
        if self.reaches(dir.identity()) {
            return Ok(());
        }
        self.relieved(|| self.number_after(dir, FOR_A_NEW_FILE))
    }

    /// Looks at the number of a new descriptor until it is one that an inode may keep, or nothing is done
    /// for it any more.
    fn relieved(&self, number: impl Fn() -> Result<u64>) -> Result<()> {
        for _ in 0..ROUNDS {
            if number()? < self.most_kept() {
                return Ok(());
            }
            self.shortage.tell();
            if !self.shortage.wait_for_relief() {
                break;
            }
        }
        Err(TOO_MANY)
    }

    /// The number of the last of `count` new descriptors.
    fn number_after(&self, inode: &Arc<Inode>, count: usize) -> Result<u64> {
        let object = self.object(inode)?;
        let one = |_| self.with_room(|| fs::duplicate(object.fd()));
        let taken: Vec<OwnedFd> = (0..count)
            .map(one)
            .collect::<std::result::Result<_, _>>()
            .tried("dup")?;
        Ok(taken.last().map_or(0, |last| in_use(last.as_raw_fd())))
    }

    /// Below which number an inode may keep a descriptor now.
    fn most_kept(&self) -> u64 {
        if self.shortage.is_heard() {
            self.shares.kept_for_now
        } else {
            self.shares.kept
        }
    }

    /// The flag that is raised when the kernel should forget.
    #[must_use]
    pub(super) fn shortage(&self) -> &Shortage {
        &self.shortage
    }

    /// Has fewer descriptors at hand if so many are in use that they are short.
    fn relieve(&self, in_use: u64) {
        if in_use >= self.shares.held {
            self.close_some(0);
        } else if in_use >= self.shares.short {
            self.close_some(FEWEST);
        }
    }

    /// Closes an eighth of the descriptors at hand, but leaves `rest`; whether there were any to close.
    fn close_some(&self, rest: usize) -> bool {
        let mut clock = lock(&self.clock);
        let fewer = clock.len() - clock.len().div_ceil(8);
        let closing = release(&mut clock, fewer.max(rest));
        drop(clock);
        !closing.is_empty()
    }
}

/// Takes inodes out of the clock until there are `rest`, with their descriptors, which are to be closed
/// when the clock is unlocked.
fn release(clock: &mut VecDeque<Weak<Inode>>, rest: usize) -> Vec<Arc<OwnedFd>> {
    let mut closing = Vec::new();
    // Twice round is enough: the first time takes away each one's second chance.
    for _ in 0..2 * clock.len() {
        if clock.len() <= rest {
            break;
        }
        let Some(oldest) = clock.pop_front() else {
            break;
        };
        let Some(inode) = oldest.upgrade() else {
            continue;
        };
        match inode.release() {
            Release::InUse => clock.push_back(oldest),
            Release::Free(object) => closing.extend(object),
            Release::Kept => {}
        }
    }
    closing
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_from_the_start() {
        let limit = fs::raise_file_limit();
        let root = fs::open_root(std::path::Path::new("/")).unwrap();
        let identity = Identity::of(&fs::stat(root.as_fd()).unwrap());
        let _descriptors = Descriptors::new(root.as_fd(), identity, limit);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let size: u64 = size.unwrap().trim().parse().unwrap();
        assert!(size >= limit.min(AT_FIRST), "{size} of {limit}");
    }

    #[test]
    fn the_shares_leave_room_for_each_other_whatever_the_limit() {
        for limit in [32, 64, 256, 1024, 20_000, 1 << 20, u64::MAX] {
            let shares = Shares::of(limit);
            let Shares {
                short,
                kept,
                kept_for_now,
                held,
                ..
            } = shares;
            assert!(
                short < kept && kept < kept_for_now && kept_for_now < held,
                "{shares:?}"
            );
            assert!(limit - held >= 8, "{shares:?}");
            assert!(
                shares.cache as u64 <= short.max(FEWEST as u64),
                "{shares:?}"
            );
        }
    }
}
