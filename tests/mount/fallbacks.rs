//! Kernels that lack the newer calls, played by switching those calls off.

use std::fs::{self, File};

use crate::common::{Mount, Signal, TestEnv};

/// Mounts, uses and ends in each way with `off` switched off.
fn works_without(off: &str) {
    for how in ["signal", "fusermount3", "lazy"] {
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f".into(), env.src(), env.mnt()]);
        command.env("LOOPFS_FEATURES_OFF", off);
        let mount = Mount::start_command(env, command);
        assert_eq!(mount.entry().kind, "fuse.loopfs");
        assert_eq!(mount.entry().source, mount.src().as_os_str());
        fs::write(mount.path("f"), "x").unwrap();
        let env = match how {
            "signal" => mount.finish(),
            "fusermount3" => {
                mount.unmount_with("fusermount3", &["-u"]);
                mount.ended()
            }
            _ => {
                let file = File::open(mount.path("f")).unwrap();
                mount.unmount_with("umount", &["-l"]);
                drop(file);
                mount.ended()
            }
        };
        assert_eq!(fs::read_to_string(env.src().join("f")).unwrap(), "x");
    }
}

/// mount(2) instead of fsopen and move_mount (before Linux 5.2).
#[test]
fn without_the_new_mount_calls() {
    works_without("new-mount-api");
}

/// mountinfo instead of statmount and unique mount ids (before Linux 6.8).
#[test]
fn without_statmount() {
    works_without("statmount,unique-mount-id");
}

/// A descriptor kept for each inode, where handles can't be used.
#[test]
fn without_file_handles() {
    works_without("file-handles");
}

/// openat and two statx instead of openat2 (before Linux 5.6).
#[test]
fn without_openat2() {
    works_without("openat2");
}

/// Requests for every read and write (before Linux 6.9).
#[test]
fn without_passthrough() {
    works_without("passthrough");
}

/// All of it together.
#[test]
fn without_any_of_them() {
    works_without("new-mount-api,statmount,unique-mount-id,file-handles,openat2,passthrough");
}

/// 3,000 inodes known at once, with 200 files allowed.
#[test]
fn a_low_limit_on_open_files_is_enough() {
    let env = TestEnv::new();
    for number in 0..3000 {
        fs::write(env.src().join(format!("file-{number}")), "x").unwrap();
    }
    let mut command = std::process::Command::new("prlimit");
    let loopfs = env.loopfs(["-f".into(), env.src(), env.mnt()]);
    command
        .arg("--nofile=200:200")
        .arg(loopfs.get_program())
        .args(loopfs.get_args());
    for (name, value) in loopfs.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let mount = Mount::start_command(env, command);
    for _ in 0..2 {
        for number in 0..3000 {
            let path = mount.path(format!("file-{number}"));
            assert_eq!(fs::metadata(&path).unwrap().len(), 1);
            assert_eq!(fs::read_to_string(&path).unwrap(), "x");
        }
    }
    mount.finish();
}

/// In the background too: the parent still returns only when the mount can be used.
#[test]
fn in_the_background() {
    let env = TestEnv::new();
    fs::write(env.src().join("f"), "x").unwrap();
    let mut command = env.loopfs([env.src(), env.mnt()]);
    command.env(
        "LOOPFS_FEATURES_OFF",
        "new-mount-api,statmount,unique-mount-id",
    );
    crate::common::run(&mut command, crate::common::LIMIT).success();
    assert_eq!(fs::read_to_string(env.mnt().join("f")).unwrap(), "x");
    let daemon = crate::common::process::processes_naming(env.root()).remove(0);
    daemon.signal(Signal::INT);
    assert!(daemon.wait_end(crate::common::LIMIT));
    env.assert_clean();
}
