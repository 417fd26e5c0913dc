//! What goes wrong inside: a panic in an operation, one in fuser, a tree that changes under the
//! daemon, a mount below its own source.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::common::{Mount, TestEnv};

/// A daemon with `LOOPFS_FAULTS` set.
fn with_faults(faults: &str, options: &[&str]) -> Mount {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command.args(options).arg(env.src()).arg(env.mnt());
    command.env("LOOPFS_FAULTS", faults);
    Mount::start_command(env, command)
}

/// The caller gets EIO, everything else goes on, on the same single event loop.
#[test]
fn a_panic_in_an_operation_costs_that_operation_only() {
    let mount = with_faults("readlink=panic,unlink=28", &["--threads", "1"]);
    std::os::unix::fs::symlink("x", mount.source("link")).unwrap();
    for round in 0..10 {
        let error = fs::read_link(mount.path("link")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "EIO in round {round}");
        fs::write(mount.path("file"), format!("{round}")).unwrap();
        let error = fs::remove_file(mount.path("file")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!(
            fs::read_to_string(mount.source("file")).unwrap(),
            format!("{round}")
        );
    }
    mount.signal(crate::common::Signal::TERM);
    let (env, status, log) = mount.ended_somehow();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    assert_eq!(
        log.matches("readlink panicked and was answered with EIO")
            .count(),
        10
    );
    env.assert_clean();
}

#[test]
fn a_fault_that_makes_no_sense_is_refused() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FAULTS", "nothing=panic");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("'nothing=panic' is no fault"), "{text}");
    env.assert_clean();
}

/// A bug in fuser would cost an event loop and leave a caller waiting: the mount ends in order
/// instead, whichever loop it is.
#[test]
fn a_lost_event_loop_ends_the_mount_in_order() {
    for threads in ["1", "2", "4"] {
        let mount = with_faults("readlink=crash", &["--threads", threads]);
        fs::write(mount.path("file"), "kept").unwrap();
        std::os::unix::fs::symlink("x", mount.source("link")).unwrap();
        assert!(fs::read_link(mount.path("link")).is_err());
        let (env, status, log) = mount.ended_somehow();
        assert_eq!(status.and_then(|status| status.code()), Some(4), "{log}");
        assert!(log.contains("an event loop was lost"), "{log}");
        env.assert_clean();
        assert_eq!(fs::read_to_string(env.src().join("file")).unwrap(), "kept");
    }
}

/// The times at the ends of the range, one of which fuser 0.18.0 can't negate.
#[test]
fn the_smallest_and_largest_times_cost_nothing() {
    let mount = Mount::start(&["--threads", "1"]);
    fs::write(mount.path("file"), "x").unwrap();
    for tv_sec in [i64::MIN, i64::MIN + 1, -1, i64::MAX] {
        let time = Timespec { tv_sec, tv_nsec: 1 };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, mount.path("file"), &times, AtFlags::empty()).unwrap();
    }
    mount.finish();
}

/// The kernel believes that a name is free, and it is not: what is there is opened with the checks
/// that any open has, and nothing is overwritten.
#[test]
fn a_name_that_appeared_in_the_source_is_opened_not_created() {
    let mount = Mount::start(&["-o", "negative_timeout=1000,entry_timeout=1000"]);
    for name in ["append", "exclusive", "secret"] {
        assert_eq!(
            fs::metadata(mount.path(name)).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        fs::write(mount.source(name), "theirs").unwrap();
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    options
        .open(mount.path("append"))
        .unwrap()
        .write_all(b" and ours")
        .unwrap();
    assert_eq!(
        fs::read_to_string(mount.source("append")).unwrap(),
        "theirs and ours"
    );
    let error = File::create_new(mount.path("exclusive")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    // Root's, and nobody else's business.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(mount.source("secret"), mode).unwrap();
    fs::set_permissions(
        mount.src(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let secret = mount.path("secret");
    let opened = crate::common::as_user(65534, 65534, &[], || options.open(&secret));
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::PermissionDenied);
    mount.finish();
}

/// The mount, brought below its own source by a bind mount, is never entered.
#[test]
fn a_mount_that_comes_below_its_own_source_is_not_entered() {
    for off in ["", "openat2"] {
        let env = TestEnv::new();
        fs::create_dir(env.src().join("inner")).unwrap();
        fs::write(env.src().join("inner/covered"), "x").unwrap();
        let inner = env.src().join("inner");
        let covered = fs::metadata(&inner).unwrap().ino();
        let mut command = env.loopfs(["-f", "--threads", "1"]);
        command
            .arg(env.src())
            .arg(env.mnt())
            .env("LOOPFS_FEATURES_OFF", off);
        // MNT of the environment lies beside SRC: a bind mount brings it below.
        let mount = Mount::start_command(env, command);
        rustix::mount::mount_bind(mount.mnt(), mount.src().join("inner")).unwrap();
        let error = fs::read_dir(mount.path("inner")).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(40),
            "ELOOP by a way that covers nothing of ours"
        );
        rustix::mount::unmount(
            mount.src().join("inner"),
            rustix::mount::UnmountFlags::DETACH,
        )
        .unwrap();
        assert_eq!(fs::metadata(mount.path("inner")).unwrap().ino(), covered);
        mount.finish();
    }
}

/// `loopfs / MNT`, with MNT somewhere below.
#[test]
fn the_whole_file_system_can_be_the_source() {
    let env = TestEnv::new();
    fs::write(env.src().join("f"), "x").unwrap();
    let mut command = env.loopfs(["-f", "--threads", "1", "/"]);
    command.arg(env.mnt());
    let mount = Mount::start_command(env, command);
    let below = |path: std::path::PathBuf| mount.path(path.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(below(mount.source("f"))).unwrap(), "x");
    let own = below(mount.mnt());
    assert_eq!(
        fs::read_dir(&own).unwrap().count(),
        0,
        "what it covers, which is empty"
    );
    mount.finish();
}
