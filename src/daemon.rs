//! Background mode: the program returns when the mount can be used, or with the reason why not.
//!
//! In the background [`run`] forks before any thread exists. The child does everything; the parent
//! only waits for the child's *word*, which comes through a pipe: "ready", or "ended" with an exit
//! code and an error line, or nothing at all when the child died. Until then the two are one program:
//!
//! - SIGINT, SIGTERM and SIGHUP that reach the parent are passed on to the child, each once, and the
//!   parent goes on waiting for the child to clean up. So Ctrl-C ends a start-up in order. (Where there
//!   is a terminal the child is in a session of its own from the start, or it would get Ctrl-C from
//!   the terminal as well, and a second signal means "now, without waiting". Where there is none it
//!   stays in the process group until it is ready: the mount of an automount unit has to be made in
//!   the group of systemd, which alone the automount does not make wait for that very mount.)
//! - If the parent dies of a signal that nobody can catch, the child gets SIGTERM from the kernel.
//!
//! From "ready" on the child is on its own: working directory `/`, stdin and stdout on `/dev/null`, and
//! stderr too unless it is the journal or a file. A caller that waits for the end of a pipe (a shell's
//! `$(...)`, a test runner) would wait as long as the mount lives, and a terminal is for the next
//! command. One fork is enough: the second one of the textbooks keeps a session leader from gaining a
//! terminal by opening one, and this program opens no terminal (the kernel itself opens the device
//! nodes of a mount, never the daemon).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::config::Config;
use crate::exit::{ExitCode, Failure};
use crate::logging;
use crate::sync::{Arc, Mutex, lock};
use crate::sys::process::{Fork, SignalQueue, close_inherited, fork};

/// What asks for an end; the others keep their usual effect on the parent.
const FORWARDED: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// First byte of the word: the mount can be used. Nothing follows.
const READY: u8 = b'R';
/// First byte of the word: it came to nothing. The exit code and the error line follow.
const ENDED: u8 = b'E';

/// Runs `serve` in this process (foreground), or in a child while this process waits until the mount
/// can be used (background). The result is this process's: after a fork it is returned twice.
pub fn run(
    config: &Config,
    serve: impl FnOnce(&Config, Ready) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    if config.foreground {
        return serve(config, Ready::by(Line::default()));
    }
    close_inherited();
    let impossible = |error: io::Error| {
        Failure::new(
            ExitCode::System,
            format!("can't go to the background: {error} (-f stays in the foreground)"),
        )
    };
    let (word, line) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| impossible(error.into()))?;
    let signals = SignalQueue::open(&FORWARDED).map_err(impossible)?;
    let parent = rustix::process::getpid();
    match fork().map_err(impossible)? {
        Fork::Parent(child) => {
            drop(line);
            wait_for_word(word, &signals, child)
        }
        Fork::Child => {
            drop(word);
            serve_in_child(&Line::new(line), |ready| {
                become_child(parent, signals).map_err(impossible)?;
                serve(config, ready)
            })
        }
    }
}

/// The right to say, once, that the mount can be used.
pub struct Ready {
    line: Line,
    /// Under a supervisor, which is told in place of anybody else; and whether this process goes to the background first.
    supervisor: Option<(Told, bool)>,
}

type Told = Box<dyn FnOnce() -> io::Result<()> + Send>;

