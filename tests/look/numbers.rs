//! A device number, and an id in the mount table, are another mount's as soon as the one that had them has gone. Commands that
//! have begun with the one never go on with the other.

use std::process::{Command, Stdio};

use super::looking::{Stopped, Unmounts, look, open, status};

use crate::common::process::{eventually, wait_child};
use crate::common::{LIMIT, Mount, Signal, TestEnv};

/// Where the second mount is.
#[derive(Clone, Copy)]
enum Where {
    InItsPlace,
    Elsewhere,
}

/// A mount that goes while the command that waits for it is stopped, and another one with its device number; nothing if that
/// number went to somebody else's.
fn followed_by(place: Where) -> Option<(Unmounts, Mount, Option<TestEnv>)> {
    let first = Mount::start(&[]);
    let held = open(&first);
    let unmounts = Unmounts::start(&first);
    let stopped = Stopped::process(unmounts.pid());
    let number = first.entry().minor;
    drop(held);
    first.signal(Signal::TERM);
    let (free, ..) = first.ended_somehow();
    let (second, other) = match place {
        Where::InItsPlace => (Mount::start_in(free, &[]), None),
        Where::Elsewhere => (Mount::start(&[]), Some(free)),
    };
    if second.entry().minor != number {
        drop(unmounts);
        second.finish();
        return None;
    }
    drop(stopped);
    Some((unmounts, second, other))
}

#[track_caller]
fn is_left_alone(place: Where) {
    const TRIES: usize = 50;
    let (mut unmounts, second, _other) = (0..TRIES)
        .find_map(|_| followed_by(place))
        .expect("somebody else gets the number each time");
    let ended = wait_child(&mut unmounts.child, LIMIT).expect("it ends");
    assert!(ended.success(), "{ended}");
    assert!(second.is_running());
    assert_eq!(status(&second)["state"], "serving");
    second.finish();
}

#[test]
fn one_elsewhere_that_gets_the_device_number_is_left_alone() {
    is_left_alone(Where::Elsewhere);
}

#[test]
fn one_that_gets_the_place_and_the_numbers_is_left_alone() {
    is_left_alone(Where::InItsPlace);
}

/// Where the kernel does not give ids for good the daemon is known by what it has served, and is the same.
#[test]
fn without_ids_that_are_given_once() {
    let mount = Mount::start_without("unique-mount-id", &[]);
    assert!(status(&mount)["figures"]["unique_mount_id"].is_null());
    look(&mount, &["unmount"]).success();
    mount.ended();
}

/// In a mount namespace with a copy of it: the copy goes, and the mount stays where it is.
#[test]
fn a_copy_goes_and_the_mount_stays() {
    for how in ["--timeout=0", "--lazy", "--force"] {
        let mount = Mount::start(&[]);
        let held = open(&mount);
        let script = format!(
            r#"timeout 20 "$LOOPFS" unmount {how} "$MNT"; grep -c " $MNT " /proc/self/mountinfo || true"#
        );
        let said = mount.private_script(&script).success();
        assert_eq!(said, "0\n", "{how}");
        assert_eq!(status(&mount)["state"], "serving", "{how}");
        assert_eq!(held.metadata().unwrap().len(), 4);
        drop(held);
        mount.finish();
    }
}

/// By force, who has a copy of it in another mount namespace is cut off, too.
#[test]
fn by_force_copies_in_other_namespaces_are_cut_off() {
    let mount = Mount::start(&["--drain-timeout", "never"]);
    let copied = mount.root().join("copied");
    let mut copy = Command::new("unshare");
    copy.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-euc",
        r#"echo >"$1"; read line"#,
        "sh",
    ])
    .arg(&copied)
    .stdin(Stdio::piped());
    let mut copy = copy.spawn().unwrap();
    eventually("there is a copy", LIMIT, || copied.exists());
    let forced = look(&mount, &["unmount", "--force"]);
    assert_eq!(
        (forced.code(), forced.stderr.as_str()),
        (0, ""),
        "{forced:?}"
    );
    assert!(!mount.is_running());
    drop(copy.stdin.take());
    assert!(wait_child(&mut copy, LIMIT).is_some());
    mount.ended();
}
