//! Programs that keep a mount busy: `loopfs-churn`, several processes of several threads each,
//! which create, write, fsync, read back, rename, list and unlink, and check what they read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::process::{eventually, run, wait_child};
use crate::common::{LIMIT, Mount, TestEnv};

const CHURN: &str = env!("CARGO_BIN_EXE_loopfs-churn");

/// Running programs; they are killed if the test fails before they have ended.
pub(crate) struct Load {
    programs: Vec<(Child, PathBuf)>,
}

impl Load {
    /// Three processes of two threads each. Returns when each has finished a few files.
    #[track_caller]
    pub(crate) fn start(mount: &Mount) -> Self {
        Self::of(mount, 3)
    }

    #[track_caller]
    pub(crate) fn of(mount: &Mount, processes: usize) -> Self {
        let start = |number| {
            let output = mount.root().join(format!("churn-{number}.log"));
            let file = File::create(&output).expect("create");
            let child = Command::new(CHURN)
                .args(["--jobs", "2"])
                .arg(mount.mnt())
                .stdin(Stdio::null())
                .stdout(file.try_clone().expect("duplicate"))
                .stderr(file)
                .spawn()
                .expect("start loopfs-churn");
            (child, output)
        };
        let load = Self {
            programs: (0..processes).map(start).collect(),
        };
        for (child, _) in &load.programs {
            let directory = mount.source(format!("churn-{}", child.id()));
            eventually("loopfs-churn is at work", LIMIT, || {
                whole_files(&directory) >= 3
            });
        }
        load
    }

    /// Tells the programs to stop, and waits.
    #[track_caller]
    pub(crate) fn stop(self) {
        for (child, _) in &self.programs {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        self.finished();
    }

    /// Waits for the end of the programs, whose mount has gone. None may have seen an error other
    /// than that, or wrong content.
    #[track_caller]
    pub(crate) fn finished(mut self) {
        for (child, output) in &mut self.programs {
            let status = wait_child(child, LIMIT).expect("loopfs-churn hangs");
            let output = fs::read_to_string(output).unwrap_or_default();
            assert!(status.success(), "{output}");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (child, _) in &mut self.programs {
            let _ = child.kill();
            wait_child(child, Duration::from_secs(5));
        }
    }
}

/// What is there now; files come and go.
fn whole_files(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("whole-"))
        .count()
}

/// Every file that the programs finished and kept is whole in SRC.
#[track_caller]
pub(crate) fn check_kept(env: &TestEnv) {
    let mut verify = Command::new(CHURN);
    verify.arg("--verify").arg(env.src());
    let report = run(&mut verify, LIMIT).success();
    assert!(
        report.contains("errors=0") && !report.contains("whole=0 "),
        "{report}"
    );
}
