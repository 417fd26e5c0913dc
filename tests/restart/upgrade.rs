//! `loopfs upgrade MNT`: another program goes on, and if it can't, the one before it does.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Pid;

use super::supervised::Supervised;
use crate::common::process::{Watched, eventually};
use crate::common::{Finished, LIMIT, Mount, Signal, TestEnv, run};

/// A mount served by a copy of the program, which can be replaced.
fn start(options: &[&str]) -> (Supervised, PathBuf) {
    start_with_faults("", options)
}

/// The same with operations that are to fail in the first process (`LOOPFS_FAULTS`).
fn start_with_faults(faults: &str, options: &[&str]) -> (Supervised, PathBuf) {
    let env = TestEnv::new();
    let program = env.public_binary();
    let mut command = std::process::Command::new(&program);
    command
        .args(["-f", "--supervise"])
        .args(options)
        .arg(env.src())
        .arg(env.mnt())
        .env(
            "RUST_LOG",
            "warn,loopfs=info,loopfs::supervise=debug,fuser::reply=off",
        )
        .env("LOOPFS_FAULTS", faults)
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
    let (mount, program) = start(&[]);
    let mut file = File::create_new(mount.path("f")).unwrap();
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

/// The program that a process runs, as the kernel names it: of one that was replaced it says so.
fn runs(pid: Pid) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).unwrap()
}

#[track_caller]
fn wait_for_both_to_run(program: &Path, mount: &Supervised) {
    eventually("both run the new program", LIMIT, || {
        runs(mount.pid()) == program && runs(mount.child().pid) == program
    });
    let name = format!("/proc/{}/comm", mount.pid().as_raw_nonzero());
    eventually("its name is its own", LIMIT, || {
        fs::read_to_string(&name).unwrap() == "loopfs\n"
    });
}

/// Both processes run the new program, the first one as the same process; and it does what a supervisor does.
#[test]
fn the_supervisor_is_replaced_too_and_stays_the_same_process() {
    let (mount, program) = start(&[]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", mount.pid().as_raw_nonzero()))
            .unwrap()
            .count()
    };
    let mut before = None;
    for round in 1..=3_usize {
        replace(&program, crate::common::env::LOOPFS);
        assert_ne!(runs(mount.pid()), program, "it has not been replaced yet");
        file.write_all(b"x").unwrap();
        upgrade(&mount).success();
        wait_for_both_to_run(&program, &mount);
        eventually("it says so", LIMIT, || {
            mount.log().matches("is kept by").count() == round
        });
        // Who is killed is followed, as before.
        mount.kill_child();
        file.write_all(b"y").unwrap();
        assert_eq!(fs::read(mount.source("f")).unwrap(), b"xy".repeat(round));
        // Nothing is left over from one program to the next.
        let now = descriptors();
        assert_eq!(*before.get_or_insert(now), now);
    }
    drop(file);
    mount.into_mount().finish();
}

/// What a supervisor keeps is kept by the next one: a file without a name, which nobody else has open in SRC.
#[test]
fn what_was_kept_is_kept_by_the_new_program() {
    let (mount, program) = start(&["--io", "direct"]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    file.write_all(b"no name").unwrap();
    fs::remove_file(mount.path("f")).unwrap();
    replace(&program, crate::common::env::LOOPFS);
    upgrade(&mount).success();
    wait_for_both_to_run(&program, &mount);
    mount.kill_child();
    let mut content = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "no name");
    drop(file);
    mount.into_mount().finish();
}

/// Signals and unmounts end what was upgraded, and a supervisor that is killed takes its child along.
#[test]
fn what_was_upgraded_ends_as_before() {
    let upgraded = || {
        let (mount, program) = start(&[]);
        replace(&program, crate::common::env::LOOPFS);
        upgrade(&mount).success();
        wait_for_both_to_run(&program, &mount);
        mount
    };
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mount = upgraded();
        mount.signal(signal);
        mount.into_mount().ended();
    }
    let mount = upgraded();
    mount.unmount_with("umount", &[]);
    mount.into_mount().ended();
    let mount = upgraded();
    let child = mount.child();
    let env = mount.into_mount().kill();
    assert!(child.wait_end(LIMIT), "the child stays");
    env.assert_clean();
}

