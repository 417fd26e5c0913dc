//! MNT before the mount: made if asked for, looked at, freed of a dead mount if asked for.
//!
//! What may ask a file system's server (a lookup on the way to MNT, the state of a FUSE mount that
//! is there already) has a time limit, so a stuck daemon costs a clear line and not a hang.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, StatxFlags};
use rustix::io::Errno;

use super::detach::{self, Detached};
use super::error::{AttachError, AttachErrorKind as Kind, explained, says, shown};
use super::mountinfo::{self, Entry};
use super::table::{self, Identity};
use crate::config::Config;
use crate::record::{Reader, Writer};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::ask::{Question, ask};
use crate::sys::limits;

/// How long a FUSE daemon on the way to MNT may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Dead mounts that may lie upon one another at MNT: one for each crash since somebody looked.
const MOST_DEAD: usize = 64;

/// The directory to mount on.
#[derive(Debug)]
pub(crate) struct Target {
    /// The directory itself, whatever its name leads to later.
    pub(crate) directory: OwnedFd,
    /// Set if it did not exist before.
    pub(crate) made: Option<MadeDirectory>,
}

/// Looks at `config.target` and readies it.
pub(crate) fn ready(config: &Config) -> Result<Target, AttachError> {
    let path = &config.target;
    let made = if config.make_target {
        make(path)?
    } else {
        None
    };
    for _ in 0..MOST_DEAD {
        match look(path)? {
            Found::Directory(directory) => return Ok(Target { directory, made }),
            Found::Dead(root, entry) => {
                if !config.replace_stale {
                    return Err(dead(path, &entry, true));
                }
                detach_dead(path, &root, &entry)?;
            }
        }
    }
    Err(AttachError::new(
        Kind::TargetDead,
        format!(
            "{MOST_DEAD} dead mounts were taken off {} and there are more: run it again",
            shown(path)
        ),
    ))
}

enum Found {
    Directory(OwnedFd),
    /// The root of a FUSE mount whose daemon has gone.
    Dead(OwnedFd, Entry),
}

fn look(path: &Path) -> Result<Found, AttachError> {
    lookup_answers(path)?;
    let observed = table::open_quietly(path).and_then(observe);
    let seen = observed.map_err(|errno| unreachable_because(path, errno))?;
    if let Some(entry) = seen.fuse {
        // Only the daemon can tell whether it lives. ECONNREFUSED: its handshake failed, and it
        // never will work. Every other answer is an answer.
        match asked(path, Question::Attributes(seen.object.as_fd()))? {
            Err(Errno::NOTCONN | Errno::CONNREFUSED) if entry.mount_point == path => {
                return Ok(Found::Dead(seen.object, entry));
            }
            Err(Errno::NOTCONN | Errno::CONNREFUSED) => return Err(dead(path, &entry, false)),
            Ok(()) | Err(_) => {}
        }
    }
    if !seen.is_directory {
        return Err(AttachError::new(
            Kind::TargetNotDirectory,
            format!(
                "{} is not a directory: name a directory to mount on",
                shown(path)
            ),
        ));
    }
    Ok(Found::Directory(seen.object))
}

struct Seen {
    object: OwnedFd,
    is_directory: bool,
    /// The mount that it lies on, if that is a FUSE mount.
    fuse: Option<Entry>,
}

/// Looks at `object` without a request.
fn observe(object: OwnedFd) -> Result<Seen, Errno> {
    let fuse = table::entry_of(&object)?.filter(Entry::is_fuse);
    let is_directory = match table::stat_quietly(&object, StatxFlags::TYPE) {
        Ok(stat) => FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory,
        // Another user's FUSE mount without allow_other. Mounting on it works if it is a directory,
        // and is refused with ENOTDIR if not.
        Err(Errno::ACCESS) => true,
        Err(errno) => return Err(errno),
    };
    Ok(Seen {
        object,
        is_directory,
        fuse,
    })
}

/// Sees that `path` can be looked up without waiting for ever.
fn lookup_answers(path: &Path) -> Result<(), AttachError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| unreachable_because(path, Errno::INVAL))?;
    asked(path, Question::Path(&name))?.map_err(|errno| unreachable_because(path, errno))
}

/// The answer to `question`, which is about `path`.
fn asked(path: &Path, question: Question<'_>) -> Result<Result<(), Errno>, AttachError> {
    let asked = ask(question, LIMIT, || ()).map_err(|errno| {
        let text = format!(
            "can't find out whether {} answers: {}",
            shown(path),
            explained(errno)
        );
        AttachError::new(Kind::System, text)
    })?;
    asked.ok_or_else(|| unresponsive(path))
}

/// Takes exactly the dead mount that `root` is the root of away.
fn detach_dead(path: &Path, root: &OwnedFd, entry: &Entry) -> Result<(), AttachError> {
    let identity = Identity::of(root, &table::label_of(entry)).map_err(|errno| {
        let text = format!(
            "can't tell which mount lies at {}: {}",
            shown(path),
            explained(errno)
        );
        AttachError::new(Kind::System, text)
    })?;
    let detached = if super::may_mount() {
        detach::lazily(&identity)
    } else {
        detach::by_helper(&identity, true)
    };
    let why = match detached? {
        Detached::Done | Detached::AlreadyGone => {
            log::info!("took a dead mount off {}", shown(path));
            return Ok(());
        }
        Detached::Covered => {
            "other file systems are mounted in it: unmount those first (findmnt -R shows them)"
        }
        Detached::Busy => "it is in use: umount -l takes it",
    };
    Err(AttachError::new(
        Kind::TargetDead,
        format!("the dead mount at {} can't be replaced: {why}", shown(path)),
    ))
}

