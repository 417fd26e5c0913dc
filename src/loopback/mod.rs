//! The file system: plain functions from a request to a value. It knows neither fuser nor any other
//! transport, starts no thread and sends no reply, so that it can be tested without a mount and
//! served from another transport one day.
//!
//! In reading order:
//!
//! - [`inode`]: what an inode is: its identity, apart from the descriptor that happens to be open;
//! - [`descriptors`]: which inodes have one open, and how the others are found again;
//! - [`shortage`]: what is done when too few are left;
//! - [`crossing`]: what is shown where something is mounted below SRC;
//! - [`export`]: inodes of which the kernel knows the number only;
//! - [`numbering`]: which number programs and the kernel see for it;
//! - [`table`]: the inodes that the kernel remembers, and [`table::LookupRef`], a lookup count as
//!   an owned value;
//! - [`tally`]: where its lookups are counted; [`recover`]: the beginning of a process that goes on with what an
//!   earlier one has left; `replay`: what is asked for twice is done once;
//! - [`watch`]: what others do to SRC, for the kernel to forget what it remembers; `lately`: what it need not remember for long;
//! - [`handle`]: open files and directories;
//! - [`name`]: the one check of a name;
//! - [`attr`], [`lookup`], [`create`], [`remove`], [`file`], [`dir`], [`xattr`], [`ioctl`], [`lock`]:
//!   the operations, by topic.
//!
//! Three rules hold everywhere. Nothing is reached by path: an operation acts on an inode's own
//! descriptor, or on one name relative to its directory's. No symlink of SRC is followed. No number
//! from outside is believed: nodes and handles are looked up, sizes and offsets checked.

pub mod attr;
pub mod create;
pub mod crossing;
mod deadlock;
pub mod descriptors;
pub mod dir;
pub mod export;
pub mod file;
pub mod handle;
mod index;
pub mod inode;
pub mod ioctl;
mod lately;
pub mod lock;
pub mod lookup;
pub mod name;
pub mod numbering;
pub mod recover;
pub mod remove;
mod replay;
pub mod shortage;
pub mod table;
pub mod tally;
pub mod watch;
pub mod xattr;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Errno, Error, Result, Tried};
use crate::policy;
use crate::survive::State;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, OnceLock};
use crate::sys::creds::{self, CallerGuard, Own, OwnerCheck};
use crate::sys::{features, fs, rights};

use crossing::Crossing;
use descriptors::Descriptors;
use export::Export;
use handle::{DirHandle, FileHandle, Handles};
use inode::{Inode, NodeNo, Object};
use numbering::Numbering;
use table::Table;
use tally::Counting;
use watch::Watch;

/// Who asks, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// File system uid of the calling thread.
    pub uid: u32,
    /// File system gid of the calling thread.
    pub gid: u32,
    /// Its thread id; 0 where it lives in a pid namespace that we don't see.
    pub pid: u32,
}

/// What a tree is opened with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How many files this process may have open.
    pub file_limit: u64,
    /// Mounts below SRC are not crossed.
    pub one_file_system: bool,
    /// What is read through the mount keeps its access time in SRC.
    pub noatime: bool,
}

/// Where our own mount stands, should it lie below SRC.
#[derive(Debug)]
struct OwnMount {
    device: u64,
    covered: Option<OwnedFd>,
}

/// A tree, served.
#[derive(Debug)]
pub struct Loopback {
    root: Arc<Inode>,
    numbering: Numbering,
    table: Arc<Table>,
    descriptors: Descriptors,
    export: Export,
    files: Handles<FileHandle>,
    dirs: Handles<DirHandle>,
    crossing: Crossing,
    own_mount: OnceLock<OwnMount>,
    /// What others do to SRC, if that is followed.
    watch: OnceLock<Watch>,
    /// What a later process finds, if there may be one.
    state: Option<Arc<State>>,
    /// Whether creations can be done as the caller (root), or are the daemon's own (anybody else).
    acts_as_callers: bool,
    /// Whether what is read through the mount keeps its access time in SRC.
    noatime: bool,
    /// Of which type SRC's file system is; 0 if it does not say.
    filesystem: u64,
    /// Whether the kernel takes descriptors with `O_PATH` for backing files, as far as is known.
    backing_by_path: AtomicBool,
    /// Whether the kernel opens and closes files without a word: any that it remembers may be open.
    opens_unheard: AtomicBool,
}

