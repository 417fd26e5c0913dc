//! The serving process is killed, and programs go on.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::thread;

use super::supervised::Supervised;
use crate::common::process::eventually;
use crate::common::{LIMIT, Signal, TestEnv};

/// What is there can be reached, what is made is made, one child after the other.
#[test]
fn a_mount_at_rest_outlives_many_children() {
    let mount = Supervised::start(&[]);
    fs::create_dir_all(mount.source("a/b")).unwrap();
    for round in 0..5_u8 {
        mount.kill_child();
        let name = format!("a/b/{round}");
        fs::write(mount.path(&name), [round]).unwrap();
        assert_eq!(fs::read(mount.source(&name)).unwrap(), [round]);
        let listed = fs::read_dir(mount.path("a/b")).unwrap().count();
        assert_eq!(listed, usize::from(round) + 1);
    }
    mount.into_mount().finish();
}

/// A program asks while nobody serves: its request waits for whoever comes next.
#[test]
fn who_asks_meanwhile_waits_and_gets_an_answer() {
    let mount = Supervised::start(&[]);
    fs::write(mount.source("f"), "there").unwrap();
    for _ in 0..3 {
        let child = mount.child();
        let before = mount.restarts();
        thread::scope(|scope| {
            child.signal(Signal::KILL);
            let asks = scope.spawn(|| fs::read(mount.path("f")));
            assert_eq!(asks.join().unwrap().unwrap(), b"there");
        });
        mount.wait_restarts(before + 1);
    }
    mount.into_mount().finish();
}

/// SRC lies below MNT, where the mount itself covers it: the next process finds it all the same.
#[test]
fn a_source_that_the_mount_covers_is_found_again() {
    let env = TestEnv::new();
    let source = env.mnt().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("f"), "there").unwrap();
    let mut command = env.loopfs(["-f", "--supervise"]);
    command.arg(&source).arg(env.mnt());
    let mount = Supervised::of(crate::common::Mount::start_command(env, command));
    for _ in 0..2 {
        mount.kill_child();
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"there");
    }
    mount.into_mount().finish();
}

/// Files that are open stay open, with what was written to them, in whichever way they are read and written.
#[test]
fn open_files_go_on() {
    for io in ["auto", "cached", "direct"] {
        let mount = Supervised::start(&["--io", io]);
        let mut file = File::create_new(mount.path("f")).unwrap();
        let mut expected = Vec::new();
        for round in 0..4_u8 {
            file.write_all(&[round; 10_000]).unwrap();
            expected.extend([round; 10_000]);
            mount.kill_child();
            let mut content = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut content).unwrap();
            assert_eq!(content, expected, "io={io}");
        }
        drop(file);
        assert_eq!(fs::read(mount.source("f")).unwrap(), expected);
        mount.into_mount().finish();
    }
}

/// What has lost its last name while it is open, or somebody is in it, goes on as well: also where the kernel opens files without
/// asking (`--io cached`), so that nobody knows which are open.
#[test]
fn what_has_no_name_any_more_goes_on() {
    for io in ["auto", "cached", "direct"] {
        let mount = Supervised::start(&["--io", io]);
        let unasked = mount.log().contains("without asking");
        assert_eq!(unasked, io == "cached", "{}", mount.log());
        let mut file = File::create_new(mount.path("f")).unwrap();
        file.write_all(b"content").unwrap();
        fs::create_dir(mount.path("d")).unwrap();
        let dir = File::open(mount.path("d")).unwrap();
        fs::remove_file(mount.path("f")).unwrap();
        fs::remove_dir(mount.path("d")).unwrap();
        for round in 1..=3 {
            mount.kill_child();
            let mut content = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut content).unwrap();
            assert_eq!(content, "content".repeat(round), "io={io}");
            file.write_all(b"content").unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            assert_eq!(dir.metadata().unwrap().nlink(), 0);
        }
        drop((file, dir));
        mount.into_mount().finish();
    }
}

/// What changes in SRC while nobody serves shows afterwards, though the kernel would remember what was before for hours.
#[test]
fn what_changes_while_nobody_serves_is_told() {
    for io in ["auto", "cached"] {
        let mount = Supervised::start(&["--cache", "coherent", "--io", io]);
        fs::write(mount.source("f"), "old").unwrap();
        fs::write(mount.source("gone"), "").unwrap();
        let open = File::open(mount.path("f")).unwrap();
        let content = || {
            let mut content = [0; 3];
            open.read_exact_at(&mut content, 0).unwrap();
            content
        };
        assert_eq!(&content(), b"old");
        assert!(mount.path("gone").exists() && !mount.path("new").exists());
        let mode = || fs::metadata(mount.path("f")).unwrap().mode() & 0o777;
        assert_ne!(mode(), 0o751);
        let child = mount.child();
        // So that it does not start the next one first.
        mount.signal(Signal::STOP);
        child.signal(Signal::KILL);
        assert!(child.wait_end(LIMIT));
        fs::write(mount.source("f"), "new").unwrap();
        fs::set_permissions(mount.source("f"), fs::Permissions::from_mode(0o751)).unwrap();
        fs::rename(mount.source("gone"), mount.source("new")).unwrap();
        mount.signal(Signal::CONT);
        mount.wait_restarts(1);
        eventually("contents", LIMIT, || &content() == b"new");
        eventually("attributes", LIMIT, || mode() == 0o751);
        eventually("names", LIMIT, || {
            mount.path("new").exists() && !mount.path("gone").exists()
        });
        // And what changes from now on.
        fs::remove_file(mount.source("new")).unwrap();
        eventually("a later change", LIMIT, || !mount.path("new").exists());
        drop(open);
        mount.into_mount().finish();
    }
}
