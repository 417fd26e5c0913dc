//! The control thread: hears everything that can end the mount, and does what the machine says.
//!
//! One `poll` waits for signals, for changes of the mount table, for the bell of [`Shutdown`], and
//! for the next moment at which something is due. Nothing else in the daemon handles a signal.
//!
//! [`Signals`] come first, before any thread and before the mount, and stay until the process ends:
//! there is no moment at which one is lost or kills.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::state::{Action, Event, Timer};
use super::watch::Watch;
use super::{Cause, Detach, Detached, Gate, Mounted, Shutdown, SignalName, State};
use crate::config::Limit;
use crate::exit::ExitCode;
use crate::sync::Arc;
use crate::sys::process::SignalQueue;

/// How long requests may take to be answered between the closing of the gate and the cut.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// The signals that end the daemon, recorded from [`Signals::install`] on.
///
/// One socket pair for each signal, so that which one came is known; its handler writes a byte.
/// SIGPIPE needs nothing: Rust's start-up code has it ignored before `main`, which a test checks.
#[derive(Debug)]
pub struct Signals {
    lines: [(SignalName, UnixStream); 3],
}

impl Signals {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the life of this process. To be called
    /// before there is a thread, and not before a fork: the child would share the sockets with its
    /// parent.
    pub fn install() -> io::Result<Self> {
        // Held back meanwhile: signal-hook's handler is in force a moment before it knows what to
        // do (`register_unchecked_impl`), and drops a signal that comes then.
        let held = SignalQueue::open(&[Signal::TERM, Signal::INT, Signal::HUP])?;
        let lines = Self::register();
        held.restore()?;
        Ok(Self { lines: lines? })
    }

    fn register() -> io::Result<[(SignalName, UnixStream); 3]> {
        let line = |name, number| {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(number, writer)?;
            Ok::<_, io::Error>((name, reader))
        };
        Ok([
            line(SignalName::Term, SIGTERM)?,
            line(SignalName::Int, SIGINT)?,
            line(SignalName::Hup, SIGHUP)?,
        ])
    }

    /// Whether a signal has come that nobody has taken, and which; it stays.
    #[must_use]
    pub fn pending_stop(&self) -> Option<SignalName> {
        let mut fds = self.fds();
        poll(&mut fds, Some(&Timespec::default())).ok()?;
        let rings = |fd: &PollFd<'_>| fd.revents().contains(PollFlags::IN);
        self.lines
            .iter()
            .zip(&fds)
            .find(|(_, fd)| rings(fd))
            .map(|((name, _), _)| *name)
    }

    fn fds(&self) -> [PollFd<'_>; 3] {
        self.lines
            .each_ref()
            .map(|(_, line)| PollFd::new(line, PollFlags::IN))
    }

    /// Takes what has come: how often, and one of the names.
    fn take(&self) -> Option<(SignalName, usize)> {
        let mut taken: Option<(SignalName, usize)> = None;
        for (name, line) in &self.lines {
            let mut line: &UnixStream = line;
            while let Ok(count @ 1..) = line.read(&mut [0_u8; 64]) {
                taken = Some(taken.map_or((*name, count), |(first, sum)| (first, sum + count)));
            }
        }
        taken
    }
}

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `--drain-timeout`: open files, once we were asked to end.
    pub drain: Limit,
    /// `--lazy-timeout`: open files after a lazy unmount from outside.
    pub lazy: Limit,
    /// The serving threads, once the connection is cut.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain: Limit::After(Duration::from_secs(10)),
            lazy: Limit::Never,
            grace: Duration::from_secs(2),
        }
    }
}

/// What a process that may be killed at any time leaves to the next one.
pub struct Past {
    /// Is told where the daemon stands, before anything is done about it.
    pub told: Box<dyn Fn(State) + Send>,
    /// For how long the process before this one had been on its way out.
    pub draining_for: Duration,
}

impl Default for Past {
    /// Of a process that nobody follows.
    fn default() -> Self {
        Self {
            told: Box::new(|_| ()),
            draining_for: Duration::ZERO,
        }
    }
}

/// How the control thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "after `GaveUp` the serving threads must not be waited for"]
pub enum Ending {
    /// The serving threads have returned.
    Finished(Cause),
    /// They have not and may never: something below SRC hangs. The process has to end without
    /// them, which also closes what is left of the connection.
    GaveUp(Cause),
}

impl Ending {
    /// Why it ended.
    #[must_use]
    pub fn cause(self) -> Cause {
        match self {
            Ending::Finished(cause) | Ending::GaveUp(cause) => cause,
        }
    }

    /// What the caller of the program is told.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        self.cause().exit_code()
    }
}

