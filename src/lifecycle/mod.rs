//! The end of the mount, whatever asks for it: one path, walked once.
//!
//! - [`state`]: the machine. A pure function from state and event to state and actions.
//! - [`cause`]: why it ended; decides the exit code.
//! - [`Shutdown`] (here): the handle. Any thread tells it what happened; it alone moves the state.
//! - `standing`: where it stands, for a process that goes on if this one is killed;
//! - [`gate`]: the requests in flight.
//! - [`control`]: the thread that hears signals, the mount table and the clock, and acts.
//! - [`holders`]: who still uses the mount, found without touching it; `watch` has that done once
//!   a second while it drains.
//!
//! The mount itself is somebody else's: this module knows it as [`Mounted`].
//!
//! ```mermaid
//! stateDiagram-v2
//!     [*] --> Starting
//!     Starting --> Serving : Started
//!     Starting --> Stopped : StartFailed, Signal, Asked, ServingEnded
//!     Serving --> Draining : Signal, Asked, MountGone
//!     Serving --> Aborting : ServingEnded
//!     Serving --> Stopped : ServingEnded
//!     Draining --> Draining : Signal, Asked, MountGone, Uncovered, Detached
//!     Draining --> Aborting : Signal, DeadlinePassed, ServingEnded
//!     Draining --> Stopped : ServingEnded
//!     Aborting --> Aborting : MountGone, Uncovered, ServingEnded, Detached
//!     Aborting --> Stopped : MountGone, DeadlinePassed, ServingEnded, Detached
//!     Stopped --> [*]
//! ```
//!
//! Where one event leads to two states, what decides is:
//!
//! - *Serving, `ServingEnded`*: with our mount gone all is over; if it still stands, the connection
//!   was aborted from outside and the dead mount is taken away first.
//! - *Draining, `Signal`*: the first one after a lazy unmount from outside starts the drain
//!   deadline; a second one cuts the connection.
//! - *Draining and Aborting, otherwise*: over as soon as serving has returned and the result of no
//!   detach is owed. A mount that something else covers is never taken; without servers it is
//!   left below its cover, dead, and the log says so.
//!
//! A test compares the picture with what [`state::step`] does, line by line.

pub mod cause;
pub mod control;
pub mod gate;
pub mod holders;
mod standing;
pub mod state;
mod watch;

use std::io;
use std::time::{Duration, Instant};

use crate::exit::ExitCode;
use crate::sync::{Arc, Mutex, lock};
use crate::sys::wake::Wake;

pub use cause::{Cause, SignalName};
pub use control::{Ending, Limits, Past, Signals, spawn_control};
pub use gate::{Gate, Pass};
pub use holders::Identity;
pub use state::{Detach, Detached, Mount as MountState, Patience, Served, State};

use state::{Action, Event};

/// "We are mounted", as far as the way out needs it.
///
/// Nothing here may send a request to our own daemon or wait for one: it may be the one that hangs.
pub trait Mounted: Send + Sync {
    /// Whether our mount, and no other one at the same path, is in the mount table.
    fn is_present(&self) -> bool;

    /// Whether something is mounted on top of ours.
    fn is_covered(&self) -> bool;

    /// Takes ours from the mount table, and never anybody else's. May be called by anybody, any
    /// number of times. [`Detach::Lazy`] is never [`Detached::Busy`].
    fn detach(&self, how: Detach) -> io::Result<Detached>;

    /// Cuts the connection to the kernel, also when the mount has been detached lazily before.
    fn abort_connection(&self) -> io::Result<()>;

    /// What to look for in /proc to find who uses it.
    fn identity(&self) -> Identity;
}

/// The handle on the end of the daemon: tells it what happened, asks it to end.
///
/// Every call moves the state before it returns and never waits for anything else. What has to be
/// done about it is left to the control thread, which is woken.
#[derive(Clone)]
pub struct Shutdown {
    core: Arc<Core<Wake>>,
}