impl Loopback {
    /// The tree below the directory `source`, a path that the user gave and that may lead through
    /// symlinks: it is resolved here, once, and never again.
    pub fn open(source: &Path, settings: &Settings) -> Result<Self> {
        Self::open_counting(source, settings, Counting::Here)
    }

    fn open_counting(source: &Path, settings: &Settings, counting: Counting) -> Result<Self> {
        let object = fs::open_root(source).tried("opening the source directory")?;
        let (object, crossing) = Crossing::open(object, settings.one_file_system);
        let stat = fs::stat(object.as_fd()).tried("statx")?;
        let identity = inode::Identity::of(&stat);
        let descriptors = Descriptors::new(object.as_fd(), identity, settings.file_limit);
        let filesystem = fs::filesystem_type(object.as_fd()).unwrap_or(0);
        let root = Arc::new(Inode::new(NodeNo::ROOT, &stat, object, None));
        let state = counting.state();
        let first = handle::first(state.as_ref());
        Ok(Self {
            table: Arc::new(Table::new(Arc::clone(&root), counting)),
            root,
            numbering: Numbering::new(identity, state.clone()),
            export: Export::new(&descriptors, state.clone()),
            descriptors,
            files: Handles::new(first),
            dirs: Handles::new(first),
            crossing,
            own_mount: OnceLock::new(),
            watch: OnceLock::new(),
            state,
            acts_as_callers: creds::can_act_as_others(),
            noatime: settings.noatime,
            filesystem,
            backing_by_path: AtomicBool::new(!features::is_off("backing-by-path")),
            opens_unheard: AtomicBool::new(false),
        })
    }

    /// How inodes are reached, in words for the log.
    #[must_use]
    pub fn describe(&self) -> String {
        let inodes = self.descriptors.describe();
        let export = self.export.describe(self.descriptors.by_handle());
        let crossing = self.crossing.describe();
        format!("{inodes}; {export}; {crossing}")
    }

    /// Says where our own mount is: its device number and the directory that it covers. Where SRC
    /// contains MNT, that directory is shown in its place (`ELOOP` without one); entering the mount
    /// would be asking ourselves, and wait for ever. To be called before the mount can be reached.
    pub fn shield(&self, device: u64, covered: Option<OwnedFd>) {
        // A second call could only come from a bug in mount.rs; the first one stays right.
        let _ = self.own_mount.set(OwnMount { device, covered });
    }

    /// The device number of our own mount.
    #[must_use]
    pub fn own_device(&self) -> Option<u64> {
        self.own_mount.get().map(|own| own.device)
    }

    /// How many inodes the kernel remembers, the root not counted.
    #[must_use]
    pub fn known_inodes(&self) -> usize {
        self.table.len()
    }

    /// Whether what is done is done as the caller.
    #[must_use]
    pub fn acts_as_callers(&self) -> bool {
        self.acts_as_callers
    }

    /// Whether SRC clears set-id bits by itself with whatever is done to a file here, whoever does it.
    #[must_use]
    pub fn loses_set_id(&self) -> bool {
        !self.acts_as_callers && !creds::may_keep_set_id()
    }

    /// Whether open files can do without handles: each request can open its file anew, as nobody in particular, and
    /// what has lost its last name stays within reach until the kernel forgets it.
    #[must_use]
    pub fn can_do_without_handles(&self) -> bool {
        self.acts_as_callers && self.descriptors.by_handle() && fs::is_local(self.filesystem)
    }

    /// Whether another process can find the inodes that the kernel knows.
    #[must_use]
    pub fn finds_inodes_again(&self) -> bool {
        self.descriptors.by_handle()
    }

    /// The kernel opens and closes files without a word from now on.
    pub fn opens_are_unheard(&self) {
        self.opens_unheard.store(true, Ordering::Relaxed);
    }

    /// Whether reads are to leave access times alone.
    #[must_use]
    pub fn noatime(&self) -> bool {
        self.noatime
    }

