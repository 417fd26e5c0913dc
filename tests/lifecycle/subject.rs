//! `Subject`: a daemon whose end is under observation. `End`: that end, checked.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};

pub(crate) use crate::common::connection::Connection;
use crate::common::process::{Watched, eventually, wait_readable};
use crate::common::table::mounts;
use crate::common::{LIMIT, Mount, TestEnv};

/// How long an end may take that nothing holds up. Seen is well below a second, which is what is
/// promised; the rest is for a machine that others load.
pub(crate) const PROMPT: Duration = Duration::from_secs(5);

/// How the daemon is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Foreground,
    Background,
}

/// A mounted daemon and its connection to the kernel.
pub(crate) struct Subject {
    mount: Mount,
    mode: Mode,
    connection: Connection,
}

impl Deref for Subject {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}

impl Subject {
    /// `loopfs OPTIONS SRC MNT` on new directories.
    #[track_caller]
    pub(crate) fn start(mode: Mode, options: &[&str]) -> Self {
        Self::start_in(TestEnv::new(), mode, options)
    }

    /// In the foreground, with the default options.
    #[track_caller]
    pub(crate) fn foreground() -> Self {
        Self::start(Mode::Foreground, &[])
    }

    /// As [`Self::start`], in an environment that the test has prepared.
    #[track_caller]
    pub(crate) fn start_in(env: TestEnv, mode: Mode, options: &[&str]) -> Self {
        if mode == Mode::Background {
            Self::become_parent_of_orphans();
        }
        let mount = match mode {
            Mode::Foreground => Mount::start_in(env, options),
            Mode::Background => Mount::background(env, options),
        };
        Self::of(mount, mode)
    }

    /// A daemon that was started otherwise.
    #[track_caller]
    pub(crate) fn of(mount: Mount, mode: Mode) -> Self {
        let connection = Connection::of(mount.entry());
        Self {
            mount,
            mode,
            connection,
        }
    }

    /// A daemon in the background becomes this process's child when its parent has ended, so that
    /// its status can be asked for. To be called before it is started; nobody else minds.
    pub(crate) fn become_parent_of_orphans() {
        set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// True while this very mount is in the mount table, covered or not.
    pub(crate) fn is_mounted(&self) -> bool {
        mounts().contains(self.mount.entry())
    }

    /// Waits until this very mount has left the mount table.
    #[track_caller]
    pub(crate) fn wait_detached(&self) {
        let gone = crate::common::table::wait_table(LIMIT, || !self.is_mounted());
        assert!(gone, "still in the mount table");
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub(crate) fn wait_log(&self, text: &str) {
        eventually(&format!("the log says '{text}'"), LIMIT, || {
            self.log().contains(text)
        });
    }

    /// Waits until so many requests wait for the daemon.
    #[track_caller]
    pub(crate) fn wait_waiting(&self, requests: u32) {
        eventually("requests wait", LIMIT, || {
            self.connection.waiting() >= requests
        });
    }

    /// Sees that the daemon does not end for as long as `time`.
    #[track_caller]
    pub(crate) fn stays(&self, time: Duration) {
        let daemon = Watched::new(self.pid()).expect("the daemon has ended");
        assert!(!daemon.wait_end(time), "the daemon ended");
    }

    /// Waits for the end, with status 0, promptly after `since`: the moment from which on nothing
    /// held the mount.
    #[track_caller]
    pub(crate) fn ends(self, since: Instant) -> End {
        self.ends_with(0, since, PROMPT)
    }

    /// The same for another status and another limit.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32, since: Instant, limit: Duration) -> End {
        let end = self.ends_somehow(code, since, limit);
        assert!(!end.log.contains("panicked"), "a panic");
        end
    }

    /// The same for serving that fails, by a panic of fuser: the status says so.
    #[track_caller]
    pub(crate) fn fails(self, since: Instant) -> End {
        self.ends_somehow(4, since, PROMPT)
    }

    #[track_caller]
    fn ends_somehow(self, code: i32, since: Instant, limit: Duration) -> End {
        let Self {
            mount,
            mode,
            connection,
        } = self;
        let pid = mount.pid();
        let (env, status, log) = mount.ended_somehow();
        let took = since.elapsed();
        let status = match mode {
            Mode::Foreground => status.and_then(|status| status.code()),
            Mode::Background => status_of_orphan(pid),
        };
        assert_eq!(status, Some(code), "the exit status; the log:\n{log}");
        assert!(took < limit, "ended after {took:?}");
        End {
            env,
            log,
            took,
            connection,
        }
    }
}

fn status_of_orphan(pid: Pid) -> Option<i32> {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("a child of ours by now")?;
    status.exit_status()
}

/// A daemon that has ended as it should, and what remains to be looked at.
#[must_use]
pub(crate) struct End {
    env: TestEnv,
    pub(crate) log: String,
    pub(crate) took: Duration,
    connection: Connection,
}

impl End {
    /// Nothing is left: no mount, no process, no connection, no error in the log; MNT is a plain
    /// directory again.
    #[track_caller]
    pub(crate) fn clean(self) -> TestEnv {
        crate::common::mount::assert_log_is_clean(&self.log);
        self.clean_but_for_the_log()
    }

