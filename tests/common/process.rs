//! Other programs, with a time limit on each, and the processes of a test found by its directory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// What a program left behind when it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Its exit code; -1 if a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Its standard output, if it succeeded; the test fails otherwise.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }
}

/// Runs `command` to its end, at most `limit`; longer fails the test.
///
/// Output goes through files, not pipes: a pipe that a surviving child still holds would make the
/// reader wait for the child and hide that the program itself has ended.
#[track_caller]
pub(crate) fn run(command: &mut Command, limit: Duration) -> Finished {
    let mut stdout = tempfile::tempfile().expect("temporary file for stdout");
    let mut stderr = tempfile::tempfile().expect("temporary file for stderr");
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("duplicate"))
        .stderr(stderr.try_clone().expect("duplicate"));
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let status = wait_child(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
    }
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    let status = status.unwrap_or_else(|| {
        panic!("{command:?} did not end within {limit:?}\nstdout: {stdout}\nstderr: {stderr}")
    });
    Finished {
        status,
        stdout,
        stderr,
    }
}

/// Runs a shell script (`sh -eu`), at most 60 seconds, in `directory`, and returns what it printed;
/// a script that fails, fails the test.
#[track_caller]
pub(crate) fn sh(directory: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(directory);
    run(&mut command, Duration::from_secs(60)).success()
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("rewind");
    file.read_to_end(&mut bytes).expect("read output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for `child`, at most `limit`; `None` if it runs still.
pub(crate) fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let pid = Pid::from_child(child);
    match Watched::new(pid) {
        Some(watched) if !watched.wait_end(limit) => None,
        _ => child.wait().ok(),
    }
}

/// A process held by a pidfd: the number can't come to mean another one.
pub(crate) struct Watched {
    pub(crate) pid: Pid,
    fd: OwnedFd,
}

impl Watched {
    /// `None` if there is no such process any more.
    pub(crate) fn new(pid: Pid) -> Option<Self> {
        Some(Self {
            pid,
            fd: pidfd_open(pid, PidfdFlags::empty()).ok()?,
        })
    }

    /// Whether the process ended within `limit`.
    pub(crate) fn wait_end(&self, limit: Duration) -> bool {
        wait_readable(&[(self.fd.as_fd(), PollFlags::IN)], limit)
    }

    /// Waits until a thread of it waits in the kernel, and for nothing that a signal could end.
    #[track_caller]
    pub(crate) fn wait_stuck(&self, thread: &str) {
        // Many waits of that kind are over at once.
        let mut seen = 0;
        eventually("a thread is stuck in the kernel", super::LIMIT, || {
            let is_stuck = thread_state(self.pid, thread) == Some('D');
            seen = if is_stuck { seen + 1 } else { 0 };
            seen > 20
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // ESRCH is the one error possible here: it has ended, which is what signals are sent for.
        let _ = kill_process(self.pid, signal);
    }
}

/// The state of the thread with that name, as in /proc/PID/stat.
fn thread_state(pid: Pid, name: &str) -> Option<char> {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
    let stat = threads.flatten().find_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.contains(&format!("({name})")).then_some(stat)
    })?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Waits until one of `fds` has one of its events; false when `limit` passes first.
pub(crate) fn wait_readable(fds: &[(BorrowedFd<'_>, PollFlags)], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let mut polled: Vec<_> = fds
            .iter()
            .map(|(fd, events)| PollFd::from_borrowed_fd(*fd, *events))
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a limit of seconds");
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Waits until `condition` holds, looking again every few milliseconds: for what no descriptor
/// reports. The test fails when `limit` passes first.
#[track_caller]
pub(crate) fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        let _ = poll(&mut [], Some(&moment));
    }
}

/// Every live process, other than this one, with `directory` or something below it among its
/// arguments. Test directories have unique names, so these are this test's own.
pub(crate) fn processes_naming(directory: &Path) -> Vec<Watched> {
    let own = rustix::process::getpid();
    let needle = directory.as_os_str().as_bytes();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .and_then(Pid::from_raw)
        })
        .filter(|pid| {
            *pid != own
                && command_line(*pid)
                    .windows(needle.len())
                    .any(|w| w == needle)
        })
        .filter_map(Watched::new)
        .filter(|process| !process.wait_end(Duration::ZERO))
        .collect()
}

/// The session id of a process as `/proc/PID/stat` has it: 0 where its leader is outside this pid namespace, as in a
/// container, which getsid(2) reports too and no `Pid` can say.
pub(crate) fn session(pid: Pid) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    // The command may hold anything, a parenthesis too: state, parent, group and session follow the last one.
    let (_, fields) = stat.rsplit_once(')').expect("a command in parentheses");
    fields.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// The arguments of a process as the kernel keeps them, NUL after each; empty for a zombie.
fn command_line(pid: Pid) -> Vec<u8> {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default()
}

/// The program that a process runs, without its folder.
pub(crate) fn program_name(pid: Pid) -> Option<String> {
    let path = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok()?;
    path.file_name()
        .map(OsStr::to_string_lossy)
        .map(std::borrow::Cow::into_owned)
}
