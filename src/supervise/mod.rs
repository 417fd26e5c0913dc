//! Restart without anybody noticing: a small parent keeps what a mount can't do without, and starts the process that serves
//! it again when that dies.
//!
//! The supervisor answers no request and reads none: it waits for its child to say something or to die. What it holds is
//! the connection to the kernel, the memory in which the child notes what must survive, the descriptors of what has no name any more,
//! and which mount is theirs. With those a new child goes on where the old one was cut off. The kernel and the programs
//! notice a pause.
//!
//! - [`Supervisor`] (in `child`): the parent as the serving process sees it;
//! - [`run`] (here), [`go_on`] (`take_over`): the parent; `process`: one child of it; `pace`: how soon a dead one is followed; `upgrade`: how
//!   another program takes over;
//! - `link`, `message`: how the two talk;
//! - [`Succession`]: what one supervisor leaves to the next, which may be the same process with another program; `store`:
//!   has systemd keep that meanwhile.
//!
//! Every end is still one path, and the child walks it: signals to the supervisor are handed on. Only where no child is left
//! to do it (too many crashes, one that was killed while it cut the connection, another program on the disk that can't go on) the
//! supervisor takes the mount down itself. If it is killed its child hears that at once, and ends in order; where systemd keeps what it kept, the
//! child just ends.

mod child;
mod link;
mod message;
mod pace;
mod process;
mod store;
mod succession;
mod take_over;
mod upgrade;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitStatus};

use crate::attach::{Attachment, Detach, Detached};
use crate::config::Config;
use crate::daemon::Ready;
use crate::exit::{ExitCode, Failure};
use crate::lifecycle::State;
use crate::sys::limits;
use crate::sys::process::SignalQueue;

pub use child::{Duty, Estate, Inheritance, Legacy, Supervisor, Turn};
pub use store::kept_by_systemd;
pub use succession::{Succession, could_go_on_with};
pub use take_over::go_on;

use message::{Mounted, Order, Place, Report};
use pace::{Death, Next, Pace};
use process::{Process, Program, describe, was_killed};
use store::Stored;
use take_over::taken_over;

/// What asks for an end; the child is told.
const FORWARDED: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// What asks for an end after which another supervisor starts (`RestartKillSignal=` of systemd). Where it could not go on, it is SIGTERM.
const LEAVE: Signal = Signal::USR1;

/// The program that runs as this process, whatever lies at its path by now.
const OURSELVES: &str = "/proc/self/exe";

/// How long it may take to hear how a process died that nobody works in any more, while programs wait for the next one.
const DIES: Duration = Duration::from_millis(200);
/// The same while nobody waits.
const DIES_SLOWLY: Duration = Duration::from_secs(5);

/// Has a child make the mount and serve it, and others after it if it dies. `ready` is told once the mount can be used.
pub fn run(config: &Config, ready: Ready) -> Result<ExitCode, Failure> {
    let signals = begin()?;
    let place = place(config)?;
    let program = Program::at(Path::new(OURSELVES)).map_err(|error| cant_start(&error))?;
    let process = program.start().map_err(|error| cant_start(&error))?;
    let keeper = Keeper {
        ready: Some(ready),
        ..Keeper::of(config, signals, place, process, program, 0)
    };
    keeper.until_the_end()
}

fn begin() -> Result<SignalQueue, Failure> {
    let heard = [&FORWARDED[..], &[LEAVE]].concat();
    let signals =
        SignalQueue::open(&heard).map_err(|error| system("can't hold back signals", &error))?;
    // Each keeps what has no name any more.
    let _ = crate::sys::fs::raise_file_limit();
    Ok(signals)
}

fn cant_start(error: &io::Error) -> Failure {
    system("can't start the process that serves", error)
}

