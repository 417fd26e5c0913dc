//! The serving process ends while it tells the kernel of a change and has to wait for a program that waits for an answer.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::supervised::{Supervised, child_of};
use crate::common::connection::Connection;
use crate::common::process::{Watched, eventually, wait_child};
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, Signal, TestEnv, run};

/// A program whose request is not answered by the first process.
type Asks = JoinHandle<io::Result<()>>;

/// The kernel has a directory locked until a name in it is made.
fn makes_a_name(source: &Path, target: &Path) -> Asks {
    fs::create_dir(source.join("d")).unwrap();
    fs::write(source.join("d/old"), "").unwrap();
    // So that it is remembered.
    fs::metadata(target.join("d/old")).unwrap();
    let new = target.join("d/new");
    thread::spawn(move || fs::create_dir(new))
}

fn changes_a_name(source: &Path) {
    fs::rename(source.join("d/old"), source.join("d/other")).unwrap();
}

/// And a page until it is read. By another process, so that no program that is started from here has the file open: the end of
/// that, at its exec, might have to wait as well.
fn reads_a_page(source: &Path, target: &Path) -> Asks {
    fs::write(source.join("f"), "old").unwrap();
    let mut reads = Command::new("head");
    reads.args(["-c", "1"]).arg(target.join("f"));
    thread::spawn(move || {
        let read = reads.output()?;
        let said = String::from_utf8_lossy(&read.stderr).into_owned();
        read.status
            .success()
            .then_some(())
            .ok_or(io::Error::other(said))
    })
}

fn changes_a_page(source: &Path) {
    let file = File::options().write(true).open(source.join("f")).unwrap();
    file.write_at(b"new", 0).unwrap();
}

type Case = (&'static str, fn(&Path, &Path) -> Asks, fn(&Path));

const CASES: [Case; 2] = [
    ("mkdir=stall", makes_a_name, changes_a_name),
    ("read=stall", reads_a_page, changes_a_page),
];

/// Killed, and a crash, for which the kernel would write a core dump once no thread runs any more.
const DEATHS: [Signal; 2] = [Signal::KILL, Signal::ABORT];

const OPTIONS: [&str; 6] = ["--cache", "coherent", "--io", "cached", "--threads", "2"];

/// Cuts the connection when the test fails: nothing else could end who hangs then.
struct Unhang(Connection);

impl Drop for Unhang {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort();
        }
    }
}

/// Has the kernel told of a change that it can't take note of before a program has its answer; the program.
#[track_caller]
fn stuck(mount: &Mount, who: &Watched, (fault, asks, changes): Case) -> Asks {
    let program = asks(&mount.src(), &mount.mnt());
    eventually(fault, LIMIT, || mount.log().contains("is not answered, as"));
    changes(&mount.src());
    who.wait_stuck("loopfs-tell");
    program
}

#[test]
fn the_next_process_answers_whom_a_dead_one_waits_for() {
    for (case, signal) in CASES
        .into_iter()
        .flat_map(|case| DEATHS.map(|signal| (case, signal)))
    {
        let mount = Supervised::start_with_faults(case.0, &OPTIONS);
        let child = mount.child();
        let _unhang = Unhang(Connection::of(mount.entry()));
        let program = stuck(&mount, &child, case);
        child.signal(signal);
        mount.wait_restarts(1);
        program.join().unwrap().unwrap();
        // Which lets the old one go.
        assert!(child.wait_end(LIMIT), "it waits still");
        mount.kill_child();
        mount.into_mount().finish();
    }
}

#[test]
fn an_upgrade_does_not_wait_for_whom_only_the_next_process_answers() {
    let mount = Supervised::start_with_faults(CASES[0].0, &OPTIONS);
    let child = mount.child();
    let _unhang = Unhang(Connection::of(mount.entry()));
    let program = stuck(&mount, &child, CASES[0]);
    let mut command = mount.loopfs(["upgrade"]);
    command.arg(mount.mnt());
    run(&mut command, LIMIT).success();
    program.join().unwrap().unwrap();
    assert!(child.wait_end(LIMIT), "it waits still");
    mount.into_mount().finish();
}

/// Without a next process programs get an error, and nothing is left hanging: not those whose request was taken up, nor those that asked
/// later, before the kernel's own wait has ended; and not where a user may not open /dev/fuse, so that who serves and who tells share a device.
#[test]
fn without_a_next_process_programs_get_an_error() {
    for (off, signal) in [("", DEATHS[0]), ("another-device", DEATHS[1])] {
        for case in CASES {
            let (mount, guard) = guarded(case.0, off);
            let daemon = Watched::new(mount.pid()).unwrap();
            let _unhang = Unhang(Connection::of(mount.entry()));
            let program = case.1(&mount.src(), &mount.mnt());
            eventually(case.0, LIMIT, || {
                mount.log().contains("is not answered, as")
            });
            // Before the daemon in the queue for what the program has.
            let next = waits_for_it(&mount);
            case.2(&mount.src());
            daemon.wait_stuck("loopfs-tell");
            mount.signal(signal);
            assert!(daemon.wait_end(LIMIT), "it waits still");
            program.join().unwrap().unwrap_err();
            next.join().unwrap().unwrap_err();
            assert!(guard.wait_end(LIMIT), "the guard stays");
            let kind = fs::metadata(mount.path("unknown")).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::NotConnected, "the connection stays");
            mount.kill();
        }
    }
}

