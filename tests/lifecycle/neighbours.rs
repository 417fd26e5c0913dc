//! Other mounts at MNT: one that took the path after a lazy unmount, one on top of ours, one in it.
//! They belong to somebody else and are never taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use super::start::Start;
use super::subject::{Connection, Held, Mode, PROMPT, Subject, held_in, umount2};
use crate::common::process::eventually;
use crate::common::table::{Entry, mount_at, mounts};
use crate::common::{LIMIT, Signal, TestEnv};

/// Somebody else's file system; unmounted when the test is over.
struct Other {
    target: PathBuf,
    entry: Entry,
}

impl Other {
    #[track_caller]
    fn on(target: &Path) -> Self {
        let none: Option<&std::ffi::CStr> = None;
        let mounted = rustix::mount::mount("newcomer", target, "tmpfs", MountFlags::empty(), none);
        mounted.unwrap();
        let other = Self {
            target: target.to_owned(),
            entry: mount_at(target).unwrap(),
        };
        fs::write(target.join("theirs"), "theirs").unwrap();
        other
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert!(mounts().contains(&self.entry), "it was unmounted");
        let content = fs::read_to_string(self.target.join("theirs"));
        assert_eq!(content.unwrap(), "theirs");
    }

    /// Unmounts it as its owner would, which only works if nobody has it open.
    #[track_caller]
    fn unmount(self) {
        self.is_untouched();
        umount2(&self.target, UnmountFlags::empty()).unwrap();
    }
}

/// Something else is mounted on MNT while the first still drains; then signals.
fn newcomer(mode: Mode, signals: usize) {
    let subject = Subject::start(mode, &["--drain-timeout", "never"]);
    let mut held = Held::open(&subject);
    subject.unmount_with("fusermount3", &["-uz"]);
    subject.wait_detached();
    let other = Other::on(&subject.mnt());
    held.works();
    for nth in 0..signals {
        subject.signal(Signal::TERM);
        if nth == 0 {
            subject.wait_log(&format!("is held by pid {} (", std::process::id()));
            other.is_untouched();
        }
    }
    let (mut closed, mut expected) = (Instant::now(), Vec::new());
    if signals < 2 {
        held.works();
        (closed, expected) = held.close();
    } else {
        drop(held);
    }
    let end = subject.ends(closed);
    other.unmount();
    let env = end.clean();
    assert!(held_in(&env).starts_with(&expected));
}

#[test]
fn a_newcomer_after_uz_stays_at_the_last_close() {
    newcomer(Mode::Foreground, 0);
}

#[test]
fn a_newcomer_after_uz_stays_at_sigterm() {
    newcomer(Mode::Foreground, 1);
    newcomer(Mode::Background, 1);
}

#[test]
fn a_newcomer_after_uz_stays_at_a_second_signal() {
    newcomer(Mode::Foreground, 2);
}

/// The newcomer is another loopfs, of the same source: nothing in the table tells them apart but
/// the mount's id.
#[test]
fn another_loopfs_after_uz_stays() {
    let first = Subject::foreground();
    let mut held = Held::open(&first);
    first.unmount_with("fusermount3", &["-uz"]);
    first.wait_detached();

    let target = first.mnt();
    let second = Start::at(TestEnv::new(), &first.src(), &target);
    let entry = mount_at(&target);
    first.signal(Signal::TERM);
    held.works();
    let (closed, expected) = held.close();
    let end = first.ends(closed);
    assert_eq!(mount_at(&target), entry, "it was unmounted");
    let content = fs::read(target.join(Held::NAME)).unwrap();
    assert!(content == expected);

    assert!(second.is_running());
    second.signal(Signal::TERM);
    let (_env, status, log) = second.ended(Instant::now());
    assert_eq!(status.code(), Some(0), "{log}");
    end.clean();
}

