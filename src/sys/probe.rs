//! Whether this kernel has, and this process may use, what came after Linux 5.10. Nothing is left behind.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};
use rustix::mount::FsOpenFlags;

use super::{fanotify, mount};

/// What a try came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    There,
    /// The kernel does not have it.
    Missing,
    /// The kernel may have it; this process may not use it.
    NotAllowed,
}

impl Answer {
    fn of<T>(tried: &Result<T>) -> Self {
        match tried {
            Ok(_) => Self::There,
            Err(Errno::PERM | Errno::ACCESS) => Self::NotAllowed,
            Err(_) => Self::Missing,
        }
    }
}

/// The kernel's release, as far as features go by it.
#[must_use]
pub fn release() -> (u32, u32) {
    let name = rustix::system::uname();
    parsed(&name.release().to_string_lossy())
}

/// `6.18.3-amd64` as 6 and 18.
fn parsed(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    (next().unwrap_or(0), next().unwrap_or(0))
}

/// fsopen and its kin.
#[must_use]
pub fn new_mount_api() -> Answer {
    Answer::of(&rustix::mount::fsopen(c"fuse", FsOpenFlags::FSOPEN_CLOEXEC))
}

/// openat2(2).
#[must_use]
pub fn openat2() -> Answer {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Answer::of(&rustix::fs::openat2(
        CWD,
        c"/",
        flags,
        Mode::empty(),
        ResolveFlags::NO_XDEV,
    ))
}

fn root() -> Result<OwnedFd> {
    rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// open_tree(2) with a clone, and mount_setattr(2).
#[must_use]
pub fn private_copy() -> Answer {
    Answer::of(&root().and_then(|root| mount::private_copy(root.as_fd())))
}

/// The 64-bit id of a mount, by statx(2).
#[must_use]
pub fn unique_mount_id() -> Answer {
    Answer::of(&id_of_root())
}

fn id_of_root() -> Result<u64> {
    mount::unique_mount_id(root()?)?.ok_or(Errno::NOSYS)
}

/// statmount(2).
#[must_use]
pub fn statmount() -> Answer {
    Answer::of(&id_of_root().and_then(mount::statmount))
}

/// fanotify(7) with the names and handles that a coherent cache needs.
#[must_use]
pub fn fanotify() -> Answer {
    Answer::of(&fanotify::Group::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_as_numbers() {
        assert_eq!(parsed("6.18.3-amd64"), (6, 18));
        assert_eq!(parsed("5.10-rc1"), (5, 10));
        assert_eq!(parsed("nonsense"), (0, 0));
        assert!(release() >= (5, 10), "{:?}", release());
    }

    #[test]
    fn refusal_is_not_absence() {
        assert_eq!(Answer::of(&Ok(())), Answer::There);
        assert_eq!(Answer::of::<()>(&Err(Errno::PERM)), Answer::NotAllowed);
        assert_eq!(Answer::of::<()>(&Err(Errno::NOSYS)), Answer::Missing);
    }
}
