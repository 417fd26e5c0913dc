//! Ending: every way of it gives status 0, an unmounted MNT and no process.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::env::wait_unmounted;
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, Signal, TestEnv};

/// Each signal that asks for an end, in the foreground and in the background.
#[test]
fn signals_end_it() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for background in [false, true] {
            let env = TestEnv::new();
            let mount = if background {
                Mount::background(env, &[])
            } else {
                Mount::start_in(env, &[])
            };
            fs::write(mount.path("f"), "x").unwrap();
            mount.signal(signal);
            mount.ended();
        }
    }
}

/// Each program that unmounts, each with its options.
#[test]
fn external_unmounts_end_it() {
    for (program, options) in [
        ("fusermount3", &["-u"][..]),
        ("fusermount3", &["-uz"]),
        ("umount", &[]),
        ("umount", &["-l"]),
        ("umount", &["-f"]),
    ] {
        for background in [false, true] {
            let env = TestEnv::new();
            let mount = if background {
                Mount::background(env, &[])
            } else {
                Mount::start_in(env, &[])
            };
            fs::write(mount.path("f"), "x").unwrap();
            mount.unmount_with(program, options);
            let env = mount.ended();
            assert_eq!(fs::read_to_string(env.src().join("f")).unwrap(), "x");
        }
    }
}

/// A busy mount refuses a plain unmount, and is served as if nothing had happened.
#[test]
fn a_busy_mount_stays() {
    let mount = Mount::start(&[]);
    let file = File::create(mount.path("f")).unwrap();
    for (program, options) in [("fusermount3", &["-u"][..]), ("umount", &[])] {
        let refused = mount.try_unmount_with(program, options);
        assert!(!refused.status.success());
        assert!(refused.stderr.contains("busy"), "{refused:?}");
    }
    file.write_all_at(b"goes on", 0).unwrap();
    assert!(mount.is_running());
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "goes on");
    drop(file);
    mount.unmount_with("fusermount3", &["-u"]);
    mount.ended();
}

/// After a lazy unmount open files go on working; the last close ends the daemon with status 0.
#[test]
fn open_files_outlive_a_lazy_unmount() {
    let mount = Mount::start(&[]);
    let mut files: Vec<_> = (0..100)
        .map(|number| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(mount.path(format!("{number}")))
                .unwrap()
        })
        .collect();
    fs::write(mount.path("before"), "x").unwrap();
    mount.unmount_with("fusermount3", &["-uz"]);
    assert!(wait_unmounted(&mount.mnt(), LIMIT));
    for (number, file) in files.iter_mut().enumerate() {
        write!(file, "file {number}").unwrap();
    }
    let last = files.pop().unwrap();
    drop(files);
    let mut back = [0; 7];
    last.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"file 99");
    assert!(mount.is_running(), "ended while a file was open");
    last.sync_all().unwrap();
    drop(last);
    let env = mount.ended();
    for number in 0..100 {
        let content = fs::read_to_string(env.src().join(format!("{number}"))).unwrap();
        assert_eq!(content, format!("file {number}"));
    }
}

/// After a lazy unmount with a file open, a new mount on the same MNT is another one, and stays
/// when the first ends.
#[test]
fn a_newcomer_on_the_same_mnt_is_left_alone() {
    let mount = Mount::start(&[]);
    let file = File::create(mount.path("f")).unwrap();
    mount.unmount_with("fusermount3", &["-uz"]);
    assert!(wait_unmounted(&mount.mnt(), LIMIT));
    let target = mount.mnt();
    let tmpfs = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "newcomer"])
        .arg(&target)
        .status();
    assert!(tmpfs.unwrap().success());
    let newcomer = mount_at(&target).unwrap();
    drop(file);
    let (env, status, log) = mount.ended_somehow();
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{log}");
    assert_eq!(
        mount_at(&target),
        Some(newcomer),
        "the newcomer was unmounted"
    );
    let gone = std::process::Command::new("umount").arg(&target).status();
    assert!(gone.unwrap().success());
    env.assert_clean();
}

/// A signal on a busy mount: detached at once, drained until the last close, status 0.
#[test]
fn a_signal_on_a_busy_mount_drains() {
    let mount = Mount::start(&[]);
    let file = File::create(mount.path("f")).unwrap();
    mount.signal(Signal::TERM);
    assert!(wait_unmounted(&mount.mnt(), LIMIT), "not detached");
    file.write_all_at(b"after the signal", 0).unwrap();
    drop(file);
    let env = mount.ended();
    assert_eq!(
        fs::read_to_string(env.src().join("f")).unwrap(),
        "after the signal"
    );
}

/// Signals while nothing is wrong with the end already under way change nothing about it.
#[test]
fn five_signals_at_once() {
    let mount = Mount::start(&[]);
    for signal in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::TERM,
        Signal::INT,
    ] {
        mount.signal(signal);
    }
    mount.ended();
}

/// Twenty cycles in one directory.
#[test]
fn twenty_cycles() {
    let mut env = TestEnv::new();
    for round in 0..20 {
        let mount = Mount::start_in(env, &[]);
        fs::write(mount.path("f"), format!("{round}")).unwrap();
        env = if round % 2 == 0 {
            mount.finish()
        } else {
            mount.unmount_with("fusermount3", &["-u"]);
            mount.ended()
        };
    }
}

/// An idle mount ends within a second of being told to.
#[test]
fn an_idle_mount_ends_within_a_second() {
    let mount = Mount::start(&[]);
    let told = std::time::Instant::now();
    mount.finish();
    assert!(
        told.elapsed() < Duration::from_secs(1),
        "{:?}",
        told.elapsed()
    );
}
