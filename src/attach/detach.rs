//! Taking our mount down, and never another one.
//!
//! A path says nothing about identity: after a lazy unmount anything may be mounted at MNT, and
//! anything may be mounted on top of ours, or on a directory above MNT, with a mount of somebody's by MNT's name in it.
//! umount2(2) takes a path only and always takes what is uppermost there, so both ways below make sure of *which* mount that is.
//!
//! **Lazily** ([`lazily`]): open the mount's root (`O_PATH`), compare its id, see that nothing
//! stands on it, and unmount through `/proc/self/fd/N`. If ours goes meanwhile, umount2 answers
//! EINVAL and harms nobody. What is left: something mounted on top of ours in the microseconds
//! between the look and the call would be taken instead. The kernel has no call that closes this
//! gap; ours then is still there, which is noticed and reported.
//!
//! **Politely** ([`politely`]), that is only if nobody uses it: the descriptor above would itself
//! be a use. `MNT_EXPIRE` does it without one. Its first call only *marks* the mount (EAGAIN); any
//! use clears the mark (`mntput`); the second unmounts what is still marked, and EBUSY
//! is the answer whenever the mount is in use. Between the two the table is asked whether ours is
//! the one at the path with nothing on it: asking the table is no use of the mount. A newcomer that
//! gets to the path before the second call bears no mark, so it is marked, not unmounted.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::error::{AttachError, AttachErrorKind as Kind, says};
use super::helper;
use super::kernel;
use super::table::{self, Identity};

/// How the mount is to be taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Only if nobody uses it.
    Polite,
    /// At once from the table; what is open in it goes on working until it is closed.
    Lazy,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// It was taken down by this call.
    Done,
    /// It had been taken down before, by whomever.
    AlreadyGone,
    /// It is in use and was left alone ([`Detach::Polite`] only).
    Busy,
    /// Something is mounted on it or in it, or on the way to it; nothing was done, because that would go too, or in its place.
    Covered,
}

/// Tries before giving up where another process keeps getting between the steps.
const TRIES: usize = 16;

/// How our mount stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Gone,
    Covered,
    FreeAt(PathBuf),
}

pub(super) fn standing(ours: &Identity) -> Result<Standing, AttachError> {
    let look = || -> Result<Standing, Errno> {
        let Some(place) = ours.place()? else {
            return Ok(Standing::Gone);
        };
        let covered = !ours.upper()?.is_empty() || !ours.is_reached_at(&place)?;
        Ok(if covered {
            Standing::Covered
        } else {
            Standing::FreeAt(place)
        })
    };
    look().map_err(|errno| failed("can't read the mount table", errno))
}

/// Sees that the way to our mount is open: whoever goes it while another mount hangs on it waits for ever. For before the ways
/// below, not between their steps: to look is a use of the mount.
pub(super) fn see_the_way(ours: &Identity) -> Result<(), AttachError> {
    let is_open = || match ours.place()? {
        Some(place) => table::is_within_reach(&place),
        None => Ok(true),
    };
    match is_open() {
        Ok(true) => Ok(()),
        Ok(false) => Err(held_up()),
        Err(errno) => Err(failed("can't unmount", errno)),
    }
}

/// What hangs is in the way.
pub(super) fn held_up() -> AttachError {
    let text = "can't unmount: a mount that lies on the way there does not answer: end its daemon or let it go on first \
                ('loopfs doctor' shows which)";
    AttachError::new(Kind::Detach, text)
}

/// Takes our mount down if nobody uses it.
pub(crate) fn politely(ours: &Identity) -> Result<Detached, AttachError> {
    politely_between(ours, || ())
}

