//! Changing the flags of a mount that is there. The kernel enforces them all, so its daemon need not
//! know.

use std::os::fd::AsFd as _;

use super::error::{AttachError, AttachErrorKind as Kind, says, shown};
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
            rustix::io::Errno::PERM => ": only root may: use sudo, or mount anew",
            _ => "",
        };
        let text = format!("can't remount {}: {}{hint}", shown(path), says(errno));
        AttachError::new(Kind::Refused, text)
    };
    let root = table::open_quietly(path).map_err(refused)?;
    let entry = table::entry_of(&root).map_err(refused)?;
    let kind = [b"fuse.", config.mount.subtype.as_encoded_bytes()].concat();
    let ours = entry.is_some_and(|entry| {
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
    kernel::remount(root.as_fd(), &config.mount).map_err(refused)
}
