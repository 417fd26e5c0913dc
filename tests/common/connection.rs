//! A mount's connection to the kernel, as fusectl shows it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use rustix::fs::{Mode as FileMode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::table::Entry;

/// A connection to the kernel, held by its files in fusectl: they stay that connection's when its
/// number is given to another one (`fuse_ctl_remove_conn` clears `i_private`).
pub(crate) struct Connection {
    waiting: File,
    abort: File,
}

impl Connection {
    /// Of a mount that is known to be there.
    #[track_caller]
    pub(crate) fn of(mount: &Entry) -> Self {
        let connections = fusectl();
        let open = |name: &str, flags| {
            let path = format!("{}/{name}", mount.minor);
            let file = openat(
                &connections,
                path,
                flags | OFlags::CLOEXEC,
                FileMode::empty(),
            );
            File::from(file.expect("the connection's file in fusectl"))
        };
        let connection = Self {
            waiting: open("waiting", OFlags::PATH),
            abort: open("abort", OFlags::WRONLY),
        };
        assert!(!connection.is_gone());
        connection
    }

    /// `fuse_conn_waiting_read`: a number while the connection lives, nothing afterwards. It can be
    /// read once for each time it is opened.
    fn read(&self) -> String {
        let path = format!("/proc/self/fd/{}", self.waiting.as_raw_fd());
        fs::read_to_string(path).expect("read")
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.read().is_empty()
    }

    /// How many requests wait for the daemon, answered or not yet taken up.
    pub(crate) fn waiting(&self) -> u32 {
        self.read().trim().parse().unwrap_or(0)
    }

    pub(crate) fn abort(&self) {
        (&self.abort).write_all(b"1").expect("abort");
    }
}

/// A fusectl mounted nowhere: there is one on a machine, and every mount of it shows the same.
fn fusectl() -> std::os::fd::OwnedFd {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC).expect("fusectl");
    fsconfig_create(&context).expect("fusectl");
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(&context, flags, MountAttrFlags::empty()).expect("fusectl")
}
