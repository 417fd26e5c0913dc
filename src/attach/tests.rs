//! Real mounts, made and taken down by the parts together. They need root and FUSE, and fail
//! without: nothing here is skipped. A few lines of the FUSE protocol stand in for the daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::thread::{self, JoinHandle};

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::*;
use crate::sys::features;
use crate::config::{Caching, Limit, LogFormat, Logging, MountOptions};

/// A directory to mount on, with everything mounted below it taken away at the end.
pub(super) struct Place {
    folder: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount: run them as root");
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Self { folder }
    }

    pub(super) fn mnt(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn config(&self) -> Config {
        Config {
            source: "/the source\n#\\040".into(),
            target: self.mnt(),
            foreground: true,
            make_target: false,
            replace_stale: false,
            threads: NonZeroUsize::MIN,
            mount: MountOptions {
                read_only: false,
                nosuid: true,
                nodev: true,
                noexec: false,
                noatime: true,
                sync: false,
                dirsync: true,
                allow_other: true,
                allow_root: false,
                default_permissions: true,
                fsname: None,
                subtype: "loopfs".into(),
                max_read: Some(1 << 17),
            },
            caching: Caching {
                entry: Duration::ZERO,
                attr: Duration::ZERO,
                negative: Duration::ZERO,
            },
            drain_timeout: Limit::Never,
            logging: Logging { level: log::LevelFilter::Off, format: LogFormat::Text },
        }
    }

    /// What the mount table has at MNT, from the bottom up.
    pub(super) fn mounted(&self) -> Vec<mountinfo::Entry> {
        let table = table::read_table().unwrap();
        table.into_iter().filter(|entry| entry.mount_point == self.mnt()).collect()
    }

    pub(super) fn mount_tmpfs(&self) {
        rustix::mount::mount("newcomer", self.mnt(), "tmpfs", MountFlags::empty(), None).unwrap();
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
            3 => (0, attr_out()),        // GETATTR
            27 => (0, vec![0; 16]),      // OPENDIR
            28 | 29 => (0, Vec::new()),  // READDIR, RELEASEDIR
            _ => (-38, Vec::new()),      // ENOSYS
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
            at_once(config, &Label::of(config), device, target::ready(config).unwrap())
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

#[test]
fn every_way_of_mounting_serves_and_ends_politely() {
    for method in METHODS {
        let place = Place::new();
        let mut pending = by_method(method, &place.config());
        let daemon = Daemon::serve(&mut pending);
        assert!(pending.take_device().is_err());
        assert_eq!(place.mounted().is_empty(), pending.method() == Method::NewApi);
        pending.self_test().unwrap();
        let device = pending.device_number().unwrap();
        let attachment = pending.publish().unwrap();

        let [line] = place.mounted().try_into().unwrap();
        assert_eq!((line.device, line.source.as_os_str()), (device, OsStr::new("/the source\n#\\040")));
        assert_eq!(line.fs_type, "fuse.loopfs");
        assert!(attachment.is_present() && !attachment.is_covered());
        assert_eq!(attachment.mount_point(), Some(place.mnt()));

        end_politely(&attachment);
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::AlreadyGone));
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::AlreadyGone));
        assert!(!attachment.is_present());
        assert!(place.mounted().is_empty());
        assert_eq!(daemon.end(), Errno::NODEV);
    }
}

#[test]
fn options_reach_the_mount() {
    let place = Place::new();
    let mut config = place.config();
    config.mount.read_only = true;
    for method in METHODS {
        let attachment = by_method(method, &config).publish().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = place.mnt().into_os_string().into_string().unwrap();
        let line = table.lines().find(|line| line.contains(&mnt)).unwrap().to_owned();
        let all = format!(" {} ", line.replace(',', " "));
        for word in
            ["ro", "nosuid", "nodev", "noatime", "dirsync", "default_permissions", "allow_other", "max_read=131072"]
        {
            assert!(all.contains(&format!(" {word} ")), "{method:?}: no {word} in {line}");
        }
        drop(attachment);
        assert!(place.mounted().is_empty());
    }
}

#[test]
fn a_busy_mount_stays_and_can_be_detached_lazily() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, daemon) = served(method, &place.config());
        let held = fs::File::open(place.mnt()).unwrap();
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::Busy));
        assert!(attachment.is_present());
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Done));
        assert!(!attachment.is_present() && !daemon.0.is_finished());
        assert!(held.metadata().unwrap().is_dir()); // still served
        drop(held);
        assert_eq!(daemon.end(), Errno::NODEV);
    }
}

#[test]
fn a_newcomer_at_the_place_is_not_touched() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, _daemon) = served(method, &place.config());
        rustix::mount::unmount(place.mnt(), UnmountFlags::DETACH).unwrap();
        place.mount_tmpfs();
        let newcomer = place.mounted();
        assert!(!attachment.is_present() && !attachment.is_covered());
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::AlreadyGone));
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::AlreadyGone));
        drop(attachment);
        assert_eq!(place.mounted(), newcomer);
    }
}