    /// The same where the log has to tell of an error.
    #[track_caller]
    pub(crate) fn clean_but_for_the_log(self) -> TestEnv {
        self.env.assert_clean();
        // The superblock goes when the last reference does, which may be another process's exit.
        eventually("the connection is gone", LIMIT, || {
            self.connection.is_gone()
        });
        // Safe to look at: the mount table has just been seen to have nothing there.
        let entries = fs::read_dir(self.env.mnt()).expect("MNT is a directory again");
        assert_eq!(entries.count(), 0, "something was written below the mount");
        self.env
    }

    pub(crate) fn env(&self) -> &TestEnv {
        &self.env
    }

    /// The log has to contain `text`.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.log.contains(text), "the log does not say '{text}'");
        self
    }
}

/// What was promised to be in SRC: files that were closed or fsynced on the mount.
pub(crate) struct Promise {
    names: Vec<&'static str>,
    _open: File,
}

impl Promise {
    const CONTENT: &'static [u8] = &[b'p'; 10_000];

    /// Writes a file and closes it, and another one that is fsynced.
    #[track_caller]
    pub(crate) fn make(mount: &Mount) -> Self {
        fs::write(mount.path("closed"), Self::CONTENT).expect("write");
        let mut synced = File::create(mount.path("synced")).expect("create");
        synced.write_all(Self::CONTENT).expect("write");
        synced.sync_all().expect("fsync");
        Self {
            names: vec!["closed", "synced"],
            _open: synced,
        }
    }

    /// Closes what is still open.
    pub(crate) fn close(self) -> Kept {
        Kept(self.names)
    }
}

/// A [`Promise`] that holds no file open.
pub(crate) struct Kept(Vec<&'static str>);

impl Kept {
    #[track_caller]
    pub(crate) fn check(&self, env: &TestEnv) {
        for name in &self.0 {
            let found = fs::read(env.src().join(name)).expect("what was promised is in SRC");
            assert!(found == Promise::CONTENT, "{name} is not whole");
        }
    }
}

/// An open file that is used on and on.
pub(crate) struct Held {
    file: File,
    written: u8,
}

impl Held {
    pub(crate) const NAME: &'static str = "held";

    #[track_caller]
    pub(crate) fn open(mount: &Mount) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path(Self::NAME));
        let mut held = Self {
            file: file.expect("open"),
            written: 0,
        };
        held.works();
        held
    }

    /// Writes more, makes it durable, and reads everything back.
    #[track_caller]
    pub(crate) fn works(&mut self) {
        self.write_more().expect("write and fsync");
        let mut content = Vec::new();
        self.file.seek(SeekFrom::Start(0)).expect("rewind");
        self.file.read_to_end(&mut content).expect("read");
        assert_eq!(content, self.expected());
    }

    /// No operation on it succeeds any more: its connection was cut.
    #[track_caller]
    pub(crate) fn is_cut(&mut self) {
        let error = self.write_more().expect_err("the connection is cut");
        let kind = error.kind();
        assert_eq!(kind, std::io::ErrorKind::NotConnected, "{error}");
    }

    fn write_more(&mut self) -> std::io::Result<()> {
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(&[self.written; 5_000])?;
        self.file.sync_all()?;
        self.written += 1;
        Ok(())
    }

    fn expected(&self) -> Vec<u8> {
        (0..self.written).flat_map(|byte| [byte; 5_000]).collect()
    }

    /// Closes it: what it must contain in SRC, and when that was.
    pub(crate) fn close(self) -> (Instant, Vec<u8>) {
        let expected = self.expected();
        drop(self.file);
        (Instant::now(), expected)
    }
}

/// The content of the [`Held`] file in SRC.
#[track_caller]
pub(crate) fn held_in(env: &TestEnv) -> Vec<u8> {
    fs::read(env.src().join(Held::NAME)).expect("the file in SRC")
}

/// umount2(2) itself, quicker than any program that calls it.
pub(crate) fn umount2(target: &Path, flags: UnmountFlags) -> rustix::io::Result<()> {
    rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW)
}

/// Lets the moment `at` come. A delay here is what is being tried, never a wait for something.
pub(crate) fn until(at: Instant) {
    while let Some(left) = at
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        wait_readable(&[], left);
    }
}
