//! What happens between SRC and MNT: changes made behind the mount, and symlinks that lead out.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use crate::common::process::eventually;
use crate::common::{LIMIT, Mount, TestEnv};
use crate::errno;

/// What is changed in SRC is seen in MNT, at the latest when the timeouts have passed.
#[test]
fn changes_in_src_become_visible() {
    let mount = Mount::start(&[]);
    fs::write(mount.source("f"), "one").unwrap();
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "one");
    fs::write(mount.source("f"), "two and more").unwrap();
    eventually("the new content", LIMIT, || {
        fs::read(mount.path("f")).is_ok_and(|c| c == b"two and more")
    });
    eventually("the new size", LIMIT, || {
        fs::metadata(mount.path("f")).is_ok_and(|m| m.len() == 12)
    });
    crate::chmod(&mount.source("f"), 0o600);
    eventually("the new mode", LIMIT, || {
        fs::metadata(mount.path("f")).is_ok_and(|m| m.mode() & 0o777 == 0o600)
    });
    fs::write(mount.source("g"), "").unwrap();
    eventually("the new name", LIMIT, || mount.path("g").exists());
    fs::rename(mount.source("g"), mount.source("h")).unwrap();
    eventually("the other name", LIMIT, || {
        mount.path("h").exists() && !mount.path("g").exists()
    });
    mount.finish();
}

/// Without timeouts there is nothing to wait for.
#[test]
fn without_timeouts_changes_in_src_are_visible_at_once() {
    let mount = Mount::start(&["-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0"]);
    for round in 0..20 {
        fs::write(mount.source("f"), format!("{round}")).unwrap();
        assert_eq!(
            fs::metadata(mount.path("f")).unwrap().len(),
            format!("{round}").len() as u64
        );
        fs::rename(mount.source("f"), mount.source("g")).unwrap();
        assert!(!mount.path("f").exists());
        fs::remove_file(mount.source("g")).unwrap();
        assert!(!mount.path("g").exists());
    }
    mount.finish();
}

/// A file removed in SRC while it is open through MNT: the open one works, the name is gone.
#[test]
fn a_file_removed_behind_an_open_one() {
    let mount = Mount::start(&["-o", "attr_timeout=0,entry_timeout=0"]);
    fs::write(mount.path("f"), "content").unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.path("f"))
        .unwrap();
    fs::remove_file(mount.source("f")).unwrap();
    file.write_all_at(b"CONTENT", 0).unwrap();
    let mut back = [0; 7];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"CONTENT");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(errno(File::open(mount.path("f"))), libc::ENOENT);
    drop(file);
    mount.finish();
}

/// A name whose file was replaced in SRC leads to the new file: content and attributes are its own.
#[test]
fn a_file_replaced_behind_the_mount() {
    let mount = Mount::start(&["-o", "attr_timeout=0,entry_timeout=0"]);
    for round in 0..50_u8 {
        let content = vec![round; 100 + usize::from(round)];
        fs::write(mount.source("new"), &content).unwrap();
        fs::rename(mount.source("new"), mount.source("f")).unwrap();
        assert_eq!(fs::read(mount.path("f")).unwrap(), content);
        assert_eq!(
            fs::metadata(mount.path("f")).unwrap().ino(),
            fs::metadata(mount.source("f")).unwrap().ino()
        );
    }
    mount.finish();
}

/// A directory removed in SRC: what was below it answers ENOENT or ESTALE, never anything else's data.
#[test]
fn a_directory_removed_behind_the_mount() {
    let mount = Mount::start(&["-o", "attr_timeout=0,entry_timeout=0"]);
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "x").unwrap();
    let inside = File::open(mount.path("d")).unwrap();
    fs::remove_dir_all(mount.source("d")).unwrap();
    let error = errno(rustix::fs::statat(&inside, "f", rustix::fs::AtFlags::empty()).map(|_| ()));
    assert!([libc::ENOENT, libc::ESTALE].contains(&error), "{error}");
    assert_eq!(
        errno(fs::metadata(mount.path("d/f")).map(|_| ())),
        libc::ENOENT
    );
    drop(inside);
    mount.finish();
}

/// A symlink is for the caller's kernel to resolve: the daemon never follows one. Read through the
/// mount, an absolute link means the caller's path, and `..` stops where the caller's tree says.
#[test]
fn symlinks_are_resolved_by_the_caller() {
    let env = TestEnv::new();
    fs::write(env.root().join("outside"), "the caller's").unwrap();
    let mount = Mount::start_in(env, &[]);
    symlink(mount.root().join("outside"), mount.source("absolute")).unwrap();
    symlink("../outside", mount.source("relative")).unwrap();
    symlink("/proc/self/stat", mount.source("self")).unwrap();
    symlink("/", mount.source("root")).unwrap();
    assert_eq!(
        fs::read_to_string(mount.path("absolute")).unwrap(),
        "the caller's"
    );
    assert_eq!(
        fs::read_to_string(mount.path("relative")).unwrap(),
        "the caller's"
    );
    let stat = fs::read_to_string(mount.path("self")).unwrap();
    assert!(
        stat.starts_with(&format!("{} ", std::process::id())),
        "the daemon followed it: {stat}"
    );
    assert_eq!(
        fs::metadata(mount.path("root")).unwrap().dev(),
        fs::metadata("/").unwrap().dev()
    );
    mount.finish();
}

/// A directory of SRC that turns into a symlink behind the mount is not walked through.
#[test]
fn a_directory_that_becomes_a_symlink_is_not_followed() {
    let mount = Mount::start(&[]);
    fs::create_dir(mount.root().join("secret")).unwrap();
    fs::write(mount.root().join("secret/f"), "secret").unwrap();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "own").unwrap();
    let inside = File::open(mount.path("d")).unwrap();
    fs::rename(mount.source("d"), mount.source("moved")).unwrap();
    symlink(mount.root().join("secret"), mount.source("d")).unwrap();
    let flags = rustix::fs::OFlags::RDONLY;
    let file = rustix::fs::openat(&inside, "f", flags, rustix::fs::Mode::empty()).unwrap();
    let mut back = [0; 3];
    rustix::io::read(&file, &mut back[..]).unwrap();
    assert_eq!(&back, b"own");
    drop((file, inside));
    mount.finish();
}

/// st_ino is SRC's own, so that hard links are recognised on both sides.
#[test]
fn inode_numbers_are_those_of_src() {
    let mount = Mount::start(&[]);
    for name in ["a", "b"] {
        fs::write(mount.path(name), name).unwrap();
    }
    fs::create_dir(mount.path("d")).unwrap();
    fs::hard_link(mount.source("a"), mount.source("d/a")).unwrap();
    for name in ["a", "b", "d", "d/a", ""] {
        let (through, behind) = (
            fs::metadata(mount.path(name)).unwrap(),
            fs::metadata(mount.source(name)).unwrap(),
        );
        if !name.is_empty() {
            assert_eq!(through.ino(), behind.ino(), "{name}");
        }
        assert_ne!(through.dev(), behind.dev());
    }
    mount.finish();
}

/// An inode number that is used again after a removal brings nothing of the old file with it.
#[test]
fn a_recycled_inode_number_is_another_file() {
    let mount = Mount::start(&[]);
    for round in 0..200_u32 {
        let path = mount.path("f");
        fs::write(&path, format!("round {round}")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("round {round}"));
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(fs::metadata(&path).unwrap().is_dir());
        fs::remove_dir(&path).unwrap();
    }
    mount.finish();
}
