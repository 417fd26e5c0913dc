//! Being a service of systemd(1), sd_notify(3): ready, what it is doing, stopping, and a watchdog that
//! is fed by real progress. Where nobody asked (no `NOTIFY_SOCKET`) nothing here does anything.
//!
//! READY is said only when the mount can be seen by the process with pid 1 as well. A unit with
//! `ProtectSystem=` or one of its kin runs in a mount namespace of its own: the service would start,
//! answer, and nobody else would ever see the mount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::attach::mountinfo;
use crate::exit::{ExitCode, Failure};
use crate::lifecycle::State;

/// How often the status is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// What a look at the running daemon shows.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Where its life stands.
    pub state: State,
    /// Files and directories that are open.
    pub open: usize,
    /// Requests taken up and not answered.
    pub in_flight: usize,
    /// Requests answered since the start.
    pub answered: u64,
    /// How long it is until open files are cut off, if that is going to happen.
    pub left: Option<Duration>,
}

/// A service manager that wants to be told.
#[derive(Debug)]
pub struct Service {
    source: PathBuf,
    target: PathBuf,
}

impl Service {
    /// The one that started this process, if one did, for the mount of `source` at `target`.
    #[must_use]
    pub fn of_this_process(source: &Path, target: &Path) -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        Some(Self {
            source: source.to_owned(),
            target: target.to_owned(),
        })
    }

    /// Checks that the mount on `device` is where pid 1 sees it. Where its mount table can't be read
    /// (an unprivileged user) nothing is checked.
    ///
    /// # Errors
    /// [`ExitCode::MountFailed`] with what to change in the unit.
    pub fn check_visible(&self, device: (u32, u32)) -> Result<(), Failure> {
        let Ok(table) = fs::read("/proc/1/mountinfo") else {
            return Ok(());
        };
        if is_visible(&table, &self.target, device) {
            return Ok(());
        }
        let text = format!(
            "{}: mounted, but invisible outside of this service, which has a mount namespace of its own: remove \
             ProtectSystem=, ProtectHome=, PrivateTmp=, PrivateMounts= and their kin from its unit",
            self.target.display()
        );
        Err(Failure::new(ExitCode::MountFailed, text))
    }

    /// Says that the mount can be used, and from then on, from a thread of its own, what is done with it
    /// and that it makes progress.
    pub fn ready(self, look: impl Fn() -> View + Send + 'static) -> io::Result<Telling> {
        let (end, ended) = mpsc::channel::<()>();
        let mut teller = Teller::new(self);
        tell(&teller.words(&look(), true));
        let pause = sd_notify::watchdog_enabled().map_or(PERIOD, |limit| PERIOD.min(limit / 3));
        let thread = thread::Builder::new()
            .name("loopfs-notify".to_owned())
            .spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
                    tell(&teller.words(&look(), false));
                }
                tell(&teller.words(&look(), false));
            })?;
        Ok(Telling {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

/// The thread that tells; dropping this ends it, with a last word.
#[derive(Debug)]
pub struct Telling {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Telling {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, which is told on stderr; there is nothing to clean up after it.
            let _ = thread.join();
        }
    }
}

/// What was told last, to tell no more than what is new.
#[derive(Debug)]
struct Teller {
    service: Service,
    status: String,
    stopping: bool,
    answered: u64,
    /// What was open when it was seen for the first time that it is on its way out.
    to_close: usize,
}

/// A word for the service manager, in our own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Ready,
    Status(String),
    Stopping,
    /// There is progress.
    Alive,
}

impl Teller {
    fn new(service: Service) -> Self {
        Self {
            service,
            status: String::new(),
            stopping: false,
            answered: 0,
            to_close: 0,
        }
    }

    fn words(&mut self, view: &View, first: bool) -> Vec<Word> {
        let mut words = Vec::new();
        if first {
            words.push(Word::Ready);
        }
        if view.state.cause().is_some() && !self.stopping {
            self.stopping = true;
            self.to_close = view.open;
            words.push(Word::Stopping);
        }
        let status = self.status(view);
        if status != self.status {
            self.status.clone_from(&status);
            words.push(Word::Status(status));
        }
        // Alive is who has nothing to do, or has answered something since the last look. A daemon whose
        // every request hangs, in SRC or in itself, is not.
        if view.in_flight == 0 || view.answered != self.answered || first {
            words.push(Word::Alive);
        }
        self.answered = view.answered;
        words
    }

