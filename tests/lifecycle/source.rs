//! SRC misbehaves: it hangs, is removed, can't be read, or is full.

use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::process::{Pid, kill_process};

use super::subject::{Held, Mode, PROMPT, Subject};
use crate::common::process::eventually;
use crate::common::user::NOBODY;
use crate::common::{LIMIT, Mount, Signal, TestEnv, as_user};

/// Another loopfs, whose mount is SRC of the one under test, and which hangs until this is dropped.
struct Stopped(Pid);

impl Stopped {
    /// Returns when each of its threads has stopped, while `subject` does nothing. What nothing can
    /// end, not even SIGKILL, until it goes on, is whoever waits for a request that it had taken
    /// up already, or for a FLUSH: the kernel waits those out (`request_wait_answer`).
    fn stop(below: &Mount, subject: &Subject) -> Self {
        let idle = || subject.connection().waiting() == 0;
        eventually("every RELEASE is done", LIMIT, idle);
        below.signal(Signal::STOP);
        let stopped = Self(below.pid());
        let tasks = format!("/proc/{}/task", below.pid().as_raw_nonzero());
        eventually("every thread has stopped", LIMIT, || {
            let mut threads = fs::read_dir(&tasks).unwrap().flatten();
            threads.all(|thread| {
                let status = fs::read_to_string(thread.path().join("status"));
                status.is_ok_and(|status| status.contains("State:\tT"))
            })
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// SRC on another FUSE mount whose daemon is stopped, and a reader stuck in a request for it. The
/// daemon ends within its deadline and the grace after it, by cutting its connection; the reader
/// gets an error and not a hang.
fn hanging(mode: Mode, signals: usize) {
    let below = Mount::start(&[]);
    fs::write(below.path("f"), "x").unwrap();
    let env = TestEnv::new();
    let (src, mnt) = (below.mnt(), env.mnt());
    let options = ["--drain-timeout", "1"];
    let mount = match mode {
        Mode::Foreground => {
            let mut command = env.loopfs(["-f"]);
            command.args(options).arg(src).arg(mnt);
            Mount::start_command(env, command)
        }
        Mode::Background => {
            // `Subject` would start it on its own SRC.
            fs::remove_dir(env.src()).unwrap();
            std::os::unix::fs::symlink(src, env.src()).unwrap();
            Subject::become_parent_of_orphans();
            Mount::background(env, &options)
        }
    };
    let subject = Subject::of(mount, mode);
    let before = fs::read(subject.path("f")).unwrap();
    assert_eq!(before, b"x");

    let stopped = Stopped::stop(&below, &subject);
    let stuck: Vec<_> = (0..8)
        .map(|number| {
            let path = subject.path(format!("new-{number}"));
            thread::spawn(move || fs::metadata(path))
        })
        .collect();
    subject.wait_waiting(8);
    let told = Instant::now();
    for _ in 0..signals {
        subject.signal(Signal::TERM);
        subject.wait_log("is still in use");
    }
    // The deadline, then the grace that serving gets to return, which it can't.
    let limit = Duration::from_secs(1 + 2) + PROMPT;
    let end = subject.ends_with(0, told, limit);
    let answers = stuck.into_iter().map(|thread| thread.join().unwrap());
    let errors: Vec<_> = answers.map(|answer| answer.map(drop)).collect();
    drop(stopped);
    for error in errors {
        let kind = error.map_err(|error| error.kind());
        assert!(
            matches!(
                kind,
                Err(ErrorKind::NotConnected | ErrorKind::ConnectionAborted)
            ),
            "{kind:?}"
        );
    }
    let env = end
        .says("requests still hang, probably in the source")
        .clean_but_for_the_log();
    drop(env);
    below.finish();
}

#[test]
fn a_stop_while_the_source_hangs() {
    hanging(Mode::Foreground, 1);
}

#[test]
fn a_stop_while_the_source_hangs_in_background() {
    hanging(Mode::Background, 1);
}

#[test]
fn a_second_signal_while_the_source_hangs() {
    hanging(Mode::Foreground, 2);
}

/// The source comes back while it drains: what was stuck goes on, and nothing is cut off.
#[test]
fn the_source_comes_back_while_draining() {
    let below = Mount::start(&[]);
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command.arg(below.mnt()).arg(env.mnt());
    let subject = Subject::of(Mount::start_command(env, command), Mode::Foreground);
    let stopped = Stopped::stop(&below, &subject);
    let path = subject.path("new");
    let stuck = thread::spawn(move || fs::write(path, "not lost"));
    subject.wait_waiting(1);
    subject.signal(Signal::TERM);
    subject.wait_log("is still in use");
    drop(stopped);
    stuck.join().unwrap().unwrap();
    subject.ends(Instant::now()).clean();
    assert_eq!(fs::read_to_string(below.path("new")).unwrap(), "not lost");
    below.finish();
}

/// What takes long in SRC holds up those who ask for it, however many they are, and nobody else.
#[test]
fn allocating_holds_up_nobody_else() {
    let below = Mount::start(&[]);
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f", "--threads", "2"]);
    command.arg(below.mnt()).arg(env.mnt());
    let subject = Subject::of(Mount::start_command(env, command), Mode::Foreground);
    let open = |number| {
        let mut file = File::create(subject.path(format!("file-{number}"))).unwrap();
        // Once it was written to, nobody asks for its capabilities any more.
        file.write_all(b"x").unwrap();
        file
    };
    let (other, files) = (open(4), (0..4).map(open).collect::<Vec<File>>());
    let stopped = Stopped::stop(&below, &subject);
    let allocate = |file: File| {
        let none = rustix::fs::FallocateFlags::empty();
        thread::spawn(move || rustix::fs::fallocate(&file, none, 0, 4096))
    };
    let stuck: Vec<_> = files.into_iter().map(allocate).collect();
    subject.wait_waiting(4);
    // An ioctl that loopfs answers without SRC.
    let other = thread::spawn(move || other.is_terminal());
    let begun = Instant::now();
    while !other.is_finished() && begun.elapsed() < LIMIT {
        thread::yield_now();
    }
    let answered = other.is_finished();
    drop(stopped);
    assert!(answered, "it waits for others' allocating");
    assert!(!other.join().unwrap());
    for thread in stuck {
        thread.join().unwrap().unwrap();
    }
    subject.signal(Signal::TERM);
    subject.ends(Instant::now()).clean();
    below.finish();
}

/// What is unmounted from outside while SRC hangs ends too, when told to.
#[test]
fn a_lazy_unmount_while_the_source_hangs() {
    let below = Mount::start(&[]);
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f", "--drain-timeout", "0"]);
    command.arg(below.mnt()).arg(env.mnt());
    let subject = Subject::of(Mount::start_command(env, command), Mode::Foreground);
    let stopped = Stopped::stop(&below, &subject);
    let path = subject.path("new");
    let stuck = thread::spawn(move || fs::write(path, "x"));
    subject.wait_waiting(1);
    subject.unmount_with("fusermount3", &["-uz"]);
    subject.wait_detached();
    let told = Instant::now();
    subject.signal(Signal::TERM);
    let end = subject.ends_with(0, told, Duration::from_secs(2) + PROMPT);
    assert!(stuck.join().unwrap().is_err());
    drop(stopped);
    end.clean_but_for_the_log();
    below.finish();
}

/// SRC is removed: whoever uses the mount gets errors, what is open works on, the daemon lives.
#[test]
fn the_source_is_removed() {
    let subject = Subject::foreground();
    let mut held = Held::open(&subject);
    fs::write(subject.path("f"), "x").unwrap();
    fs::remove_dir_all(subject.src()).unwrap();
    held.works();
    for error in [
        fs::write(subject.path("new"), "x").unwrap_err(),
        fs::create_dir(subject.path("dir")).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    assert_eq!(fs::read_dir(subject.mnt()).unwrap().count(), 0);
    let _ = fs::metadata(subject.mnt());
    assert!(subject.is_running() && subject.is_mounted());
    drop(held);
    let told = Instant::now();
    subject.signal(Signal::TERM);
    subject.ends(told).clean();
}

/// SRC may not be read by whoever asks: EACCES for them, and nothing for anybody else.
#[test]
fn the_source_is_made_unreadable() {
    let subject = Subject::foreground();
    fs::write(subject.path("f"), "x").unwrap();
    let mode = |mode| fs::set_permissions(subject.src(), fs::Permissions::from_mode(mode));
    mode(0o000).unwrap();
    let mnt = subject.mnt();
    let denied = as_user(NOBODY, NOBODY, &[], || {
        // Attributes may be cached for a moment; the daemon is asked when they have run out.
        eventually("it is denied", LIMIT, || {
            fs::read(mnt.join("f")).is_err() && fs::read_dir(&mnt).is_err()
        });
        fs::read(mnt.join("f")).unwrap_err()
    });
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    assert_eq!(fs::read_to_string(subject.path("f")).unwrap(), "x");
    mode(0o755).unwrap();
    let told = Instant::now();
    subject.signal(Signal::TERM);
    subject.ends(told).clean();
}

/// SRC is full: ENOSPC for the writer, and it works again when there is room.
#[test]
fn the_source_is_full() {
    let env = TestEnv::new();
    let size = c"size=1m";
    rustix::mount::mount("full", env.src(), "tmpfs", MountFlags::empty(), size).unwrap();
    let subject = Subject::start_in(env, Mode::Foreground, &[]);
    let mut file = File::create(subject.path("big")).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[7; 10_000]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    drop(file);
    let another = fs::write(subject.path("another"), [7; 10_000]).unwrap_err();
    assert_eq!(another.kind(), ErrorKind::StorageFull);
    fs::remove_file(subject.path("big")).unwrap();
    fs::write(subject.path("another"), [7; 10_000]).unwrap();
    let told = Instant::now();
    subject.signal(Signal::TERM);
    let end = subject.ends(told);
    assert_eq!(
        fs::read(end.env().src().join("another")).unwrap(),
        [7; 10_000]
    );
    // Nothing of the daemon keeps SRC busy.
    rustix::mount::unmount(end.env().src(), rustix::mount::UnmountFlags::empty()).unwrap();
    end.clean();
}
