//! The first 20 ms: signals and unmounts that come while the mount is being made, in the moment
//! when it is published, and right after.
//!
//! A signal before the program has installed its handlers kills it, as any program: nothing is
//! mounted then. One that comes before the mount is published ends with status 8, "interrupted",
//! and nothing is mounted. From the publishing on there is a mount, and its end is orderly: 0.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::start::Start;
use super::subject::{PROMPT, umount2, until};
use crate::common::process::run;
use crate::common::{LIMIT, Signal, TestEnv};

/// 0 to 20 ms in steps of half a millisecond.
fn delays() -> impl Iterator<Item = Duration> {
    (0..=40).map(|step| Duration::from_micros(500 * step))
}

/// A signal `delay` after the program was executed.
fn signal_after(delay: Duration, signal: Signal, options: &[&str]) {
    let start = Start::of(TestEnv::new(), options);
    until(start.begun + delay);
    start.signal(signal);
    let (env, status, log) = start.ended(Instant::now());
    match status.code() {
        Some(0) => assert!(log.contains(": serving "), "{delay:?}: {log}"),
        Some(8) => assert!(log.contains("nothing is mounted"), "{delay:?}: {log}"),
        None if status.signal() == Some(signal.as_raw()) => assert_eq!(log, "", "{delay:?}"),
        _ => panic!("{delay:?}: {status}: {log}"),
    }
    env.assert_clean();
}

#[test]
fn sigterm_in_the_first_20_ms() {
    delays().for_each(|delay| signal_after(delay, Signal::TERM, &["-f"]));
}

/// The handlers are installed one after the other: no moment may be missed in which a signal has
/// lost its usual effect and is not recorded yet.
#[test]
fn sigterm_while_the_handlers_are_installed() {
    for step in 0..300 {
        let delay = Duration::from_micros(10 * step);
        signal_after(delay, Signal::TERM, &["-f"]);
    }
}

#[test]
fn sigint_in_the_first_20_ms() {
    delays().for_each(|delay| signal_after(delay, Signal::INT, &["-f"]));
}

#[test]
fn sighup_in_the_first_20_ms() {
    delays().for_each(|delay| signal_after(delay, Signal::HUP, &["-f"]));
}

/// In the background the signal is for whoever waits there, who passes it on. If the daemon has
/// become independent meanwhile, the signal is nobody's and the mount stays.
#[test]
fn sigterm_in_the_first_20_ms_in_background() {
    for delay in delays() {
        let start = Start::of(TestEnv::new(), &[]);
        until(start.begun + delay);
        start.signal(Signal::TERM);
        let (env, status, log) = start.ended(Instant::now());
        match status.code() {
            Some(0 | 8) => {}
            None if status.signal() == Some(Signal::TERM.as_raw()) => {}
            _ => panic!("{delay:?}: {status}: {log}"),
        }
        // Mounted and said so, or on its way out, or never there.
        for daemon in crate::common::process::processes_naming(env.root()) {
            daemon.signal(Signal::TERM);
            assert!(
                daemon.wait_end(PROMPT),
                "{delay:?}: the daemon hangs: {log}"
            );
        }
        env.assert_clean();
    }
}

/// Five signals of all kinds, as early as that.
#[test]
fn five_signals_in_the_first_20_ms() {
    for delay in delays() {
        let start = Start::of(TestEnv::new(), &["-f"]);
        until(start.begun + delay);
        for signal in [
            Signal::TERM,
            Signal::INT,
            Signal::HUP,
            Signal::TERM,
            Signal::INT,
        ] {
            start.signal(signal);
        }
        let (env, status, log) = start.ended(Instant::now());
        assert!(
            matches!(status.code(), None | Some(0 | 8)),
            "{delay:?}: {status}: {log}"
        );
        env.assert_clean();
    }
}

