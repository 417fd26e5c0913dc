//! Every sequence of events, and the stories that matter.

use super::*;

/// One of each kind, and where the payload matters all of it; two signals and two wishes, so
/// that a cause that changed would show.
pub(in crate::lifecycle) const EVENTS: [Event; 18] = [
    Event::Started,
    Event::StartFailed(ExitCode::MountFailed),
    Event::Signal(SignalName::Term),
    Event::Signal(SignalName::Hup),
    Event::Asked(Cause::Signal(SignalName::Int)),
    Event::Asked(Cause::ServingFailed),
    Event::MountGone,
    Event::Uncovered,
    Event::ServingEnded {
        how: Served::Closed,
        present: false,
    },
    Event::ServingEnded {
        how: Served::Closed,
        present: true,
    },
    Event::ServingEnded {
        how: Served::Failed,
        present: false,
    },
    Event::ServingEnded {
        how: Served::Failed,
        present: true,
    },
    Event::DeadlinePassed,
    Event::Detached(Detached::Done),
    Event::Detached(Detached::AlreadyGone),
    Event::Detached(Detached::Busy),
    Event::Detached(Detached::Covered),
    Event::Detached(Detached::Failed),
];

/// What a sequence of events has led to so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    state: State,
    ends: u8,
    polite: u8,
    aborts: u8,
    served: bool,
}

impl Life {
    const NEW: Life = Life {
        state: State::INITIAL,
        ends: 0,
        polite: 0,
        aborts: 0,
        served: false,
    };

    /// One step on, with everything checked that has to hold whatever came before.
    fn next(self, event: Event) -> Life {
        let (state, actions) = step(self.state, event);
        let mut life = Life { state, ..self };
        life.served |= matches!(event, Event::ServingEnded { .. });
        for action in actions {
            match action {
                Action::Finish => life.ends += 1,
                Action::GiveUp => {
                    life.ends += 1;
                    assert!(
                        !life.served,
                        "{self:?} {event:?}: gave up on what has returned"
                    );
                }
                Action::Detach(how) => {
                    life.polite += u8::from(*how == Detach::Polite);
                    let owed = matches!(
                        state,
                        State::Draining {
                            mount: Mount::Attached,
                            ..
                        } | State::Aborting {
                            mount: Mount::Attached,
                            ..
                        }
                    );
                    assert!(
                        owed,
                        "{self:?} {event:?}: a detach whose result nobody awaits"
                    );
                }
                Action::Abort => life.aborts += 1,
                Action::Arm(_) | Action::ReportHolders => {}
            }
        }
        let over = matches!(state, State::Stopped { .. });
        assert_eq!(
            life.ends,
            u8::from(over),
            "{self:?} {event:?}: ends when it stops, once"
        );
        assert!(
            life.polite <= 1,
            "{self:?} {event:?}: a second polite detach"
        );
        assert!(life.aborts <= 1, "{self:?} {event:?}: a second abort");
        if let Some(cause) = self.state.cause() {
            assert_eq!(
                state.cause(),
                Some(cause),
                "{self:?} {event:?}: the cause changed"
            );
        }
        if matches!(self.state, State::Stopped { .. }) {
            assert_eq!(
                (state, actions),
                (self.state, &[] as &[Action]),
                "{event:?} after the end"
            );
        }
        if life.served {
            let going = matches!(state, State::Serving | State::Draining { .. });
            assert!(
                !going,
                "{self:?} {event:?}: goes on serving without servers"
            );
        }
        life
    }
}

#[test]
fn every_sequence_of_events_up_to_length_6_keeps_the_rules() {
    fn walk(life: Life, left: u32) -> u64 {
        if left == 0 {
            return 1;
        }
        1 + EVENTS
            .iter()
            .map(|&event| walk(life.next(event), left - 1))
            .sum::<u64>()
    }
    let alphabet = EVENTS.len() as u64;
    let expected: u64 = (0..=6).map(|length| alphabet.pow(length)).sum();
    assert_eq!(walk(Life::NEW, 6), expected);
}

/// Everything that any sequence, however long, can reach. It is finite because a broken rule
/// panics in [`Life::next`] before a counter can pass one.
fn reachable() -> Vec<Life> {
    let mut seen = vec![Life::NEW];
    let mut at = 0;
    while at < seen.len() {
        for event in EVENTS {
            let next = seen[at].next(event);
            if !seen.contains(&next) {
                seen.push(next);
            }
        }
        at += 1;
    }
    seen
}

pub(in crate::lifecycle) fn reachable_states() -> Vec<State> {
    reachable().into_iter().map(|life| life.state).collect()
}

