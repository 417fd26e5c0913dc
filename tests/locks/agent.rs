//! A program that takes locks as a test tells it: `agent.py`, fed line by line.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::LIMIT;
use crate::common::process::{eventually, wait_child};

/// How long a call that must wait is watched not to return.
const MOMENT: Duration = Duration::from_millis(100);

/// One such program.
pub(crate) struct Agent {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Agent {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let mut child = Command::new("python3")
            .args([OsStr::new("-ISuc"), OsStr::new(include_str!("agent.py"))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start python3");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let agent = Self {
            child,
            stdin,
            answers,
        };
        assert_eq!(agent.hear(), "ready");
        agent
    }

    /// One that has `path` open as `f`.
    #[track_caller]
    pub(crate) fn with(path: &Path) -> Self {
        let mut agent = Self::new();
        agent.open("f", path);
        agent
    }

    #[track_caller]
    pub(crate) fn open(&mut self, name: &str, path: &Path) {
        let path = quoted(path);
        assert_eq!(self.ask(&format!("open_('{name}', {path})")), "ok");
    }

    /// What comes of `expression`.
    #[track_caller]
    pub(crate) fn ask(&mut self, expression: &str) -> String {
        self.begin(expression);
        self.hear()
    }

    /// Has it begin with `expression`.
    #[track_caller]
    pub(crate) fn begin(&mut self, expression: &str) {
        writeln!(self.stdin, "{expression}").expect("tell the program");
    }

    /// The answer to what it began with.
    #[track_caller]
    pub(crate) fn hear(&self) -> String {
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => answer,
            Err(error) => panic!("no answer from the program: {error}"),
        }
    }

    /// Has it begin with `expression`, which has to wait, and returns when it does.
    #[track_caller]
    pub(crate) fn wait_in(&mut self, expression: &str) {
        self.begin(expression);
        let thread = self.pid();
        eventually("the call begins", LIMIT, || is_in_lock_call(thread));
        self.still_waits();
    }

    #[track_caller]
    pub(crate) fn still_waits(&self) {
        if let Ok(answer) = self.answers.recv_timeout(MOMENT) {
            panic!("it did not wait: {answer}");
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a live process");
    }

    /// Waits for its end, which a signal has caused; how long that took is for the caller to ask.
    #[track_caller]
    pub(crate) fn ended_by(mut self, signal: Signal) {
        use std::os::unix::process::ExitStatusExt;
        let status = wait_child(&mut self.child, LIMIT).expect("the signal ends it");
        assert_eq!(status.signal(), Some(signal.as_raw()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path as the program reads it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// Whether a thread is in flock(2) or fcntl(2).
pub(crate) fn is_in_lock_call(thread: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|word| word.parse().ok());
    [Some(libc::SYS_flock), Some(libc::SYS_fcntl)].contains(&number)
}
