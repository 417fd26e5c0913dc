//! Where SRC gives file handles.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::io::Errno;

use super::limited::{Limited, file, make_files};
use crate::common::process::eventually;
use crate::common::{LIMIT, TestEnv};

/// 20,000 inodes that the kernel remembers, with 1,024 files allowed: those that were looked up first can
/// be used like the last, and whatever happens to them shows in SRC.
#[test]
fn many_inodes_need_few_open_files() {
    const FILES: usize = 20_000;
    let env = TestEnv::new();
    make_files(&env.src(), FILES);
    let mount = Limited::start(env, 1024, "");
    let (src, mnt) = (mount.src(), mount.mnt());
    let before = mount.memory();
    for number in 0..FILES {
        let (seen, real) = (file(&mnt, number), file(&src, number));
        let (seen, real) = (fs::metadata(seen).unwrap(), fs::metadata(real).unwrap());
        assert_eq!(seen.ino(), real.ino());
    }
    mount.check_open_files();
    let each = (mount.memory() - before) * 1024 / FILES;
    assert!((50..250).contains(&each), "{each} bytes for each inode");
    for number in 0..200 {
        let path = |top| file(top, number);
        fs::write(path(&mnt), number.to_string()).unwrap();
        assert_eq!(fs::read_to_string(path(&src)).unwrap(), number.to_string());
        assert_eq!(fs::read_to_string(path(&mnt)).unwrap(), number.to_string());
        let renamed = |top: &std::path::Path| top.join(format!("new-{number}"));
        fs::rename(path(&mnt), renamed(&mnt)).unwrap();
        assert!(!path(&src).exists() && renamed(&src).exists());
        if number % 2 == 0 {
            let open = File::open(renamed(&mnt)).unwrap();
            fs::remove_file(renamed(&mnt)).unwrap();
            assert!(!renamed(&src).exists());
            assert_eq!(open.metadata().unwrap().nlink(), 0);
        }
    }
    fs::remove_dir_all(mnt.join("1")).unwrap();
    assert!(!src.join("1").exists());
    mount.check_open_files();
    assert!(!mount.ran_out());
    let (removed, directories) = (100 + 1000, FILES / 1000 - 1);
    assert_eq!(mount.finish(), FILES - removed + directories);
}

/// Callers' open files come before descriptors that are only at hand, and when there is no room for one
/// more, everybody else can still look at things and remove them.
#[test]
fn open_files_use_all_that_is_allowed_but_the_last() {
    let env = TestEnv::new();
    make_files(&env.src(), 2000);
    let mount = Limited::start(env, 256, "");
    let mnt = mount.mnt();
    for number in 0..2000 {
        fs::metadata(file(&mnt, number)).unwrap();
    }
    let mut open = Vec::new();
    let error = loop {
        let path = file(&mnt, open.len());
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
        assert!(open.len() < 256, "{} open files", open.len());
    };
    assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE));
    assert!(open.len() > 190, "only {} could be opened", open.len());
    mount.check_open_files();
    for number in 1000..1500 {
        assert_eq!(fs::metadata(file(&mnt, number)).unwrap().len(), 0);
        fs::rename(file(&mnt, number), mnt.join("renamed")).unwrap();
        fs::remove_file(mnt.join("renamed")).unwrap();
    }
    for (number, file) in open.iter_mut().enumerate() {
        write!(file, "{number}").unwrap();
    }
    for (number, file) in open.iter().enumerate() {
        let mut text = [0; 8];
        let len = file.read_at(&mut text, 0).unwrap();
        assert_eq!(text[..len], *number.to_string().as_bytes());
    }
    assert!(mount.ran_out());
    open.pop();
    // The kernel does not wait until a close has reached the daemon.
    eventually("one more can be opened", LIMIT, || {
        fs::read_to_string(file(&mnt, 7)).is_ok_and(|text| text == "7")
    });
    drop(open);
    mount.finish();
}