impl Shutdown {
    /// A daemon that is starting.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            core: Arc::new(Core::new(Wake::new()?)),
        })
    }

    /// Asks for an orderly end because of `cause`. The first cause that anybody names is kept;
    /// asking again changes nothing, and is never taken for a second signal.
    pub fn request(&self, cause: Cause) {
        self.apply(Event::Asked(cause));
    }

    /// Asks for an end that waits for nobody: open files are cut off. As a signal and a second one, but `cause` is
    /// kept.
    pub fn cut_off(&self, cause: Cause) {
        self.apply(Event::Asked(cause));
        // What a second one does in the state that the first has led to, and nothing where it was that far already.
        self.apply(Event::Signal(SignalName::Term));
    }

    /// The mount is published: from now on the end includes taking it away.
    pub fn started(&self) {
        self.apply(Event::Started);
    }

    /// Another process served this mount, and was at `state` when it was killed. `false`: then it was cutting the connection,
    /// and there is nothing left to serve.
    #[must_use]
    pub fn resumed(&self, state: State) -> bool {
        let Some((state, actions)) = standing::resumed(state) else {
            return false;
        };
        let mut machine = lock(&self.core.machine);
        machine.state = state;
        machine.todo.extend_from_slice(actions);
        true
    }

    /// The mount could not be made.
    pub fn start_failed(&self, code: ExitCode) {
        self.apply(Event::StartFailed(code));
    }

    /// The serving threads have returned; `mount_present` is [`Mounted::is_present`], asked after
    /// they did. Before the mount was published it is `false`.
    pub fn serving_ended(&self, how: Served, mount_present: bool) {
        self.apply(Event::ServingEnded {
            how,
            present: mount_present,
        });
    }

    /// Where the daemon stands.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.core.machine).state
    }

    /// How long it is until what is still open is cut off, if a limit runs.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = lock(&self.core.machine).deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// When the limit that runs is over, if one does.
    fn deadline(&self) -> Option<Instant> {
        lock(&self.core.machine).deadline
    }

    fn set_deadline(&self, deadline: Option<Instant>) {
        lock(&self.core.machine).deadline = deadline;
    }

    fn apply(&self, event: Event) {
        self.core.apply(event);
    }

    /// What has to be done and was not taken before, oldest first.
    fn take(&self) -> Vec<Action> {
        self.core.take()
    }

    /// Wakes the control thread without anything having happened to the state.
    fn wake(&self) {
        self.core.bell.ring();
    }

    /// Readable when there may be something to [`take`](Self::take).
    fn bell(&self) -> &Wake {
        &self.core.bell
    }
}

impl std::fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shutdown")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Wakes the control thread.
trait Ring {
    fn ring(&self);
}

/// The machine, shared. Generic over what wakes the control thread, so that loom can model it.
struct Core<R> {
    machine: Mutex<Machine>,
    bell: R,
}

struct Machine {
    state: State,
    todo: Vec<Action>,
    /// When the limit that runs is over; the control thread's, which is to say the only clock's.
    deadline: Option<Instant>,
}

impl<R: Ring> Core<R> {
    fn new(bell: R) -> Self {
        Self {
            machine: Mutex::new(Machine {
                state: State::INITIAL,
                todo: Vec::new(),
                deadline: None,
            }),
            bell,
        }
    }

    fn apply(&self, event: Event) {
        let mut machine = lock(&self.machine);
        let (state, actions) = state::step(machine.state, event);
        machine.state = state;
        machine.todo.extend_from_slice(actions);
        drop(machine);
        // After the machine has moved: whoever hears the bell finds what it rang for.
        if !actions.is_empty() {
            self.bell.ring();
        }
    }

    fn take(&self) -> Vec<Action> {
        std::mem::take(&mut lock(&self.machine).todo)
    }
}

