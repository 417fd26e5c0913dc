//! Where a daemon's life stands, as a record for another process: if the one that serves is killed on its way out, the next
//! goes on from there, and does not begin to serve a mount anew that somebody has asked to end.

use super::cause::{Cause, SignalName};
use super::state::{Action, Detach, Mount, Patience, State, Timer};
use crate::exit::ExitCode;
use crate::record::{Reader, Writer};

impl State {
    /// As a record.
    #[must_use]
    pub fn to_record(self) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            State::Starting => writer.number(0_u8),
            State::Serving => writer.number(1_u8),
            State::Draining {
                cause,
                patience,
                mount,
            } => {
                let writer = put_cause(writer.number(2_u8), cause);
                let patience = match patience {
                    Patience::Lazy => 0_u8,
                    Patience::Drain => 1,
                };
                writer.number(patience).number(number_of_mount(mount))
            }
            State::Aborting {
                cause,
                serving,
                mount,
            } => put_cause(writer.number(3_u8), cause)
                .number(u8::from(serving))
                .number(number_of_mount(mount)),
            State::Stopped { cause } => put_cause(writer.number(4_u8), cause),
        }
        .done()
    }

    /// The one of such a record.
    #[must_use]
    pub fn from_record(record: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(record);
        let state = match reader.number()? {
            0_u8 => State::Starting,
            1 => State::Serving,
            2 => State::Draining {
                cause: cause(&mut reader)?,
                patience: match reader.number()? {
                    0_u8 => Patience::Lazy,
                    1 => Patience::Drain,
                    _ => return None,
                },
                mount: mount(&mut reader)?,
            },
            3 => State::Aborting {
                cause: cause(&mut reader)?,
                serving: reader.number::<u8>()? != 0,
                mount: mount(&mut reader)?,
            },
            4 => State::Stopped {
                cause: cause(&mut reader)?,
            },
            _ => return None,
        };
        reader.is_done().then_some(state)
    }
}

/// How who takes a daemon over in `state` goes on: where it stands then, and what it does first. The result of a detach that
/// was owed never came, so it is begun again. The connection that was being cut has gone with who cut it: `None`.
pub(super) fn resumed(state: State) -> Option<(State, &'static [Action])> {
    const LAZY: &[Action] = &[Action::Arm(Timer::Lazy)];
    const DRAIN: &[Action] = &[Action::Arm(Timer::Drain)];
    const DETACH: &[Action] = &[Action::Arm(Timer::Drain), Action::Detach(Detach::Polite)];
    match state {
        State::Starting | State::Serving => Some((State::Serving, &[])),
        State::Draining {
            cause,
            patience,
            mount,
        } => Some(match (patience, mount) {
            (Patience::Lazy, _) => (state, LAZY),
            (Patience::Drain, Mount::Gone) => (state, DRAIN),
            (Patience::Drain, Mount::Attached | Mount::Blocked) => {
                let mount = Mount::Attached;
                let state = State::Draining {
                    cause,
                    patience,
                    mount,
                };
                (state, DETACH)
            }
        }),
        State::Aborting { .. } | State::Stopped { .. } => None,
    }
}

fn number_of_mount(mount: Mount) -> u8 {
    match mount {
        Mount::Attached => 0,
        Mount::Blocked => 1,
        Mount::Gone => 2,
    }
}

fn mount(reader: &mut Reader<'_>) -> Option<Mount> {
    match reader.number()? {
        0_u8 => Some(Mount::Attached),
        1 => Some(Mount::Blocked),
        2 => Some(Mount::Gone),
        _ => None,
    }
}

fn put_cause(writer: Writer, cause: Cause) -> Writer {
    let signal = |name| match name {
        SignalName::Int => 0_u8,
        SignalName::Term => 1,
        SignalName::Hup => 2,
    };
    let (kind, more) = match cause {
        Cause::Signal(name) => (0_u8, signal(name)),
        Cause::Interrupted(name) => (1, signal(name)),
        Cause::Unmounted => (2, 0),
        Cause::ConnectionAborted => (3, 0),
        Cause::ServingFailed => (4, 0),
        Cause::StartupFailed(code) => (5, code as u8),
        Cause::SupervisorLost => (6, 0),
    };
    writer.number(kind).number(more)
}

fn cause(reader: &mut Reader<'_>) -> Option<Cause> {
    let (kind, more): (u8, u8) = (reader.number()?, reader.number()?);
    let signal = || match more {
        0 => Some(SignalName::Int),
        1 => Some(SignalName::Term),
        2 => Some(SignalName::Hup),
        _ => None,
    };
    match kind {
        0 => signal().map(Cause::Signal),
        1 => signal().map(Cause::Interrupted),
        2 => Some(Cause::Unmounted),
        3 => Some(Cause::ConnectionAborted),
        4 => Some(Cause::ServingFailed),
        5 => ExitCode::from_number(more).map(Cause::StartupFailed),
        6 => Some(Cause::SupervisorLost),
        _ => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::state::tests::reachable_states;
    use super::super::state::{Event, step};
    use super::*;

    #[test]
    fn every_state_is_read_as_it_was_written() {
        for state in reachable_states() {
            let record = state.to_record();
            assert_eq!(State::from_record(&record), Some(state));
            for length in 0..record.len() {
                assert_eq!(State::from_record(&record[..length]), None, "{state:?}");
            }
        }
    }

    /// Whoever is killed on the way out, the cause stays, and what is left to do is done.
    #[test]
    fn the_way_out_goes_on_for_the_same_cause() {
        for state in reachable_states() {
            let Some((next, actions)) = resumed(state) else {
                assert!(matches!(
                    state,
                    State::Aborting { .. } | State::Stopped { .. }
                ));
                continue;
            };
            assert_eq!(next.cause(), state.cause());
            let detaches = actions.contains(&Action::Detach(Detach::Polite));
            let owed = matches!(
                next,
                State::Draining {
                    patience: Patience::Drain,
                    mount: Mount::Attached,
                    ..
                }
            );
            assert_eq!(detaches, owed, "{state:?}: a result that is owed comes");
            let (over, _) = step(next, Event::DeadlinePassed);
            let timed = matches!(over, State::Aborting { .. });
            assert_eq!(timed, next != State::Serving, "{state:?}: a limit runs");
        }
    }
}
