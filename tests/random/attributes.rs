//! Operations on modes, owners, times, extended attributes, ACLs and file flags.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, chown, lchown};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, IFlags, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, chmodat,
    fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, futimens, getxattr,
    ioctl_getflags, ioctl_setflags, lgetxattr, llistxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::process::{Gid, Uid};

use super::operation::{AclEntry, Operation, Place, SetTime, SetXattr, Xattr};
use super::world::{Outcome, World, done, finished};
use crate::common::tree::{checksum, pattern};

const CAPABILITY: &str = "security.capability";

/// How long an operation may take for a time of now to count as one: the machine may be loaded.
const NOW: i64 = 60; // seconds

impl World {
    /// Operations on attributes; `None` if it is another one.
    pub(super) fn attributes(&mut self, operation: &Operation) -> Option<Outcome> {
        use Operation::{
            Chmod, Chown, GetXattr, ListXattrs, RemoveXattr, SetAcl, SetFlags, SetXattr, Times,
        };
        Some(match operation {
            Chmod { on, mode } => self.chmod(on, Mode::from_raw_mode(self.granted(on, *mode))),
            Chown {
                on,
                uid,
                gid,
                follow,
            } => self.chown(on, *uid, *gid, *follow),
            Times {
                on,
                access,
                modification,
                follow,
            } => self.set_times(on, *access, *modification, *follow),
            SetXattr {
                on,
                name,
                length,
                how,
            } => self.set_xattr(on, *name, &value(*name, *length), flags(*how)),
            GetXattr { on, name, room } => self.get_xattr(on, *name, *room),
            ListXattrs { on, room } => self.list_xattrs(on, *room),
            RemoveXattr { on, name } => self.remove_xattr(on, *name),
            SetAcl {
                on,
                default,
                entries,
            } => {
                let name = if *default {
                    Xattr::DefaultAcl
                } else {
                    Xattr::AccessAcl
                };
                self.set_xattr(on, name, &acl(entries), XattrFlags::empty())
            }
            SetFlags { on, flags } => self.set_flags(on, *flags),
            _ => return None,
        })
    }

    /// A mode without set-id bits, if open files are not to get any; nor are files with capabilities: on the
    /// mount a write costs both then (SEMANTICS.md).
    fn granted(&self, on: &Place, mode: u32) -> u32 {
        let mut room = [0; 100];
        let found = match on {
            Place::Path(path) => getxattr(self.path(path), CAPABILITY, &mut room),
            Place::Slot(slot) => match self.open_file(*slot) {
                Ok(open) => fgetxattr(&open.file, CAPABILITY, &mut room),
                Err(_) => return mode,
            },
        };
        if self.grants_set_id && found.is_err() {
            mode
        } else {
            mode & !0o6000
        }
    }

    /// Whether it has set-id bits.
    fn has_set_id(&self, on: &Place) -> bool {
        let meta = match on {
            Place::Path(path) => fs::symlink_metadata(self.path(path)),
            Place::Slot(slot) => self.open_file(*slot).and_then(|open| open.file.metadata()),
        };
        meta.is_ok_and(|meta| meta.is_file() && meta.mode() & 0o6000 != 0)
    }

    fn chmod(&self, on: &Place, mode: Mode) -> Outcome {
        finished(match on {
            Place::Path(path) => chmodat(CWD, self.path(path), mode, AtFlags::empty()),
            Place::Slot(slot) => fchmod(&self.open_file(*slot)?.file, mode),
        })
    }

