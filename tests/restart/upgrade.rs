//! `loopfs upgrade MNT`: another program goes on, and if it can't, the one before it does.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::supervised::Supervised;
use crate::common::process::Watched;
use crate::common::{Finished, LIMIT, Mount, Signal, TestEnv, run};

/// A mount served by a copy of the program, which can be replaced.
fn start() -> (Supervised, PathBuf) {
    let env = TestEnv::new();
    let program = env.public_binary();
    let mut command = std::process::Command::new(&program);
    command
        .args(["-f", "--supervise"])
        .arg(env.src())
        .arg(env.mnt())
        .env("RUST_LOG", "warn,loopfs=info,fuser::reply=off")
        .env_remove("NOTIFY_SOCKET");
    (Supervised::of(Mount::start_command(env, command)), program)
}

/// Puts another file in its place, as a package does.
fn replace(program: &PathBuf, by: &str) {
    let new = program.with_extension("new");
    fs::copy(by, &new).unwrap();
    fs::rename(&new, program).unwrap();
}

fn upgrade(mount: &Supervised) -> Finished {
    let mut command = mount.loopfs(["upgrade"]);
    command.arg(mount.mnt());
    run(&mut command, LIMIT)
}

#[test]
fn the_program_on_the_disk_goes_on_and_files_stay_open() {
    let (mount, program) = start();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("f"))
        .unwrap();
    for round in 1..=3_usize {
        file.write_all(b"some bytes").unwrap();
        replace(&program, crate::common::env::LOOPFS);
        let before = mount.child().pid;
        let said = upgrade(&mount).success();
        let after = mount.child().pid;
        assert_ne!(before, after);
        assert!(
            said.contains(&format!("process {}", after.as_raw_nonzero())),
            "{said}"
        );
        let mut content = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "some bytes".repeat(round));
    }
    // What was upgraded is restarted as what it is by now.
    mount.kill_child();
    file.write_all(b"!").unwrap();
    drop(file);
    mount.into_mount().finish();
}

#[test]
fn a_program_that_cant_go_on_changes_nothing() {
    let (mount, program) = start();
    let file = File::create_new(mount.path("f")).unwrap();
    let before = mount.child().pid;
    replace(&program, "/bin/false");
    let failed = upgrade(&mount);
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(failed.stderr.contains("is not upgraded: "), "{failed:?}");
    assert!(failed.stderr.contains("can't go on"), "{failed:?}");
    fs::remove_file(&program).unwrap();
    let failed = upgrade(&mount);
    assert!(failed.stderr.contains("can't be started"), "{failed:?}");
    assert_eq!(mount.child().pid, before);
    file.set_len(3).unwrap();
    drop(file);
    mount.kill_child();
    mount.into_mount().finish();
}

/// The state of the mount says that another program wrote it, as it is after the layout has changed.
fn spoil_layout(mount: &Supervised) {
    let descriptors = format!("/proc/{}/fd", mount.pid().as_raw_nonzero());
    let memory = fs::read_dir(descriptors)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let link = fs::read_link(path).unwrap();
            link.to_string_lossy().starts_with("/memfd:loopfs-state")
        });
    let memory = File::options()
        .write(true)
        .open(memory.expect("the state"))
        .unwrap();
    memory.write_all_at(&99_u64.to_ne_bytes(), 8).unwrap();
}

#[test]
fn a_program_that_does_not_know_the_layout_changes_nothing() {
    let (mount, _) = start();
    let mut file = File::create_new(mount.path("f")).unwrap();
    let before = mount.child().pid;
    spoil_layout(&mount);
    let failed = upgrade(&mount);
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(failed.stderr.contains("layout 99"), "{failed:?}");
    assert_eq!(mount.child().pid, before);
    assert!(mount.is_mounted());
    file.write_all(b"x").unwrap();
    drop(file);
    // Nobody could go on by now: the mount is taken down, and it is said why.
    mount.child().signal(Signal::KILL);
    let supervisor = Watched::new(mount.pid()).expect("the supervisor has ended");
    assert!(supervisor.wait_end(LIMIT), "it goes on");
    assert!(!mount.is_mounted());
    let log = mount.log();
    assert!(
        log.contains("the mount is taken down") && log.contains("layout 99"),
        "{log}"
    );
}

#[test]
fn without_a_supervisor_it_is_refused() {
    let mount = Mount::start(&[]);
    let mut command = mount.loopfs(["upgrade"]);
    command.arg(mount.mnt());
    let failed = run(&mut command, LIMIT);
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(failed.stderr.contains("without --supervise"), "{failed:?}");
    mount.finish();
}
