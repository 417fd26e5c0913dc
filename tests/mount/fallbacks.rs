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

/// All of it together.
#[test]
fn without_any_of_them() {
    works_without("new-mount-api,statmount,unique-mount-id");
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