fn place(config: &Config) -> Result<Place, Failure> {
    let root = crate::sys::fs::open_root(&config.source).map_err(|errno| {
        let error = io::Error::from(errno);
        let next = limits::remedy(&error).unwrap_or("serve it as a user who may read it");
        let text = format!(
            "SRC '{}' can't be opened: {error}: {next}",
            config.source.display()
        );
        Failure::new(ExitCode::MountFailed, text)
    })?;
    Ok(Place {
        source: config.source.clone(),
        target: config.target.clone(),
        root,
    })
}

/// How it ended.
type End = Result<ExitCode, Failure>;

/// The parent, and what it keeps.
struct Keeper {
    /// To be told when the first child serves.
    ready: Option<Ready>,
    signals: SignalQueue,
    place: Place,
    process: Process,
    /// Children before it that have not quite died yet.
    unburied: Vec<Process>,
    /// What the next child runs.
    program: Program,
    /// What it runs if that one can't go on.
    earlier: Option<Program>,
    /// The child has asked for an upgrade.
    upgrade: bool,
    /// Where systemd keeps what is kept here.
    stored: Option<Stored>,
    /// Once it is made.
    mount: Option<Mount>,
    /// Descriptors that the child has given to keep.
    kept: BTreeMap<u64, OwnedFd>,
    /// Where the daemon's life stands, by the child's account.
    state: State,
    /// Since when the limit runs that counts in that state.
    drains_since: Option<Instant>,
    pace: Pace,
    /// When the last child died, until the next one serves.
    died: Option<Instant>,
    /// Signals that came while no child served.
    asked: usize,
    /// One that was handed on, to whom, and that one has not said yet that it ends.
    unheard: Option<(Signal, Pid)>,
}

/// The mount, and what it takes to serve it.
struct Mount {
    mounted: Mounted,
    attachment: Attachment,
}

impl Keeper {
    /// One of which nothing is known yet but who serves, and what; in systemd's store is a record of that number.
    fn of(
        config: &Config,
        signals: SignalQueue,
        place: Place,
        process: Process,
        program: Program,
        record: u64,
    ) -> Self {
        Self {
            ready: None,
            signals,
            place,
            process,
            unburied: Vec::new(),
            program,
            earlier: None,
            upgrade: false,
            // In the background it is nobody's service.
            stored: Some(record)
                .filter(|_| config.foreground)
                .and_then(Stored::with),
            mount: None,
            kept: BTreeMap::new(),
            state: State::Starting,
            drains_since: None,
            pace: Pace::new(config.restart.limit),
            died: None,
            asked: 0,
            unheard: None,
        }
    }

    fn until_the_end(mut self) -> End {
        loop {
            if let Some(end) = self.attend() {
                self.empty_store();
                return end;
            }
        }
    }

    /// Waits until something happens, and does what is to be done about it.
    fn attend(&mut self) -> Option<End> {
        let (spoke, died, signalled) = self.wait();
        self.bury_others();
        // What it said last comes before its death.
        if (spoke || died)
            && let Some(end) = self.listen()
        {
            return Some(end);
        }
        if signalled && let Some(end) = self.pass_signals_on() {
            return Some(end);
        }
        // Even if it has died since it asked: somebody has to follow it, and only it knows who waits to hear that there is no upgrade.
        if std::mem::take(&mut self.upgrade) {
            return self.upgrade();
        }
        if died {
            return self.bury();
        }
        None
    }