/// A signal that comes while one program follows the other is not lost.
#[test]
fn a_signal_during_an_upgrade_is_heard() {
    for delay in 0..6 {
        let (mount, program) = start(&[]);
        replace(&program, crate::common::env::LOOPFS);
        let mut command = mount.loopfs(["upgrade"]);
        command.arg(mount.mnt());
        let asks = thread::spawn(move || run(&mut command, LIMIT));
        let supervisor = Watched::new(mount.pid()).unwrap();
        assert!(!supervisor.wait_end(Duration::from_millis(delay * 40)));
        mount.signal(Signal::TERM);
        // Whether it was heard before or after it.
        asks.join().unwrap();
        mount.into_mount().ended();
    }
}

/// Has somebody ask for an upgrade, the first one or a further one.
fn ask_for_upgrade(mount: &Supervised, number: usize) -> JoinHandle<Finished> {
    let mut command = mount.loopfs(["upgrade"]);
    command.arg(mount.mnt());
    let asks = thread::spawn(move || run(&mut command, LIMIT));
    eventually("the upgrade is asked for", LIMIT, || {
        let log = mount.log();
        log.matches("the supervisor is asked for an upgrade")
            .count()
            == number
    });
    asks
}

/// Who asks while an upgrade is under way gets what that brings.
#[test]
fn an_upgrade_that_is_asked_for_twice_is_one() {
    // The first process does not answer, so the upgrade waits some seconds.
    let (mount, program) = start_with_faults("mkdir=stall", &[]);
    let new = mount.path("d");
    let makes = thread::spawn(move || fs::create_dir(new));
    eventually("it is not answered", LIMIT, || {
        mount.log().contains("is not answered, as")
    });
    replace(&program, crate::common::env::LOOPFS);
    let asks = [1, 2].map(|number| ask_for_upgrade(&mount, number));
    for one in asks {
        let said = one.join().unwrap().success();
        let served_by = format!("process {}", mount.child().pid.as_raw_nonzero());
        assert!(said.contains(&served_by), "{said}");
    }
    makes.join().unwrap().unwrap();
    wait_for_both_to_run(&program, &mount);
    mount.into_mount().finish();
}

/// And so does who asks for one that is refused.
#[test]
fn everybody_who_has_asked_is_told_why_there_is_no_upgrade() {
    let (mount, program) = start(&[]);
    replace(&program, "/bin/false");
    mount.signal(Signal::STOP);
    let asks = [1, 2].map(|number| ask_for_upgrade(&mount, number));
    mount.signal(Signal::CONT);
    for one in asks {
        let failed = one.join().unwrap();
        assert!(failed.stderr.contains("can't go on"), "{failed:?}");
    }
    mount.into_mount().finish();
}