#[test]
fn every_reachable_state_leads_to_the_end() {
    let (mut ending, mut open): (Vec<Life>, Vec<Life>) = reachable()
        .into_iter()
        .partition(|life| matches!(life.state, State::Stopped { .. }));
    while !open.is_empty() {
        let (near, far): (Vec<Life>, Vec<Life>) = open.into_iter().partition(|life| {
            EVENTS
                .iter()
                .any(|&event| ending.contains(&life.next(event)))
        });
        assert!(!near.is_empty(), "these never end: {far:?}");
        ending.extend(near);
        open = far;
    }
}

/// The end of a story told by its events, and all that was done on the way.
fn tell(events: &[Event]) -> (State, Vec<Action>) {
    events
        .iter()
        .fold((State::INITIAL, Vec::new()), |(state, mut done), &event| {
            let (state, actions) = step(state, event);
            done.extend_from_slice(actions);
            (state, done)
        })
}

const TERM: Event = Event::Signal(SignalName::Term);
const RETURNED: Event = Event::ServingEnded {
    how: Served::Closed,
    present: false,
};

#[test]
fn a_signal_on_an_idle_mount() {
    let (state, done) = tell(&[
        Event::Started,
        TERM,
        Event::Detached(Detached::Done),
        RETURNED,
    ]);
    assert_eq!(state.cause().map(Cause::exit_code), Some(ExitCode::Success));
    assert_eq!(done, [Arm(Timer::Drain), POLITE, Finish]);
}

#[test]
fn a_signal_on_a_busy_mount_then_the_deadline_then_no_return() {
    let busy = Event::Detached(Detached::Busy);
    let gone = Event::Detached(Detached::Done);
    let late = Event::DeadlinePassed;
    let (state, done) = tell(&[Event::Started, TERM, busy, gone, late, late]);
    assert_eq!(
        state,
        State::Stopped {
            cause: Cause::Signal(SignalName::Term)
        }
    );
    let drain = [Arm(Timer::Drain), POLITE, LAZY, ReportHolders];
    let cut = [Arm(Timer::Grace), Abort, GiveUp];
    assert_eq!(done, [drain.as_slice(), &cut].concat());
}

#[test]
fn a_lazy_unmount_has_no_second_signal_before_the_first() {
    let (state, done) = tell(&[Event::Started, Event::MountGone, TERM]);
    assert!(matches!(
        state,
        State::Draining {
            patience: Patience::Drain,
            ..
        }
    ));
    assert_eq!(done, [Arm(Timer::Lazy), Arm(Timer::Drain), ReportHolders]);
    let (state, done) = tell(&[Event::Started, Event::MountGone, TERM, TERM, RETURNED]);
    assert_eq!(
        state,
        State::Stopped {
            cause: Cause::Unmounted
        }
    );
    assert_eq!(done.last(), Some(&Finish));
}

#[test]
fn an_aborted_connection_takes_the_dead_mount_along() {
    let dead = Event::ServingEnded {
        how: Served::Closed,
        present: true,
    };
    let (state, done) = tell(&[Event::Started, dead, Event::Detached(Detached::Done)]);
    assert_eq!(
        state,
        State::Stopped {
            cause: Cause::ConnectionAborted
        }
    );
    assert_eq!(done, [LAZY, Finish]);
}

#[test]
fn what_covers_our_mount_is_never_detached() {
    let covered = Event::Detached(Detached::Covered);
    let (state, done) = tell(&[Event::Started, TERM, covered, TERM, RETURNED]);
    assert_eq!(
        state,
        State::Stopped {
            cause: Cause::Signal(SignalName::Term)
        }
    );
    assert_eq!(
        done,
        [Arm(Timer::Drain), POLITE, Arm(Timer::Grace), Abort, Finish]
    );
    let (_, done) = tell(&[Event::Started, TERM, covered, Event::Uncovered]);
    assert_eq!(done.last(), Some(&LAZY));
}

#[test]
fn exit_codes() {
    let code = |events: &[Event]| tell(events).0.cause().map(Cause::exit_code);
    assert_eq!(code(&[TERM]), Some(ExitCode::Interrupted));
    let failed = Event::ServingEnded {
        how: Served::Failed,
        present: false,
    };
    assert_eq!(code(&[Event::Started, failed]), Some(ExitCode::Internal));
    assert_eq!(
        code(&[Event::Started, TERM, failed]),
        Some(ExitCode::Success)
    );
    let usage = Event::StartFailed(ExitCode::System);
    assert_eq!(code(&[usage, TERM]), Some(ExitCode::System));
}
