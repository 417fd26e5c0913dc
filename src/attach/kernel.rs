//! Mounting by the kernel itself: for root, and for anybody with `CAP_SYS_ADMIN` in a user
//! namespace of their own.
//!
//! The new mount API (Linux 5.2) makes the mount *detached*: it can be served and tried out before
//! anybody sees it, and hung up at MNT in one step. mount(2) is the way round it where a sandbox
//! or `LOOPFS_FEATURES_OFF=new-mount-api` takes the new calls away.

use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use super::table::Label;
use crate::config::MountOptions;
use crate::sys::features;
use crate::sys::fs::ProcPath;

/// fsconfig(2) takes strings of at most 255 bytes (`strndup_user` in the kernel); a mount whose
/// source is longer is made by mount(2), which takes a page.
const LONGEST_STRING: usize = 255;

/// Why the kernel made no mount.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Its errno.
    pub(crate) errno: Errno,
    /// What it wrote to the configuration's log, if anything.
    pub(crate) reason: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            reason: None,
        }
    }
}

impl Refusal {
    /// True if another way of mounting may work where this one did not: the call is missing
    /// (`ENOSYS`), or it is forbidden, by a sandbox that does not know it or altogether.
    pub(crate) fn tells_to_try_otherwise(&self) -> bool {
        matches!(self.errno, Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP)
    }
}

/// The detached mount of the connection `device`: a descriptor of its root.
pub(crate) fn detached(
    device: BorrowedFd<'_>,
    options: &MountOptions,
    label: &Label,
) -> Result<OwnedFd, Refusal> {
    if features::is_off("new-mount-api") || label.source.len() > LONGEST_STRING {
        return Err(Errno::NOSYS.into());
    }
    let context = rustix::mount::fsopen(c"fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let made = configure(context.as_fd(), device, options, label).and_then(|()| {
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        rustix::mount::fsmount(&context, flags, attributes(options)).map_err(|errno| match errno {
            // Linux 5.14 has that flag here, mount(2) has it since 5.10.
            Errno::INVAL if options.nosymfollow => Errno::NOSYS,
            errno => errno,
        })
    });
    // `context` is closed on return. Kept open it would keep the file system alive, and the
    // daemon's reads would never end after an unmount.
    made.map_err(|errno| Refusal {
        errno,
        reason: reason(context.as_fd()),
    })
}

fn configure(
    context: BorrowedFd<'_>,
    device: BorrowedFd<'_>,
    options: &MountOptions,
    label: &Label,
) -> Result<(), Errno> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};
    fsconfig_set_string(context, c"source", label.source.as_os_str())?;
    if !options.subtype.is_empty() {
        fsconfig_set_string(context, c"subtype", options.subtype.as_os_str())?;
    }
    // "fd" as a number: kernels before 6.14 refuse FSCONFIG_SET_FD for it.
    for (key, value) in parameters(device, options) {
        match value {
            Some(value) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, key)?,
        }
    }
    let flags = [
        ("ro", options.read_only),
        ("sync", options.sync),
        ("dirsync", options.dirsync),
    ];
    for (key, _) in flags.iter().filter(|(_, wanted)| *wanted) {
        fsconfig_set_flag(context, *key)?;
    }
    fsconfig_create(context)
}

/// The kernel's own parameters of a FUSE mount, as both ways of mounting name them.
fn parameters(
    device: BorrowedFd<'_>,
    options: &MountOptions,
) -> Vec<(&'static str, Option<String>)> {
    let mut parameters = vec![
        ("fd", Some(device.as_raw_fd().to_string())),
        // Octal. Only the type counts: the daemon tells the rest when it is first asked.
        ("rootmode", Some("40000".into())),
        (
            "user_id",
            Some(rustix::process::geteuid().as_raw().to_string()),
        ),
        (
            "group_id",
            Some(rustix::process::getegid().as_raw().to_string()),
        ),
    ];
    parameters.extend(
        options
            .max_read
            .map(|bytes| ("max_read", Some(bytes.to_string()))),
    );
    // The kernel knows no allow_root: it admits everybody, and the session turns away all but root
    // and the owner.
    if options.allow_other || options.allow_root {
        parameters.push(("allow_other", None));
    }
    if options.default_permissions {
        parameters.push(("default_permissions", None));
    }
    parameters
}

