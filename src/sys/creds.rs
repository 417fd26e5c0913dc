//! Acting as the caller: this thread's file-system ids, groups, capabilities and umask for as long
//! as a [`CallerGuard`] lives.
//!
//! What changes, and why not more: the file system uid and gid own what is created. Of the
//! capabilities only those go that would make SRC treat the caller as root where it is not:
//! `CAP_FSETID` (keeps set-group-id bits that the caller may not set), `CAP_SYS_RESOURCE` (spends
//! reserved blocks and quota) and `CAP_LINUX_IMMUTABLE`; where SRC is to judge who the owner is,
//! `CAP_FOWNER` ([`OwnerCheck`]). `CAP_DAC_OVERRIDE` stays: the kernel has already checked the caller's
//! permissions on the mount, with all its groups, which loopfs would have to guess.
//!
//! All of this is per thread in the kernel; glibc's `setgroups` would change every thread of the
//! process, so raw calls are used where glibc broadcasts.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;

use rustix::fs::Mode;
use rustix::io::{Errno, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::caller::proc_counts_as_we_do;
use crate::sync::OnceLock;

/// Capabilities that a caller without uid 0 must not lend from the daemon.
const WITHHELD: CapabilitySet = CapabilitySet::FSETID
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::LINUX_IMMUTABLE);

/// The capabilities that changing the fsuid to a non-zero one takes away (`CAP_FS_SET` in
/// linux/capability.h), less the withheld ones: given back.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD);

/// Who judges what takes the owner of a file: chmod and its kin, names in sticky directories, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerCheck {
    /// The kernel has, on the mount, by what it knew of the file.
    Made,
    /// SRC does, by what the file is now: `CAP_FOWNER` is withheld as well. The kernel may know a file
    /// that has changed hands since, or another one of that name.
    Left,
}

/// Of the capabilities that are withheld those that the caller has itself, where the outcome depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own(CapabilitySet);

impl Own {
    /// None.
    pub const NONE: Self = Self(CapabilitySet::empty());

    /// `CAP_FSETID`, if the caller has it.
    #[must_use]
    pub fn set_id(has: bool) -> Self {
        Self::one(CapabilitySet::FSETID, has)
    }

    /// `CAP_LINUX_IMMUTABLE`, if the caller has it.
    #[must_use]
    pub fn immutable(has: bool) -> Self {
        Self::one(CapabilitySet::LINUX_IMMUTABLE, has)
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn one(capability: CapabilitySet, has: bool) -> Self {
        if has { Self(capability) } else { Self::NONE }
    }
}

/// Whose operation it is and what it may depend on.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// File system uid.
    pub uid: u32,
    /// File system gid.
    pub gid: u32,
    /// Supplementary groups, where the outcome depends on them.
    pub groups: Option<&'a [u32]>,
    /// The umask, where something is created.
    pub umask: Option<u32>,
    /// Who judges what takes an owner.
    pub owner_check: OwnerCheck,
    /// Whether `CAP_SYS_ADMIN` stays, too: not where something is shown to who has it.
    pub admin: bool,
    /// What stays although it is withheld from others.
    pub own: Own,
}

/// Whether this process may act as other users: uid 0 with the capabilities to change ids.
#[must_use]
pub fn can_act_as_others() -> bool {
    let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID;
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

/// Whether this process, as itself, may change a file and leave its set-id bits.
#[must_use]
pub fn may_keep_set_id() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::FSETID))
}

/// This thread acts as somebody else until the guard is dropped. It can't leave its thread. If
/// the thread's own identity can't be restored, the process aborts: going on with the wrong one
/// would serve the next caller with this one's rights.
#[derive(Debug)]
pub struct CallerGuard {
    /// What to restore, or `None` where nothing was changed.
    before: Option<Before>,
    /// Ids belong to a thread: `*const ()` makes the guard neither `Send` nor `Sync`.
    _this_thread: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Before {
    uid: u32,
    gid: u32,
    capabilities: CapabilitySets,
    groups: Option<Vec<rustix::process::Gid>>,
}

impl CallerGuard {
    /// Takes on `identity` where this process can ([`can_act_as_others`], asked once by the caller
    /// of this function and told as `privileged`), and its umask in any case.
    pub fn enter(identity: Identity<'_>, privileged: bool) -> Result<Self> {
        if let Some(umask) = identity.umask {
            set_umask(umask & 0o777)?;
        }
        let mut guard = Self {
            before: None,
            _this_thread: PhantomData,
        };
        if privileged {
            guard.before = change(identity)?;
        }
        Ok(guard)
    }
}

/// Does `act` without `CAP_FSETID`: what is registered with the kernel meanwhile acts on files with these
/// rights later, for whoever asks, and is to clear set-id bits for all of them.
///
/// This thread goes on without it, because it is likely to register something else soon and to have no use for it
/// before: what keeps set-id bits as root says so first ([`keep_set_id`]).
pub fn without_set_id<T>(act: impl FnOnce() -> T) -> Result<T> {
    let before = capabilities()?;
    if before.effective.contains(CapabilitySet::FSETID) {
        set_capabilities(CapabilitySets {
            effective: before.effective - CapabilitySet::FSETID,
            ..before
        })?;
        let _ = GIVEN_UP.set(());
    }
    Ok(act())
}

/// This thread has `CAP_FSETID` again, if it, or the one that started it, has given that up for [`without_set_id`].
pub fn keep_set_id() -> Result<()> {
    if GIVEN_UP.get().is_none() {
        return Ok(());
    }
    let now = capabilities()?;
    set_capabilities(CapabilitySets {
        effective: now.effective | CapabilitySet::FSETID,
        ..now
    })
}

/// Some thread of this process had `CAP_FSETID` and may have it again.
static GIVEN_UP: OnceLock<()> = OnceLock::new();

thread_local! {
    /// This thread's capabilities, which nobody but this module changes.
    static CAPABILITIES: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
}

fn capabilities() -> Result<CapabilitySets> {
    if let Some(sets) = CAPABILITIES.get() {
        return Ok(sets);
    }
    let sets = rustix::thread::capabilities(None)?;
    CAPABILITIES.set(Some(sets));
    Ok(sets)
}

fn set_capabilities(sets: CapabilitySets) -> Result<()> {
    if CAPABILITIES.replace(None) != Some(sets) {
        rustix::thread::set_capabilities(None, sets)?;
    }
    CAPABILITIES.set(Some(sets));
    Ok(())
}

/// Whether this process has `CAP_SYS_ADMIN`.
#[must_use]
pub fn is_admin() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

impl Drop for CallerGuard {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && restore(before).is_err()
        {
            // No log line: logging may open files, with the wrong identity.
            std::process::abort();
        }
    }
}

