//! Whoever ends it, it ends once, and nothing stays.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::supervised::{Supervised, child_of};
use crate::common::connection::Connection;
use crate::common::process::{Watched, eventually, processes_naming};
use crate::common::table::wait_table;
use crate::common::{LIMIT, Mount, Signal, TestEnv, run};

/// How long a mount is watched that must stay.
const A_WHILE: Duration = Duration::from_millis(500);

#[test]
fn a_signal_to_either_of_the_two_ends_both_in_order() {
    for killed in [false, true] {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let mount = Supervised::start(&[]);
            if killed {
                mount.kill_child();
            }
            mount.signal(signal);
            mount.into_mount().ended();
            let mount = Supervised::start(&[]);
            if killed {
                mount.kill_child();
            }
            mount.child().signal(signal);
            mount.into_mount().ended();
        }
    }
}

#[test]
fn an_unmount_from_outside_ends_both() {
    for (program, arguments) in [
        ("umount", &[][..]),
        ("umount", &["-l"]),
        ("fusermount3", &["-u"]),
        ("umount", &["-f"]),
    ] {
        let mount = Supervised::start(&[]);
        mount.kill_child();
        mount.unmount_with(program, arguments);
        mount.into_mount().ended();
    }
}

#[test]
fn an_abort_is_an_end_and_no_death() {
    let mount = Supervised::start(&[]);
    mount.kill_child();
    Connection::of(mount.entry()).abort();
    let env = mount.into_mount().ended();
    let log = fs::read_to_string(env.root().join("daemon.log")).unwrap();
    assert_eq!(log.matches("is served again").count(), 1, "{log}");
}

/// Nobody is left to restart what dies: the child does not stay alone.
#[test]
fn a_supervisor_that_is_killed_takes_child_and_mount_with_it() {
    for killed in [false, true] {
        let mount = Supervised::start(&[]);
        if killed {
            mount.kill_child();
        }
        let child = mount.child();
        let entry = mount.entry().clone();
        let env = mount.into_mount().kill();
        assert!(child.wait_end(LIMIT), "the child stays");
        assert!(wait_table(LIMIT, || !crate::common::table::mounts().contains(&entry)));
        env.assert_clean();
    }
}

/// The same while a file is open: what is open goes on for --drain-timeout, and then it is over.
#[test]
fn a_supervisor_that_is_killed_leaves_open_files_their_time() {
    let mount = Supervised::start(&["--drain-timeout", "1"]);
    let file = File::create_new(mount.path("f")).unwrap();
    let child = mount.child();
    let env = mount.into_mount().kill();
    file.set_len(7).unwrap();
    assert!(child.wait_end(LIMIT), "the child stays");
    drop(file);
    env.assert_clean();
}

/// A process that is killed on its way out is followed by one that goes on from there, and not by one that serves on.
#[test]
fn the_way_out_survives_a_death() {
    let mount = Supervised::start(&[]);
    let file = File::create_new(mount.path("f")).unwrap();
    mount.signal(Signal::TERM);
    eventually("it is detached", LIMIT, || !mount.is_mounted());
    mount.kill_child();
    mount.stays(A_WHILE);
    drop(file);
    mount.into_mount().ended();
}

/// Nor is a signal lost that it was handed and has not acted on.
#[test]
fn a_signal_survives_whoever_got_it_first() {
    let mount = Supervised::start(&[]);
    let child = mount.child();
    child.signal(Signal::STOP);
    let process = format!("/proc/{}", child.pid.as_raw_nonzero());
    eventually("all of its threads have stopped", LIMIT, || {
        fs::read_dir(format!("{process}/task")).unwrap().all(|it| {
            let status = fs::read_to_string(it.unwrap().path().join("status"));
            status.is_ok_and(|it| it.contains("State:\tT"))
        })
    });
    mount.signal(Signal::TERM);
    let status = format!("{process}/status");
    eventually("it is handed on", LIMIT, || {
        let status = fs::read_to_string(&status).unwrap();
        let pending = status.lines().find_map(|it| it.strip_prefix("ShdPnd:"));
        let pending = u64::from_str_radix(pending.unwrap().trim(), 16).unwrap();
        pending & 1 << (Signal::TERM.as_raw() - 1) != 0
    });
    child.signal(Signal::KILL);
    mount.into_mount().ended();
}