/// While something is mounted on ours, or in it, ours can't be taken without taking that along: it
/// waits, says so, and ends when the other has gone.
fn covered(mode: Mode, inside: bool) {
    let subject = Subject::start(mode, &["--drain-timeout", "never"]);
    let place = if inside {
        fs::create_dir(subject.path("dir")).unwrap();
        subject.path("dir")
    } else {
        subject.mnt()
    };
    let other = Other::on(&place);
    subject.signal(Signal::TERM);
    subject.wait_log("something is mounted on top of");
    other.is_untouched();
    subject.stays(Duration::from_millis(300));
    assert!(subject.is_mounted());
    other.unmount();
    let env = subject.ends(Instant::now()).clean();
    assert_eq!(env.src().join("dir").exists(), inside);
}

#[test]
fn a_mount_on_top_of_ours_is_waited_for() {
    covered(Mode::Foreground, false);
    covered(Mode::Background, false);
}

#[test]
fn a_mount_inside_ours_is_waited_for() {
    covered(Mode::Foreground, true);
}

/// A second signal, or the deadline, gives up the connection: ours stays below the other one, dead,
/// and the log says so.
fn covered_and_cut(options: &[&str], signals: usize, limit: Duration) {
    let subject = Subject::start(Mode::Foreground, options);
    let other = Other::on(&subject.mnt());
    let entry = subject.entry().clone();
    let told = Instant::now();
    subject.signal(Signal::TERM);
    subject.wait_log("something is mounted on top of");
    if signals == 2 {
        subject.signal(Signal::TERM);
    }
    let end = subject.ends_with(0, told, limit);
    let end = end.says("stays below what is mounted on top of it: unmount both");
    assert!(mounts().contains(&entry));
    other.unmount();
    umount2(&entry.target, UnmountFlags::empty()).unwrap();
    end.clean();
}

#[test]
fn a_mount_on_top_of_ours_survives_a_second_signal() {
    covered_and_cut(&["--drain-timeout", "never"], 2, PROMPT);
}

#[test]
fn a_mount_on_top_of_ours_survives_the_deadline() {
    let limit = Duration::from_secs(1) + PROMPT;
    covered_and_cut(&["--drain-timeout", "1"], 1, limit);
}

/// The connection is aborted from outside while something lies on top.
#[test]
fn a_mount_on_top_of_ours_survives_an_abort() {
    let subject = Subject::foreground();
    let other = Other::on(&subject.mnt());
    let entry = subject.entry().clone();
    let cut = Instant::now();
    subject.connection().abort();
    let end = subject.ends(cut);
    let end = end.says("something is mounted on top of");
    other.unmount();
    umount2(&entry.target, UnmountFlags::empty()).unwrap();
    end.clean();
}

/// The directory on the way to MNT is renamed: the mount moves with it, and is found by its id.
#[test]
fn a_mount_that_moved_is_found() {
    let env = TestEnv::new();
    let (way, away) = (env.root().join("way"), env.root().join("away"));
    let target = way.join("mnt");
    fs::create_dir_all(&target).unwrap();
    let src = env.src();
    let start = Start::at(env, &src, &target);
    let entry = mount_at(&target).unwrap();
    let connection = Connection::of(&entry);
    fs::rename(&way, &away).unwrap();
    fs::create_dir_all(&target).unwrap();
    let other = Other::on(&target);
    start.signal(Signal::TERM);
    let (env, status, log) = start.ended(Instant::now());
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(mount_at(&away.join("mnt")), None);
    other.unmount();
    env.assert_clean();
    assert!(connection.is_gone());
}

/// Something is mounted on the directory that holds MNT, and in it somebody's mount by MNT's very name.
#[test]
fn a_mount_by_the_same_name_below_one_on_the_way_stays() {
    let env = TestEnv::new();
    let (src, way) = (env.src(), env.root().join("way"));
    let target = way.join("mnt");
    fs::create_dir_all(&target).unwrap();
    let start = Start::at(env, &src, &target);
    let connection = Connection::of(&mount_at(&target).unwrap());
    let above = Other::on(&way);
    fs::create_dir(&target).unwrap();
    let other = Other::on(&target);
    start.signal(Signal::TERM);
    eventually("it says so", LIMIT, || {
        start.log().contains("something is mounted on top of")
    });
    other.unmount();
    assert!(start.is_running());
    above.unmount();
    let (env, status, log) = start.ended(Instant::now());
    assert_eq!(status.code(), Some(0), "{log}");
    env.assert_clean();
    assert!(connection.is_gone());
}