    /// Whether the child has something to say, has died or as good as, or a signal has come that it would hear. Returns also
    /// when one before it has died.
    fn wait(&self) -> (bool, bool, bool) {
        let [no, yes] = [PollFlags::empty(), PollFlags::IN];
        let hears = if self.process.is_up() { yes } else { no };
        let speaks = if self.process.is_connected() { yes } else { no };
        let mut sources = vec![
            PollFd::from_borrowed_fd(self.process.link().as_fd(), speaks),
            PollFd::from_borrowed_fd(self.process.life(), yes),
            PollFd::from_borrowed_fd(self.signals.as_fd(), hears),
        ];
        let others = self.unburied.iter();
        sources.extend(others.map(|other| PollFd::from_borrowed_fd(other.life(), yes)));
        // What can fail is EINTR; then nothing is seen to have happened.
        if poll(&mut sources, None).is_err() {
            return (false, false, false);
        }
        let seen = |at: usize| sources.get(at).map_or(no, PollFd::revents);
        let (said, died, signalled) = (seen(0), seen(1), seen(2));
        (
            said.contains(yes) && self.process.is_connected(),
            !died.is_empty() || said.contains(PollFlags::HUP),
            !signalled.is_empty() && self.process.is_up(),
        )
    }

    /// Another child takes the place of the one that is gone.
    fn succeed(&mut self, process: Process) {
        let before = std::mem::replace(&mut self.process, process);
        // Who has asked for one more meanwhile has the next process as well.
        self.upgrade = false;
        if before.is_unburied() {
            log::debug!(
                "process {} has not quite died: a thread of it waits for an answer",
                before.pid()
            );
            self.unburied.push(before);
        }
    }

    /// Those of the others that have died by now.
    fn bury_others(&mut self) {
        let is_left = |other: &mut Process| matches!(other.reap(Duration::ZERO), Ok(None));
        self.unburied.retain_mut(is_left);
    }

    fn listen(&mut self) -> Option<End> {
        while let Some(report) = self.process.heard() {
            if let Some(end) = self.hear(report) {
                return Some(end);
            }
        }
        None
    }

    fn hear(&mut self, report: Report) -> Option<End> {
        match report {
            Report::Up => {
                self.process.is_up_now();
                let given = self.give_duty();
                self.or_give_up(given);
            }
            Report::Made(mounted) => match taken_over(&mounted) {
                Some(attachment) => {
                    self.mount = Some(Mount {
                        mounted,
                        attachment,
                    });
                }
                None => self.process.kill(),
            },
            Report::Prepared => {
                let given = self.give_word();
                self.or_give_up(given);
            }
            Report::Upgrade => self.upgrade = true,
            Report::Ready => return self.serves(),
            Report::Stands(state) => self.note(state),
            Report::Keep {
                node,
                descriptor,
                is_stored,
            } => self.keeps(node, descriptor, is_stored),
            Report::Drop { node, is_taken_out } => self.drops(node, is_taken_out),
            Report::Paused(drained) => {
                if !drained {
                    log::info!("not all requests were answered in time: they come again");
                }
                self.process.has_paused_now();
            }
            Report::Ended { .. } | Report::Refused(_) => self.process.last_word(report),
        }
        None
    }

    /// A child that could not be told what to do is followed by another one. One that is dead already has nothing wrong with it
    /// but that, and its death is heard next.
    fn or_give_up(&mut self, told: io::Result<()>) {
        if let Err(error) = told {
            if error.kind() != io::ErrorKind::BrokenPipe {
                log::error!("the process that is to serve can't be told so: {error}");
            }
            self.process.kill();
        }
    }

    fn give_duty(&mut self) -> io::Result<()> {
        let place = self.place.try_clone()?;
        let Some(mount) = &self.mount else {
            return self.process.tell(&Order::Begin(place));
        };
        self.process.tell(&Order::Resume {
            place,
            mounted: mount.mounted.try_clone()?,
            succession: None,
        })
    }

    /// Whoever served the mount is dead.
    fn give_word(&self) -> io::Result<()> {
        self.process.tell(&Order::Go {
            state: self.state,
            draining_for: self
                .drains_since
                .map_or(Duration::ZERO, |since| since.elapsed()),
            stored: self.is_stored(),
            kept: self.kept.len() as u64,
        })?;
        for (number, descriptor) in &self.kept {
            let again = descriptor.try_clone()?;
            self.process.tell(&Order::Kept(*number, again))?;
        }
        Ok(())
    }

