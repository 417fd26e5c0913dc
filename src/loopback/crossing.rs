//! What is shown where something is mounted below SRC: that, or the directory that it covers; and what
//! such a mount does not let its files do, which MNT, one mount with one set of flags, must not allow.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::Loopback;
use super::attr::Attr;
use super::inode::Identity;
use crate::error::{Errno, Error, Result};
use crate::policy;
use crate::sys::fs::{self, FileType, Restrictions};
use crate::sys::mount;
use crate::sys::mountinfo::{self, Entry};

/// The attribute that holds the capabilities of a program: capabilities(7).
const CAPABILITIES: &CStr = c"security.capability";

/// Whether mounts below SRC are crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// They are, as `cp -a` does it.
    Crossed,
    /// There are none: the tree is reached through a mount of its own, without those on it.
    Covered,
    /// A mount point can't be entered: there is no way to what it covers.
    Refused,
}

impl Crossing {
    /// The root to serve from, and what it means for mounts below it. With `one_file_system` that is
    /// a copy of SRC's mount (open_tree(2)), which nobody sees, nothing is mounted on, and no later
    /// mount comes to: as with a bind mount, each directory is what the file system has there. It
    /// takes CAP_SYS_ADMIN and Linux 5.12.
    #[must_use]
    pub fn open(source: OwnedFd, one_file_system: bool) -> (OwnedFd, Self) {
        if !one_file_system {
            return (source, Self::Crossed);
        }
        match mount::private_copy(source.as_fd()) {
            Ok(copy) => (copy, Self::Covered),
            Err(_) => (source, Self::Refused),
        }
    }

    /// Checks that what is mounted on a name may be entered.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Crossed => Ok(()),
            Self::Covered | Self::Refused => Err(Error::new(Errno::XDEV, "--one-file-system")),
        }
    }

    /// In words for the log.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Crossed => "mounts below the source are crossed",
            Self::Covered => "mounts below the source are left out",
            Self::Refused => {
                "mounts below the source can't be entered (to show what they cover takes CAP_SYS_ADMIN and Linux 5.12)"
            }
        }
    }
}

impl Loopback {
    /// The attributes that are shown of an inode: on another mount than SRC's own, what that one makes of
    /// no effect is not there. A program without set-id bits has no others' rights, and a device with the
    /// number 0 can't be opened (`ENXIO`).
    pub(super) fn shown(&self, identity: Identity, object: BorrowedFd<'_>, mut attr: Attr) -> Attr {
        let is_device = matches!(attr.kind, FileType::CharacterDevice | FileType::BlockDevice);
        let harmless = policy::without_set_id(attr.perm);
        let is_set_id = attr.kind == FileType::RegularFile && attr.perm != harmless;
        if (is_device || is_set_id) && self.is_elsewhere(identity) {
            let restrictions = restrictions_of(object);
            if is_device && restrictions.nodev {
                attr.rdev = (0, 0);
            }
            if is_set_id && restrictions.nosuid {
                attr.perm = harmless;
            }
        }
        attr
    }

    /// Whether an attribute has no effect on the mount that an inode is reached through, and so is not
    /// shown: capabilities of a program on one with `nosuid`.
    pub(super) fn is_of_no_effect(
        &self,
        identity: Identity,
        object: BorrowedFd<'_>,
        name: &CStr,
    ) -> bool {
        name == CAPABILITIES && self.is_elsewhere(identity) && restrictions_of(object).nosuid
    }

    /// Whether an inode is on another mount than SRC's own, whose restrictions MNT has anyway.
    pub(super) fn is_elsewhere(&self, identity: Identity) -> bool {
        let root = self.root.identity();
        (identity.mount, identity.device) != (root.mount, root.device)
    }
}

/// Where a mount does not say what it restricts, everything is.
fn restrictions_of(object: BorrowedFd<'_>) -> Restrictions {
    fs::restrictions_of(object).unwrap_or(Restrictions {
        nosuid: true,
        nodev: true,
        noexec: true,
        nosymfollow: true,
    })
}

/// Whether the file system that is mounted with the id `mount` would have to ask the one on the device
/// `own`, ourselves, for something below it: another loopfs whose source contains our mount, or lies on
/// it. Whoever walked there would go round and round, each time with one more thread of both held up,
/// until none is left to answer and nothing but an abort helps. What a FUSE mount serves is known by its
/// source in the mount table only.
#[must_use]
pub fn leads_back(mount: u64, own: u64) -> bool {
    mountinfo::read().is_ok_and(|table| reaches(&table, mount, own))
}

fn reaches(table: &[Entry], mount: u64, own: u64) -> bool {
    let mut pending = vec![mount];
    let mut seen = HashSet::new();
    while let Some(id) = pending.pop() {
        let entry = table.iter().find(|entry| entry.id == id);
        let Some(entry) = entry.filter(|entry| entry.is_fuse() && seen.insert(id)) else {
            continue;
        };
        if fs::device_number(entry.device.major, entry.device.minor) == own {
            return true;
        }
        let source = Path::new(&entry.source);
        if source.is_absolute() {
            let below = table.iter().filter(|e| e.mount_point.starts_with(source));
            let needed = below.chain(mountinfo::holding(table, source));
            pending.extend(needed.map(|entry| entry.id));
        }
    }
    false
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OWN: u32 = 40;

    fn check(lines: &[(u32, &str, &str, &str)]) -> bool {
        let root = lines.iter().position(|(_, target, ..)| *target == "/");
        let parent = root.map_or(0, |before| before + 1);
        let line = |(id, (minor, target, kind, source)): (u64, &(u32, &str, &str, &str))| {
            format!("{id} {parent} 0:{minor} / {target} rw - {kind} {source} rw")
        };
        let text: Vec<String> = (1..).zip(lines).map(line).collect();
        let text = text.join("\n");
        reaches(
            &mountinfo::parse(text.as_bytes()),
            1,
            fs::device_number(0, OWN),
        )
    }

    #[test]
    fn a_mount_whose_source_contains_ours_or_lies_on_it_leads_back() {
        let root = (8, "/", "ext4", "/dev/vda");
        let own = (OWN, "/mnt/own", "fuse.loopfs", "/srv");
        let other = |source| check(&[(41, "/srv/other", "fuse.loopfs", source), own, root]);
        assert!(other("/"));
        assert!(other("/mnt"));
        assert!(other("/mnt/own"));
        assert!(other("/mnt/own/below"));
        assert!(!other("/mnt/own-not"));
        assert!(!other("/home"));
        assert!(!other("host:/"), "not a path");
        assert!(
            !check(&[(41, "/srv/other", "ext4", "/"), own, root]),
            "no FUSE"
        );
    }

    #[test]
    fn a_way_by_others_is_found_and_ends() {
        let own = (OWN, "/mnt/own", "fuse.loopfs", "/srv");
        let first = (41, "/srv/first", "fuse.loopfs", "/a/x");
        let second = |source| (42, "/a", "fuse.loopfs", source);
        assert!(check(&[first, second("/mnt/own/x"), own]));
        assert!(
            !check(&[first, second("/srv"), own]),
            "round, but not by us"
        );
    }
}
