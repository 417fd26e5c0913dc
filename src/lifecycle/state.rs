//! The life of one mount as a pure machine: [`step`] takes a state and an event and says what the
//! next state is and what has to be done. It does no I/O and knows no clock: that a time limit has
//! passed is an event like any other, and *which* limit runs is part of the state. So every
//! sequence of events can be tried, and the tests at the foot of this file do try them.
//!
//! Two rules give the machine its shape:
//!
//! - The first cause is kept. Whatever else happens on the way down, it decides the exit code.
//! - Whoever executes a [`Action::Detach`] always reports its result as [`Event::Detached`]. While
//!   such a result is owed the mount is [`Mount::Attached`], and nothing ends before it is in.

use super::cause::{Cause, SignalName};
use crate::exit::ExitCode;

/// Where our mount stands while the daemon is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mount {
    /// In the mount table, as far as we know; the result of a detach is owed.
    Attached,
    /// In the mount table and can't be taken now: somebody mounted on top of it, or we were refused.
    Blocked,
    /// No longer in the mount table, by us or by somebody else. It never comes back.
    Gone,
}

/// Whose patience a drain is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Unmounted lazily from outside, nobody asked us to end: `--lazy-timeout`, by default for ever.
    Lazy,
    /// We were asked to end: `--drain-timeout`.
    Drain,
}

/// The state of the daemon. [`State::Stopped`] is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The mount is being made; nothing is published yet.
    Starting,
    /// Mounted and answering.
    Serving,
    /// On the way out, still answering whoever has files open.
    Draining {
        /// Why it ends.
        cause: Cause,
        /// The limit that runs.
        patience: Patience,
        /// What is left of the mount.
        mount: Mount,
    },
    /// The connection is cut; what remains is to see serving end and the dead mount go.
    Aborting {
        /// Why it ends.
        cause: Cause,
        /// Whether the serving threads have not returned yet.
        serving: bool,
        /// What is left of the mount.
        mount: Mount,
    },
    /// Over.
    Stopped {
        /// Why it ended.
        cause: Cause,
    },
}

impl State {
    /// Where every life begins.
    pub const INITIAL: State = State::Starting;

    /// Why it ends; nothing while it does not.
    #[must_use]
    pub fn cause(self) -> Option<Cause> {
        match self {
            State::Starting | State::Serving => None,
            State::Draining { cause, .. }
            | State::Aborting { cause, .. }
            | State::Stopped { cause } => Some(cause),
        }
    }
}

/// How a mount is to be taken from the mount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Only if nobody uses it.
    Polite,
    /// At once; whoever uses it goes on until the last close.
    Lazy,
}

/// What came of a detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// Ours was in the mount table and is no longer.
    Done,
    /// Somebody else had taken it already.
    AlreadyGone,
    /// Somebody uses it (a polite detach only).
    Busy,
    /// Something is mounted on top of ours, and nothing was done.
    Covered,
    /// Refused; the error was logged where it came up.
    Failed,
}

/// How the serving threads returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The kernel closed the connection: unmounted or aborted.
    Closed,
    /// With an error of their own.
    Failed,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The mount is published.
    Started,
    /// The mount could not be made; the exit code is start-up's.
    StartFailed(ExitCode),
    /// A signal. That it is a second one follows from the state.
    Signal(SignalName),
    /// Somebody inside the program wants it to end. However often it is said, it never becomes a
    /// second signal.
    Asked(Cause),
    /// Our mount is no longer in the mount table.
    MountGone,
    /// What was mounted on top of ours is gone.
    Uncovered,
    /// The serving threads have returned.
    ServingEnded {
        /// How.
        how: Served,
        /// Whether our mount was still in the mount table then.
        present: bool,
    },
    /// The limit that ran has passed.
    DeadlinePassed,
    /// The result of a detach.
    Detached(Detached),
}

/// The limits that [`Action::Arm`] starts; one runs at a time, a new one replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// `--lazy-timeout`.
    Lazy,
    /// `--drain-timeout`.
    Drain,
    /// How long serving may take to return once the connection is cut.
    Grace,
}

/// What has to be done, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take the mount away and report the result as [`Event::Detached`].
    Detach(Detach),
    /// Start a limit; [`Event::DeadlinePassed`] when it is over.
    Arm(Timer),
    /// Say who holds the mount and what a second signal would do.
    ReportHolders,
    /// Admit no more requests and cut the connection.
    Abort,
    /// All is over: serving has returned.
    Finish,
    /// All is over except that serving does not return: end the process without it.
    GiveUp,
}

use Action::{Abort, Arm, Finish, GiveUp, ReportHolders};
const POLITE: Action = Action::Detach(Detach::Polite);
const LAZY: Action = Action::Detach(Detach::Lazy);

/// What follows from `event` in `state`. An event that means nothing there changes nothing: the
/// outside may report late, twice, or in any order.
#[must_use]
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    match state {
        State::Starting => starting(event),
        State::Serving => serving(event),
        State::Draining {
            cause,
            patience,
            mount,
        } => draining(cause, patience, mount, event),
        State::Aborting {
            cause,
            serving,
            mount,
        } => aborting(cause, serving, mount, event),
        State::Stopped { .. } => (state, &[]),
    }
}

fn stopped(cause: Cause) -> (State, &'static [Action]) {
    (State::Stopped { cause }, &[Finish])
}

