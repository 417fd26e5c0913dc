//! Waiting for a lock: who waits keeps nobody else waiting, and a wait ends as it does on any file.
//!
//! Each test runs twice: with locks that the kernel keeps for the mount, and with forwarded ones.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::agent::{Agent, is_in_lock_call};
use crate::common::process::{eventually, wait_child};
use crate::common::{LIMIT, Mount, Signal, TestEnv};
use crate::{Forwarding, Mnt, Src};

const STYLES: [&str; 3] = ["flock", "posix", "ofd"];

/// How long a wait may go on that a signal ends. It takes some 50 ms; the machine may be loaded.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Runs `test` on a mount of each kind.
#[track_caller]
fn on_both(options: &[&str], test: impl Fn(&Mount)) {
    for forwarding in [&[][..], &["--forward-locks"]] {
        let options = [forwarding, options].concat();
        let mount = Mount::start_in(TestEnv::new(), &options);
        test(&mount);
        mount.finish();
    }
}

/// A program that holds a lock on the mount's `f`, and one that waits for it.
#[track_caller]
fn held_and_awaited(mount: &Mount, style: &str) -> (Agent, Agent) {
    let path = mount.path("f");
    let (mut holder, mut waiter) = (Agent::with(&path), Agent::with(&path));
    assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");
    waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
    (holder, waiter)
}

#[track_caller]
fn give_up(holder: &mut Agent, style: &str) {
    assert_eq!(holder.ask(&format!("{style}('f', 'un')")), "ok");
}

/// A signal that ends a program ends it while it waits, whoever has the lock: and what it waited for
/// goes to somebody else.
#[test]
fn a_program_that_waits_can_be_killed() {
    on_both(&[], |mount| {
        let path = mount.path("f");
        let (mut holder, mut next) = (Agent::with(&path), Agent::with(&path));
        for (style, signal) in [
            ("flock", Signal::KILL),
            ("flock", Signal::TERM),
            ("posix", Signal::KILL),
            ("posix", Signal::ABORT),
            ("ofd", Signal::KILL),
        ] {
            assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");
            let mut waiter = Agent::with(&path);
            waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
            let asked = Instant::now();
            waiter.signal(signal);
            waiter.ended_by(signal);
            assert!(asked.elapsed() < AT_ONCE, "{style}: {:?}", asked.elapsed());
            give_up(&mut holder, style);
            assert_eq!(next.ask(&format!("{style}('f', 'ex', 0, 0, True)")), "ok");
            give_up(&mut next, style);
        }
    });
}

#[test]
fn who_waits_for_a_lock_of_src_can_be_killed() {
    let forwarding = Forwarding::start(&[]);
    for style in STYLES {
        let mut holder = Agent::with(&forwarding.path(Src, "f"));
        let mut waiter = Agent::with(&forwarding.path(Mnt, "f"));
        assert_eq!(holder.ask(&format!("{style}('f', 'sh')")), "ok");
        waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
        let asked = Instant::now();
        waiter.signal(Signal::KILL);
        waiter.ended_by(Signal::KILL);
        assert!(asked.elapsed() < AT_ONCE, "{style}: {:?}", asked.elapsed());
    }
    forwarding.0.finish();
}

/// A signal with a handler ends the call with EINTR, or has it begin again.
#[test]
fn a_signal_with_a_handler_is_handled() {
    on_both(&[], |mount| {
        for style in STYLES {
            let (mut holder, mut waiter) = held_and_awaited(mount, style);
            // What waits at the moment is to be told of the handlers first.
            give_up(&mut holder, style);
            assert_eq!(waiter.hear(), "ok");
            give_up(&mut waiter, style);
            assert_eq!(waiter.ask("handle(signal.SIGALRM)"), "ok");
            assert_eq!(waiter.ask("handle(signal.SIGUSR1, again=True)"), "ok");
            assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");

            waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
            let asked = Instant::now();
            waiter.signal(Signal::ALARM);
            assert_eq!(waiter.hear(), "EINTR");
            assert!(asked.elapsed() < AT_ONCE, "{style}: {:?}", asked.elapsed());

            waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
            waiter.signal(Signal::USR1);
            waiter.still_waits();
            give_up(&mut holder, style);
            assert_eq!(waiter.hear(), "ok");
            assert_eq!(waiter.ask("noted"), "[14, 10]");
        }
    });
}