/// Starts the control thread, "loopfs-control", for a mount that is published and of which
/// `shutdown` was told so. It ends when all is over; `gate` is closed right before the connection
/// is cut. If serving had ended before the mount was published there is nothing for it to do: its
/// caller detaches once more at the very end in any case.
pub fn spawn_control(
    signals: Signals,
    shutdown: Shutdown,
    mounted: Arc<dyn Mounted>,
    gate: Arc<Gate>,
    limits: Limits,
    past: Past,
) -> io::Result<JoinHandle<Ending>> {
    let control = Control {
        table: File::open("/proc/self/mountinfo")?,
        watch: Watch::new(mounted.identity(), shutdown.clone()),
        signals,
        shutdown,
        mounted,
        gate,
        limits,
        noted: None,
        past,
        gone: false,
        refused: None,
    };
    thread::Builder::new()
        .name("loopfs-control".into())
        .spawn(move || control.run())
}

struct Control {
    signals: Signals,
    shutdown: Shutdown,
    mounted: Arc<dyn Mounted>,
    gate: Arc<Gate>,
    limits: Limits,
    past: Past,
    /// Where it stood when [`Past::told`] was told last.
    noted: Option<State>,
    /// Becomes ready (POLLPRI) when the mount table changes; never read.
    table: File,
    /// Our mount is known to have left the mount table.
    gone: bool,
    /// Why the last detach did not take the mount, if it did not.
    refused: Option<Detached>,
    watch: Watch,
}

impl Control {
    fn run(mut self) -> Ending {
        // What changed before the table was being watched.
        self.look_at_table();
        loop {
            if let Some(ending) = self.act() {
                return ending;
            }
            self.wait();
        }
    }

    /// Does what is to be done until nothing is left.
    fn act(&mut self) -> Option<Ending> {
        loop {
            let actions = self.shutdown.take();
            self.note();
            if actions.is_empty() {
                return None;
            }
            for action in actions {
                if let Some(ending) = self.perform(action) {
                    return Some(ending);
                }
            }
        }
    }

    /// Tells where it stands, if that has changed.
    fn note(&mut self) {
        let state = self.shutdown.state();
        if self.noted != Some(state) {
            self.noted = Some(state);
            (self.past.told)(state);
        }
    }

    /// Waits until something happens or is due, and tells the machine.
    fn wait(&mut self) {
        let look_at = self.watch.next_look(self.shutdown.state());
        let due = [self.shutdown.deadline(), look_at]
            .into_iter()
            .flatten()
            .min();
        let left = due.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let [one, two, three] = self.signals.fds();
        let bell = PollFd::from_borrowed_fd(self.shutdown.bell().as_fd(), PollFlags::IN);
        let mut fds = [
            one,
            two,
            three,
            bell,
            PollFd::new(&self.table, PollFlags::PRI),
        ];
        // So few descriptors are polled without allocating (`do_sys_poll`): what can fail is EINTR,
        // and then each is looked at below without having to be ready.
        let _ = poll(&mut fds, left.as_ref());
        let table_changed = fds[4].revents().intersects(PollFlags::PRI | PollFlags::ERR);

        self.shutdown.bell().silence();
        self.hear_signals();
        if table_changed {
            self.look_at_table();
        }
        self.watch.tend();
        if self.shutdown.time_left() == Some(Duration::ZERO) {
            self.shutdown.set_deadline(None);
            self.tell(Event::DeadlinePassed);
        }
    }