    fn chown(&self, on: &Place, uid: Option<u32>, gid: Option<u32>, follow: bool) -> Outcome {
        match on {
            Place::Slot(slot) => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                finished(fchown(&self.open_file(*slot)?.file, uid, gid))
            }
            Place::Path(path) if follow => chown(self.path(path), uid, gid).and_then(done),
            Place::Path(path) => lchown(self.path(path), uid, gid).and_then(done),
        }
    }

    /// What became of both times: later operations give others.
    fn set_times(
        &self,
        on: &Place,
        access: SetTime,
        modification: SetTime,
        follow: bool,
    ) -> Outcome {
        let times = Timestamps {
            last_access: timespec(access),
            last_modification: timespec(modification),
        };
        let seen = || match on {
            Place::Slot(slot) => self.open_file(*slot)?.file.metadata(),
            Place::Path(path) if follow => fs::metadata(self.path(path)),
            Place::Path(path) => fs::symlink_metadata(self.path(path)),
        };
        let before = seen()?;
        match on {
            Place::Slot(slot) => futimens(&self.open_file(*slot)?.file, &times)?,
            Place::Path(path) => {
                let flags = if follow {
                    AtFlags::empty()
                } else {
                    AtFlags::SYMLINK_NOFOLLOW
                };
                utimensat(CWD, self.path(path), &times, flags)?;
            }
        }
        let after = seen()?;
        let accessed = became(
            access,
            (before.atime(), before.atime_nsec()),
            (after.atime(), after.atime_nsec()),
        );
        let modified = became(
            modification,
            (before.mtime(), before.mtime_nsec()),
            (after.mtime(), after.mtime_nsec()),
        );
        Ok(format!("accessed {accessed}, modified {modified}"))
    }

    fn set_xattr(&self, on: &Place, name: Xattr, value: &[u8], how: XattrFlags) -> Outcome {
        if name == Xattr::Capability {
            if self.has_set_id(on) {
                return Ok("not where there are set-id bits".to_owned());
            }
            self.settle()?; // see KEEPS_CAPABILITY
        }
        let name = name.name();
        finished(match on {
            Place::Path(path) => lsetxattr(self.path(path), name, value, how),
            Place::Slot(slot) => fsetxattr(&self.open_file(*slot)?.file, name, value, how),
        })
    }

    fn get_xattr(&self, on: &Place, name: Xattr, room: u16) -> Outcome {
        let mut value = vec![0; room.into()];
        let name = name.name();
        let length = match on {
            Place::Path(path) => lgetxattr(self.path(path), name, &mut value[..])?,
            Place::Slot(slot) => fgetxattr(&self.open_file(*slot)?.file, name, &mut value[..])?,
        };
        value.truncate(length);
        Ok(format!("{length} bytes, {:x}", checksum(&value)))
    }

    fn list_xattrs(&self, on: &Place, room: u16) -> Outcome {
        let mut list = vec![0; room.into()];
        let length = match on {
            Place::Path(path) => llistxattr(self.path(path), &mut list[..])?,
            Place::Slot(slot) => flistxattr(&self.open_file(*slot)?.file, &mut list[..])?,
        };
        list.truncate(length);
        let names = list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        let mut names: Vec<_> = names.map(String::from_utf8_lossy).collect();
        names.sort();
        Ok(format!("{length} bytes, {}", names.join(" ")))
    }

    fn remove_xattr(&self, on: &Place, name: Xattr) -> Outcome {
        let name = name.name();
        finished(match on {
            Place::Path(path) => lremovexattr(self.path(path), name),
            Place::Slot(slot) => fremovexattr(&self.open_file(*slot)?.file, name),
        })
    }

    fn set_flags(&mut self, on: &Place, bits: u8) -> Outcome {
        self.flagged = true;
        let mut read = File::options();
        let file = self.file(on, read.read(true))?;
        let all = [
            IFlags::NODUMP,
            IFlags::NOATIME,
            IFlags::APPEND,
            IFlags::IMMUTABLE,
        ];
        let mut flags = ioctl_getflags(&*file)?;
        for (bit, flag) in all.into_iter().enumerate() {
            flags.set(flag, bits & (1 << bit) != 0);
        }
        ioctl_setflags(&*file, flags)?;
        // The kernel does not know that an ioctl changes the ctime: on the mount it is seen when
        // attr_timeout has passed, or with the next change that the kernel knows of.
        let mode = Mode::from_raw_mode(file.metadata()?.mode());
        finished(fchmod(&*file, mode))
    }
}

/// Takes file flags away that keep files from being removed, from everything below `directory`.
pub(crate) fn unflag(directory: &Path) -> io::Result<()> {
    let hard = IFlags::APPEND | IFlags::IMMUTABLE;
    for entry in fs::read_dir(directory)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        let file = File::open(&path)?;
        let flags = ioctl_getflags(&file)?;
        if flags.intersects(hard) {
            ioctl_setflags(&file, flags - hard)?;
        }
        if kind.is_dir() {
            unflag(&path)?;
        }
    }
    Ok(())
}

fn timespec(time: SetTime) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        SetTime::Omit => (0, UTIME_OMIT),
        SetTime::Now => (0, UTIME_NOW),
        SetTime::At(seconds, nanoseconds) => (seconds.into(), nanoseconds.into()),
    };
    Timespec { tv_sec, tv_nsec }
}

fn became(wanted: SetTime, before: (i64, i64), after: (i64, i64)) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).expect("this age"));
    match wanted {
        SetTime::Omit if before == after => "as before".to_owned(),
        SetTime::Now if (now - NOW..=now + 1).contains(&after.0) => "now".to_owned(),
        _ => format!("{}.{:09}", after.0, after.1),
    }
}

/// A value for an attribute. A file capability is a structure (`vfs_cap_data` in linux/capability.h):
/// revision 2, and some permitted ones.
fn value(name: Xattr, length: u16) -> Vec<u8> {
    if name != Xattr::Capability {
        return pattern(name.name().len().to_le_bytes()[0], length.into());
    }
    let words = [0x0200_0000_u32, u32::from(length), 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An ACL as an attribute's value.
fn acl(entries: &[AclEntry]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let id = if matches!(tag, 2 | 8) { *id } else { u32::MAX };
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn flags(how: SetXattr) -> XattrFlags {
    match how {
        SetXattr::Any => XattrFlags::empty(),
        SetXattr::Create => XattrFlags::CREATE,
        SetXattr::Replace => XattrFlags::REPLACE,
    }
}