/// [`politely`]; `between` is what others do between each look and each call: in tests, the worst.
fn politely_between(ours: &Identity, mut between: impl FnMut()) -> Result<Detached, AttachError> {
    let expire = UnmountFlags::EXPIRE | UnmountFlags::NOFOLLOW;
    // An even number of calls without a use in between is a mark and an unmount.
    for _ in 0..2 * TRIES {
        let place = match standing(ours)? {
            Standing::FreeAt(place) => place,
            Standing::Gone => return Ok(Detached::AlreadyGone),
            Standing::Covered => return Ok(Detached::Covered),
        };
        between();
        match rustix::mount::unmount(&place, expire) {
            Ok(()) => return after_unmount(ours),
            Err(Errno::BUSY) => return Ok(Detached::Busy),
            // EAGAIN: marked now. Look again, then the second call; if somebody used the mount in
            // between, that is a first one once more. The others: ours has left the path.
            Err(Errno::AGAIN | Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(failed("can't unmount", errno)),
        }
    }
    Ok(Detached::Busy) // somebody uses it again and again
}

/// Takes our mount out of the table at once.
pub(crate) fn lazily(ours: &Identity) -> Result<Detached, AttachError> {
    lazily_between(ours, || ())
}

fn lazily_between(ours: &Identity, mut between: impl FnMut()) -> Result<Detached, AttachError> {
    for _ in 0..TRIES {
        let place = match standing(ours)? {
            Standing::FreeAt(place) => place,
            Standing::Gone => return Ok(Detached::AlreadyGone),
            Standing::Covered => return Ok(Detached::Covered),
        };
        let opened = match table::open_quietly(&place) {
            Ok(root) => root,
            Err(Errno::NOENT) => continue, // it was unmounted or moved since
            Err(errno) => return Err(failed("can't open the mount's root", errno)),
        };
        // Not ours: something was mounted on it since, or ours has moved.
        let is_ours = ours.is_mount_of(&opened);
        if !is_ours.map_err(|errno| failed("can't tell which mount this is", errno))? {
            continue;
        }
        if standing(ours)? != Standing::FreeAt(place) {
            continue;
        }
        between();
        match kernel::detach(opened.as_fd()) {
            Ok(()) => return after_unmount(ours),
            Err(Errno::INVAL) => {} // it went since
            Err(errno) => return Err(failed("can't unmount", errno)),
        }
    }
    Err(AttachError::new(
        Kind::Detach,
        "can't unmount: the mount table keeps changing",
    ))
}

/// Takes our mount down by fusermount3, which is told the path and takes the uppermost FUSE mount
/// of this user there: exact as far as the look before it goes.
pub(crate) fn by_helper(ours: &Identity, lazily: bool) -> Result<Detached, AttachError> {
    match standing(ours)? {
        Standing::Gone => Ok(Detached::AlreadyGone),
        Standing::Covered => Ok(Detached::Covered),
        Standing::FreeAt(place) => match helper::unmount(&place, lazily) {
            Ok(true) => after_unmount(ours),
            Ok(false) => Ok(Detached::Busy),
            // It fails if somebody else was quicker.
            Err(_) if standing(ours)? == Standing::Gone => Ok(Detached::AlreadyGone),
            Err(error) => Err(error),
        },
    }
}

/// An unmount succeeded: was it ours?
fn after_unmount(ours: &Identity) -> Result<Detached, AttachError> {
    match standing(ours)? {
        Standing::Gone => Ok(Detached::Done),
        Standing::Covered | Standing::FreeAt(_) => Err(AttachError::new(
            Kind::Detach,
            "something was mounted over the mount at the moment of the unmount and was unmounted \
             in its place",
        )),
    }
}

fn failed(what: &str, errno: Errno) -> AttachError {
    AttachError::new(Kind::Detach, format!("{what}: {}", says(errno)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attach::tests::{Place, identity_of, until_idle};
    use rustix::mount::unmount;

    /// A newcomer that gets between the look and the call, whichever of the calls it is.
    #[test]
    fn a_newcomer_in_the_worst_moment_survives_a_polite_detach() {
        for moment in 1..=2 {
            let place = Place::new();
            let attachment = place.attached();
            let mut calls = 0;
            let detached = politely_between(identity_of(&attachment), || {
                calls += 1;
                if calls == moment {
                    place.mount_tmpfs();
                }
            });
            assert_eq!(detached, Ok(Detached::Covered));
            assert_eq!(place.mounted().len(), 2);
            unmount(place.mnt(), UnmountFlags::empty()).unwrap();
            until_idle(|| politely(identity_of(&attachment)).unwrap());
        }
    }

    #[test]
    fn a_newcomer_below_a_mount_on_the_way_survives_in_the_worst_moment() {
        for moment in 1..=2 {
            let place = Place::new();
            let attachment = place.attached();
            let (mut calls, mut both) = (0, Vec::new());
            let detached = politely_between(identity_of(&attachment), || {
                calls += 1;
                if calls == moment {
                    place.mount_above();
                    place.mount_tmpfs();
                    both = place.mounted();
                }
            });
            assert_eq!(detached, Ok(Detached::Covered));
            assert_eq!((both.len(), place.mounted()), (2, both));
            place.unmount_above();
            until_idle(|| politely(identity_of(&attachment)).unwrap());
        }
    }

    #[test]
    fn a_newcomer_in_the_place_of_ours_survives() {
        for moment in 1..=2 {
            let place = Place::new();
            let attachment = place.attached();
            let mut calls = 0;
            let detached = politely_between(identity_of(&attachment), || {
                calls += 1;
                if calls == moment {
                    unmount(place.mnt(), UnmountFlags::DETACH).unwrap();
                    place.mount_tmpfs();
                }
            });
            assert_eq!(detached, Ok(Detached::AlreadyGone));
            assert_eq!(place.mounted().len(), 1);
        }
        let place = Place::new();
        let attachment = place.attached();
        let detached = lazily_between(identity_of(&attachment), || {
            if attachment.is_present() {
                unmount(place.mnt(), UnmountFlags::DETACH).unwrap();
                place.mount_tmpfs();
            }
        });
        assert_eq!(detached, Ok(Detached::AlreadyGone));
        assert_eq!(place.mounted().len(), 1);
    }

    /// The gap that is left, and that it does not go unnoticed.
    #[test]
    fn a_cover_in_the_worst_moment_of_a_lazy_detach_is_reported() {
        let place = Place::new();
        let attachment = place.attached();
        let detached = lazily_between(identity_of(&attachment), || place.mount_tmpfs());
        assert_eq!(detached.unwrap_err().kind, Kind::Detach);
        assert!(attachment.is_present());
    }

    #[test]
    fn a_mount_that_is_used_all_the_time_is_busy() {
        let place = Place::new();
        let attachment = place.attached();
        let detached = politely_between(identity_of(&attachment), || {
            drop(table::open_quietly(&place.mnt()).unwrap());
        });
        assert_eq!(detached, Ok(Detached::Busy));
        assert!(attachment.is_present());
    }
}
