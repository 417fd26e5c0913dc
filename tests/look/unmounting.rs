//! `loopfs unmount` and those who use the mount.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use super::looking::{look, open, socket};
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
    let mut command = mount.loopfs(["unmount", "--timeout", "never"]);
    command
        .arg(mount.mnt())
        .stderr(Stdio::piped())
        .stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(
        line.contains("is in use by pid") && line.ends_with("; waiting\n"),
        "{line}"
    );
    assert!(mount_at(&mount.mnt()).is_some());
    drop(held);
    let status = wait_child(&mut child, LIMIT).expect("it ends");
    assert!(status.success(), "{status}");
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
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