impl Ready {
    /// For a process under a supervisor, which `tell` tells.
    #[must_use]
    pub fn under_supervisor(
        config: &Config,
        tell: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Self {
        if !config.foreground {
            streams_are_borrowed();
        }
        Self {
            line: Line::default(),
            supervisor: Some((Box::new(tell), !config.foreground)),
        }
    }

    /// To nobody but a pipe, if there is one.
    fn by(line: Line) -> Self {
        Self {
            line,
            supervisor: None,
        }
    }

    /// Says so. In the background this lets the parent return with success, and the process leaves the
    /// caller's terminal, pipes and working directory behind; in the foreground it does nothing.
    ///
    /// # Errors
    /// Nobody waits any more (the parent was killed), or the surroundings can't be left. The caller
    /// ends the mount: whoever asked for it believes that it failed.
    pub fn tell(self) -> io::Result<()> {
        if let Some((tell, background)) = self.supervisor {
            own_session()?;
            if background {
                leave_surroundings()?;
            }
            return tell();
        }
        let mut line = lock(&self.line.0);
        if let Some(pipe) = line.as_mut() {
            // Before the word, which lets the parent end. If it is killed in between, the word fails.
            rustix::process::set_parent_process_death_signal(None)?;
            own_session()?;
            leave_surroundings()?;
            pipe.write_all(&[READY])?;
        }
        // Only now: after an error the line still takes the reason to the parent.
        *line = None;
        Ok(())
    }
}

/// The child's end of the pipe. Whoever takes it speaks for the child; the next one finds it gone.
#[derive(Debug, Clone, Default)]
struct Line(Arc<Mutex<Option<File>>>);

impl Line {
    fn new(pipe: OwnedFd) -> Self {
        Self(Arc::new(Mutex::new(Some(File::from(pipe)))))
    }

    fn take(&self) -> Option<File> {
        lock(&self.0).take()
    }
}

/// What a fork does not give the child: a life of its own as far as it needs one before it is ready.
fn become_child(parent: Pid, signals: SignalQueue) -> io::Result<()> {
    leave_terminal()?;
    streams_are_borrowed();
    // Else the file system that the program was started in could not be unmounted. Before any thread, because each may
    // come to have a working directory of its own (`sys::creds`). All paths are absolute by now.
    std::env::set_current_dir("/")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(io::Error::other("the process that started it is gone"));
    }
    signals.restore()
}

/// Serves, and tells the parent about an end that came before the mount was ready.
fn serve_in_child(
    line: &Line,
    serve: impl FnOnce(Ready) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let result = serve(Ready::by(line.clone()));
    let Some(mut line) = line.take() else {
        return result;
    };
    let (code, message) = match &result {
        Ok(code) => (*code, ""),
        Err(failure) => (failure.code, failure.message.as_str()),
    };
    let word = [&[ENDED, code as u8], message.as_bytes()].concat();
    match line.write_all(&word) {
        Ok(()) => Ok(code),
        // The parent is gone: whoever reads stderr may still want to know.
        Err(_) => result,
    }
}