/// Who is killed when it has asked for an upgrade, before anybody has heard it, is followed by the new program.
#[test]
fn a_death_right_after_the_request_for_an_upgrade_is_followed_by_the_new_program() {
    let (mount, program) = start(&[]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    file.write_all(b"x").unwrap();
    replace(&program, crate::common::env::LOOPFS);
    mount.signal(Signal::STOP);
    let asks = ask_for_upgrade(&mount, 1);
    let child = mount.child();
    child.signal(Signal::KILL);
    assert!(child.wait_end(LIMIT), "SIGKILL did not end it");
    mount.signal(Signal::CONT);
    let said = asks.join().unwrap().success();
    let served_by = format!("process {}", mount.child().pid.as_raw_nonzero());
    assert!(said.contains(&served_by), "{said}");
    wait_for_both_to_run(&program, &mount);
    file.write_all(b"y").unwrap();
    drop(file);
    assert_eq!(fs::read(mount.source("f")).unwrap(), b"xy");
    let log = mount.log();
    assert!(!log.contains("makes no sense"), "{log}");
    mount.into_mount().finish();
}

/// Another process that serves is not an upgrade.
#[test]
fn a_death_is_not_taken_for_an_upgrade() {
    let (mount, program) = start(&[]);
    replace(&program, "/bin/false");
    mount.signal(Signal::STOP);
    let asks = ask_for_upgrade(&mount, 1);
    mount.child().signal(Signal::KILL);
    mount.signal(Signal::CONT);
    let failed = asks.join().unwrap();
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(failed.stderr.contains("can't go on"), "{failed:?}");
    assert_eq!(mount.restarts(), 1);
    mount.into_mount().finish();
}

/// Who has just died is followed by somebody who can be asked.
#[test]
fn an_upgrade_during_a_restart_waits_for_it() {
    let (mount, program) = start(&[]);
    replace(&program, crate::common::env::LOOPFS);
    let supervisor = Watched::new(mount.pid()).unwrap();
    mount.signal(Signal::STOP);
    let child = mount.child();
    child.signal(Signal::KILL);
    assert!(child.wait_end(LIMIT), "SIGKILL did not end it");
    let mut command = mount.loopfs(["upgrade"]);
    command.arg(mount.mnt());
    let asks = thread::spawn(move || run(&mut command, LIMIT));
    assert!(!supervisor.wait_end(Duration::from_millis(300)));
    mount.signal(Signal::CONT);
    asks.join().unwrap().success();
    wait_for_both_to_run(&program, &mount);
    mount.into_mount().finish();
}

/// The limit of restarts counts on, and so does a drain.
#[test]
fn deaths_before_an_upgrade_count_after_it() {
    let (mount, program) = start(&["--restart-limit", "3"]);
    mount.kill_child();
    mount.kill_child();
    replace(&program, crate::common::env::LOOPFS);
    upgrade(&mount).success();
    wait_for_both_to_run(&program, &mount);
    mount.kill_child();
    mount.child().signal(Signal::KILL);
    let (env, status, log) = mount.into_mount().ended_somehow();
    assert_eq!(status.unwrap().code(), Some(4), "{log}");
    assert!(log.contains("dies again and again"), "{log}");
    env.assert_clean();
}

/// A program that serves as this one does, and would not understand what the supervisor leaves to it.
fn of_another_edition(program: &Path) {
    const OURS: &[u8] = b"what a supervisor of loopfs leaves, edition 1";
    let mut bytes = fs::read(crate::common::env::LOOPFS).unwrap();
    let places: Vec<usize> = (0..bytes.len() - OURS.len())
        .filter(|&at| bytes[at..].starts_with(OURS))
        .collect();
    assert!(!places.is_empty(), "the edition is not found");
    for place in places {
        bytes[place + OURS.len() - 1] = b'2';
    }
    let new = program.with_extension("new");
    fs::copy(program, &new).unwrap();
    fs::write(&new, bytes).unwrap();
    fs::rename(&new, program).unwrap();
}

#[test]
fn a_program_that_cant_take_the_supervisors_place_changes_nothing() {
    let (mount, program) = start(&[]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    let (before, child) = (runs(mount.pid()), mount.child().pid);
    of_another_edition(&program);
    let failed = upgrade(&mount);
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(
        failed.stderr.contains("can't take the supervisor's place"),
        "{failed:?}"
    );
    assert_eq!(mount.child().pid, child);
    file.write_all(b"x").unwrap();
    mount.kill_child();
    file.write_all(b"y").unwrap();
    let old = PathBuf::from(format!("{} (deleted)", before.display()));
    assert_eq!(runs(mount.pid()), old);
    // One that can is taken afterwards.
    replace(&program, crate::common::env::LOOPFS);
    upgrade(&mount).success();
    wait_for_both_to_run(&program, &mount);
    drop(file);
    assert_eq!(fs::read(mount.source("f")).unwrap(), b"xy");
    mount.into_mount().finish();
}

/// Whoever sets the variable by hand is told so, whatever it says.
#[test]
fn what_no_supervisor_has_left_is_refused() {
    let env = TestEnv::new();
    for value in ["", "x", "-1", "0", "3", "99", "1000000"] {
        let mut command = env.loopfs(["-f", "--supervise"]);
        command
            .arg(env.src())
            .arg(env.mnt())
            .env("LOOPFS_SUCCESSION", value);
        let (code, line) = env.refused_by(&mut command);
        assert_eq!(code, 2, "{line}");
        assert!(line.contains("LOOPFS_SUCCESSION is set"), "{line}");
    }
}

#[test]
fn a_program_that_cant_go_on_changes_nothing() {
    let (mount, program) = start(&[]);
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
    let (mount, _) = start(&[]);
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