    fn target(&self) -> std::path::Display<'_> {
        self.watch.target().display()
    }

    /// Tells the machine, and says so if that ended somebody's patience.
    fn tell(&mut self, event: Event) {
        let before = self.shutdown.state();
        self.shutdown.apply(event);
        let after = self.shutdown.state();
        if let (State::Draining { .. }, State::Aborting { serving: true, .. }) = (before, after) {
            match event {
                Event::Signal(name) => {
                    warn!("{name}, the second signal: {} is cut off", self.target());
                }
                _ => warn!("time is up: {} is cut off", self.target()),
            }
        }
    }

    /// Several signals that are taken together count as one: nobody can have meant the second one
    /// as an answer to what the first one did.
    fn hear_signals(&mut self) {
        if let Some((name, count)) = self.signals.take() {
            debug!("{name} received, {count} signal(s) in all");
            self.tell(Event::Signal(name));
        }
    }

    fn look_at_table(&mut self) {
        if self.gone {
            return;
        }
        if !self.mounted.is_present() {
            self.gone = true;
            if self.shutdown.state() == State::Serving {
                debug!("{} was unmounted from outside", self.target());
            }
            self.tell(Event::MountGone);
        } else if self.refused == Some(Detached::Covered) && !self.mounted.is_covered() {
            self.refused = None;
            self.tell(Event::Uncovered);
        }
    }

    fn perform(&mut self, action: Action) -> Option<Ending> {
        match action {
            Action::Arm(timer) => self.arm(timer),
            Action::Detach(how) => self.detach(how),
            Action::ReportHolders => self.report_holders(),
            Action::Abort => self.abort(),
            Action::Finish => return self.finish(),
            Action::GiveUp => return self.give_up(),
        }
        None
    }

    fn arm(&mut self, timer: Timer) {
        let limit = match timer {
            Timer::Lazy => self.limits.lazy,
            Timer::Drain => self.limits.drain,
            Timer::Grace => Limit::After(self.limits.grace),
        };
        // Even a limit of zero lets an idle connection end by itself.
        let at_least = if timer == Timer::Grace {
            Duration::ZERO
        } else {
            LAST_ANSWERS
        };
        let spent = match timer {
            Timer::Lazy | Timer::Drain => std::mem::take(&mut self.past.draining_for),
            Timer::Grace => Duration::ZERO,
        };
        self.shutdown.set_deadline(match limit {
            Limit::After(time) => {
                // Only once, however many processes follow each other.
                let left = time.max(at_least).saturating_sub(spent);
                Instant::now().checked_add(left)
            }
            Limit::Never => None,
        });
    }

    fn detach(&mut self, how: Detach) {
        if how == Detach::Lazy {
            self.watch.note_links();
        }
        let result = self.mounted.detach(how).unwrap_or_else(|error| {
            error!("{} can't be detached: {error}", self.target());
            Detached::Failed
        });
        // Busy has no meaning for a lazy detach; taken at its word it would be tried for ever.
        let result = match result {
            Detached::Busy if how == Detach::Lazy => Detached::Failed,
            other => other,
        };
        self.refused = None;
        match result {
            Detached::Done | Detached::AlreadyGone => self.gone = true,
            Detached::Covered | Detached::Failed => self.refused = Some(result),
            Detached::Busy => {}
        }
        if how == Detach::Polite {
            // What came up to here is part of the first request (see `hear_signals`).
            if let Some((name, count)) = self.signals.take() {
                info!(
                    "{name} (in all {count} more) came before the first signal had been acted on"
                );
            }
        }
        match (result, self.shutdown.state().cause()) {
            (Detached::Done, Some(Cause::ConnectionAborted)) => warn!(
                "the connection of {} was cut from outside; the dead mount is removed",
                self.target()
            ),
            (Detached::Done, Some(Cause::ServingFailed)) => warn!(
                "{} is unmounted, because serving it has failed",
                self.target()
            ),
            (Detached::Covered, _) => warn!(
                "something is mounted on top of {}: it is left alone, and ours can't be unmounted below it",
                self.target()
            ),
            _ => {}
        }
        self.tell(Event::Detached(result));
    }

    /// Says at once what is going on and what a second signal would do, and has the holders looked
    /// for; they are named as soon as they are found.
    fn report_holders(&mut self) {
        let limit = match self.limits.drain {
            Limit::After(time) => format!("for up to {} s", time.as_secs_f32()),
            Limit::Never => "for as long as they need".into(),
        };
        warn!(
            "{} is still in use; it is unmounted, and what is open goes on working {limit}. \
             A second signal cuts it off at once",
            self.target()
        );
        self.watch.look();
    }

    fn abort(&mut self) {
        self.gate.close();
        if !self.gate.wait_idle(LAST_ANSWERS) {
            warn!(
                "{} request(s) of {} are cut off unanswered",
                self.gate.in_flight(),
                self.target()
            );
        }
        self.watch.say_who_is_cut_off();
        if let Err(error) = self.mounted.abort_connection() {
            error!("the connection of {} can't be cut: {error}", self.target());
        }
    }

    fn finish(&mut self) -> Option<Ending> {
        let cause = self.shutdown.state().cause()?;
        self.say_what_stays();
        info!("{}: ended ({cause})", self.target());
        Some(Ending::Finished(cause))
    }

    fn give_up(&mut self) -> Option<Ending> {
        let cause = self.shutdown.state().cause()?;
        self.say_what_stays();
        error!(
            "{}: requests still hang, probably in the source, {} s after the connection was cut; \
             the process ends without them ({cause})",
            self.target(),
            self.limits.grace.as_secs_f32()
        );
        log::logger().flush();
        Some(Ending::GaveUp(cause))
    }

    fn say_what_stays(&self) {
        match self.refused {
            _ if self.gone => {}
            Some(Detached::Covered) => warn!(
                "the dead mount at {} stays below what is mounted on top of it: unmount both",
                self.target()
            ),
            Some(_) => error!(
                "the dead mount at {0} stays: run `umount -l {0}`",
                self.target()
            ),
            None => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