/// Between mount and ready: the signal comes as soon as the mount can be seen.
#[test]
fn sigterm_as_soon_as_it_is_mounted() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP].repeat(10) {
        let start = Start::of(TestEnv::new(), &["-f"]);
        start.wait_mounted();
        start.signal(signal);
        let (env, status, log) = start.ended(Instant::now());
        assert_eq!(status.code(), Some(0), "{log}");
        env.assert_clean();
    }
}

/// Unmounted `delay` after it could be seen, by `unmount`, which is called until it succeeds.
fn unmount_after(delay: Duration, features_off: &str, unmount: impl Fn(&TestEnv) -> bool) {
    let start = Start::without(features_off, TestEnv::new(), &["-f"]);
    start.wait_mounted();
    until(Instant::now() + delay);
    while !unmount(start.env()) {
        assert!(start.begun.elapsed() < LIMIT, "never unmounted");
    }
    let (env, status, log) = start.ended(Instant::now());
    assert_eq!(status.code(), Some(0), "{delay:?}: {log}");
    env.assert_clean();
}

fn program(env: &TestEnv, program: &str, options: &str) -> bool {
    let mut command = std::process::Command::new(program);
    let finished = run(command.arg(options).arg(env.mnt()), LIMIT);
    // Busy: the daemon tries the mount out itself before it says that it is ready.
    assert!(
        finished.status.success() || finished.stderr.contains("busy"),
        "{finished:?}"
    );
    finished.status.success()
}

#[test]
fn fusermount_u_in_the_first_20_ms() {
    delays().for_each(|delay| unmount_after(delay, "", |env| program(env, "fusermount3", "-u")));
}

#[test]
fn fusermount_uz_in_the_first_20_ms() {
    delays().for_each(|delay| unmount_after(delay, "", |env| program(env, "fusermount3", "-uz")));
}

#[test]
fn umount_in_the_first_20_ms() {
    for flags in [UnmountFlags::empty(), UnmountFlags::DETACH] {
        delays().for_each(|delay| {
            unmount_after(delay, "", |env| umount2(&env.mnt(), flags).is_ok());
        });
    }
}

/// Unmounted in the very moment of its publishing, by somebody who does nothing but try.
#[test]
fn unmounted_as_soon_as_it_is_published() {
    for _ in 0..30 {
        let env = TestEnv::new();
        let target = env.mnt();
        let eager = thread::spawn(move || {
            let begun = Instant::now();
            while umount2(&target, UnmountFlags::DETACH).is_err() {
                assert!(begun.elapsed() < LIMIT, "never mounted");
            }
        });
        let start = Start::of(env, &["-f"]);
        eager.join().unwrap();
        let (env, status, log) = start.ended(Instant::now());
        assert_eq!(status.code(), Some(0), "{log}");
        env.assert_clean();
    }
}

/// With mount(2) the mount can be seen before anybody serves it. Unmounted then, the start has
/// failed: one clear line, and nothing is left. Later it is an end like any other.
#[test]
fn unmounted_before_it_is_ready() {
    for _ in 0..30 {
        let env = TestEnv::new();
        let target = env.mnt();
        let eager = thread::spawn(move || {
            let begun = Instant::now();
            while umount2(&target, UnmountFlags::DETACH).is_err() {
                assert!(begun.elapsed() < LIMIT, "never mounted");
            }
        });
        let start = Start::without("new-mount-api", env, &["-f"]);
        eager.join().unwrap();
        let (env, status, log) = start.ended(Instant::now());
        match status.code() {
            Some(0) => {}
            Some(2 | 32) => {
                let last = log.lines().last().unwrap();
                assert!(last.starts_with("loopfs: "), "{log}");
            }
            _ => panic!("{status}: {log}"),
        }
        env.assert_clean();
    }
    delays().for_each(|delay| {
        unmount_after(delay, "new-mount-api", |env| {
            // Before it is ready is another case than this one.
            Start::is_ready_in(env) && umount2(&env.mnt(), UnmountFlags::DETACH).is_ok()
        });
    });
}
