//! What the kernel has forgotten, and a process that was killed did not get to note.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::supervised::Supervised;
use crate::common::process::eventually;
use crate::common::{LIMIT, run};

/// How many inodes the kernel remembers, by the daemon's account.
fn known(mount: &Supervised) -> u64 {
    let mut command = mount.loopfs(["status", "--json"]);
    command.arg(mount.mnt());
    let said = run(&mut command, LIMIT).success();
    let figures: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    figures["figures"]["inodes"].as_u64().expect("inodes")
}

/// How many files without a name the supervisor keeps.
fn kept(mount: &Supervised) -> usize {
    let descriptors = format!("/proc/{}/fd", mount.pid().as_raw_nonzero());
    let descriptors = fs::read_dir(descriptors).unwrap();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let source = mount.src();
    links
        .filter(|link| link.starts_with(&source) && *link != source)
        .count()
}

/// Every FORGET is lost, as if each came in the very moment of a kill.
#[test]
fn what_was_forgotten_unheard_is_found_and_what_is_known_stays() {
    let mount = Supervised::start_with_faults("forget=5", &["--restart-limit", "never"]);
    let stays = mount.path("stays");
    fs::write(&stays, "here").unwrap();
    let held = File::open(&stays).unwrap();
    let number = held.metadata().unwrap().ino();
    let open = File::create_new(mount.path("open")).unwrap();
    open.write_at(b"open", 0).unwrap();
    fs::remove_file(mount.path("open")).unwrap();
    for name in ["a", "b", "c"] {
        let file = File::create_new(mount.path(name)).unwrap();
        fs::remove_file(mount.path(name)).unwrap();
        drop(file);
    }
    eventually("the last has been closed", LIMIT, || kept(&mount) == 4);
    assert_eq!(known(&mount), 5);
    mount.kill_child();
    assert_eq!(known(&mount), 5);
    eventually("what was forgotten is found", LIMIT, || known(&mount) == 2);
    assert_eq!(kept(&mount), 1);
    assert_eq!(fs::metadata(&stays).unwrap().ino(), number);
    let mut content = [0; 4];
    open.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"open");
    drop((open, held));
    mount.into_mount().finish();
}

/// One that is looked up again before the search, and one that is forgotten after it.
#[test]
fn what_is_forgotten_later_is_found_too() {
    let mount = Supervised::start_with_faults("forget=5", &["--restart-limit", "never"]);
    // Open, so that the kernel forgets neither on its own.
    let stays = File::create_new(mount.path("stays")).unwrap();
    let later = File::create_new(mount.path("later")).unwrap();
    drop(File::create_new(mount.path("again")).unwrap());
    assert_eq!(known(&mount), 3);
    mount.kill_child();
    // Of this one the new process counts a lookup.
    fs::hard_link(mount.path("again"), mount.path("link")).unwrap();
    fs::remove_file(mount.path("again")).unwrap();
    fs::remove_file(mount.path("link")).unwrap();
    assert_eq!(known(&mount), 3);
    eventually("the first search finds it", LIMIT, || known(&mount) == 2);
    fs::remove_file(mount.path("later")).unwrap();
    drop(later);
    eventually("the next search finds it", LIMIT, || known(&mount) == 1);
    drop(stays);
    mount.into_mount().finish();
}
