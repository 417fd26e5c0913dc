//! Changing the flags of a mount that is there. The kernel enforces them all, so its daemon need not
//! know; what the daemon does stays as it is, which is said.

use std::os::fd::AsFd as _;

use super::error::{AttachError, AttachErrorKind as Kind, says, shown};
use super::mountinfo::Entry;
use super::{kernel, table};
use crate::config::Config;

/// Gives the loopfs mount at `config.target` the flags in `config.mount`; mount(2) with `MS_REMOUNT`.
///
/// # Errors
/// Nothing of loopfs is mounted there, it is in use for writing and can't become read-only, or this
/// process may not.
pub fn remount(config: &Config) -> Result<(), AttachError> {
    let path = &config.target;
    let refused = |errno| {
        let hint = match errno {
            rustix::io::Errno::BUSY => {
                ": files are open for writing: close them first (fuser -vm shows whose)"
            }
            rustix::io::Errno::TIMEDOUT => {
                ": a mount on the way there does not answer ('loopfs doctor' shows which)"
            }
            rustix::io::Errno::PERM => ": only root may: use sudo, or mount anew",
            _ => "",
        };
        let text = format!("can't remount {}: {}{hint}", shown(path), says(errno));
        AttachError::new(Kind::Refused, text)
    };
    if !table::is_within_reach(path).map_err(refused)? {
        return Err(refused(rustix::io::Errno::TIMEDOUT));
    }
    let root = table::open_quietly(path).map_err(refused)?;
    let entry = table::entry_of(&root).map_err(refused)?;
    let kind = [b"fuse.", config.mount.subtype.as_encoded_bytes()].concat();
    let ours = entry.as_ref().is_some_and(|entry| {
        entry.mount_point == *path && entry.fs_type.as_encoded_bytes() == kind
    });
    if !ours {
        let text = format!(
            "can't remount {}: nothing of type {} is mounted there (findmnt {0} shows what is)",
            shown(path),
            String::from_utf8_lossy(&kind)
        );
        return Err(AttachError::new(Kind::TargetUnusable, text));
    }
    kernel::remount(root.as_fd(), &config.mount).map_err(refused)?;
    let lasting = entry.map_or_else(Vec::new, |entry| unchanged(config, &entry));
    if !lasting.is_empty() {
        log::warn!(
            "{}: a remount changes ro, rw and the flags from nosuid to dirsync; as it was mounted stays: {}. Unmount \
             it and mount it again to change that",
            shown(path),
            lasting.join(", ")
        );
    }
    Ok(())
}

/// What `config` asks for beside the flags. What the mount table shows just so is left out: mount(8) hands it back.
fn unchanged(config: &Config, entry: &Entry) -> Vec<&'static str> {
    let mount = &config.mount;
    let shown_so = |name: &str| match name {
        "allow_other" | "noallow_other" | "allow_root" => {
            entry.has("allow_other") == (mount.allow_other || mount.allow_root)
        }
        "default_permissions" | "nodefault_permissions" => {
            entry.has("default_permissions") == mount.default_permissions
        }
        "max_read" => mount
            .max_read
            .is_some_and(|bytes| entry.has(&format!("max_read={bytes}"))),
        "fsname" => mount.fsname.as_ref() == Some(&entry.source),
        // The type was compared.
        "subtype" => true,
        _ => false,
    };
    let lasting = config.lasting.iter().copied();
    lasting.filter(|name| !shown_so(name)).collect()
}
