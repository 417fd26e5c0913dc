//! `loopfs unmount` and those who use the mount.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::looking::{Unmounts, look, open, socket};
use crate::common::process::wait_child;
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, TestEnv};

/// It is in use: after the time it is said by whom, and nothing has changed.
#[test]
fn who_uses_it_is_named() {
    let mount = Mount::start(&[]);
    let held = open(&mount);
    let busy = look(&mount, &["unmount", "--timeout", "0.5"]);
    assert_eq!(busy.code(), 32, "{busy:?}");
    let last = busy.stderr.lines().last().unwrap();
    assert!(
        last.starts_with("loopfs: ") && last.contains("is still in use by pid"),
        "{last}"
    );
    assert!(
        last.contains(&std::process::id().to_string()) && last.contains("open held"),
        "{last}"
    );
    assert!(mount_at(&mount.mnt()).is_some());
    drop(held);
    mount.finish();
}

/// It waits, says for whom, and goes on when they have finished.
#[test]
fn it_waits_until_nobody_uses_it() {
    let mount = Mount::start(&[]);
    let held = open(&mount);
    let mut unmounts = Unmounts::start(&mount);
    let line = &unmounts.line;
    assert!(line.contains("is in use by pid"), "{line}");
    assert!(mount_at(&mount.mnt()).is_some());
    drop(held);
    let status = wait_child(&mut unmounts.child, LIMIT).expect("it ends");
    assert!(status.success(), "{status}");
    let mut rest = String::new();
    unmounts.stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "said once where there is no terminal");
    mount.ended();
}

/// By force: what is open is cut off, and all of it is gone when the command returns.
#[test]
fn by_force() {
    let mount = Mount::start(&["--io", "cached"]);
    let held = open(&mount);
    let socket = socket(&mount);
    assert!(socket.exists());
    look(&mount, &["unmount", "--force"]).success();
    assert!(mount_at(&mount.mnt()).is_none());
    assert!(!mount.is_running());
    assert!(!socket.exists());
    let error = held.metadata().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected, "{error}");
    mount.ended();
}

/// Only if it is dead: what is served stays, in use or not, and what is not goes.
#[test]
fn if_it_is_dead() {
    let mount = Mount::start(&[]);
    let told = look(&mount, &["unmount", "--if-dead"]);
    assert_eq!(told.code(), 0, "{told:?}");
    assert!(told.stderr.ends_with(" is served, and stays\n"), "{told:?}");
    assert!(mount_at(&mount.mnt()).is_some());
    let held = open(&mount);
    let env = mount.kill();
    assert!(mount_at(&env.mnt()).is_some());
    look(&env, &["unmount", "--if-dead"]).success();
    assert!(mount_at(&env.mnt()).is_none());
    look(&env, &["unmount", "--if-dead"]).success();
    drop(held);
    env.assert_clean();
}

/// Nobody serves it, but it may be that somebody goes on with it, for systemd keeps its connection: that is waited for. It is dead
/// when systemd lets go of it, and taken for dead when nothing has happened for long.
#[test]
fn if_it_is_dead_and_its_connection_is_kept() {
    for lets_go in [true, false] {
        // Which would cut it.
        let mount = Mount::start_without("guard", &[]);
        let mut systemd = Keeping::begin(&mount);
        let env = mount.kill();
        let begun = Instant::now();
        let mut command = env.loopfs(["unmount", "--if-dead"]);
        command.arg(env.mnt());
        let mut child = command.spawn().unwrap();
        assert!(wait_child(&mut child, Duration::from_secs(1)).is_none());
        assert!(mount_at(&env.mnt()).is_some());
        if lets_go {
            systemd.end();
        }
        let status = wait_child(&mut child, LIMIT).expect("it ends");
        assert!(status.success(), "{status}");
        assert_eq!(begun.elapsed() < Duration::from_secs(8), lets_go);
        assert!(mount_at(&env.mnt()).is_none());
        systemd.end();
        env.assert_clean();
    }
}

/// A process that has the name of systemd, and the connection of a mount.
struct Keeping(Child);

impl Keeping {
    fn begin(mount: &Mount) -> Self {
        let process = pidfd_open(mount.pid(), PidfdFlags::empty()).unwrap();
        let is_the_connection = |fd: &i32| {
            let link = format!("/proc/{}/fd/{fd}", mount.pid().as_raw_nonzero());
            fs::read_link(link).is_ok_and(|to| to == Path::new("/dev/fuse"))
        };
        let number = (0..64).find(is_the_connection).unwrap();
        let connection = pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap();
        let program = mount.root().join("systemd");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let child = Command::new(program)
            .arg("60")
            .stdin(connection)
            .spawn()
            .unwrap();
        Self(child)
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.end();
    }
}

/// `--mkdir` and `unmount` leave nothing.
#[test]
fn a_directory_that_was_made_goes_too() {
    let env = TestEnv::new();
    fs::remove_dir(env.mnt()).unwrap();
    let mount = Mount::start_in(env, &["--mkdir"]);
    look(&mount, &["unmount"]).success();
    let env = mount.ended();
    assert!(!env.mnt().exists());
    let again = look(&env, &["unmount"]);
    assert_eq!(again.code(), 0, "{again:?}");
}

/// Every orderly end takes the socket away.
#[test]
fn the_socket_goes_with_the_mount() {
    type Trigger = fn(&Mount);
    let triggers: [(&str, Trigger); 4] = [
        ("SIGTERM", |mount| mount.signal(crate::common::Signal::TERM)),
        ("umount", |mount| mount.unmount_with("umount", &[])),
        ("umount -l", |mount| mount.unmount_with("umount", &["-l"])),
        // An abort of the connection, with somebody in it.
        ("umount -f", |mount| {
            let held = open(mount);
            let _ = mount.try_unmount_with("umount", &["-f"]);
            drop(held);
        }),
    ];
    for (name, trigger) in triggers {
        let mount = Mount::background(TestEnv::new(), &[]);
        let socket = socket(&mount);
        assert!(socket.exists(), "{name}");
        trigger(&mount);
        mount.ended();
        assert!(!socket.exists(), "{name}");
    }
}
