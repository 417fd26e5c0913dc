//! A process beside a daemon that nobody would follow: if that one is killed, it cuts the connection.
//!
//! The kernel does so by itself when the last descriptor of a connection is closed. But a thread of the daemon that tells the kernel of a
//! change may wait there for a lock (`fuse/line.rs`), which a program has that waits for an answer, or for such a program's answer in
//! turn, and has a descriptor of the connection as long as it does. Not even SIGKILL ends that wait, so those programs would wait until
//! somebody ended them. Whoever is to end it must not die with the daemon: it is a process, and holds nothing but the connection's `abort` file
//! and the end of a pipe. The other end no code of the daemon closes; it is closed by the last of its threads that share it, which are all
//! but those that tell.
//!
//! With `--supervise` the supervisor does the same, and more.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::pipe::PipeFlags;

use crate::exit::ExitCode;
use crate::sys::{features, process};

/// What it is called, by which this program knows that it is one.
const NAME: &str = "loopfs-guard";

/// The guard of this process, which ends with the last step of an orderly end.
#[derive(Debug)]
pub(crate) struct Guard {
    process: Child,
    _life: OwnedFd,
}

impl Guard {
    /// One that is to write to that file, unless somebody guards this process already. It does not take one to serve: without, programs
    /// may have to be ended after a kill.
    pub(crate) fn unless(guarded: bool, abort: impl FnOnce() -> Option<OwnedFd>) -> Option<Self> {
        if guarded {
            return None;
        }
        Self::start(abort()?)
            .inspect_err(|error| {
                log::info!("nobody cuts the connection if this process is killed: {error}");
            })
            .ok()
    }

    /// Starts one that is to write to the file `abort`.
    fn start(abort: OwnedFd) -> io::Result<Self> {
        if features::is_off("guard") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (end, life) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Not a fork: it would keep this process's memory, name and arguments.
        let process = Command::new("/proc/self/exe")
            .arg0(NAME)
            .stdin(Stdio::from(end))
            .stdout(Stdio::from(abort))
            .stderr(Stdio::null())
            // No directory is kept busy, and no Ctrl-C on a terminal reaches it.
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Self {
            process,
            _life: life,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nothing is left to be guarded. What can fail is that somebody else has ended it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process was started to be a guard, by its name.
#[must_use]
pub fn is_this_process(arguments: &[OsString]) -> bool {
    arguments == [OsStr::new(NAME)]
}

/// Waits until the daemon has ended, and cuts the connection. Whoever asks the daemon to end asks it: this one only heeds SIGKILL.
#[must_use]
pub fn run() -> ExitCode {
    let _ = process::leave_signals_to_others();
    // It was started as /proc/self/exe, which is what the kernel calls it.
    let _ = rustix::thread::set_name(c"loopfs-guard");
    // Nothing is ever written to it.
    let mut nothing = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut nothing)) {
        Ok(_) => {}
        Err(_) => return ExitCode::System,
    }
    // Of a connection that has ended meanwhile it is not another one's.
    match rustix::io::write(rustix::stdio::stdout(), b"1") {
        Ok(_) => ExitCode::Success,
        Err(_) => ExitCode::System,
    }
}
