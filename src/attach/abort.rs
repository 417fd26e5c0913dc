//! Aborting our FUSE connection, and never another one.
//!
//! A connection's `abort` file in fusectl is named by the minor number of its file system, and
//! that number is given to the next FUSE mount as soon as ours has gone. So the file is opened
//! once, while the mount is certainly ours, and kept: it stays tied to our connection, and writing
//! to it after the connection has ended does nothing (`fuse_ctl_remove_conn` clears `i_private`).
//! That also makes an abort possible when the mount has left the table and its last open files
//! must be cut off.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::mountinfo::DeviceNumber;

/// Where fusectl is mounted by convention.
const USUAL_PLACE: &str = "/sys/fs/fuse/connections";

/// The `abort` file of one connection.
#[derive(Debug)]
pub(crate) struct AbortFile(OwnedFd);

impl AbortFile {
    /// The file of the connection with `device`, whose mount the caller holds or has just seen.
    ///
    /// A fusectl of our own, mounted nowhere, comes first: it is there even if the machine has
    /// not mounted it, and holding a file of it keeps nobody from unmounting theirs. It needs
    /// privileges in the initial user namespace; the usual place needs that somebody mounted it,
    /// and then serves the connection's owner too.
    pub(crate) fn open(device: DeviceNumber) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = PathBuf::from(device.minor.to_string()).join("abort");
        let detached = detached_fusectl()
            .and_then(|root| rustix::fs::openat(root.as_fd(), &name, flags, Mode::empty()));
        let usual = || {
            let path = PathBuf::from(USUAL_PLACE).join(&name);
            rustix::fs::open(path, flags, Mode::empty())
        };
        Ok(Self(detached.or_else(|_| usual())?))
    }

    /// The file that another process has opened and handed over.
    pub(crate) fn of(file: OwnedFd) -> Self {
        Self(file)
    }

    /// Another descriptor of it, to hand over.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 0)
    }

    /// Aborts the connection: every request ends with ENOTCONN, the daemon's reads with ENODEV.
    pub(crate) fn abort(&self) -> io::Result<()> {
        rustix::io::write(&self.0, b"1")
            .map(drop)
            .map_err(io::Error::from)
    }
}

/// A mount of fusectl that is in no mount table. There is one file system of that type on a
/// machine: every mount of it shows the same connections.
fn detached_fusectl() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(&context, flags, MountAttrFlags::empty())
}