#[test]
fn what_covers_ours_is_not_touched() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, _daemon) = served(method, &place.config());
        place.mount_tmpfs();
        assert!(attachment.is_present() && attachment.is_covered());
        assert_eq!(attachment.upper(), [place.mnt()]);
        let both = place.mounted();
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::Covered));
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Covered));
        assert_eq!(place.mounted(), both);
        rustix::mount::unmount(place.mnt(), UnmountFlags::empty()).unwrap();
        assert!(!attachment.is_covered());
        end_politely(&attachment);
    }
}

#[test]
fn statmount_and_mountinfo_say_the_same() {
    let place = Place::new();
    let (attachment, _daemon) = served(Method::NewApi, &place.config());
    let new = attachment.identity();
    let old = new.without_unique_id();
    let root = table::open_quietly(&place.mnt()).unwrap();
    for identity in [new, &old] {
        assert_eq!(identity.place(), Ok(Some(place.mnt())));
        assert_eq!(identity.upper(), Ok(Vec::new()));
        assert_eq!(identity.is_mount_of(&root), Ok(true));
    }
    place.mount_tmpfs();
    let cover = table::open_quietly(&place.mnt()).unwrap();
    for identity in [new, &old] {
        assert_eq!(identity.upper(), Ok(vec![place.mnt()]));
        assert_eq!(identity.is_mount_of(&cover), Ok(false));
        assert_eq!(detach::politely(identity), Ok(Detached::Covered));
    }
    drop((root, cover));
    rustix::mount::unmount(place.mnt(), UnmountFlags::empty()).unwrap();
    until_idle(|| detach::politely(&old).unwrap());
    for identity in [new, &old] {
        assert_eq!(identity.place(), Ok(None));
        assert_eq!(detach::lazily(identity), Ok(Detached::AlreadyGone));
    }
}

#[test]
fn a_mount_that_moved_is_found() {
    for how in [Detach::Polite, Detach::Lazy] {
        let place = Place::new();
        let folder = place.folder.path().join("a");
        fs::create_dir_all(folder.join("mnt")).unwrap();
        let config = Config { target: folder.join("mnt"), ..place.config() };
        let (attachment, _daemon) = served(Method::NewApi, &config);
        let elsewhere = place.folder.path().join("b c");
        fs::rename(&folder, &elsewhere).unwrap();
        assert_eq!(attachment.mount_point(), Some(elsewhere.join("mnt")));
        until_idle(|| attachment.detach(how).unwrap());
    }
}

#[test]
fn of_many_who_detach_one_does_it() {
    let place = Place::new();
    let (attachment, _daemon) = served(Method::NewApi, &place.config());
    let outcomes: Vec<_> = thread::scope(|scope| {
        let each = |n: u32| {
            let how = if n % 2 == 0 { Detach::Polite } else { Detach::Lazy };
            attachment.detach(how).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || each(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|&&it| it == Detached::Done).count(), 1, "{outcomes:?}");
    assert!(!outcomes.contains(&Detached::Covered), "{outcomes:?}");
}

#[test]
fn dropping_what_is_not_published_leaves_nothing() {
    for method in METHODS {
        let place = Place::new();
        let mut pending = by_method(method, &place.config());
        let daemon = Daemon::serve(&mut pending);
        pending.self_test().unwrap();
        drop(pending);
        assert!(place.mounted().is_empty());
        assert_eq!(daemon.end(), Errno::NODEV);
    }
}

#[test]
fn a_silent_daemon_fails_the_self_test_in_time() {
    for method in METHODS {
        let place = Place::new();
        let mut pending = by_method(method, &place.config());
        let daemon = Daemon::start(pending.take_device().unwrap(), false);
        let error = pending.self_test_within(Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind, AttachErrorKind::SelfTest);
        assert_eq!(daemon.end(), Errno::NODEV); // aborted
        drop(pending);
        assert!(place.mounted().is_empty());
    }
}

#[test]
fn an_abort_works_before_and_after_a_lazy_unmount_and_hits_nobody_later() {
    let place = Place::new();
    let (attachment, daemon) = served(Method::NewApi, &place.config());
    attachment.abort_connection().unwrap();
    assert_eq!(daemon.end(), Errno::NODEV);
    assert!(attachment.is_present()); // dead, and still there
    end_politely(&attachment);

    let (attachment, daemon) = served(Method::NewApi, &place.config());
    let held = fs::File::open(place.mnt()).unwrap();
    assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Done));
    attachment.abort_connection().unwrap();
    assert_eq!(daemon.end(), Errno::NODEV);
    assert!(held.metadata().is_err());
    drop(held);

    // The number of the connection that has ended goes to the next mount.
    let (next, _daemon) = served(Method::NewApi, &place.config());
    attachment.abort_connection().unwrap();
    fs::read_dir(place.mnt()).unwrap();
    end_politely(&next);
}

