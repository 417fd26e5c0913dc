//! `Supervised`: a mount with a supervisor, and the process that serves under it, found as its child.

use std::fs;
use std::ops::Deref;
use std::time::Duration;

use rustix::process::Pid;

use crate::common::process::{Watched, eventually};
use crate::common::table::mounts;
use crate::common::{LIMIT, Mount, Signal, TestEnv};

/// `loopfs -f --supervise OPTIONS SRC MNT`.
pub(crate) struct Supervised(Mount);

impl Deref for Supervised {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.0
    }
}

impl Supervised {
    #[track_caller]
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_in(TestEnv::new(), options)
    }

    #[track_caller]
    pub(crate) fn start_in(env: TestEnv, options: &[&str]) -> Self {
        let options: Vec<&str> = ["--supervise", "--restart-limit", "never"]
            .into_iter()
            .chain(options.iter().copied())
            .collect();
        Self::of(Mount::start_in(env, &options))
    }

    /// The same with operations that are to fail (`LOOPFS_FAULTS`).
    #[track_caller]
    pub(crate) fn start_with_faults(faults: &str, options: &[&str]) -> Self {
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f", "--supervise"]);
        command
            .args(options)
            .arg(env.src())
            .arg(env.mnt())
            .env("LOOPFS_FAULTS", faults);
        Self::of(Mount::start_command(env, command))
    }

    /// One that was started otherwise. Returns when the supervisor knows that the mount can be used.
    #[track_caller]
    pub(crate) fn of(mount: Mount) -> Self {
        eventually("the supervisor has been told", LIMIT, || {
            mount.log().contains("is served by process ")
        });
        Self(mount)
    }

    /// The process that serves now.
    #[track_caller]
    pub(crate) fn child(&self) -> Watched {
        child_of(self.pid()).expect("a process that serves")
    }

    /// SIGKILL for the process that serves; returns when another one does.
    #[track_caller]
    pub(crate) fn kill_child(&self) {
        let before = self.restarts();
        let child = self.child();
        child.signal(Signal::KILL);
        assert!(child.wait_end(LIMIT), "SIGKILL did not end it");
        self.wait_restarts(before + 1);
    }

    /// How often another process has gone on.
    pub(crate) fn restarts(&self) -> usize {
        self.log().matches("is served again").count()
    }

    #[track_caller]
    pub(crate) fn wait_restarts(&self, number: usize) {
        eventually("another process serves", LIMIT, || {
            self.restarts() >= number
        });
    }

    /// True while this very mount is in the mount table.
    pub(crate) fn is_mounted(&self) -> bool {
        mounts().contains(self.entry())
    }

    /// Sees that it does not end for as long as `time`.
    #[track_caller]
    pub(crate) fn stays(&self, time: Duration) {
        let supervisor = Watched::new(self.pid()).expect("the supervisor has ended");
        assert!(!supervisor.wait_end(time), "the supervisor ended");
    }

    pub(crate) fn into_mount(self) -> Mount {
        self.0
    }
}

/// The last child of a process, if it has one now: one before it may not have died quite yet.
pub(crate) fn child_of(pid: Pid) -> Option<Watched> {
    let pid = pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = children.split_whitespace().last()?.parse().ok()?;
    Watched::new(Pid::from_raw(child)?)
}