/// The parent: waits for the child's word, and meanwhile passes signals on.
fn wait_for_word(word: OwnedFd, signals: &SignalQueue, child: Pid) -> Result<ExitCode, Failure> {
    let lost = |error: io::Error| {
        Failure::new(
            ExitCode::System,
            format!(
                "lost the background process {child}: {error}: findmnt shows whether it has mounted"
            ),
        )
    };
    loop {
        let mut sources = [
            PollFd::new(&word, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(lost(error.into())),
        }
        let spoken = !sources[0].revents().is_empty();
        // Signals first: one that came together with "ready" is still meant for the child.
        while let Some(signal) = signals.next().map_err(lost)? {
            // It can only fail when the child is dead already, which the pipe tells as well.
            let _ = rustix::process::kill_process(child, signal);
        }
        if spoken {
            break;
        }
    }
    let mut word = File::from(word);
    let mut kind = [0];
    match word.read(&mut kind).map_err(lost)? {
        1 if kind == [READY] => Ok(ExitCode::Success),
        1 => {
            let mut rest = Vec::new();
            word.read_to_end(&mut rest).map_err(lost)?;
            // "Ended" must mean that nothing of the child is left when this process returns.
            reap(child).map_err(lost)?;
            ended(&rest)
        }
        _ => Err(died(reap(child).map_err(lost)?)),
    }
}

/// The child's own account of its end.
fn ended(word: &[u8]) -> Result<ExitCode, Failure> {
    let (code, message) = match word.split_first() {
        Some((code, message)) => (ExitCode::from_number(*code), message),
        None => (None, word),
    };
    let code = code.unwrap_or(ExitCode::Internal);
    if message.is_empty() {
        Ok(code)
    } else {
        Err(Failure::new(code, String::from_utf8_lossy(message)))
    }
}

/// The end of a child that said nothing.
fn died(status: WaitStatus) -> Failure {
    if let Some(number) = status.terminating_signal() {
        let asked = FORWARDED.iter().any(|signal| signal.as_raw() == number);
        return Failure::new(
            if asked {
                ExitCode::Interrupted
            } else {
                ExitCode::Internal
            },
            format!(
                "the background process was killed by signal {number} before the mount was ready: -f shows \
                 more, and dmesg if the system was out of memory"
            ),
        );
    }
    let status = status.exit_status().unwrap_or_default();
    Failure::new(
        ExitCode::Internal,
        format!(
            "the background process ended with status {status} and without a word: -f shows more"
        ),
    )
}

fn reap(child: Pid) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes this process the leader of a session of its own if there is a terminal: what is typed there is for the process that it was
/// started by.
pub(crate) fn leave_terminal() -> io::Result<()> {
    // Opening the controlling terminal by that name is the way to ask whether there is one.
    if File::open("/dev/tty").is_ok() {
        own_session()?;
    }
    Ok(())
}

/// Makes this process the leader of a session of its own, if it is not.
fn own_session() -> io::Result<()> {
    match rustix::process::setsid() {
        // The leader of a group, which after a fork only a session of its own makes of it.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What [`leave_surroundings`] will let go of no thread is to keep.
fn streams_are_borrowed() {
    crate::sys::descriptor::streams_are_borrowed(if logging::stderr_endures() { 2 } else { 3 });
}

/// Lets go of what belongs to the caller.
fn leave_surroundings() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if !logging::stderr_endures() {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Command, Stdio};

    use super::*;

    /// What the parent makes of a child that runs `script` after `word` was written to the pipe.
    fn parent_of(script: &str, word: &[u8]) -> Result<ExitCode, Failure> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        File::from(writer).write_all(word).unwrap();
        let signals = SignalQueue::open(&[]).unwrap();
        let result = wait_for_word(reader, &signals, Pid::from_child(&child));
        // An error where the parent's code has waited for it already.
        let _ = child.wait();
        result
    }

    #[test]
    fn ready_is_success() {
        assert_eq!(parent_of("exit 0", &[READY]), Ok(ExitCode::Success));
    }

    #[test]
    fn the_childs_error_becomes_the_parents() {
        let word = [&[ENDED, ExitCode::MountFailed as u8][..], b"no such MNT"].concat();
        assert_eq!(
            parent_of("exit 32", &word),
            Err(Failure::new(ExitCode::MountFailed, "no such MNT"))
        );
        let word = [ENDED, ExitCode::Interrupted as u8];
        assert_eq!(parent_of("exit 8", &word), Ok(ExitCode::Interrupted));
    }

    #[test]
    fn a_child_without_a_word_is_reported_with_its_death() {
        let killed = parent_of("kill -KILL $$", &[]).unwrap_err();
        assert_eq!(
            killed,
            Failure::new(
                ExitCode::Internal,
                "the background process was killed by signal 9 before the mount was ready: -f shows more, and dmesg \
                 if the system was out of memory"
            )
        );
        let stopped = parent_of("kill -TERM $$", &[]).unwrap_err();
        assert_eq!(stopped.code, ExitCode::Interrupted);
        let left = parent_of("exit 101", &[]).unwrap_err();
        assert_eq!(left.code, ExitCode::Internal);
        assert!(left.message.contains("status 101"), "{}", left.message);
    }

    #[test]
    fn a_word_cut_short_is_an_internal_error() {
        assert_eq!(parent_of("exit 1", &[ENDED]), Ok(ExitCode::Internal));
        assert_eq!(parent_of("exit 1", &[ENDED, 77]), Ok(ExitCode::Internal));
    }

    #[test]
    fn the_line_is_taken_once() {
        let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let line = Line::new(writer);
        assert!(line.clone().take().is_some());
        assert!(line.take().is_none());
    }

    #[test]
    fn in_the_foreground_nobody_is_told() {
        Ready::by(Line::default()).tell().unwrap();
    }
}
