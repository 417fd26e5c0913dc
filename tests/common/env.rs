//! `TestEnv`: a directory of its own with SRC and MNT in it, and the guard that leaves nothing
//! behind, neither when the test passes nor when it fails in the middle.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::LIMIT;
use super::process::{Finished, processes_naming, run};
use super::table::{mount_at, mounts_below, wait_table};

/// The program under test, as cargo built it.
pub(crate) const LOOPFS: &str = env!("CARGO_BIN_EXE_loopfs");

/// One test's files. Everything that it mounts and starts has the unique path of this directory in
/// it: that is how the guard finds it.
pub(crate) struct TestEnv {
    // None only while it is dropped.
    directory: Option<TempDir>,
    root: PathBuf,
}

impl TestEnv {
    /// A new directory with empty `src` and `mnt`, open to every user, owned by root.
    #[track_caller]
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests need /dev/fuse"
        );
        let directory = TempDir::with_prefix("loopfs-test-").expect("a temporary directory");
        let root = directory.path().canonicalize().expect("its real path");
        let env = Self {
            directory: Some(directory),
            root,
        };
        for path in [env.root.clone(), env.src(), env.mnt()] {
            if !path.exists() {
                fs::create_dir(&path).expect("create");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("open to all");
        }
        env
    }

    /// The test's directory itself: `src`, `mnt` and logs are in it.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn src(&self) -> PathBuf {
        self.root.join("src")
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// `loopfs` with `arguments`, in an environment that does not depend on who runs the tests.
    pub(crate) fn loopfs<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = self.command(LOOPFS);
        command.args(arguments);
        command
    }

    /// The same with at most `limit` files open.
    pub(crate) fn loopfs_limited<A: AsRef<OsStr>>(
        &self,
        limit: usize,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = self.command("prlimit");
        command
            .arg(format!("--nofile={limit}:{limit}"))
            .arg(LOOPFS)
            .args(arguments);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.root)
            .env("RUST_LOG", "warn,loopfs=info,fuser::reply=off");
        for name in [
            "LOOPFS_FEATURES_OFF",
            "NOTIFY_SOCKET",
            "JOURNAL_STREAM",
            "RUST_BACKTRACE",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Starts `loopfs` where it must refuse: exactly one line on stderr, nothing on stdout, the
    /// mount table and the processes as before. Returns the exit code and the line.
    #[track_caller]
    pub(crate) fn refused<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> (i32, String) {
        self.refused_by(&mut self.loopfs(arguments))
    }

    /// As [`Self::refused`], with a prepared command.
    #[track_caller]
    pub(crate) fn refused_by(&self, command: &mut Command) -> (i32, String) {
        let before = mounts_below(&self.root);
        let processes = processes_naming(&self.root).len();
        let finished = run(command.env("RUST_LOG", "warn"), LIMIT);
        assert!(
            !finished.status.success(),
            "should have been refused: {finished:#?}"
        );
        assert_eq!(finished.stdout, "", "{finished:#?}");
        assert_eq!(
            finished.stderr.trim_end().lines().count(),
            1,
            "one clear line: {finished:#?}"
        );
        assert!(
            loopfs::cli::generate::is_documented(&finished.stderr),
            "not in DIAGNOSTICS of loopfs(1): {finished:#?}"
        );
        assert_eq!(mounts_below(&self.root), before, "something was mounted");
        assert_eq!(
            processes_naming(&self.root).len(),
            processes,
            "a process was left"
        );
        (finished.code(), finished.stderr.trim_end().to_owned())
    }

    /// A copy of the binary where every user can reach it (the checkout may be below a private home).
    pub(crate) fn public_binary(&self) -> PathBuf {
        let copy = self.root.join("loopfs");
        if !copy.exists() {
            fs::copy(LOOPFS, &copy).expect("copy the binary");
        }
        copy
    }

    /// Runs a shell script in a mount namespace of its own, where it may put things over `/dev/fuse`
    /// and others without anybody else seeing it. `$SRC`, `$MNT`, `$ROOT` and `$LOOPFS` are set.
    pub(crate) fn private_script(&self, script: &str) -> Finished {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-euc", script])
            // The directory among sh's arguments lets the guard find a script that hangs.
            .args([OsStr::new("sh"), self.root.as_os_str()])
            .env("ROOT", &self.root)
            .env("SRC", self.src())
            .env("MNT", self.mnt())
            .env("LOOPFS", self.public_binary())
            .env_remove("LOOPFS_FEATURES_OFF")
            .current_dir("/");
        run(&mut command, Duration::from_secs(60))
    }

    /// Asserts that no mount and no process of this test is left.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(mounts_below(&self.root), [], "a mount is left");
        let left: Vec<_> = processes_naming(&self.root)
            .iter()
            .map(|process| process.pid)
            .collect();
        assert!(left.is_empty(), "processes left: {left:?}");
    }

    fn clean_up(&self) -> bool {
        let processes = processes_naming(&self.root);
        for process in &processes {
            process.signal(Signal::TERM);
        }
        // In a failing test the daemon may be what hangs: it gets a moment, not the whole limit.
        let ended = processes
            .iter()
            .all(|process| process.wait_end(Duration::from_secs(5)));
        if !ended {
            for mount in mounts_below(&self.root) {
                // Needs fusectl; without it the SIGKILL below ends the connection just as well.
                let _ = fs::write(
                    format!("/sys/fs/fuse/connections/{}/abort", mount.minor),
                    "1",
                );
            }
            for process in &processes {
                process.signal(Signal::KILL);
                process.wait_end(Duration::from_secs(5));
            }
        }
        for mount in mounts_below(&self.root) {
            let mut umount = Command::new("umount");
            let _ = umount.arg("-l").arg(&mount.target).status();
        }
        ended && mounts_below(&self.root).is_empty()
    }

    fn print_logs(&self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = fs::read(&path).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let from = log.len().saturating_sub(20_000);
                let from = (from..=log.len())
                    .find(|i| log.is_char_boundary(*i))
                    .unwrap_or(from);
                let _ = writeln!(
                    std::io::stderr(),
                    "---- {}\n{}",
                    path.display(),
                    &log[from..]
                );
            }
        }
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.clean_up();
        // Removing a directory with a mount in it would remove what the mount shows.
        if let Some(directory) = self.directory.take() {
            if mounts_below(&self.root).is_empty() {
                // What a test made immutable or append-only can't be removed before that is undone.
                // Only then: chattr follows symlinks, and one may lead to a mount that hangs.
                if fs::remove_dir_all(&self.root).is_err() {
                    let _ = Command::new("chattr")
                        .args(["-R", "-f", "-i", "-a"])
                        .arg(&self.root)
                        .status();
                }
                let _ = directory.close();
            } else {
                let kept = directory.keep();
                let _ = writeln!(
                    std::io::stderr(),
                    "still mounted, so kept: {}",
                    kept.display()
                );
            }
        }
    }
}

/// Waits until nothing is mounted at `target`; false when `limit` passes first.
pub(crate) fn wait_unmounted(target: &Path, limit: Duration) -> bool {
    wait_table(limit, || mount_at(target).is_none())
}