/// A signal that is not for the program to take does not end its wait, and one that stops it stops it.
#[test]
fn other_signals_leave_it_waiting() {
    on_both(&[], |mount| {
        let path = mount.path("f");
        let (mut holder, mut waiter) = (Agent::with(&path), Agent::with(&path));
        assert_eq!(waiter.ask("ignore(signal.SIGUSR1)"), "ok");
        assert_eq!(waiter.ask("handle(signal.SIGUSR2)"), "ok");
        assert_eq!(waiter.ask("block(signal.SIGUSR2)"), "ok");
        for style in STYLES {
            assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");
            waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
            for signal in [Signal::USR1, Signal::USR2, Signal::WINCH, Signal::CHILD] {
                waiter.signal(signal);
            }
            waiter.still_waits();
            waiter.signal(Signal::STOP);
            let is_stopped = || {
                let stat = fs::read_to_string(format!("/proc/{}/stat", waiter.pid())).unwrap();
                stat.contains(") T ")
            };
            eventually("it is stopped", AT_ONCE, is_stopped);
            waiter.signal(Signal::CONT);
            waiter.still_waits();
            give_up(&mut holder, style);
            assert_eq!(waiter.hear(), "ok", "{style}");
            give_up(&mut waiter, style);
        }
    });
}

/// In a program of several threads the signal goes to the one that takes it.
#[test]
fn signals_to_programs_of_several_threads() {
    on_both(&[], |mount| {
        let path = mount.path("f");
        for style in STYLES {
            let (mut holder, mut waiter) = (Agent::with(&path), Agent::with(&path));
            assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");
            assert_eq!(waiter.ask("handle(signal.SIGUSR1)"), "ok");
            let wait = format!("thread(lambda: {style}('f', 'ex', 0, 0, True))");
            let begin = |waiter: &mut Agent| {
                let thread = waiter.ask(&wait).parse().expect("a thread");
                eventually("it waits", LIMIT, || is_in_lock_call(thread));
            };

            // The first thread takes it, and the other one goes on waiting.
            begin(&mut waiter);
            waiter.signal(Signal::USR1);
            assert_eq!(waiter.ask("files['thread'].join(0.1) or noted"), "[10]");
            assert_eq!(waiter.ask("files['thread'].is_alive()"), "True");
            // Sent to the thread itself.
            assert_eq!(
                waiter.ask("signal.pthread_kill(files['thread'].ident, 10) or joined()"),
                "EINTR",
                "{style}"
            );
            // Sent to the process, of which only that thread takes it.
            begin(&mut waiter);
            assert_eq!(waiter.ask("block(signal.SIGUSR1)"), "ok");
            waiter.signal(Signal::USR1);
            assert_eq!(waiter.ask("joined()"), "EINTR", "{style}");

            begin(&mut waiter);
            waiter.signal(Signal::KILL);
            waiter.ended_by(Signal::KILL);
            give_up(&mut holder, style);
        }
    });
}

/// flock(1) gives up in time: it uses a timer's signal.
#[test]
fn a_wait_with_a_time_limit() {
    on_both(&[], |mount| {
        let file = File::create(mount.path("f")).unwrap();
        flock(&file, FlockOperation::LockShared).unwrap();
        let asked = Instant::now();
        let mut command = Command::new("flock");
        command.args(["-w", "0.3"]).arg(mount.path("f")).arg("true");
        let mut child = command.spawn().unwrap();
        let status = wait_child(&mut child, LIMIT).expect("it gives up");
        assert_eq!(status.code(), Some(1));
        assert!(asked.elapsed() < AT_ONCE + Duration::from_millis(300));
    });
}

/// Two processes that wait for each other, and three in a circle: the one that closes it is told.
/// Locks of open files are waited for.
#[test]
fn processes_that_wait_for_each_other() {
    on_both(&[], |mount| {
        let path = mount.path("f");
        for members in [2, 3] {
            let mut circle: Vec<_> = (0..members).map(|_| Agent::with(&path)).collect();
            for (number, agent) in circle.iter_mut().enumerate() {
                assert_eq!(agent.ask(&format!("posix('f', 'ex', {number}, 1)")), "ok");
            }
            for (number, agent) in circle.iter_mut().enumerate().take(members - 1) {
                let next = number + 1;
                agent.wait_in(&format!("posix('f', 'sh', {next}, 1, True)"));
            }
            let mut last = circle.pop().unwrap();
            assert_eq!(last.ask("posix('f', 'sh', 0, 1, True)"), "EDEADLK");
            // It has kept what it had, and so the others wait until it gives that up.
            circle.last().unwrap().still_waits();
            assert_eq!(last.ask("posix('f', 'un')"), "ok");
            for agent in circle.iter_mut().rev() {
                assert_eq!(agent.hear(), "ok");
                assert_eq!(agent.ask("posix('f', 'un')"), "ok");
            }
        }
        let (mut one, mut other) = (Agent::with(&path), Agent::with(&path));
        assert_eq!(one.ask("ofd('f', 'ex', 0, 1)"), "ok");
        assert_eq!(other.ask("ofd('f', 'ex', 1, 1)"), "ok");
        one.wait_in("ofd('f', 'ex', 1, 1, True)");
        other.wait_in("ofd('f', 'ex', 0, 1, True)");
    });
}

