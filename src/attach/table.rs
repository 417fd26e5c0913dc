//! Our line in the mount table: which mount is ours, whether it is still there, where it is, and
//! what stands on it. Nothing here ever touches the mount itself, so a stuck daemon stalls nobody.
//!
//! statmount(2) and listmount(2) answer by the unique id where the kernel has them (6.8, unless a
//! sandbox forbids them); `/proc/self/mountinfo` otherwise. Either way the answer is about *our*
//! mount, never about whatever lies at the path by now.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::mountinfo::{self, DeviceNumber, Entry};
use crate::config::Config;
use crate::sys::ask::{Question, ask};
use crate::sys::{features, mount as sys};

/// How a mount of ours is named in the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// `fuse.SUBTYPE`.
    pub(crate) fs_type: OsString,
    /// `fsname=`, or SRC.
    pub(crate) source: OsString,
}

impl Label {
    pub(crate) fn of(config: &Config) -> Self {
        let mut fs_type = OsString::from("fuse");
        if !config.mount.subtype.is_empty() {
            fs_type.push(".");
            fs_type.push(&config.mount.subtype);
        }
        let source = config
            .mount
            .fsname
            .as_deref()
            .unwrap_or(config.source.as_os_str());
        Self {
            fs_type,
            source: source.to_owned(),
        }
    }

    fn fits(&self, entry: &Entry) -> bool {
        entry.fs_type == self.fs_type && entry.source == self.source
    }
}

/// Which mount is ours.
///
/// With the unique id this is exact for ever. Without it (before 6.8) id, device, type and source
/// together stand for it: only another mount of the same source that got both recycled numbers
/// could pass for ours, and [`super::Attachment`] never asks again once ours was seen to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    unique: Option<u64>,
    recycled: u64,
    device: DeviceNumber,
    label: Label,
}

impl Identity {
    /// The mount that `fd` was opened through.
    pub(crate) fn of(fd: impl AsFd, label: &Label) -> Result<Self, Errno> {
        let stat = stat_quietly(&fd, StatxFlags::MNT_ID)?;
        if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Err(Errno::NOSYS); // before 5.8
        }
        Ok(Self {
            unique: unique_id(&fd)?,
            recycled: stat.stx_mnt_id,
            device: DeviceNumber {
                major: stat.stx_dev_major,
                minor: stat.stx_dev_minor,
            },
            label: label.clone(),
        })
    }

    /// The FUSE mount that appeared at `place` since the table was `before`. Whoever mounts by path
    /// is not told what was made, so the new line is looked for, and `place` opened only to learn
    /// the unique id: if something covers ours already, it stays unknown.
    pub(crate) fn appeared(before: &[Entry], place: &Path, label: &Label) -> Result<Self, Errno> {
        let table = read_table()?;
        let mut new: Vec<&Entry> = table
            .iter()
            .filter(|entry| {
                entry.is_fuse() && entry.mount_point == place && !before.contains(entry)
            })
            .collect();
        // Two daemons that mount at one place at the same moment differ in source or type.
        new.sort_by_key(|entry| !label.fits(entry));
        let entry = new.first().ok_or(Errno::NOENT)?;
        let mut ours = Self {
            unique: None,
            recycled: entry.id,
            device: entry.device,
            label: label_of(entry),
        };
        let top = open_quietly(place)?;
        if ours.is_mount_of(&top)? {
            ours.unique = unique_id(&top)?;
        }
        Ok(ours)
    }

    /// The mount in that line of the table, if it is there still: found among all that there are, so that nothing on the way to
    /// it is touched. An error where they can't be listed.
    pub(super) fn listed(entry: &Entry) -> Result<Option<Self>, Errno> {
        if features::is_off("statmount") || features::is_off("unique-mount-id") {
            return Err(Errno::NOSYS);
        }
        for id in sys::listmount(sys::ROOT)? {
            let status = match sys::statmount(id) {
                Ok(status) => status,
                Err(Errno::NOENT) => continue, // it went since
                Err(errno) => return Err(errno),
            };
            if u64::from(status.recycled_id) == entry.id
                && status.device == entry.device
                && status.mount_point == entry.mount_point.as_os_str().as_bytes()
            {
                return Ok(Some(Self {
                    unique: Some(id),
                    recycled: entry.id,
                    device: entry.device,
                    label: label_of(entry),
                }));
            }
        }
        Ok(None)
    }

    /// The mount that another process has told of.
    pub(super) fn from_parts(
        unique: Option<u64>,
        recycled: u64,
        device: DeviceNumber,
        label: Label,
    ) -> Self {
        Self {
            unique,
            recycled,
            device,
            label,
        }
    }

    /// The id that no other mount ever gets, where the kernel has such.
    pub(crate) fn unique_id(&self) -> Option<u64> {
        self.unique
    }

    /// How it is named in the mount table.
    pub(super) fn label(&self) -> &Label {
        &self.label
    }

    /// Device of our file system.
    pub(crate) fn device(&self) -> DeviceNumber {
        self.device
    }

    /// The id in mountinfo and fdinfo.
    pub(crate) fn mount_id(&self) -> u64 {
        self.recycled
    }

    /// True if `fd` was opened through our mount.
    pub(crate) fn is_mount_of(&self, fd: impl AsFd) -> Result<bool, Errno> {
        if let Some(ours) = self.unique {
            return Ok(sys::unique_mount_id(fd)? == Some(ours));
        }
        match stat_quietly(fd, StatxFlags::MNT_ID) {
            Ok(stat) => Ok(stat.stx_mnt_id == self.recycled
                && stat.stx_dev_major == self.device.major
                && stat.stx_dev_minor == self.device.minor),
            Err(Errno::ACCESS) => Ok(false), // another user's FUSE mount without allow_other
            Err(errno) => Err(errno),
        }
    }

    /// Where our mount is now (it moves with its parent directories); `None`: it is not in the
    /// table, so it was unmounted.
    pub(crate) fn place(&self) -> Result<Option<PathBuf>, Errno> {
        match self.by_id(sys::statmount) {
            Some(Ok(status)) => Ok(Some(OsString::from_vec(status.mount_point).into())),
            Some(Err(Errno::NOENT)) => Ok(None),
            Some(Err(_)) | None => Ok(self
                .find(&read_table()?)
                .map(|ours| ours.mount_point.clone())),
        }
    }

    /// Mount points of what stands on ours: on its root, covering it, or on a directory in it.
    pub(crate) fn upper(&self) -> Result<Vec<PathBuf>, Errno> {
        match self.by_id(sys::listmount) {
            Some(Ok(ids)) => Ok(ids.into_iter().filter_map(mount_point_of).collect()),
            Some(Err(Errno::NOENT)) => Ok(Vec::new()),
            Some(Err(_)) | None => {
                let table = read_table()?;
                let Some(ours) = self.find(&table) else {
                    return Ok(Vec::new());
                };
                let upper = table.iter().filter(|entry| entry.parent == ours.id);
                Ok(upper.map(|entry| entry.mount_point.clone()).collect())
            }
        }
    }

    /// Whether a lookup of `place`, where our mount is, ends on ours; not if something is mounted on it, or on a directory
    /// on the way to it. There may be another mount by the same name then.
    pub(crate) fn is_reached_at(&self, place: &Path) -> Result<bool, Errno> {
        let table = read_table()?;
        let found = mountinfo::holding(&table, place);
        Ok(found.is_some_and(|entry| entry.id == self.recycled && entry.device == self.device))
    }

    /// Asks by unique id; `None` where that can't be done.
    fn by_id<T>(&self, ask: impl FnOnce(u64) -> Result<T, Errno>) -> Option<Result<T, Errno>> {
        if features::is_off("statmount") {
            return None;
        }
        self.unique.map(ask)
    }

    /// Our mount as a kernel before 6.8 lets it be known.
    #[cfg(test)]
    pub(crate) fn without_unique_id(&self) -> Self {
        Self {
            unique: None,
            ..self.clone()
        }
    }

    fn find<'a>(&self, table: &'a [Entry]) -> Option<&'a Entry> {
        table.iter().find(|entry| {
            entry.id == self.recycled && entry.device == self.device && self.label.fits(entry)
        })
    }
}