/// Another program that wants the same; it is at it when this returns.
fn waits_for_it(mount: &Mount) -> Asks {
    let (new, file) = (mount.path("d/next"), mount.path("f"));
    let asks = move || {
        if new.parent().is_some_and(Path::exists) {
            return fs::create_dir(new);
        }
        File::open(file)?.read_exact_at(&mut [0], 0)
    };
    let thread = thread::Builder::new().name("next".to_owned());
    let thread = thread.spawn(asks).unwrap();
    let own = Watched::new(rustix::process::getpid()).unwrap();
    own.wait_stuck("next");
    thread
}

/// A daemon with a fault, without some feature, and its guard.
fn guarded(fault: &str, off: &str) -> (Mount, Watched) {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command
        .args(OPTIONS)
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FAULTS", fault)
        .env("LOOPFS_FEATURES_OFF", off);
    let mount = Mount::start_command(env, command);
    let guard = child_of(mount.pid()).expect("a guard");
    (mount, guard)
}

/// It is called what it is, heeds nobody but the daemon, and goes with that in whatever way that ends.
#[test]
fn a_guard_goes_with_its_daemon() {
    let ends: [fn(Mount) -> TestEnv; 4] = [
        |mount| {
            mount.signal(Signal::TERM);
            mount.ended()
        },
        |mount| {
            mount.unmount_with("umount", &[]);
            mount.ended()
        },
        |mount| {
            Connection::of(mount.entry()).abort();
            mount.ended()
        },
        Mount::kill,
    ];
    for end in ends {
        let (mount, guard) = guarded("", "");
        let of_guard = format!("/proc/{}/", guard.pid.as_raw_nonzero());
        let of_guard = |what: &str| fs::read(format!("{of_guard}{what}")).unwrap();
        assert_eq!(of_guard("cmdline"), b"loopfs-guard\0");
        eventually("its name", LIMIT, || of_guard("comm") == b"loopfs-guard\n");
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            guard.signal(signal);
        }
        assert!(!guard.wait_end(Duration::from_millis(50)));
        fs::write(mount.path("f"), "served").unwrap();
        let env = end(mount);
        assert!(guard.wait_end(LIMIT), "the guard stays");
        drop(env);
    }
}

/// With a supervisor there is no other process.
#[test]
fn a_supervisor_guards() {
    let mount = Supervised::start(&[]);
    assert!(child_of(mount.child().pid).is_none());
    mount.into_mount().finish();
}

/// Likewise where the kernel is told of what has changed because a lock in SRC was given (`--forward-locks`).
#[test]
fn a_lock_that_waits_for_the_kernel_keeps_nobody_waiting() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f", "--forward-locks"]);
    command
        .args(OPTIONS)
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FAULTS", "read=stall");
    let mount = Mount::start_command(env, command);
    let guard = child_of(mount.pid()).expect("a guard");
    let daemon = Watched::new(mount.pid()).unwrap();
    let _unhang = Unhang(Connection::of(mount.entry()));
    // Opened before anybody reads: an open waits for the page as well.
    fs::write(mount.source("f"), "").unwrap();
    let file = File::open(mount.path("f")).unwrap();
    let reads = reads_a_page(&mount.src(), &mount.mnt());
    eventually("it reads", LIMIT, || {
        mount.log().contains("is not answered, as")
    });
    let locks = thread::spawn(move || file.lock());
    daemon.wait_stuck("loopfs-drop");
    mount.signal(Signal::KILL);
    assert!(daemon.wait_end(LIMIT), "it waits still");
    reads.join().unwrap().unwrap_err();
    locks.join().unwrap().unwrap_err();
    assert!(guard.wait_end(LIMIT), "the guard stays");
    mount.kill();
}

/// A daemon with a fault, whose guard is dead.
fn unguarded(fault: &str) -> Mount {
    let (mount, guard) = guarded(fault, "");
    guard.signal(Signal::KILL);
    assert!(guard.wait_end(LIMIT));
    mount
}

/// By force the connection is cut, whatever waits for it; at whatever moment of the process's death.
#[test]
fn by_force_nobody_waits_for_a_killed_process() {
    for case in CASES {
        let mount = unguarded(case.0);
        let daemon = Watched::new(mount.pid()).unwrap();
        let _unhang = Unhang(Connection::of(mount.entry()));
        let program = stuck(&mount, &daemon, case);
        mount.signal(Signal::KILL);
        let mut command = mount.loopfs(["unmount", "--force"]);
        run(command.arg(mount.mnt()), LIMIT).success();
        assert_eq!(mount_at(&mount.mnt()), None);
        assert!(daemon.wait_end(LIMIT), "it waits still");
        program.join().unwrap().unwrap_err();
        mount.kill();
    }
}

/// Nor for the users that the command has given time to finish: there is nobody who could answer them.
#[test]
fn by_force_a_death_meanwhile_is_the_end() {
    // Once in ten times, about, the reader is quicker than the thread of the dead process, asks once more and keeps that waiting.
    for _ in 0..10 {
        a_death_meanwhile();
    }
}

fn a_death_meanwhile() {
    let mount = unguarded(CASES[1].0);
    let daemon = Watched::new(mount.pid()).unwrap();
    let _unhang = Unhang(Connection::of(mount.entry()));
    let program = stuck(&mount, &daemon, CASES[1]);
    let mut command = mount.loopfs(["unmount", "--force", "--timeout", "never"]);
    command.arg(mount.mnt()).stderr(Stdio::piped());
    let mut unmounts = command.spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(unmounts.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.ends_with("; waiting\n"), "{line}");
    mount.signal(Signal::KILL);
    let ended = wait_child(&mut unmounts, LIMIT);
    if ended.is_none() {
        unmounts.kill().unwrap();
    }
    assert!(ended.expect("it ends").success());
    assert_eq!(mount_at(&mount.mnt()), None);
    program.join().unwrap().unwrap_err();
    mount.kill();
}
