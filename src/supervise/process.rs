//! One child of the supervisor: started with a socket as its standard input, held by a pidfd, heard until it is dead.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};

use super::child::VARIABLE;
use super::link::Link;
use super::message::{Order, Report, VERSION};
use super::succession;
use crate::sys::fs::ProcPath;
use crate::sys::process::{become_program, place_of_program};

/// A child.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    life: OwnedFd,
    link: Link,
    connected: bool,
    stage: Stage,
    last_word: Option<Report>,
    reaped: bool,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Starting,
    Up,
    Serving,
    /// It holds up what comes.
    Paused,
}

/// A program to be run, by what it is and not by what lies at its path later.
#[derive(Debug)]
pub(crate) struct Program {
    file: OwnedFd,
    path: PathBuf,
}

impl Program {
    /// The one that `path` leads to now.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let path = place_of_program(&ProcPath::of(file.as_fd()).to_path())?;
        Ok(Self { file, path })
    }

    /// Where it lay, and where another one may lie by now.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Has this process run it, with the arguments that it has, and with that variable. Returns if that can't be.
    pub(crate) fn take_this_process(&self, (name, value): (&str, OsString)) -> io::Error {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let others = std::env::vars_os().filter(|(it, _)| it != name && !is_for_this_process(it));
        let variables: Vec<_> = others.chain([(name.into(), value)]).collect();
        become_program(self.file.as_fd(), &arguments, &variables)
    }

    /// Starts it with this process's own arguments.
    pub(crate) fn start(&self) -> io::Result<Process> {
        let (link, theirs) = Link::pair()?;
        let mut arguments = std::env::args_os();
        let name = arguments.next();
        let mut command = Command::new(ProcPath::of(self.file.as_fd()).to_path());
        // By its name it knows whether it was called by mount(8).
        command.arg0(name.as_deref().unwrap_or("loopfs".as_ref()));
        command
            .args(arguments)
            .env(VARIABLE, VERSION)
            .env_remove(succession::VARIABLE)
            .stdin(Stdio::from(theirs.into_socket()));
        for name in FOR_THIS_PROCESS {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        // Its number can't come to mean another process before it is reaped, which only `reap` does.
        let life = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process {
            pid,
            life,
            link,
            connected: true,
            stage: Stage::Starting,
            last_word: None,
            reaped: false,
        })
    }
}

/// Variables by which systemd tells this process something: one that follows it must not take them for its own. The watchdog's
/// is the child's, without the number of this one.
const FOR_THIS_PROCESS: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

fn is_for_this_process(name: &OsStr) -> bool {
    FOR_THIS_PROCESS.iter().any(|it| name == *it)
}

impl Process {
    /// A child of this process, from when that ran another program. It serves.
    pub(crate) fn again(pid: Pid, link: Link) -> io::Result<Self> {
        // An error for what is not a child of this process. A dead one stays to be heard of.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), look)?;
        let life = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pid,
            life,
            link,
            connected: true,
            stage: Stage::Serving,
            last_word: None,
            reaped: false,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when it has said something, and hung up when it has ended, or as good as: see [`Self::kill_and_wait`].
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Readable when it is dead.
    pub(crate) fn life(&self) -> BorrowedFd<'_> {
        self.life.as_fd()
    }

    /// Whether it may still say something.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether it hears signals.
    pub(crate) fn is_up(&self) -> bool {
        self.stage >= Stage::Up
    }

    /// Whether it serves.
    pub(crate) fn serves(&self) -> bool {
        self.stage >= Stage::Serving
    }

    /// Whether it holds up what comes.
    pub(crate) fn has_paused(&self) -> bool {
        self.stage == Stage::Paused
    }

    pub(crate) fn has_paused_now(&mut self) {
        self.stage = Stage::Paused;
    }

    /// Waits until it says something, or has ended, but no longer than until `end`.
    pub(crate) fn wait_for_word(&self, end: Instant) {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else {
            return;
        };
        let mut word = [PollFd::new(&self.link, PollFlags::IN)];
        // An interruption makes it shorter, that is all.
        let _ = poll(&mut word, Some(&left));
    }

    pub(crate) fn is_up_now(&mut self) {
        self.stage = Stage::Up;
    }

    pub(crate) fn serves_now(&mut self) {
        self.stage = Stage::Serving;
    }

    /// What it has said, if it has. One that can't be understood is killed.
    pub(crate) fn heard(&mut self) -> Option<Report> {
        if !self.connected {
            return None;
        }
        let report = match self.link.receive_now() {
            Ok(Some(parcel)) => Report::of(parcel),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(None) | Err(_) => {
                self.connected = false;
                return None;
            }
        };
        if report.is_none() {
            log::error!("the serving process can't be understood: it is killed");
            self.connected = false;
            self.kill();
        }
        report
    }

    pub(crate) fn tell(&self, order: &Order) -> io::Result<()> {
        let (bytes, descriptors) = order.parcel();
        let descriptors: Vec<_> = descriptors.into_iter().map(|it| it.as_fd()).collect();
        self.link.send(&bytes, &descriptors)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It can only be dead, which is heard otherwise.
        let _ = pidfd_send_signal(&self.life, signal);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Kills it, and waits until it does nothing any more that was asked of it.
    ///
    /// It may be long before it is dead: a thread that tells the kernel of changes may wait for a lock, whose owner waits for an
    /// answer that the next process gives. But its end of the socket, which no code of it closes, is closed by the last of all
    /// other threads when that has made its last system call (`do_exit`, `exit_files`); the ones that tell share no descriptors
    /// with them (`fuse/line.rs`), and do nothing else. So it is killed first, and the socket is looked at then.
    pub(crate) fn kill_and_wait(&self) {
        self.kill();
        loop {
            let mut ends = [
                PollFd::new(&self.link, PollFlags::empty()),
                PollFd::new(&self.life, PollFlags::IN),
            ];
            // What can fail is EINTR.
            if poll(&mut ends, None).is_ok() && ends.iter().any(|it| !it.revents().is_empty()) {
                return;
            }
        }
    }

    /// It ends, and has said how that is to be taken.
    pub(crate) fn last_word(&mut self, report: Report) {
        self.last_word = Some(report);
    }

    pub(crate) fn has_last_word(&self) -> bool {
        self.last_word.is_some()
    }

    pub(crate) fn take_last_word(&mut self) -> Option<Report> {
        self.last_word.take()
    }

    /// How it died; `None` if that is not known within `patience`.
    pub(crate) fn reap(&mut self, patience: Duration) -> io::Result<Option<WaitStatus>> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut life = [PollFd::new(&self.life, PollFlags::IN)];
            if let Ok(left) = Timespec::try_from(left) {
                // An interruption makes it shorter, that is all.
                let _ = poll(&mut life, Some(&left));
            }
            match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    self.reaped = true;
                    return Ok(Some(status));
                }
                Ok(None) if left.is_zero() => return Ok(None),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether it is still to be reaped.
    pub(crate) fn is_unburied(&self) -> bool {
        !self.reaped
    }
}

/// Whether SIGKILL was what it died of.
pub(super) fn was_killed(status: WaitStatus) -> bool {
    status.terminating_signal() == Some(Signal::KILL.as_raw())
}

/// How it died, in words.
pub(super) fn describe(status: Option<WaitStatus>) -> String {
    let Some(status) = status else {
        return "is gone".to_owned();
    };
    match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with status {code} and without a word"),
        (None, None) => "ended".to_owned(),
    }
}