fn dead(path: &Path, entry: &Entry, at_its_root: bool) -> AttachError {
    let (path, mount) = (shown(path), shown(&entry.mount_point));
    let message = if at_its_root {
        format!(
            "{path} is a dead FUSE mount (Transport endpoint is not connected): its daemon has \
             gone; unmount it (fusermount3 -u {path}) or use --replace-stale"
        )
    } else {
        format!(
            "{path} lies in the dead FUSE mount {mount} (Transport endpoint is not connected): \
             its daemon has gone; unmount that first (fusermount3 -u {mount})"
        )
    };
    AttachError::new(Kind::TargetDead, message)
}

fn unresponsive(path: &Path) -> AttachError {
    let holder = holder(path).map_or_else(String::new, |entry| {
        let kind = entry.fs_type.to_string_lossy();
        format!(" ({kind} at {})", shown(&entry.mount_point))
    });
    AttachError::new(
        Kind::TargetUnresponsive,
        format!(
            "{} lies on a mount{holder} that did not answer within {} seconds: end its daemon or \
             unmount it first",
            shown(path),
            LIMIT.as_secs()
        ),
    )
}

/// The mount that `path` lies on, by its name alone.
fn holder(path: &Path) -> Option<Entry> {
    let table = table::read_table().ok()?;
    mountinfo::holding(&table, path).cloned()
}

fn unreachable_because(path: &Path, errno: Errno) -> AttachError {
    let name = shown(path);
    let (kind, message) = match errno {
        Errno::NOENT => (
            Kind::TargetMissing,
            format!("{name} does not exist: create it, or use --mkdir"),
        ),
        Errno::NOTDIR => (
            Kind::TargetNotDirectory,
            format!(
                "{name} can't be reached: something on the way to it is not a directory: check the path"
            ),
        ),
        Errno::NOTCONN | Errno::CONNREFUSED | Errno::CONNABORTED => match holder(path) {
            Some(entry) => return dead(path, &entry, entry.mount_point == path),
            None => (
                Kind::TargetDead,
                format!(
                    "{name} can't be reached: {}: check the path and who may go there",
                    says(errno)
                ),
            ),
        },
        errno => (
            Kind::TargetUnusable,
            format!(
                "{name} can't be reached: {}: {}",
                says(errno),
                limits::remedy(&errno.into()).unwrap_or("check the path and who may go there")
            ),
        ),
    };
    AttachError::new(kind, message)
}

/// Makes the directory; `None` if something is there already.
fn make(path: &Path) -> Result<Option<MadeDirectory>, AttachError> {
    // NotFound is told by mkdir(2) with the better message.
    match lookup_answers(path.parent().unwrap_or(path)) {
        Err(error) if error.kind != Kind::TargetMissing => return Err(error),
        Ok(()) | Err(_) => {}
    }
    MadeDirectory::make(path.to_owned()).map_err(|errno| match errno {
        Errno::NOENT => AttachError::new(
            Kind::TargetMissing,
            format!(
                "{} can't be made: the directory that it is to be in does not exist (--mkdir makes \
                 one directory; mkdir -p all)",
                shown(path)
            ),
        ),
        Errno::NOTCONN => unreachable_because(path, errno),
        errno => AttachError::new(
            Kind::TargetUnusable,
            format!(
                "{} can't be made: {}: make it as somebody who may, or elsewhere",
                shown(path),
                says(errno)
            ),
        ),
    })
}

/// A directory made for `--mkdir`. Dropping it removes it, unless it is in use: as long as a mount
/// is on it rmdir(2) fails with `EBUSY`, and with `ENOTEMPTY` if somebody filled it.
#[derive(Debug)]
pub(crate) struct MadeDirectory {
    path: PathBuf,
    object: Option<Object>,
    removed: AtomicBool,
}

/// Which directory it is: device and inode number.
type Object = (u32, u32, u64);

impl MadeDirectory {
    fn make(path: PathBuf) -> Result<Option<Self>, Errno> {
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let object = object_at(&path).ok();
                Ok(Some(Self {
                    path,
                    object,
                    removed: AtomicBool::new(false),
                }))
            }
            Err(Errno::EXIST) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The one at `path` that another process has made and told of.
    pub(super) fn read(path: PathBuf, reader: &mut Reader<'_>) -> Option<Self> {
        let object = match reader.number()? {
            0_u8 => None,
            _ => Some((reader.number()?, reader.number()?, reader.number()?)),
        };
        Some(Self {
            path,
            object,
            removed: AtomicBool::new(false),
        })
    }

    /// Tells another process of it.
    pub(super) fn write(&self, writer: Writer) -> Writer {
        match self.object {
            None => writer.number(0_u8),
            Some((major, minor, inode)) => writer
                .number(1_u8)
                .number(major)
                .number(minor)
                .number(inode),
        }
    }

    /// Removes it, once, if it is still the one that was made.
    pub(crate) fn remove(&self) {
        if self.removed.load(Ordering::Acquire) {
            return;
        }
        let is_ours = self.object.is_some() && object_at(&self.path).ok() == self.object;
        if is_ours && rustix::fs::rmdir(&self.path).is_ok() {
            self.removed.store(true, Ordering::Release);
        }
    }
}

impl Drop for MadeDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}

fn object_at(path: &Path) -> Result<Object, Errno> {
    let object = table::open_quietly(path)?;
    let stat = table::stat_quietly(object.as_fd(), StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}
