//! Running a command, and reading what it says.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};

use rustix::process::{Pid, kill_process};
use serde_json::Value;

use crate::common::process::{eventually, run};
use crate::common::{Finished, LIMIT, Mount, Signal, TestEnv};

/// `loopfs WORDS MNT`, within the time that anything may take.
pub(crate) fn look(env: &TestEnv, words: &[&str]) -> Finished {
    let mut command = env.loopfs(words);
    command.arg(env.mnt());
    run(&mut command, LIMIT)
}

/// `loopfs status --json MNT`.
#[track_caller]
pub(crate) fn status(env: &TestEnv) -> Value {
    serde_json::from_str(&look(env, &["status", "--json"]).success()).expect("JSON")
}

/// The entries of `loopfs list --json` that are of this test.
#[track_caller]
pub(crate) fn listed(env: &TestEnv) -> Vec<Value> {
    let text = run(&mut env.loopfs(["list", "--json"]), LIMIT).success();
    let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let ours = |it: &Value| Path::new(it["target"].as_str().unwrap()).starts_with(env.root());
    all.into_iter().filter(ours).collect()
}

/// Where the socket of a mount of root's lies.
pub(crate) fn socket(mount: &Mount) -> PathBuf {
    PathBuf::from(format!("/run/loopfs/0:{}.sock", mount.entry().minor))
}

/// A file that is open below MNT.
pub(crate) fn open(mount: &Mount) -> File {
    fs::write(mount.source("held"), "held").unwrap();
    File::open(mount.path("held")).unwrap()
}

/// A process that does not run, until this is dropped.
pub(crate) struct Stopped(Pid);

impl Stopped {
    /// The daemon of a mount.
    pub(crate) fn stop(mount: &Mount) -> Self {
        Self::process(mount.pid())
    }

    pub(crate) fn process(pid: Pid) -> Self {
        let stopped = Self(pid);
        stopped.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        eventually("every thread has stopped", LIMIT, || {
            let mut threads = fs::read_dir(&tasks).unwrap().flatten();
            threads.all(|thread| {
                let status = fs::read_to_string(thread.path().join("status"));
                status.is_ok_and(|status| status.contains("State:\tT"))
            })
        });
        stopped
    }

    fn signal(&self, signal: Signal) {
        // It may have been killed meanwhile.
        let _ = kill_process(self.0, signal);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

/// `loopfs unmount`, which waits until nobody uses the mount any more, and has said so.
pub(crate) struct Unmounts {
    pub(crate) child: Child,
    pub(crate) stderr: BufReader<ChildStderr>,
    /// For whom it waits.
    pub(crate) line: String,
}

impl Unmounts {
    pub(crate) fn start(mount: &Mount) -> Self {
        let mut command = mount.loopfs(["unmount", "--timeout", "never"]);
        command
            .arg(mount.mnt())
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        assert!(line.ends_with("; waiting\n"), "{line}");
        Self {
            child,
            stderr,
            line,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Unmounts {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