fn attributes(options: &MountOptions) -> MountAttrFlags {
    let wanted = [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, options.read_only),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, options.nosuid),
        (MountAttrFlags::MOUNT_ATTR_NODEV, options.nodev),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, options.noexec),
        (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, options.nosymfollow),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, options.noatime),
    ];
    wanted
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(flag, _)| *flag)
        .collect()
}

/// Last line of the log that a configuration keeps (`struct fc_log` in the kernel): each read(2)
/// gives one message, with its level in front (`e fuse: ...`).
fn reason(context: BorrowedFd<'_>) -> Option<String> {
    let mut last = None;
    let mut message = [0_u8; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
        let text = String::from_utf8_lossy(&message[..length]);
        let text = text.trim().trim_start_matches(['e', 'w', 'i']).trim_start();
        last = Some(super::error::one_line(text));
    }
    last
}

/// Hangs the detached mount up on the directory `target`, which was opened and looked at before:
/// no name is looked up again, so nothing can be put in its place meanwhile.
pub(crate) fn hang_up(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// Mounts the connection `device` on the directory `target` by mount(2), visible at once.
pub(crate) fn mount_at_once(
    device: BorrowedFd<'_>,
    options: &MountOptions,
    label: &Label,
    target: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut data = String::new();
    for (key, value) in parameters(device, options) {
        let comma = if data.is_empty() { "" } else { "," };
        // Writing to a String can't fail.
        let _ = match value {
            Some(value) => write!(data, "{comma}{key}={value}"),
            None => write!(data, "{comma}{key}"),
        };
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let (source, fs_type): (&OsStr, &OsStr) = (&label.source, &label.fs_type);
    rustix::mount::mount(
        source.as_bytes(),
        ProcPath::of(target).as_c_str(),
        fs_type.as_bytes(),
        flags(options),
        data.as_c_str(),
    )
}

/// The flags of mount(2) for `options`.
fn flags(options: &MountOptions) -> MountFlags {
    let wanted = [
        (MountFlags::RDONLY, options.read_only),
        (MountFlags::NOSUID, options.nosuid),
        (MountFlags::NODEV, options.nodev),
        (MountFlags::NOEXEC, options.noexec),
        (MountFlags::NOSYMFOLLOW, options.nosymfollow),
        (MountFlags::NOATIME, options.noatime),
        (MountFlags::SYNCHRONOUS, options.sync),
        (MountFlags::DIRSYNC, options.dirsync),
    ];
    wanted
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(flag, _)| *flag)
        .collect()
}

/// Gives the mount that `root` is the root of the flags in `options`.
pub(crate) fn remount(root: BorrowedFd<'_>, options: &MountOptions) -> Result<(), Errno> {
    rustix::mount::mount_remount(ProcPath::of(root).as_c_str(), flags(options), c"")
}

/// Detaches the mount that `root` is the root of, whatever its path is by now.
///
/// The kernel goes from `root` up to whatever is stacked on it (`handle_lookup_down`), so the
/// caller must have seen that nothing is.
pub(crate) fn detach(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::mount::unmount(ProcPath::of(root).as_c_str(), UnmountFlags::DETACH)
}

/// Aborts the connection of the mount that `root` is the root of, by the first half of a forced
/// unmount: `do_umount` calls `fuse_umount_begin` before it looks whether the mount is busy, and
/// busy it is because `root` is open. So nothing is unmounted: that is for the caller.
pub(crate) fn force_abort(root: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::mount::unmount(ProcPath::of(root).as_c_str(), UnmountFlags::FORCE) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}