    /// Whether SRC's file system is itself made of others, as overlayfs.
    #[must_use]
    pub fn is_stacked(&self) -> bool {
        self.filesystem == fs::OVERLAY
    }

    /// How many files and directories are open.
    #[must_use]
    pub fn open_handles(&self) -> usize {
        self.files.len() + self.dirs.len()
    }

    /// The root's inode number in SRC, for the self-test of a new mount.
    #[must_use]
    pub fn root_ino(&self) -> u64 {
        self.root.identity().ino
    }

    /// Where an inode is in SRC, relative to its root, for somebody who looks: told only if a descriptor is at hand, so
    /// that nothing of SRC is asked, and as the kernel has it at the moment.
    #[must_use]
    pub fn path_at_hand(&self, node: NodeNo) -> Option<PathBuf> {
        let inode = self.table.get(node)?;
        let path = fs::path_of(inode.object()?.fd()).ok()?;
        let root = fs::path_of(self.root.object()?.fd()).ok()?;
        let below = path.strip_prefix(&root).ok()?;
        let below = if below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            below
        };
        Some(below.to_owned())
    }

    fn inode(&self, node: NodeNo) -> Result<Arc<Inode>> {
        self.table.get(node).ok_or(Error::STALE)
    }

    /// The object descriptor of an inode.
    fn object<'a>(&self, inode: &'a Arc<Inode>) -> Result<Object<'a>> {
        self.descriptors.object(inode)
    }

    fn file(&self, handle: u64) -> Result<Arc<FileHandle>> {
        self.files.get(handle).ok_or(Error::BAD_HANDLE)
    }

    fn dir(&self, handle: u64) -> Result<Arc<DirHandle>> {
        self.dirs.get(handle).ok_or(Error::BAD_HANDLE)
    }

    /// This thread as `caller`, for a creation with `mode` in `dir`, until the guard is dropped.
    fn creating(
        &self,
        caller: Caller,
        dir: &Arc<Inode>,
        mode: u32,
        umask: u32,
    ) -> Result<CallerGuard> {
        let (mut groups, mut own) = (None, Own::NONE);
        if self.acts_as_callers && policy::is_set_group_id(mode) {
            creds::keep_set_id().tried("taking CAP_FSETID")?;
            let stat = fs::stat(self.object(dir)?.fd()).tried("statx")?;
            let dir_mode = u32::from(stat.stx_mode);
            if policy::creation_depends_on_groups(mode, dir_mode, stat.stx_gid, caller.gid) {
                groups = Some(creds::groups_of(caller.pid));
                own = kept_set_id(caller, mode);
            }
        }
        self.acting(
            caller,
            groups.as_deref(),
            Some(umask),
            OwnerCheck::Made,
            own,
        )
    }

    /// This thread as `caller`, for a change of `object`, which exists, so that SRC clears set-id
    /// bits, spends quota and keeps its reserve exactly as for the caller itself. `None` where
    /// nothing would differ: for root, and where the daemon can't be anybody else.
    fn changing(&self, caller: Caller, object: BorrowedFd<'_>) -> Result<Option<CallerGuard>> {
        self.changing_to(caller, object, &attr::Changes::default())
    }

    /// The same for a change that is the owner's alone: of flags, of an access control list.
    fn changing_as_owner(
        &self,
        caller: Caller,
        object: BorrowedFd<'_>,
    ) -> Result<Option<CallerGuard>> {
        if !self.acts_for_another(caller) {
            return itself();
        }
        let stat = fs::stat(object).tried("statx")?;
        let groups =
            policy::change_depends_on_groups(stat.stx_mode.into(), stat.stx_gid, caller.gid)
                .then(|| creds::groups_of(caller.pid));
        let check = owner_check(caller, &stat, rights::acts_for_owner)?;
        let own = kept_set_id(caller, stat.stx_mode.into())
            .and(Own::immutable(rights::makes_immutable(caller.pid)));
        self.acting(caller, groups.as_deref(), None, check, own)
            .map(Some)
    }

    /// The same for a change of attributes: mode and group as they are and as they will be count, and
    /// some are the owner's alone.
    fn changing_to(
        &self,
        caller: Caller,
        object: BorrowedFd<'_>,
        changes: &attr::Changes,
    ) -> Result<Option<CallerGuard>> {
        if !self.acts_for_another(caller) {
            return itself();
        }
        let stat = fs::stat(object).tried("statx")?;
        let mode = u32::from(stat.stx_mode);
        let groups = [Some(stat.stx_gid), changes.gid]
            .into_iter()
            .flatten()
            .any(|gid| {
                let mode = mode | changes.mode.unwrap_or(0);
                policy::change_depends_on_groups(mode, gid, caller.gid)
            })
            .then(|| creds::groups_of(caller.pid));
        let mut check = OwnerCheck::Made;
        if changes.take_the_owner(mode) {
            check = owner_check(caller, &stat, rights::acts_for_owner)?;
        }
        if changes.give_away() {
            check = owner_check(caller, &stat, rights::gives_away)?;
        }
        let own = kept_set_id(caller, mode | changes.mode.unwrap_or(0));
        self.acting(caller, groups.as_deref(), None, check, own)
            .map(Some)
    }

    /// This thread as `caller`, who gives one more name to `object`. Whoever has it may, and who acts for them; whether anybody
    /// else, SRC says.
    fn linking(&self, caller: Caller, object: BorrowedFd<'_>) -> Result<CallerGuard> {
        let mut check = OwnerCheck::Made;
        if self.acts_for_another(caller) {
            let stat = fs::stat(object).tried("statx")?;
            check = owner_check(caller, &stat, rights::acts_for_owner).unwrap_or(OwnerCheck::Left);
        }
        self.acting(caller, None, None, check, Own::NONE)
    }

    /// Does `act`, which takes a name from a directory, as `caller`: in a sticky directory SRC judges
    /// whose the name is, for the kernel may know one that has gone since.
    fn removing<T>(&self, caller: Caller, act: impl Fn() -> Result<T>) -> Result<T> {
        if !self.acts_for_another(caller) {
            return act();
        }
        let as_caller = self.acting(caller, None, None, OwnerCheck::Left, Own::NONE)?;
        let result = act();
        drop(as_caller);
        match result {
            Err(error)
                if error.errno() == Errno::PERM && rights::acts_for_every_owner(caller.pid) =>
            {
                let _as_caller = self.acting(caller, None, None, OwnerCheck::Made, Own::NONE)?;
                act()
            }
            result => result,
        }
    }

    /// Whether the daemon can act as `caller`, and would have other rights by itself.
    fn acts_for_another(&self, caller: Caller) -> bool {
        self.acts_as_callers && caller.uid != 0
    }

    fn acting(
        &self,
        caller: Caller,
        groups: Option<&[u32]>,
        umask: Option<u32>,
        owner_check: OwnerCheck,
        own: Own,
    ) -> Result<CallerGuard> {
        let identity = creds::Identity {
            uid: caller.uid,
            gid: caller.gid,
            groups,
            umask,
            owner_check,
            admin: true,
            own,
        };
        CallerGuard::enter(identity, self.acts_as_callers).tried("acting as the caller")
    }
}

/// This thread as the daemon itself, with all that it may.
fn itself() -> Result<Option<CallerGuard>> {
    creds::keep_set_id()
        .tried("taking CAP_FSETID")
        .map(|()| None)
}

/// `CAP_FSETID`, if set-id bits of `mode` are at stake and the caller has it.
fn kept_set_id(caller: Caller, mode: u32) -> Own {
    Own::set_id(policy::may_lose_set_id(mode) && rights::keeps_set_id(caller.pid))
}

/// Who judges a change that is the owner's alone, of what `stat` says: SRC if it is the caller's; nobody
/// more if the caller may do the same as its owner; otherwise it is refused. The kernel has let the caller pass
/// by what it knew of the owner, which may have changed since.
fn owner_check(
    caller: Caller,
    stat: &fs::Statx,
    may_as_well: impl FnOnce(u32, u32, u32) -> bool,
) -> Result<OwnerCheck> {
    if stat.stx_uid == caller.uid {
        Ok(OwnerCheck::Left)
    } else if may_as_well(caller.pid, stat.stx_uid, stat.stx_gid) {
        Ok(OwnerCheck::Made)
    } else {
        Err(Error::new(Errno::PERM, "looking who the owner is now"))
    }
}

#[cfg(test)]
mod tests;