/// Sets this thread's umask after giving it one of its own (threads share it with their process until
/// `CLONE_FS` is unshared). It stays: whoever creates something on such a thread says under which.
fn set_umask(umask: u32) -> Result<()> {
    thread_local!(static OWN: Cell<Option<u32>> = const { Cell::new(None) });
    if OWN.get().is_none() {
        // SAFETY: CLONE_FS concerns cwd, root and umask alone; no descriptor is closed or replaced.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    }
    if OWN.get() != Some(umask) {
        rustix::process::umask(Mode::from_raw_mode(umask));
        OWN.set(Some(umask));
    }
    Ok(())
}

/// The fsuid and fsgid of this thread, which nobody but this module changes.
fn current_ids() -> (u32, u32) {
    IDS.get().unwrap_or_else(|| {
        let ids = (fs_uid(), fs_gid());
        IDS.set(Some(ids));
        ids
    })
}

thread_local!(static IDS: Cell<Option<(u32, u32)>> = const { Cell::new(None) });

fn change(identity: Identity<'_>) -> Result<Option<Before>> {
    let (uid, gid) = current_ids();
    if (uid, gid) == (identity.uid, identity.gid) {
        return Ok(None);
    }
    let capabilities = capabilities()?;
    let mut before = Before {
        uid,
        gid,
        capabilities,
        groups: None,
    };
    let result = (|| {
        if let Some(groups) = identity.groups {
            before.groups = Some(rustix::process::getgroups()?);
            let groups: Vec<_> = groups
                .iter()
                .copied()
                .map(rustix::process::Gid::from_raw)
                .collect();
            rustix::thread::set_thread_groups(&groups)?;
        }
        set_fs_gid(identity.gid)?;
        set_fs_uid(identity.uid)?;
        if identity.uid != 0 {
            let mut effective = ((capabilities.effective - WITHHELD) | KEPT | identity.own.0)
                & capabilities.permitted;
            if identity.owner_check == OwnerCheck::Left {
                effective -= CapabilitySet::FOWNER;
            }
            if !identity.admin {
                effective -= CapabilitySet::SYS_ADMIN;
            }
            set_capabilities(CapabilitySets {
                effective,
                ..capabilities
            })?;
        }
        Ok(())
    })();
    match result {
        Ok(()) => Ok(Some(before)),
        Err(errno) => {
            if restore(&before).is_err() {
                std::process::abort();
            }
            Err(errno)
        }
    }
}

fn restore(before: &Before) -> Result<()> {
    set_fs_uid(before.uid)?;
    set_fs_gid(before.gid)?;
    set_capabilities(before.capabilities)?;
    match &before.groups {
        Some(groups) => rustix::thread::set_thread_groups(groups),
        None => Ok(()),
    }
}

fn fs_uid() -> u32 {
    // SAFETY: -1 is no uid: the call changes nothing and returns the current fsuid (setfsuid(2)).
    unsafe { libc::setfsuid(u32::MAX) }.cast_unsigned()
}

fn fs_gid() -> u32 {
    // SAFETY: as for `fs_uid`, setfsgid(2).
    unsafe { libc::setfsgid(u32::MAX) }.cast_unsigned()
}

/// setfsuid(2), which reports no error: whether it worked is asked. Capabilities go or come with it.
fn set_fs_uid(uid: u32) -> Result<()> {
    IDS.set(None);
    CAPABILITIES.set(None);
    // SAFETY: takes a number and touches no memory; glibc makes this call for this thread alone.
    unsafe { libc::setfsuid(uid) };
    if fs_uid() == uid {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

/// setfsgid(2), likewise.
fn set_fs_gid(gid: u32) -> Result<()> {
    IDS.set(None);
    // SAFETY: as for `set_fs_uid`.
    unsafe { libc::setfsgid(gid) };
    if fs_gid() == gid {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

/// The supplementary groups of a process, from /proc: the caller waits for our answer meanwhile,
/// so its pid is still its own. Empty where they can't be read (another pid namespace).
#[must_use]
pub fn groups_of(pid: u32) -> Vec<u32> {
    if !proc_counts_as_we_do() {
        return Vec::new(); // those are somebody else's
    }
    // The program's name in it may be no text.
    let status = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    String::from_utf8_lossy(&status)
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .map(|groups| {
            groups
                .split_whitespace()
                .filter_map(|gid| gid.parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn nobody(umask: u32) -> Identity<'static> {
        Identity {
            uid: 65534,
            gid: 65533,
            groups: None,
            umask: Some(umask),
            owner_check: OwnerCheck::Made,
            admin: true,
            own: Own::NONE,
        }
    }

    #[test]
    fn what_is_created_under_the_guard_is_the_callers() {
        assert!(can_act_as_others(), "run as root");
        let dir = tempfile::tempdir().unwrap();
        let before = rustix::thread::capabilities(None).unwrap();
        {
            let _guard = CallerGuard::enter(nobody(0o027), true).unwrap();
            std::fs::File::create(dir.path().join("theirs")).unwrap();
            let now = rustix::thread::capabilities(None).unwrap().effective;
            assert!(!now.intersects(WITHHELD));
            assert!(now.contains(CapabilitySet::DAC_OVERRIDE));
        }
        assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
        let keeps = Identity {
            own: Own::set_id(true).and(Own::immutable(false)),
            ..nobody(0)
        };
        let guard = CallerGuard::enter(keeps, true).unwrap();
        let now = rustix::thread::capabilities(None).unwrap().effective;
        assert_eq!(now & WITHHELD, CapabilitySet::FSETID);
        drop(guard);
        std::fs::File::create(dir.path().join("ours")).unwrap();
        let theirs = std::fs::metadata(dir.path().join("theirs")).unwrap();
        assert_eq!((theirs.uid(), theirs.gid()), (65534, 65533));
        assert_eq!(theirs.permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::metadata(dir.path().join("ours")).unwrap().uid(), 0);
    }

    #[test]
    fn groups_are_taken_on_and_given_back_on_this_thread_only() {
        let own = rustix::process::getgroups().unwrap();
        let identity = Identity {
            groups: Some(&[1234, 5678]),
            ..nobody(0)
        };
        let guard = CallerGuard::enter(identity, true).unwrap();
        let here = rustix::process::getgroups().unwrap();
        assert_eq!(
            here.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>(),
            [1234, 5678]
        );
        let there = std::thread::spawn(|| rustix::process::getgroups().unwrap());
        // A new thread inherits this one's groups; an existing one is not touched, which the
        // process's first thread shows.
        drop(there.join().unwrap());
        drop(guard);
        assert_eq!(rustix::process::getgroups().unwrap(), own);
    }

    #[test]
    fn set_id_bits_are_cleared_until_they_are_to_be_kept_again() {
        let has_it = || {
            let now = rustix::thread::capabilities(None).unwrap();
            now.effective.contains(CapabilitySet::FSETID)
        };
        let before = rustix::thread::capabilities(None).unwrap();
        for _ in 0..2 {
            assert!(!without_set_id(has_it).unwrap());
            assert!(!without_set_id(has_it).unwrap(), "nor the second time");
            keep_set_id().unwrap();
            assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
            // Root with another group: the thread gets back what it had before, which it then gives up again.
            let identity = Identity {
                uid: 0,
                ..nobody(0)
            };
            let guard = CallerGuard::enter(identity, true).unwrap();
            assert!(!without_set_id(has_it).unwrap());
            drop(guard);
            assert!(!without_set_id(has_it).unwrap());
            let guard = CallerGuard::enter(nobody(0), true).unwrap();
            assert!(!without_set_id(has_it).unwrap());
            drop(guard);
            assert!(!without_set_id(has_it).unwrap());
            // A thread begins as the one that starts it.
            let kept = std::thread::spawn(move || keep_set_id().is_ok() && has_it());
            assert!(kept.join().unwrap());
            keep_set_id().unwrap();
            assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
        }
    }

    #[test]
    fn an_unprivileged_process_keeps_its_identity_but_takes_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let guard = CallerGuard::enter(nobody(0o077), false).unwrap();
        std::fs::File::create(dir.path().join("file")).unwrap();
        drop(guard);
        let made = std::fs::metadata(dir.path().join("file")).unwrap();
        assert_eq!((made.uid(), made.permissions().mode() & 0o777), (0, 0o600));
    }

    #[test]
    fn our_own_groups_can_be_read() {
        let own: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        assert_eq!(groups_of(std::process::id()), own);
        assert_eq!(groups_of(0), Vec::<u32>::new());
    }
}