    /// The child serves.
    fn serves(&mut self) -> Option<End> {
        self.process.serves_now();
        self.asked = 0;
        // Who got it was killed before it could act on it.
        let unheard = self.unheard.as_mut();
        if let Some((signal, whose)) = unheard.filter(|(_, whose)| *whose != self.process.pid()) {
            *whose = self.process.pid();
            self.process.signal(*signal);
        }
        let is_upgraded = self.earlier.take().is_some();
        if is_upgraded {
            log::info!(
                "{} is served by {} from now on, process {}",
                self.place.target.display(),
                self.program.path().display(),
                self.process.pid()
            );
        }
        if let Some(died) = self.died.take() {
            log::info!(
                "{} is served again, {} ms after that",
                self.place.target.display(),
                died.elapsed().as_millis()
            );
        }
        if self.state == State::Starting {
            self.state = State::Serving;
        }
        self.store();
        if is_upgraded {
            self.upgrade_itself();
        }
        let ready = self.ready.take()?;
        log::info!(
            "{} is served by process {}, under this one",
            self.place.target.display(),
            self.process.pid()
        );
        let Err(error) = ready.tell() else {
            return None;
        };
        // Whoever asked for the mount believes that it failed.
        self.process.kill();
        self.take_down();
        Some(Err(system("can't say that the mount is ready", &error)))
    }

    fn note(&mut self, state: State) {
        let limit = |state| match state {
            State::Draining { patience, .. } => Some(patience),
            _ => None,
        };
        if limit(self.state) != limit(state) {
            self.drains_since = limit(state).map(|_| Instant::now());
        }
        let is_news = self.state != state;
        self.state = state;
        if state.cause().is_some() {
            self.unheard = None;
        }
        if is_news {
            self.store_state();
        }
    }

    /// Hands signals on. Two that come before a child serves again are for us: nobody else acts on them.
    fn pass_signals_on(&mut self) -> Option<End> {
        while let Ok(Some(signal)) = self.signals.next() {
            if signal == LEAVE && self.may_leave() {
                return Some(self.leave());
            }
            let signal = if signal == LEAVE {
                Signal::TERM
            } else {
                signal
            };
            self.process.signal(signal);
            self.unheard = Some((signal, self.process.pid()));
            self.asked += usize::from(!self.process.serves());
        }
        if self.ready.is_some() || self.asked < 2 {
            return None;
        }
        log::warn!(
            "a second signal while nobody serves {}: it is cut off",
            self.place.target.display()
        );
        self.process.kill();
        self.take_down();
        Some(Ok(ExitCode::Success))
    }

    /// The child is dead, or as good as: what follows depends on its last word.
    fn bury(&mut self) -> Option<End> {
        self.process.kill_and_wait();
        // It may have said something until then.
        if let Some(end) = self.listen() {
            return Some(end);
        }
        let patience = if self.process.has_last_word() || !self.is_restartable() {
            DIES_SLOWLY
        } else {
            DIES
        };
        let status = match self.process.reap(patience) {
            Ok(status) => status,
            Err(error) => return Some(Err(system("lost the process that serves", &error))),
        };
        let how = describe(status);
        match self.process.take_last_word() {
            Some(Report::Ended { code, message }) if message.is_empty() => return Some(Ok(code)),
            Some(Report::Ended { code, message }) => {
                return Some(Err(Failure::new(code, message)));
            }
            // It was ready a moment ago; the one before it has served for long.
            Some(Report::Refused(message)) if self.earlier.is_some() => {
                if self.is_ending() {
                    log::info!("the new program has nothing to go on with: {message}");
                } else {
                    log::error!("the new program can't go on: {message}");
                }
            }
            Some(Report::Refused(message)) => {
                self.take_down();
                let text =
                    format!("nobody can go on; the mount is taken down: {message}: start it again");
                return Some(Err(Failure::new(ExitCode::Internal, text)));
            }
            _ => {}
        }
        if self.ready.is_some() {
            self.take_down();
            return Some(Err(failed_start(status, &how)));
        }
        if let Some(cause) = self.state.cause().filter(|_| self.is_ending()) {
            log::warn!("the serving process {how} on its way out; the rest is done here");
            self.take_down();
            return Some(Ok(cause.exit_code()));
        }
        self.follow(status, &how)
    }

