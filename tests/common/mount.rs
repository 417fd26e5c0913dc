//! `Mount`: one running `loopfs` daemon, started for a test and ended by it.

// `pre_exec` is unsafe; see its use.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::LIMIT;
use super::env::TestEnv;
use super::process::{Watched, eventually, processes_naming, run, wait_child};
use super::table::{Entry, mount_at};

/// Longest life of a daemon in a test. Below nextest's limit, so that a daemon that hangs is killed
/// (its callers then get ENOTCONN and the test fails by itself) before the test process is.
const LIFE: Duration = Duration::from_secs(100);

/// `LIFE`, after what a test of random operations is given to run, which nothing else has set.
fn life() -> Duration {
    let seconds = std::env::var("LOOPFS_RANDOM_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    LIFE + seconds.map_or(Duration::ZERO, Duration::from_secs)
}

/// What the daemon logs (level info) when it is ready: nothing of the start comes after it.
const READY: &str = "serving ";

/// A daemon serving the SRC of its [`TestEnv`] at its MNT.
pub(crate) struct Mount {
    env: TestEnv,
    daemon: Watched,
    /// The daemon as our child; in the background it is nobody's.
    child: Option<Child>,
    log: PathBuf,
    entry: Entry,
    _watchdog: Sender<()>,
}

impl Deref for Mount {
    type Target = TestEnv;

    fn deref(&self) -> &TestEnv {
        &self.env
    }
}

impl Mount {
    /// `loopfs -f OPTIONS SRC MNT` on new directories; returns when it is mounted.
    #[track_caller]
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_in(TestEnv::new(), options)
    }

    /// The same in an environment that the test has prepared.
    #[track_caller]
    pub(crate) fn start_in(env: TestEnv, options: &[&str]) -> Self {
        let mut command = env.loopfs(["-f"]);
        command.args(options).arg(env.src()).arg(env.mnt());
        Self::start_command(env, command)
    }

    /// The same without some of the kernel's features (`LOOPFS_FEATURES_OFF`).
    #[track_caller]
    pub(crate) fn start_without(features: &str, options: &[&str]) -> Self {
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f"]);
        command.args(options).arg(env.src()).arg(env.mnt());
        command.env("LOOPFS_FEATURES_OFF", features);
        Self::start_command(env, command)
    }

    /// The same with a prepared foreground command that names SRC and MNT of `env`.
    #[track_caller]
    pub(crate) fn start_command(env: TestEnv, mut command: Command) -> Self {
        let log = logging_to_file(&env, &mut command);
        let logged = fs::read(&log).map_or(0, |text| text.len());
        // If the test process is killed, its daemon unmounts and ends as if told to.
        // SAFETY: between fork and exec only a prctl is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                Ok(())
            });
        }
        let child = command.spawn().expect("start loopfs");
        let daemon =
            Watched::new(Pid::from_child(&child)).expect("a child that nobody has waited for");
        // The mount table alone does not tell: a mount(2) fallback is in it before anybody serves it,
        // and a dead mount's id may be given to the new one at once. The log line is the last step.
        let told = || fs::read_to_string(&log).is_ok_and(|text| text[logged..].contains(READY));
        eventually("loopfs is ready", LIMIT, || {
            assert!(
                !daemon.wait_end(Duration::ZERO),
                "{command:?} ended at once"
            );
            told() && mount_at(&env.mnt()).is_some()
        });
        Self::new(env, daemon, Some(child), log)
    }

    /// `loopfs OPTIONS SRC MNT`, in the background; returns when the parent has.
    #[track_caller]
    pub(crate) fn background(env: TestEnv, options: &[&str]) -> Self {
        let mut command = env.loopfs(options);
        command.arg(env.src()).arg(env.mnt());
        // A file as stderr is kept by the daemon: its log is looked at like that of a foreground one.
        let log = logging_to_file(&env, &mut command);
        let mut parent = command.spawn().expect("start loopfs");
        let status = wait_child(&mut parent, LIMIT).expect("the parent returns");
        assert!(status.success(), "{status}");
        let mut processes = processes_naming(env.root());
        assert_eq!(processes.len(), 1, "one daemon");
        let daemon = processes.remove(0);
        Self::new(env, daemon, None, log)
    }

    #[track_caller]
    fn new(env: TestEnv, daemon: Watched, child: Option<Child>, log: PathBuf) -> Self {
        let entry = mount_at(&env.mnt()).expect("mounted");
        let pid = daemon.pid;
        let (watchdog, life) = channel::<()>();
        thread::spawn(move || {
            let over =
                life.recv_timeout(self::life()) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            if let Some(daemon) = Watched::new(pid).filter(|_| over) {
                eprintln!("the daemon {pid:?} outlived its test's limit: killed");
                daemon.signal(Signal::KILL);
            }
        });
        Self {
            env,
            daemon,
            child,
            log,
            entry,
            _watchdog: watchdog,
        }
    }

    /// A path below MNT.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.env.mnt().join(name)
    }

    /// The same path below SRC.
    pub(crate) fn source(&self, name: impl AsRef<Path>) -> PathBuf {
        self.env.src().join(name)
    }

    /// The line of the mount table, as it was when the daemon was ready.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(crate) fn pid(&self) -> Pid {
        self.daemon.pid
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.daemon.wait_end(Duration::ZERO)
    }

    /// What the daemon has logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.daemon.signal(signal);
    }

    /// `program ARGUMENTS MNT`, e.g. `fusermount3 -u`; the test fails if it fails.
    #[track_caller]
    pub(crate) fn unmount_with(&self, program: &str, arguments: &[&str]) {
        self.try_unmount_with(program, arguments).success();
    }

    /// The same, where it may fail (busy).
    #[track_caller]
    pub(crate) fn try_unmount_with(&self, program: &str, arguments: &[&str]) -> super::Finished {
        let mut command = Command::new(program);
        command.args(arguments).arg(self.env.mnt());
        run(&mut command, LIMIT)
    }

    /// Ends it with SIGTERM and checks the end, as [`Self::ended`].
    #[track_caller]
    pub(crate) fn finish(self) -> TestEnv {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for the end that something else has caused, and checks it: status 0, MNT unmounted,
    /// no process left, nothing in the log that tells of a fault.
    #[track_caller]
    pub(crate) fn ended(self) -> TestEnv {
        let (env, status, log) = self.ended_somehow();
        if let Some(status) = status {
            assert_eq!(status.code(), Some(0), "{status}");
        }
        assert_log_is_clean(&log);
        env.assert_clean();
        env
    }

    /// Waits for the end, whatever the status: (environment, status of a foreground daemon, log).
    #[track_caller]
    pub(crate) fn ended_somehow(mut self) -> (TestEnv, Option<ExitStatus>, String) {
        assert!(
            self.daemon.wait_end(LIMIT),
            "the daemon did not end within {LIMIT:?}"
        );
        let status = self
            .child
            .as_mut()
            .and_then(|child| wait_child(child, LIMIT));
        // It has ended, so its mount must be gone by now, whatever else is mounted there.
        assert_ne!(
            mount_at(&self.env.mnt()).as_ref(),
            Some(&self.entry),
            "still mounted after the end"
        );
        let log = self.log();
        (self.env, status, log)
    }

    /// Requests of a kind that the daemon has served, by its own account at level "trace".
    pub(crate) fn requests(&self, kind: &str) -> usize {
        self.log().matches(&format!(" {kind} for uid ")).count()
    }

    /// SIGKILL: the daemon is gone and its dead mount stays ("Transport endpoint is not connected").
    #[track_caller]
    pub(crate) fn kill(mut self) -> TestEnv {
        self.signal(Signal::KILL);
        assert!(self.daemon.wait_end(LIMIT), "SIGKILL did not end it");
        if let Some(child) = self.child.as_mut() {
            wait_child(child, LIMIT);
        }
        self.env
    }
}

/// Directs the output of `command` to a file that the guard prints if the test fails.
fn logging_to_file(env: &TestEnv, command: &mut Command) -> PathBuf {
    let log = env.root().join("daemon.log");
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .expect("log file");
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("duplicate"))
        .stderr(output);
    log
}

/// A log that tells of a panic, or has a line of priority "error" in any of the formats, fails.
#[track_caller]
pub(crate) fn assert_log_is_clean(log: &str) {
    let fault = log.lines().find(|line| {
        line.contains("panicked") || line.contains("ERROR") || line.starts_with("<3>")
    });
    assert!(
        fault.is_none(),
        "the daemon's log tells of a fault: {fault:?}"
    );
}

/// Arguments that differ in type, made one list.
pub(crate) fn arguments(words: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}
