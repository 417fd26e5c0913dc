//! A daemon that may have few files open, and what can be seen of it from outside.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;

use crate::common::mount::assert_log_is_clean;
use crate::common::{Mount, Signal, TestEnv};

/// What the daemon says when programs get EMFILE.
pub(crate) const OUT_OF_THEM: &str = "Too many open files";

/// A mount whose daemon may have `limit` files open: a soft and a hard limit.
pub(crate) struct Limited {
    mount: Mount,
    limit: usize,
}

impl Deref for Limited {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}

impl Limited {
    /// With some of the kernel's features switched off.
    #[track_caller]
    pub(crate) fn start(env: TestEnv, limit: usize, off: &str) -> Self {
        Self::start_with(env, limit, off, &[])
    }

    /// And with options.
    #[track_caller]
    pub(crate) fn start_with(env: TestEnv, limit: usize, off: &str, options: &[&str]) -> Self {
        let mut command = env.loopfs_limited(limit, options);
        command
            .arg("-f")
            .args([env.src(), env.mnt()])
            .env("LOOPFS_FEATURES_OFF", off)
            // At its end the daemon says how many inodes the kernel remembers.
            .env("RUST_LOG", "warn,loopfs=debug,fuser::reply=off");
        let mount = Mount::start_command(env, command);
        Self { mount, limit }
    }

    /// How many files it has open now.
    pub(crate) fn open_files(&self) -> usize {
        let pid = self.mount.pid().as_raw_nonzero();
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    #[track_caller]
    pub(crate) fn check_open_files(&self) {
        let open = self.open_files();
        assert!(open <= self.limit, "{open} files, {} allowed", self.limit);
    }

    /// Its own memory in KiB, without what it maps of files.
    pub(crate) fn memory(&self) -> usize {
        let pid = self.mount.pid().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Whether it has told that programs get EMFILE.
    pub(crate) fn ran_out(&self) -> bool {
        self.log().contains(OUT_OF_THEM)
    }

    /// Ends it as [`Mount::finish`]; how many inodes the kernel remembered at the end.
    #[track_caller]
    pub(crate) fn finish(self) -> usize {
        let (env, known) = self.end();
        env.assert_clean();
        known
    }

    /// The same where something of the test's own is still mounted.
    #[track_caller]
    pub(crate) fn end(self) -> (TestEnv, usize) {
        self.mount.signal(Signal::TERM);
        let (env, status, log) = self.mount.ended_somehow();
        assert_eq!(status.and_then(|status| status.code()), Some(0));
        assert_log_is_clean(&log);
        let (before, _) = log.rsplit_once(" inodes and ").expect("the last line");
        let known = before.rsplit(' ').next().unwrap().parse().unwrap();
        (env, known)
    }
}

/// `count` empty files with numbers for names, a thousand to a directory.
pub(crate) fn make_files(top: &Path, count: usize) {
    for number in 0..count {
        let directory = top.join(format!("{}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir(&directory).unwrap();
        }
        File::create(directory.join(number.to_string())).unwrap();
    }
}

/// The path of one of them.
pub(crate) fn file(top: &Path, number: usize) -> std::path::PathBuf {
    top.join(format!("{}/{number}", number / 1000))
}
