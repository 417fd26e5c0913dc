//! `Start`: a `loopfs` that was started and need not get as far as being mounted; or that mounts
//! elsewhere than at its environment's MNT.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};

use super::subject::PROMPT;
use crate::common::process::{Watched, eventually, wait_child};
use crate::common::table::{mount_at, wait_table};
use crate::common::{LIMIT, Signal, TestEnv};

/// A start under way.
pub(crate) struct Start {
    env: TestEnv,
    child: Child,
    target: PathBuf,
    pub(crate) begun: Instant,
}

impl Start {
    /// `loopfs OPTIONS SRC MNT`; returns when the program has been executed.
    #[track_caller]
    pub(crate) fn of(env: TestEnv, options: &[&str]) -> Self {
        Self::without("", env, options)
    }

    /// The same with some of the kernel's features switched off.
    #[track_caller]
    pub(crate) fn without(features: &str, env: TestEnv, options: &[&str]) -> Self {
        let mut command = env.loopfs(options);
        let target = env.mnt();
        command
            .args([env.src(), env.mnt()])
            .env("LOOPFS_FEATURES_OFF", features);
        Self::command(env, command, target)
    }

    /// `loopfs -f SRC TARGET`; returns when it is ready.
    #[track_caller]
    pub(crate) fn at(env: TestEnv, src: &Path, target: &Path) -> Self {
        let mut command = env.loopfs(["-f".as_ref(), src, target]);
        command.env_remove("LOOPFS_FEATURES_OFF");
        let start = Self::command(env, command, target.to_owned());
        eventually("it is ready", LIMIT, || Self::is_ready_in(&start.env));
        start
    }

    #[track_caller]
    fn command(env: TestEnv, mut command: Command, target: PathBuf) -> Self {
        let output = File::create(env.root().join("start.log")).expect("create");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicate"))
            .stderr(output);
        Self {
            env,
            child: command.spawn().expect("start loopfs"),
            target,
            begun: Instant::now(),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // ESRCH: the parent of a daemon in the background has returned.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits until something is mounted at its target.
    #[track_caller]
    pub(crate) fn wait_mounted(&self) {
        let mounted = wait_table(LIMIT, || mount_at(&self.target).is_some());
        assert!(mounted, "never mounted");
    }

    pub(crate) fn is_running(&self) -> bool {
        Watched::new(Pid::from_child(&self.child))
            .is_some_and(|child| !child.wait_end(Duration::ZERO))
    }

    /// Whether the program that was started in `env` has said that it serves.
    pub(crate) fn is_ready_in(env: &TestEnv) -> bool {
        log_in(env).contains(": serving ")
    }

    pub(crate) fn env(&self) -> &TestEnv {
        &self.env
    }

    pub(crate) fn log(&self) -> String {
        log_in(&self.env)
    }

    /// The status with which it ended, promptly after `since`, and its log.
    #[track_caller]
    pub(crate) fn ended(mut self, since: Instant) -> (TestEnv, ExitStatus, String) {
        let status = wait_child(&mut self.child, LIMIT).expect("it hangs");
        let took = since.elapsed();
        assert!(took < PROMPT, "ended after {took:?}");
        let log = log_in(&self.env);
        assert!(!log.contains("panicked"), "{log}");
        (self.env, status, log)
    }
}

fn log_in(env: &TestEnv) -> String {
    fs::read_to_string(env.root().join("start.log")).unwrap_or_default()
}