/// Nothing here detaches: what start-up made and did not publish goes with its owner.
fn starting(event: Event) -> (State, &'static [Action]) {
    match event {
        Event::Started => (State::Serving, &[]),
        Event::StartFailed(code) => stopped(Cause::StartupFailed(code)),
        Event::Signal(name) => stopped(Cause::Interrupted(name)),
        Event::Asked(cause) => stopped(cause.before_ready()),
        Event::ServingEnded { how, present } => stopped(end_of_serving(how, present)),
        Event::MountGone | Event::Uncovered | Event::DeadlinePassed | Event::Detached(_) => {
            (State::Starting, &[])
        }
    }
}

fn end_of_serving(how: Served, present: bool) -> Cause {
    match (how, present) {
        (Served::Failed, _) => Cause::ServingFailed,
        (Served::Closed, true) => Cause::ConnectionAborted,
        (Served::Closed, false) => Cause::Unmounted,
    }
}

fn serving(event: Event) -> (State, &'static [Action]) {
    let drain = |cause, patience, mount| State::Draining {
        cause,
        patience,
        mount,
    };
    match event {
        Event::Signal(name) => (
            drain(Cause::Signal(name), Patience::Drain, Mount::Attached),
            &[Arm(Timer::Drain), POLITE],
        ),
        Event::Asked(cause) => (
            drain(cause, Patience::Drain, Mount::Attached),
            &[Arm(Timer::Drain), POLITE],
        ),
        Event::MountGone => (
            drain(Cause::Unmounted, Patience::Lazy, Mount::Gone),
            &[Arm(Timer::Lazy)],
        ),
        Event::ServingEnded { how, present } => {
            let cause = end_of_serving(how, present);
            if present {
                (
                    State::Aborting {
                        cause,
                        serving: false,
                        mount: Mount::Attached,
                    },
                    &[LAZY],
                )
            } else {
                stopped(cause)
            }
        }
        Event::Started
        | Event::StartFailed(_)
        | Event::Uncovered
        | Event::DeadlinePassed
        | Event::Detached(_) => (State::Serving, &[]),
    }
}

fn draining(
    cause: Cause,
    patience: Patience,
    mount: Mount,
    event: Event,
) -> (State, &'static [Action]) {
    let with = |patience, mount| State::Draining {
        cause,
        patience,
        mount,
    };
    match event {
        Event::Signal(_) if patience == Patience::Drain => cut(cause, mount),
        Event::DeadlinePassed => cut(cause, mount),
        Event::Signal(_) | Event::Asked(_) if patience == Patience::Lazy => (
            with(Patience::Drain, mount),
            &[Arm(Timer::Drain), ReportHolders],
        ),
        Event::MountGone => (with(patience, Mount::Gone), &[]),
        Event::Uncovered if mount == Mount::Blocked => (with(patience, Mount::Attached), &[LAZY]),
        Event::Detached(result) if mount == Mount::Attached => match result {
            Detached::Done | Detached::AlreadyGone => (with(patience, Mount::Gone), &[]),
            Detached::Busy => (with(patience, mount), &[LAZY, ReportHolders]),
            Detached::Covered | Detached::Failed => (with(patience, Mount::Blocked), &[]),
        },
        Event::ServingEnded { present, .. } => match mount {
            Mount::Attached if present => (
                State::Aborting {
                    cause,
                    serving: false,
                    mount,
                },
                &[],
            ),
            // Blocked: with nobody left to serve there is nothing to wait for; the dead mount
            // stays below its cover, and the executor says so.
            Mount::Attached | Mount::Blocked | Mount::Gone => stopped(cause),
        },
        Event::Started
        | Event::StartFailed(_)
        | Event::Signal(_)
        | Event::Asked(_)
        | Event::Uncovered
        | Event::Detached(_) => (with(patience, mount), &[]),
    }
}

/// Patience is over. The connection goes before the mount does, because a connection is found by
/// its mount.
fn cut(cause: Cause, mount: Mount) -> (State, &'static [Action]) {
    let actions: &[Action] = match mount {
        Mount::Attached => &[Arm(Timer::Grace), Abort, LAZY],
        Mount::Blocked | Mount::Gone => &[Arm(Timer::Grace), Abort],
    };
    (
        State::Aborting {
            cause,
            serving: true,
            mount,
        },
        actions,
    )
}

fn aborting(cause: Cause, serving: bool, mount: Mount, event: Event) -> (State, &'static [Action]) {
    let with = |serving, mount| State::Aborting {
        cause,
        serving,
        mount,
    };
    // Over as soon as serving has returned and no result is owed.
    let settle = |serving: bool, mount: Mount| {
        if serving || mount == Mount::Attached {
            (with(serving, mount), &[] as &[Action])
        } else {
            stopped(cause)
        }
    };
    match event {
        Event::DeadlinePassed if serving => (State::Stopped { cause }, &[GiveUp]),
        Event::DeadlinePassed => stopped(cause),
        Event::MountGone => settle(serving, Mount::Gone),
        Event::Uncovered if mount == Mount::Blocked => (with(serving, Mount::Attached), &[LAZY]),
        Event::ServingEnded { .. } => settle(false, mount),
        Event::Detached(result) if mount == Mount::Attached => match result {
            Detached::Done | Detached::AlreadyGone => settle(serving, Mount::Gone),
            Detached::Busy => (with(serving, mount), &[LAZY]),
            Detached::Covered | Detached::Failed => settle(serving, Mount::Blocked),
        },
        Event::Started
        | Event::StartFailed(_)
        | Event::Signal(_)
        | Event::Asked(_)
        | Event::Uncovered
        | Event::Detached(_) => (with(serving, mount), &[]),
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests;