/// Its time does not begin anew either.
#[test]
fn the_limit_of_a_drain_counts_from_its_begin() {
    let mount = Supervised::start(&["--drain-timeout", "2"]);
    let file = File::create_new(mount.path("f")).unwrap();
    let begun = Instant::now();
    mount.signal(Signal::TERM);
    eventually("it is detached", LIMIT, || !mount.is_mounted());
    let supervisor = Watched::new(mount.pid()).unwrap();
    while begun.elapsed() < Duration::from_millis(1500) {
        mount.kill_child();
        assert!(!supervisor.wait_end(Duration::from_millis(300)));
    }
    let (env, status, _) = mount.into_mount().ended_somehow();
    assert_eq!(status.unwrap().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(file);
    env.assert_clean();
}

/// Nor does it become longer, however soon each of those is killed that go on from there.
#[test]
fn a_drain_ends_although_everybody_is_killed_in_it() {
    let mount = Supervised::start(&["--drain-timeout", "1"]);
    let file = File::create_new(mount.path("f")).unwrap();
    let begun = Instant::now();
    mount.signal(Signal::TERM);
    eventually("it is detached", LIMIT, || !mount.is_mounted());
    let supervisor = Watched::new(mount.pid()).unwrap();
    while !supervisor.wait_end(Duration::from_millis(100)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it goes on");
        let before = mount.restarts();
        if let Some(child) = child_of(mount.pid()) {
            child.signal(Signal::KILL);
        }
        eventually("it is over, or another one serves", LIMIT, || {
            mount.restarts() > before || supervisor.wait_end(Duration::ZERO)
        });
    }
    let (env, status, log) = mount.into_mount().ended_somehow();
    assert_eq!(status.unwrap().code(), Some(0), "{log}");
    drop(file);
    env.assert_clean();
}

/// In the background the parent returns when the mount is ready, and leaves two processes.
#[test]
fn in_the_background() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["--supervise"]);
    command.arg(env.src()).arg(env.mnt());
    run(&mut command, LIMIT).success();
    fs::write(env.mnt().join("f"), "x").unwrap();
    let supervisor = processes_naming(env.root())
        .into_iter()
        .find(|process| child_of(process.pid).is_some())
        .unwrap();
    let child = child_of(supervisor.pid).unwrap();
    child.signal(Signal::KILL);
    assert!(child.wait_end(LIMIT));
    assert_eq!(fs::read(env.mnt().join("f")).unwrap(), b"x");
    supervisor.signal(Signal::TERM);
    assert!(supervisor.wait_end(LIMIT));
    env.assert_clean();
}

/// A directory made for the mount goes with it, whoever is the last to serve.
#[test]
fn a_directory_that_was_made_is_removed_by_whoever_comes_last() {
    let env = TestEnv::new();
    fs::remove_dir(env.mnt()).unwrap();
    let mount = Supervised::start_in(env, &["--mkdir"]);
    mount.kill_child();
    mount.signal(Signal::TERM);
    let env = mount.into_mount().ended();
    assert!(!env.mnt().exists());
}

/// An event loop that is lost to a panic takes its process with it, and its request comes again: when that does not end, the
/// mount goes.
#[test]
fn a_child_that_dies_again_and_again_is_given_up() {
    let mount = Supervised::start_with_faults("mkdir=crash", &["--restart-limit", "3"]);
    let error = fs::create_dir(mount.path("d")).unwrap_err();
    let cut = [ErrorKind::NotConnected, ErrorKind::ConnectionAborted];
    assert!(cut.contains(&error.kind()), "{error}");
    let (env, status, log) = mount.into_mount().ended_somehow();
    assert_eq!(status.unwrap().code(), Some(4), "{log}");
    assert!(log.contains("dies again and again"), "{log}");
    assert_eq!(log.matches("another one goes on").count(), 4, "{log}");
    env.assert_clean();
}

/// Two signals while nobody serves are heard by the supervisor.
#[test]
fn signals_are_heard_while_a_crash_is_waited_for() {
    let mount = Supervised::start_with_faults("mkdir=crash", &["--restart-limit", "never"]);
    let path = mount.path("d");
    let asks = std::thread::spawn(move || fs::create_dir(path));
    // The pause after it is 800 ms, and the next ones are longer.
    let deaths = || mount.log().matches("another one goes on").count();
    eventually("it has died some times", LIMIT, || deaths() >= 6);
    let begun = Instant::now();
    let supervisor = Watched::new(mount.pid()).unwrap();
    while !supervisor.wait_end(Duration::from_millis(20)) {
        mount.signal(Signal::TERM);
        assert!(begun.elapsed() < LIMIT, "it does not end");
    }
    asks.join().unwrap().unwrap_err();
    let (env, status, log) = mount.into_mount().ended_somehow();
    assert_eq!(status.unwrap().code(), Some(0), "{log}");
    env.assert_clean();
}

/// Both are killed at once: a crash of everything, after which a new start says what to do.
#[test]
fn a_start_after_both_were_killed() {
    let mount = Supervised::start(&[]);
    let child = mount.child();
    // So that it does not start another one first.
    mount.signal(Signal::STOP);
    child.signal(Signal::KILL);
    assert!(child.wait_end(LIMIT));
    let env = mount.into_mount().kill();
    let mount = Mount::start_in(env, &["--supervise", "--replace-stale"]);
    mount.finish();
}