/// Mount point of a mount named by listmount; one that went in between has none.
fn mount_point_of(id: u64) -> Option<PathBuf> {
    match sys::statmount(id) {
        Ok(status) => Some(OsString::from_vec(status.mount_point).into()),
        Err(Errno::NOENT) => None,
        // It is there and can't be described: it must still count.
        Err(_) => Some(PathBuf::from("?")),
    }
}

/// The table's line for the mount that `fd` was opened through.
pub(crate) fn entry_of(fd: impl AsFd) -> Result<Option<Entry>, Errno> {
    let id = match stat_quietly(fd, StatxFlags::MNT_ID) {
        Ok(stat) => stat.stx_mnt_id,
        Err(Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(read_table()?.into_iter().find(|entry| entry.id == id))
}

/// The table's name for the mount in `entry`.
pub(crate) fn label_of(entry: &Entry) -> Label {
    Label {
        fs_type: entry.fs_type.clone(),
        source: entry.source.clone(),
    }
}

/// The whole table.
pub(crate) fn read_table() -> Result<Vec<Entry>, Errno> {
    mountinfo::read().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// How long what may hang on the way to a mount may take to let a lookup through.
const PASSING: Duration = Duration::from_secs(2);

/// Whether a lookup of `place` comes back from the mounts that it leads through, with whatever answer: asked by a process of
/// its own where one of them may hang. A mount at `place` itself does not count, it is not asked.
pub(crate) fn is_within_reach(place: &Path) -> Result<bool, Errno> {
    let table = read_table()?;
    let way = mountinfo::way(&table, place);
    let through = way.iter().filter(|entry| entry.mount_point != place);
    if !through.clone().any(|entry| entry.may_hang()) {
        return Ok(true);
    }
    let name = CString::new(place.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    Ok(ask(Question::Path(&name), PASSING, || ())?.is_some())
}

/// Opens what lies at `path` without asking its file system's server and without triggering an
/// automount (`O_DIRECTORY` would): for a look at it only.
pub(crate) fn open_quietly(path: &Path) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// statx of `fd` itself from what the kernel knows, without a request to a server.
pub(crate) fn stat_quietly(fd: impl AsFd, mask: StatxFlags) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(fd, c"", flags, mask)
}

fn unique_id(fd: impl AsFd) -> Result<Option<u64>, Errno> {
    if features::is_off("unique-mount-id") {
        Ok(None)
    } else {
        sys::unique_mount_id(fd)
    }
}