#[test]
fn an_abort_by_force_leaves_the_unmounting_to_the_caller() {
    let place = Place::new();
    let (attachment, daemon) = served(Method::NewApi, &place.config());
    let root = table::open_quietly(&place.mnt()).unwrap();
    kernel::force_abort(root.as_fd()).unwrap();
    drop(root);
    assert_eq!(daemon.end(), Errno::NODEV);
    end_politely(&attachment);
}

#[test]
fn a_source_too_long_for_the_new_calls_is_mounted_and_shown_whole() {
    let place = Place::new();
    let mut source = vec![b'x'; 400];
    source.extend(b"\xff end");
    let mut config = place.config();
    config.mount.fsname = Some(OsString::from_vec(source.clone()));
    let pending = prepare(&config).unwrap();
    assert_eq!(pending.method(), Method::MountCall);
    assert_eq!(place.mounted()[0].source.as_bytes(), source);
}

fn refusal(config: &Config) -> AttachError {
    let error = prepare(config).unwrap_err();
    assert!(!error.to_string().contains('\n'));
    error
}

#[test]
fn unusable_targets_are_told_apart() {
    let place = Place::new();
    let at = |name: &str| Config { target: place.folder.path().join(name), ..place.config() };
    fs::write(place.folder.path().join("file"), "").unwrap();

    let error = refusal(&at("missing\nmnt"));
    assert_eq!(error.kind, AttachErrorKind::TargetMissing);
    assert!(error.to_string().ends_with("missing\\nmnt does not exist: create it, or use --mkdir"));
    assert_eq!(error.exit_code(), crate::exit::ExitCode::MountFailed);

    assert_eq!(refusal(&at("file")).kind, AttachErrorKind::TargetNotDirectory);
    assert_eq!(refusal(&at("file/mnt")).kind, AttachErrorKind::TargetNotDirectory);
    let made = |name| Config { make_target: true, ..at(name) };
    assert_eq!(refusal(&made("file")).kind, AttachErrorKind::TargetNotDirectory);
    assert_eq!(refusal(&made("missing/mnt")).kind, AttachErrorKind::TargetMissing);
}

#[test]
fn a_missing_device_and_no_device_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let missing = open_device(&folder.path().join("fuse")).unwrap_err();
    assert_eq!(missing.kind, AttachErrorKind::NoDevice);
    assert_eq!(missing.exit_code(), crate::exit::ExitCode::System);
}

#[test]
fn a_directory_made_for_the_mount_goes_with_it() {
    let place = Place::new();
    let target = place.folder.path().join("made");
    let config = Config { target: target.clone(), make_target: true, ..place.config() };

    drop(prepare(&config).unwrap());
    assert!(!target.exists(), "start-up failed");

    let attachment = prepare(&config).unwrap().publish().unwrap();
    attachment.remove_made_target();
    assert!(attachment.is_present(), "too early: it is mounted on");
    end_politely(&attachment);
    attachment.remove_made_target();
    assert!(!target.exists());

    let attachment = prepare(&config).unwrap().publish().unwrap();
    assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Done));
    fs::write(target.join("something"), "").unwrap();
    drop(attachment);
    assert!(target.join("something").exists(), "somebody filled it");

    drop(prepare(&config).unwrap());
    assert!(target.exists(), "it was there before");
}

#[test]
fn a_dead_mount_is_named_and_replaced_when_asked() {
    let place = Place::new();
    place.mount_dead();
    let error = refusal(&place.config());
    assert_eq!(error.kind, AttachErrorKind::TargetDead);
    assert!(error.to_string().contains("--replace-stale"));

    let inside = Config { target: place.mnt().join("sub"), ..place.config() };
    assert_eq!(refusal(&inside).kind, AttachErrorKind::TargetDead);
    let inside = Config { make_target: true, replace_stale: true, ..inside };
    assert_eq!(refusal(&inside).kind, AttachErrorKind::TargetDead);
    assert_eq!(place.mounted().len(), 1);

    let config = Config { replace_stale: true, ..place.config() };
    let (attachment, _daemon) = served(Method::NewApi, &config);
    assert_eq!(place.mounted().len(), 1);
    end_politely(&attachment);
}

#[test]
fn only_dead_fuse_mounts_are_replaced() {
    let place = Place::new();
    place.mount_tmpfs();
    let config = Config { replace_stale: true, ..place.config() };
    let (living, _daemon) = served(Method::NewApi, &config);
    let (upper, _daemon) = served(Method::NewApi, &config);
    assert_eq!(place.mounted().len(), 3);
    assert!(living.is_covered());
    end_politely(&upper);
    end_politely(&living);
    assert_eq!(place.mounted().len(), 1);
}

#[test]
fn a_target_that_does_not_answer_costs_a_line_and_not_a_hang() {
    let place = Place::new();
    let mut pending = prepare(&place.config()).unwrap();
    let _device = pending.take_device().unwrap(); // nobody reads it
    let attachment = pending.publish().unwrap();
    let config = Config { replace_stale: true, ..place.config() };
    assert_eq!(refusal(&config).kind, AttachErrorKind::TargetUnresponsive);
    assert!(attachment.is_present());
    attachment.abort_connection().unwrap();
}
