//! Ends that are not orderly: SIGKILL, and serving that fails.

use std::fs;
use std::time::Instant;

use super::load::{Load, check_kept};
use super::subject::{Held, Mode, Promise, Subject};
use crate::common::{Mount, Signal, TestEnv};

/// The next start on a dead mount says what it is and what to do; `--replace-stale` does it.
#[track_caller]
fn restart(env: TestEnv) -> TestEnv {
    let arguments = ["-f".into(), env.src(), env.mnt()];
    let (code, line) = env.refused(arguments);
    assert_eq!(code, 32, "{line}");
    assert!(
        line.contains("dead FUSE mount (Transport endpoint is not connected)")
            && line.contains("--replace-stale"),
        "{line}"
    );
    let subject = Subject::start_in(env, Mode::Foreground, &["--replace-stale"]);
    fs::write(subject.path("after"), "the crash").unwrap();
    let told = Instant::now();
    subject.signal(Signal::TERM);
    let env = subject.ends(told).clean();
    assert_eq!(
        fs::read_to_string(env.src().join("after")).unwrap(),
        "the crash"
    );
    env
}

#[test]
fn sigkill_idle_then_restart() {
    let mount = Mount::start(&[]);
    let kept = Promise::make(&mount).close();
    kept.check(&restart(mount.kill()));
}

#[test]
fn sigkill_idle_in_background_then_restart() {
    let mount = Mount::background(TestEnv::new(), &[]);
    let kept = Promise::make(&mount).close();
    kept.check(&restart(mount.kill()));
}

/// Whoever still has a file of the dead mount open gets errors, and keeps nobody from starting.
#[test]
fn sigkill_busy_then_restart() {
    let mount = Mount::start(&[]);
    let promise = Promise::make(&mount);
    let mut held = Held::open(&mount);
    let env = mount.kill();
    held.is_cut();
    let env = restart(env);
    held.is_cut();
    promise.close().check(&env);
}

#[test]
fn sigkill_under_load_then_restart() {
    for _ in 0..3 {
        let mount = Mount::start(&[]);
        let kept = Promise::make(&mount).close();
        let load = Load::start(&mount);
        let env = mount.kill();
        load.finished();
        let env = restart(env);
        kept.check(&env);
        check_kept(&env);
    }
}

/// Three crashes in a row, each upon the last.
#[test]
fn crash_upon_crash() {
    let mut env = Mount::start(&[]).kill();
    for _ in 0..2 {
        env = Mount::start_in(env, &["--replace-stale"]).kill();
    }
    restart(env);
}

/// An event loop that panics outside any operation: serving has failed. The mount is taken down,
/// the log says what happened, and the status is that of an internal fault.
#[test]
fn serving_that_fails() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f", "--threads", "1"]);
    command
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FAULTS", "mkdir=crash");
    let subject = Subject::of(Mount::start_command(env, command), Mode::Foreground);
    let asked = Instant::now();
    fs::create_dir(subject.path("d")).unwrap_err();
    let end = subject.fails(asked).says("an event loop was lost");
    assert!(!end.log.contains("cut from outside"), "{}", end.log);
    end.clean_but_for_the_log();
}