/// Twenty programs wait, and the one event loop serves: also those who unlock, and those who are killed.
#[test]
fn many_wait_and_one_event_loop_serves() {
    on_both(&["--threads", "1"], |mount| {
        let file = File::create(mount.path("f")).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let mut waiters: Vec<_> = (0..20)
            .map(|_| {
                let mut command = Command::new("flock");
                command.arg("--no-fork").arg(mount.path("f")).arg("true");
                command.spawn().unwrap()
            })
            .collect();
        for waiter in &waiters {
            eventually("it waits", LIMIT, || is_in_lock_call(waiter.id()));
        }
        let asked = Instant::now();
        for number in 0..100 {
            let path = mount.path(format!("other{number}"));
            fs::write(&path, "x").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"x");
        }
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
        let asked = Instant::now();
        for mut waiter in waiters.drain(..10) {
            waiter.kill().unwrap();
            assert!(wait_child(&mut waiter, LIMIT).is_some(), "killed");
        }
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
        flock(&file, FlockOperation::Unlock).unwrap();
        for mut waiter in waiters {
            let status = wait_child(&mut waiter, LIMIT).expect("it gets the lock");
            assert!(status.success());
        }
    });
}

/// The threads and the watch are gone when nobody has waited for a while.
#[test]
fn nothing_is_left_running_when_nobody_waits() {
    let forwarding = Forwarding::start(&[]);
    let mount = &forwarding.0;
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", mount.pid().as_raw_nonzero())).unwrap();
        let names = tasks.flatten().map(|task| task.path().join("comm"));
        names
            .filter_map(|name| fs::read_to_string(name).ok())
            .collect::<String>()
    };
    let (mut holder, waiter) = held_and_awaited(mount, "flock");
    let during = threads();
    assert!(
        during.contains("loopfs-lock\n") && during.contains("loopfs-watch\n"),
        "{during}"
    );
    give_up(&mut holder, "flock");
    assert_eq!(waiter.hear(), "ok");
    eventually("the threads end", LIMIT, || {
        let now = threads();
        !now.contains("loopfs-lock\n") && !now.contains("loopfs-watch\n")
    });
    drop((holder, waiter));
    forwarding.0.finish();
}

/// The end of the daemon: whoever waits uses the mount, and is told when it is cut off.
#[test]
fn the_daemon_ends_while_programs_wait() {
    for forward in [&[][..], &["--forward-locks"]] {
        for how in ["drain", "second signal", "umount -f"] {
            let options = [forward, &["--drain-timeout", "0.3"]].concat();
            let mount = Mount::start_in(TestEnv::new(), &options);
            // Held in SRC, if anybody there can: what is cut off on the mount does not free it.
            let path: PathBuf = if forward.is_empty() {
                mount.path("f")
            } else {
                mount.source("f")
            };
            let mut holder = Agent::with(&path);
            assert_eq!(holder.ask("flock('f', 'ex')"), "ok");
            assert_eq!(holder.ask("posix('f', 'ex')"), "ok");
            let mut waiters: Vec<_> = (0..4).map(|_| Agent::with(&mount.path("f"))).collect();
            for (waiter, style) in waiters.iter_mut().zip(["flock", "posix", "ofd", "posix"]) {
                waiter.wait_in(&format!("{style}('f', 'sh', 0, 0, True)"));
            }
            let asked = Instant::now();
            match how {
                "umount -f" => {
                    // It says that the mount is busy, and has cut the connection.
                    mount.try_unmount_with("umount", &["-f"]);
                }
                "drain" => mount.signal(Signal::TERM),
                _ => {
                    mount.signal(Signal::TERM);
                    eventually("it drains", LIMIT, || mount.log().contains("still in use"));
                    mount.signal(Signal::TERM);
                }
            }
            let (env, status, log) = mount.ended_somehow();
            assert!(
                asked.elapsed() < AT_ONCE,
                "{forward:?} {how}: {:?}",
                asked.elapsed()
            );
            assert!(status.unwrap().success(), "{forward:?} {how}");
            assert!(
                !log.contains("unanswered") && !log.contains("hang"),
                "{log}"
            );
            if !forward.is_empty() {
                for waiter in &waiters {
                    let answer = waiter.hear();
                    assert!(
                        ["ENOTCONN", "ECONNABORTED"].contains(&&*answer),
                        "{how}: {answer}"
                    );
                }
            }
            drop((holder, waiters));
            env.assert_clean();
        }
    }
}