impl Ring for Wake {
    fn ring(&self) {
        Wake::ring(self);
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// `Draining { .. }` is `Draining`.
    fn kind(value: &impl std::fmt::Debug) -> String {
        format!("{value:?}")
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect()
    }

    #[test]
    fn the_picture_shows_what_the_machine_does() {
        let drawn: BTreeSet<(String, String, String)> = include_str!("mod.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//!     "))
            .filter_map(|line| line.split_once(" : "))
            .flat_map(|(arrow, events)| {
                let (from, to) = arrow.split_once(" --> ").unwrap();
                events
                    .split(", ")
                    .map(|event| (from.to_owned(), to.to_owned(), event.to_owned()))
            })
            .collect();
        let mut real = BTreeSet::new();
        for state in state::tests::reachable_states() {
            for event in state::tests::EVENTS {
                let (next, actions) = state::step(state, event);
                if next != state || !actions.is_empty() {
                    real.insert((kind(&state), kind(&next), kind(&event)));
                }
            }
        }
        let missing: Vec<_> = real.difference(&drawn).collect();
        let invented: Vec<_> = drawn.difference(&real).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "missing {missing:?}\ninvented {invented:?}"
        );
    }

    #[test]
    fn being_cut_off_twice_is_being_cut_off() {
        let shutdown = Shutdown::new().unwrap();
        shutdown.started();
        shutdown.cut_off(Cause::Unmounted);
        let aborting = |state| {
            matches!(
                state,
                State::Aborting {
                    cause: Cause::Unmounted,
                    ..
                }
            )
        };
        assert!(aborting(shutdown.state()), "{shutdown:?}");
        assert!(shutdown.take().contains(&Action::Abort));
        shutdown.cut_off(Cause::Unmounted);
        assert!(aborting(shutdown.state()), "{shutdown:?}");
        assert_eq!(shutdown.take(), []);
    }

    #[test]
    fn asking_again_changes_nothing() {
        let shutdown = Shutdown::new().unwrap();
        shutdown.started();
        shutdown.request(Cause::Signal(SignalName::Term));
        let (state, actions) = (shutdown.state(), shutdown.take());
        assert!(actions.contains(&Action::Detach(Detach::Polite)));
        shutdown.clone().request(Cause::ServingFailed);
        assert_eq!(shutdown.state(), state);
        assert_eq!(shutdown.take(), []);
    }
}

/// Several threads tell the handle what happened while the control thread takes what is to be
/// done. As in [`gate`], each twin has one mistake that the model must find.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{Condvar, PoisonError};
    use loom::thread;

    /// Rings once for any number of rings before it is heard, like the eventfd.
    struct LoomBell {
        ringing: Mutex<bool>,
        heard: Condvar,
    }

    impl LoomBell {
        fn new() -> Self {
            Self {
                ringing: Mutex::new(false),
                heard: Condvar::new(),
            }
        }

        fn wait(&self) {
            let mut ringing = lock(&self.ringing);
            while !*ringing {
                ringing = self
                    .heard
                    .wait(ringing)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            *ringing = false;
        }
    }

    impl Ring for LoomBell {
        fn ring(&self) {
            *lock(&self.ringing) = true;
            self.heard.notify_one();
        }
    }

    type Apply = fn(&Core<LoomBell>, Event);

    /// The daemon is asked to end twice while serving returns.
    fn it_ends_once(apply: Apply) {
        loom::model(move || {
            let core = Arc::new(Core::new(LoomBell::new()));
            core.apply(Event::Started);
            let tell = |event| {
                let core = Arc::clone(&core);
                thread::spawn(move || apply(&core, event))
            };
            let others = [
                tell(Event::Asked(Cause::Signal(SignalName::Term))),
                tell(Event::ServingEnded {
                    how: Served::Failed,
                    present: false,
                }),
            ];
            let mut done = Vec::new();
            let mut first = None;
            // A wake-up that is lost is a deadlock here.
            while !done.contains(&Action::Finish) {
                core.bell.wait();
                done.extend(core.take());
                let cause = lock(&core.machine).state.cause();
                assert!(first.is_none() || first == cause, "the cause changed");
                first = cause;
            }
            for other in others {
                other.join().unwrap();
            }
            done.extend(core.take());
            assert_eq!(
                lock(&core.machine).state.cause(),
                first,
                "the cause changed"
            );
            let count = |action| done.iter().filter(|&&it| it == action).count();
            assert_eq!(count(Action::Finish), 1, "ends once");
            assert!(
                count(Action::Detach(Detach::Polite)) <= 1,
                "asks politely once"
            );
        });
    }

    #[test]
    fn the_handle_ends_it_once() {
        it_ends_once(Core::apply);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn the_model_catches_who_rings_before_there_is_anything_to_take() {
        it_ends_once(|core, event| {
            core.bell.ring();
            let mut machine = lock(&core.machine);
            let (state, actions) = state::step(machine.state, event);
            machine.state = state;
            machine.todo.extend_from_slice(actions);
        });
    }

    #[test]
    #[should_panic(expected = "the cause changed")]
    fn the_model_catches_who_decides_outside_the_lock() {
        it_ends_once(|core, event| {
            let seen = lock(&core.machine).state;
            let (state, actions) = state::step(seen, event);
            let mut machine = lock(&core.machine);
            machine.state = state;
            machine.todo.extend_from_slice(actions);
            drop(machine);
            core.bell.ring();
        });
    }
}
