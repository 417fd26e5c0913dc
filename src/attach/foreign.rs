//! A mount of another process, as far as it can be taken down from here: the one that was in a line of the mount table, and
//! no other that comes to stand there later.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::StatxFlags;
use rustix::io::Errno;

use super::abort::AbortFile;
use super::detach::{self, Detach, Detached};
use super::error::{AttachError, AttachErrorKind as Kind, says, shown};
use super::mountinfo::Entry;
use super::table::{self, Identity};
use crate::sys::ask::{Question, ask};

/// Somebody's FUSE mount.
#[derive(Debug)]
pub(crate) struct Foreign {
    identity: Identity,
}

impl Foreign {
    /// The mount in that line of the table; `None` if it has gone, or can't be reached because something else is
    /// mounted over it (before Linux 6.8 only). Never asks its server.
    pub(crate) fn of(entry: &Entry) -> Result<Option<Self>, AttachError> {
        if let Ok(listed) = Identity::listed(entry) {
            return Ok(listed.map(|identity| Self { identity }));
        }
        let failed = |errno| failed(&entry.mount_point, errno);
        if !table::is_within_reach(&entry.mount_point).map_err(failed)? {
            return Err(detach::held_up());
        }
        let root = match table::open_quietly(&entry.mount_point) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        let stat = table::stat_quietly(&root, StatxFlags::MNT_ID);
        if !stat.is_ok_and(|stat| stat.stx_mnt_id == entry.id) {
            return Ok(None);
        }
        let identity = Identity::of(&root, &table::label_of(entry)).map_err(failed)?;
        Ok((identity.device() == entry.device).then_some(Self { identity }))
    }

    /// Whether it is in the mount table still. If that can't be read, nothing is known to have changed.
    pub(crate) fn is_present(&self) -> bool {
        !matches!(self.identity.place(), Ok(None))
    }

    /// Mount points of what is mounted on it or in it.
    pub(crate) fn upper(&self) -> Vec<PathBuf> {
        self.identity.upper().unwrap_or_default()
    }

    /// The id that no other mount ever gets, where the kernel has such.
    pub(crate) fn unique_id(&self) -> Option<u64> {
        self.identity.unique_id()
    }

    /// Takes it down, and only it: by ourselves if we may, otherwise by fusermount3.
    pub(crate) fn detach(&self, how: Detach) -> Result<Detached, AttachError> {
        detach::see_the_way(&self.identity)?;
        match how {
            how if !super::may_mount() => detach::by_helper(&self.identity, how == Detach::Lazy),
            Detach::Polite => detach::politely(&self.identity),
            Detach::Lazy => detach::lazily(&self.identity),
        }
    }

    /// Cuts its connection, so that whoever waits for its server gets an error. Where that can't be done, it is not: the
    /// connection ends with the server.
    pub(crate) fn abort(&self) -> std::io::Result<()> {
        // The number is this mount's as long as it is in the table: opened before that is looked at.
        let file = AbortFile::open(self.identity.device())?;
        match self.identity.place()? {
            Some(_) => file.abort(),
            None => Ok(()),
        }
    }
}

/// What the server of a mount answers when it is asked for the attributes of its root, by a process of its own: nothing
/// if it does not within `limit`, or can't be reached. Only for mounts whose server is not known to be there: it may be
/// the one that hangs, and the process that asks with it.
pub(crate) fn answers(entry: &Entry, limit: std::time::Duration) -> Option<Result<(), Errno>> {
    if !table::is_within_reach(&entry.mount_point).ok()? {
        return None;
    }
    let root = table::open_quietly(&entry.mount_point).ok()?;
    match table::stat_quietly(&root, StatxFlags::MNT_ID) {
        Ok(stat) if stat.stx_mnt_id == entry.id => {}
        Ok(_) => return None,
        Err(errno) => return Some(Err(errno)),
    }
    ask(Question::Attributes(root.as_fd()), limit, || ()).ok()?
}

fn failed(place: &Path, errno: Errno) -> AttachError {
    let text = format!("can't reach {}: {}", shown(place), says(errno));
    AttachError::new(Kind::Detach, text)
}