/// After a lazy unmount files that are open go on working, and so do their locks.
#[test]
fn a_lazy_unmount_leaves_waiters_waiting() {
    let forwarding = Forwarding::start(&[]);
    let (mut holder, waiter) = held_and_awaited(&forwarding.0, "posix");
    forwarding.0.unmount_with("umount", &["-l"]);
    waiter.still_waits();
    give_up(&mut holder, "posix");
    assert_eq!(waiter.hear(), "ok");
    drop((holder, waiter));
    forwarding.0.ended();
}

/// A daemon that is killed leaves no lock behind in SRC.
#[test]
fn locks_end_with_the_daemon() {
    let forwarding = Forwarding::start(&[]);
    let mut holder = Agent::with(&forwarding.path(Mnt, "f"));
    let mut waiters = [(); 2].map(|()| Agent::with(&forwarding.path(Src, "f")));
    for (waiter, style) in waiters.iter_mut().zip(["flock", "posix"]) {
        assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");
        waiter.wait_in(&format!("{style}('f', 'ex', 0, 0, True)"));
    }
    drop(forwarding.0.kill());
    for waiter in waiters {
        assert_eq!(waiter.hear(), "ok");
    }
}

/// A caller that the daemon can't see is not let wait, because it could not be killed: one from outside
/// the daemon's pid namespace, and any if /proc is that of another one. What is free it gets.
#[test]
fn a_caller_out_of_sight_is_not_let_wait() {
    let seen = TestEnv::new()
        .private_script(
            r#"
        mkfifo "$ROOT/ready" "$ROOT/end"
        inside='"$LOOPFS" --forward-locks "$SRC" "$MNT"; echo >"$ROOT/ready"; read -r _ <"$ROOT/end"
            exec 3>"$MNT/f"; flock 3; flock "$MNT/f" true 2>&1 | grep -o "No locks available"; exec 3>&-
            echo >"$ROOT/ready"; read -r _ <"$ROOT/end"'
        unshare --pid --fork --kill-child sh -euc "$inside" sh "$ROOT" &
        read -r _ <"$ROOT/ready"
        flock "$MNT/f" echo free
        exec 3>"$MNT/f"; flock 3
        flock -n "$MNT/f" true || echo busy
        flock "$MNT/f" true 2>&1 | grep -o 'No locks available'
        exec 3>&-
        flock "$MNT/f" echo free again
        echo >"$ROOT/end"; read -r _ <"$ROOT/ready"
        umount "$MNT"; echo >"$ROOT/end"; wait"#,
        )
        .success();
    assert_eq!(
        seen,
        "free\nbusy\nNo locks available\nfree again\nNo locks available\n"
    );
}

/// The daemon of a user, through fusermount3, forwards that user's locks.
#[test]
fn a_daemon_without_privileges_forwards_locks_too() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        mkdir "$ROOT/dev"; mount -t tmpfs -o mode=755 dev "$ROOT/dev"
        mknod "$ROOT/dev/fuse" c 10 229; chmod 666 "$ROOT/dev/fuse"; mount --bind "$ROOT/dev/fuse" /dev/fuse
        chown 65534:65534 "$MNT" "$SRC"; umask 022
        AS="setpriv --reuid 65534 --regid 65534 --clear-groups timeout 30"
        $AS "$LOOPFS" --forward-locks "$SRC" "$MNT" </dev/null
        $AS flock "$MNT/f" flock -n "$SRC/f" true || echo held on the mount
        $AS flock "$SRC/f" flock -n "$MNT/f" true || echo held in the source
        $AS flock "$SRC/f" timeout 0.2 flock "$MNT/f" true || echo "ended: $?"
        $AS flock "$SRC/f" flock -w 0.2 "$MNT/f" true || echo "gave up: $?"
        $AS python3 -ISc '
import fcntl, sys
one, other = [open(path, "r+") for path in sys.argv[1:]]
fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
try: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
except OSError as error: print(error.strerror)
fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)' "$MNT/f" "$SRC/f"
        $AS fusermount3 -u "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]"#,
        )
        .success();
    let expected = "held on the mount\nheld in the source\nended: 124\ngave up: 1\n\
        Resource temporarily unavailable\n";
    assert_eq!(seen, expected);
    env.assert_clean();
}