    /// Whether the mount is on its way out, so far that nobody else is needed for the rest.
    fn is_ending(&self) -> bool {
        matches!(self.state, State::Aborting { .. } | State::Stopped { .. })
    }

    /// Whether another child could go on with the mount.
    fn is_restartable(&self) -> bool {
        let mount = self.mount.as_ref();
        mount.is_some_and(|mount| mount.mounted.restartable)
    }

    /// Starts another child, or gives up.
    fn follow(&mut self, status: Option<WaitStatus>, how: &str) -> Option<End> {
        if !self.is_restartable() {
            self.take_down();
            let text =
                format!("the serving process {how}; the mount is taken down: start it again");
            return Some(Err(Failure::new(ExitCode::Internal, text)));
        }
        if let Some(earlier) = self.earlier.take() {
            self.program = earlier;
        }
        self.died.get_or_insert_with(Instant::now);
        log::warn!("the serving process {how}; another one goes on");
        // How it died may not be known yet; programs wait then.
        let by_itself = status.is_some_and(|status| !was_killed(status));
        let mut death = if by_itself {
            Death::Crashed
        } else {
            Death::Killed
        };
        loop {
            match self.pace.died(death, Instant::now()) {
                Next::GiveUp => {
                    self.take_down();
                    let text = "the serving process dies again and again; the mount is taken down: see the log for why";
                    return Some(Err(Failure::new(ExitCode::Internal, text)));
                }
                Next::After(pause) => self.pause(pause),
            }
            match self.program.start() {
                Ok(process) => {
                    self.succeed(process);
                    return None;
                }
                Err(error) => log::error!("can't start the process that serves: {error}"),
            }
            death = Death::Crashed;
        }
    }

    /// Waits, but for no longer than until somebody wants it to end.
    fn pause(&self, pause: Duration) {
        let Ok(pause) = Timespec::try_from(pause) else {
            return;
        };
        let mut signal = [PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        // An interruption makes it shorter, that is all.
        let _ = poll(&mut signal, Some(&pause));
    }

    /// Nobody serves the mount any more: those who wait for an answer get one, and it goes.
    fn take_down(&mut self) {
        let Some(Mount {
            mounted,
            attachment,
        }) = self.mount.take()
        else {
            return;
        };
        let target = attachment.target().display();
        if let Err(error) = attachment.abort_connection() {
            log::debug!("the connection of {target} ends with its last descriptor: {error}");
        }
        drop(mounted);
        match attachment.detach(Detach::Lazy) {
            Ok(Detached::Done | Detached::AlreadyGone | Detached::Busy) => {}
            Ok(Detached::Covered) => log::warn!(
                "the dead mount at {target} stays below what is mounted on top of it: unmount both"
            ),
            Err(error) => log::error!("the dead mount at {target} stays: {error}"),
        }
        attachment.remove_made_target();
    }
}

/// A death before the mount could be used.
fn failed_start(status: Option<WaitStatus>, how: &str) -> Failure {
    let by = status.and_then(WaitStatus::terminating_signal);
    let asked = FORWARDED.iter().any(|signal| by == Some(signal.as_raw()));
    let code = if asked {
        ExitCode::Interrupted
    } else {
        ExitCode::Internal
    };
    let text = format!("the serving process {how} before the mount was ready: start it again");
    Failure::new(code, text)
}

fn system(what: &str, error: &io::Error) -> Failure {
    let why = limits::explained(error);
    Failure::new(ExitCode::System, format!("{what}: {why}"))
}
