//! The serving process is killed, and programs go on.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::thread;

use super::supervised::Supervised;
use crate::common::TestEnv;

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
            child.signal(crate::common::Signal::KILL);
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
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path("f"))
            .unwrap();
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