    fn status(&self, view: &View) -> String {
        let (source, target) = (self.service.source.display(), self.service.target.display());
        let open = match view.open {
            0 => "nothing open".to_owned(),
            1 => "1 file open".to_owned(),
            number => format!("{number} files open"),
        };
        match view.state {
            State::Starting | State::Serving => format!("{source} at {target}, {open}"),
            State::Draining { .. } if view.open == 0 => {
                format!("{source}, no longer at {target}: {open}")
            }
            State::Draining { .. } => {
                let all = self.to_close.max(view.open);
                let left = view.left.map_or_else(String::new, |left| {
                    format!(", {} s until they are cut off", left.as_secs())
                });
                let open = view.open;
                format!("{source}, no longer at {target}: {open} of {all} still open{left}")
            }
            State::Aborting { .. } => format!("{source}, no longer at {target}: cut off, {open}"),
            State::Stopped { .. } => format!("{source}, no longer at {target}"),
        }
    }
}

fn tell(words: &[Word]) {
    let states: Vec<NotifyState<'_>> = words
        .iter()
        .map(|word| match word {
            Word::Ready => NotifyState::Ready,
            Word::Status(text) => NotifyState::Status(text),
            Word::Stopping => NotifyState::Stopping,
            Word::Alive => NotifyState::Watchdog,
        })
        .collect();
    if states.is_empty() {
        return;
    }
    if let Err(error) = sd_notify::notify(&states) {
        log::warn!("can't tell the service manager {words:?}: {error}");
    }
}

/// Whether a mount table (mountinfo, proc(5)) has the file system on `device` at `target`.
fn is_visible(table: &[u8], target: &Path, device: (u32, u32)) -> bool {
    mountinfo::parse(table).iter().any(|entry| {
        entry.mount_point == target && (entry.device.major, entry.device.minor) == device
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{Cause, MountState, Patience, SignalName};

    fn teller() -> Teller {
        Teller::new(Service {
            source: "/src".into(),
            target: "/mnt".into(),
        })
    }

    const IDLE: View = View {
        state: State::Serving,
        open: 0,
        in_flight: 0,
        answered: 0,
        left: None,
    };

    fn status(text: &str) -> Word {
        Word::Status(text.to_owned())
    }

    #[test]
    fn what_is_new_is_told_once() {
        let mut teller = teller();
        assert_eq!(
            teller.words(&IDLE, true),
            [
                Word::Ready,
                status("/src at /mnt, nothing open"),
                Word::Alive
            ]
        );
        assert_eq!(teller.words(&IDLE, false), [Word::Alive]);
        let open = View { open: 2, ..IDLE };
        assert_eq!(
            teller.words(&open, false),
            [status("/src at /mnt, 2 files open"), Word::Alive]
        );
        let stopping = View {
            state: State::Draining {
                cause: Cause::Signal(SignalName::Term),
                patience: Patience::Drain,
                mount: MountState::Gone,
            },
            open: 1,
            left: Some(Duration::from_millis(7_900)),
            ..IDLE
        };
        assert_eq!(
            teller.words(&stopping, false),
            [
                Word::Stopping,
                status("/src, no longer at /mnt: 1 of 1 still open, 7 s until they are cut off"),
                Word::Alive
            ]
        );
        assert_eq!(teller.words(&stopping, false), [Word::Alive]);
    }

    #[test]
    fn the_drain_is_told_as_it_goes_on() {
        let mut teller = teller();
        let draining = |open, left: Option<u64>| View {
            state: State::Draining {
                cause: Cause::Unmounted,
                patience: Patience::Lazy,
                mount: MountState::Gone,
            },
            open,
            left: left.map(Duration::from_secs),
            ..IDLE
        };
        for (open, left, told) in [
            (3, None, "3 of 3 still open"),
            (1, None, "1 of 3 still open"),
            (1, Some(9), "1 of 3 still open, 9 s until they are cut off"),
            (4, Some(8), "4 of 4 still open, 8 s until they are cut off"),
            (0, Some(7), "nothing open"),
        ] {
            let words = teller.words(&draining(open, left), false);
            let told = status(&format!("/src, no longer at /mnt: {told}"));
            assert!(words.contains(&told), "{words:?}");
        }
    }

    #[test]
    fn only_progress_keeps_it_alive() {
        let mut teller = teller();
        let busy = |answered| View {
            in_flight: 2,
            answered,
            ..IDLE
        };
        teller.words(&busy(5), true);
        assert_eq!(teller.words(&busy(6), false), [Word::Alive]);
        assert_eq!(teller.words(&busy(6), false), [], "everything hangs");
        assert_eq!(teller.words(&busy(7), false), [Word::Alive]);
    }

    #[test]
    fn visible_is_our_mount_at_its_place() {
        let table = b"36 25 0:41 / /mnt/a\\040b rw,relatime shared:1 - fuse.loopfs /src rw\n";
        let target = Path::new("/mnt/a b");
        assert!(is_visible(table, target, (0, 41)));
        assert!(!is_visible(table, target, (0, 42)), "somebody else's");
        assert!(!is_visible(table, Path::new("/mnt"), (0, 41)));
    }
}
