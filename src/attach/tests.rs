//! Real mounts, made and taken down by the parts together. They need root and FUSE, and fail
//! without: nothing here is skipped. A few lines of the FUSE protocol stand in for the daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ending;
mod making;
mod targets;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::thread::{self, JoinHandle};

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::*;
use crate::config::{
    Caching, Io, Limit, LogFormat, Logging, MountOptions, Serving, Task, TreeOptions,
};
use crate::sys::features;

/// A directory to mount on, with everything mounted below it taken away at the end.
pub(super) struct Place {
    folder: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount: run them as root"
        );
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Self { folder }
    }

    pub(super) fn mnt(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub(super) fn config(&self) -> Config {
        Config {
            task: Task::Serve,
            source: "/the source\n#\\040".into(),
            target: self.mnt(),
            foreground: true,
            make_target: false,
            replace_stale: false,
            serving: Serving {
                threads: NonZeroUsize::MIN,
                io: Io::default(),
                listing: crate::config::Listing::Auto,
                low_latency: false,
            },
            mount: MountOptions {
                read_only: false,
                nosuid: true,
                nodev: true,
                noexec: false,
                noatime: true,
                sync: false,
                dirsync: true,
                nosymfollow: false,
                allow_other: true,
                allow_root: false,
                default_permissions: true,
                fsname: None,
                subtype: "loopfs".into(),
                max_read: Some(1 << 17),
            },
            caching: Caching {
                mode: crate::config::Cache::Timed,
                entry: Duration::ZERO,
                attr: Duration::ZERO,
                negative: Duration::ZERO,
            },
            tree: TreeOptions::default(),
            drain_timeout: Limit::Never,
            restart: crate::config::Restart::default(),
            lazy_timeout: Limit::Never,
            logging: Logging {
                level: log::LevelFilter::Off,
                format: LogFormat::Text,
            },
            lasting: Vec::new(),
        }
    }

    /// What the mount table has at MNT, from the bottom up.
    pub(super) fn mounted(&self) -> Vec<mountinfo::Entry> {
        let table = table::read_table().unwrap();
        table
            .into_iter()
            .filter(|entry| entry.mount_point == self.mnt())
            .collect()
    }

    pub(super) fn mount_tmpfs(&self) {
        rustix::mount::mount("newcomer", self.mnt(), "tmpfs", MountFlags::empty(), None).unwrap();
    }

    /// Mounts on the directory that holds MNT, and makes one by the same name there.
    pub(super) fn mount_above(&self) {
        let above = self.folder.path();
        rustix::mount::mount("above", above, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(self.mnt()).unwrap();
    }

    /// Takes that away again, with what is mounted in it.
    pub(super) fn unmount_above(&self) {
        rustix::mount::unmount(self.folder.path(), UnmountFlags::DETACH).unwrap();
    }

    /// A mount that nobody serves.
    pub(super) fn attached(&self) -> Attachment {
        prepare(&self.config()).unwrap().publish().unwrap()
    }

    /// Leaves a dead mount there.
    fn mount_dead(&self) {
        let mut pending = prepare(&self.config()).unwrap();
        let device = pending.take_device().unwrap();
        std::mem::forget(pending.publish().unwrap());
        drop(device);
    }
}

pub(super) fn identity_of(attachment: &Attachment) -> &Identity {
    attachment.identity()
}

impl Drop for Place {
    fn drop(&mut self) {
        while rustix::mount::unmount(self.folder.path(), UnmountFlags::DETACH).is_ok() {}
        while rustix::mount::unmount(self.mnt(), UnmountFlags::DETACH).is_ok() {}
    }
}

/// A daemon that knows one empty directory, or (`answers: false`) only shakes hands.
struct Daemon(JoinHandle<Errno>);

impl Daemon {
    fn start(device: OwnedFd, answers: bool) -> Self {
        Self(thread::spawn(move || serve(&device, answers)))
    }

    fn serve(pending: &mut Pending) -> Self {
        Self::start(pending.take_device().unwrap(), true)
    }

    /// The errno that ended its reading.
    fn end(self) -> Errno {
        self.0.join().unwrap()
    }
}

fn serve(device: &OwnedFd, answers: bool) -> Errno {
    const INIT: u32 = 26;
    let mut request = vec![0_u8; 1 << 18];
    loop {
        let length = match rustix::io::read(device, &mut request) {
            Ok(length) => length,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(errno) => return errno,
        };
        assert!(length >= 40);
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let unique: [u8; 8] = request[8..16].try_into().unwrap();
        if !answers && opcode != INIT {
            continue;
        }
        let (error, body) = match opcode {
            2 | 36 | 42 => continue, // FORGET, INTERRUPT, BATCH_FORGET have no reply
            INIT => (0, init_out()),
            3 => (0, attr_out()),       // GETATTR
            27 => (0, vec![0; 16]),     // OPENDIR
            28 | 29 => (0, Vec::new()), // READDIR, RELEASEDIR
            _ => (-38, Vec::new()),     // ENOSYS
        };
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut reply = Vec::from(length.to_ne_bytes());
        reply.extend(i32::to_ne_bytes(error));
        reply.extend(unique);
        reply.extend(body);
        if let Err(errno @ Errno::NODEV) = rustix::io::write(device, &reply) {
            return errno;
        }
    }
}

/// `struct fuse_init_out` of version 7.31.
fn init_out() -> Vec<u8> {
    let mut out = vec![0_u8; 64];
    out[..4].copy_from_slice(&7_u32.to_ne_bytes());
    out[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    out[20..24].copy_from_slice(&(1_u32 << 17).to_ne_bytes()); // max_write
    out
}

/// `struct fuse_attr_out` of a directory.
fn attr_out() -> Vec<u8> {
    let mut out = vec![0_u8; 16 + 88];
    out[16..24].copy_from_slice(&1_u64.to_ne_bytes()); // ino
    out[76..80].copy_from_slice(&0o40755_u32.to_ne_bytes()); // mode
    out[80..84].copy_from_slice(&2_u32.to_ne_bytes()); // nlink
    out
}

/// Detaches politely. Tests that run in other threads of this process start processes, which have
/// a copy of every descriptor for a moment, so what is idle may look busy for that long.
pub(super) fn until_idle(mut detach: impl FnMut() -> Detached) {
    let start = std::time::Instant::now();
    let mut detached = detach();
    while detached == Detached::Busy && start.elapsed() < Duration::from_secs(10) {
        thread::yield_now();
        detached = detach();
    }
    assert_eq!(detached, Detached::Done);
}

fn end_politely(attachment: &Attachment) {
    until_idle(|| attachment.detach(Detach::Polite).unwrap());
}

/// Each way of mounting.
fn by_method(method: Method, config: &Config) -> Pending {
    let pending = match method {
        Method::NewApi => prepare(config),
        Method::MountCall => {
            let device = open_device(Path::new("/dev/fuse")).unwrap();
            at_once(
                config,
                &Label::of(config),
                device,
                target::ready(config).unwrap(),
            )
        }
        Method::Fusermount => by_helper(config, None),
    }
    .unwrap();
    if method != Method::NewApi || !features::is_off("new-mount-api") {
        assert_eq!(pending.method(), method);
    }
    pending
}

const METHODS: [Method; 3] = [Method::NewApi, Method::MountCall, Method::Fusermount];

fn served(method: Method, config: &Config) -> (Attachment, Daemon) {
    let mut pending = by_method(method, config);
    let daemon = Daemon::serve(&mut pending);
    pending.self_test().unwrap();
    (pending.publish().unwrap(), daemon)
}
