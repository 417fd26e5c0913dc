//! The control thread against a mount that is played by the test, signals included; at the end the
//! real signals, and a real mount table.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use signal_hook::low_level::raise;

use super::*;
use crate::lifecycle::{Identity, Served};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Detach(Detach),
    Abort,
}
const POLITE: Call = Call::Detach(Detach::Polite);
const LAZY: Call = Call::Detach(Detach::Lazy);

/// The part of the mount: answers as it is told and keeps what it was asked.
struct Stage {
    play: Mutex<Play>,
    called: Condvar,
}

struct Play {
    present: bool,
    covered: bool,
    /// Answers to detaches, first to last; `Done` when there are no more.
    answers: Vec<Detached>,
    calls: Vec<Call>,
}

impl Stage {
    fn play(&self) -> MutexGuard<'_, Play> {
        self.play.lock().unwrap()
    }

    fn note(&self, call: Call) {
        self.play().calls.push(call);
        self.called.notify_all();
    }

    /// Waits until `call` has been made.
    fn wait_for(&self, call: Call) {
        drop(
            self.called
                .wait_while(self.play(), |play| !play.calls.contains(&call))
                .unwrap(),
        );
    }
}

impl Mounted for Stage {
    fn is_present(&self) -> bool {
        self.play().present
    }
    fn is_covered(&self) -> bool {
        self.play().covered
    }
    fn detach(&self, how: Detach) -> io::Result<Detached> {
        let mut play = self.play();
        let answer = if play.answers.is_empty() {
            Detached::Done
        } else {
            play.answers.remove(0)
        };
        play.present &= !matches!(answer, Detached::Done | Detached::AlreadyGone);
        drop(play);
        self.note(Call::Detach(how));
        Ok(answer)
    }
    fn abort_connection(&self) -> io::Result<()> {
        self.note(Call::Abort);
        Ok(())
    }
    fn identity(&self) -> Identity {
        Identity {
            target: "/nowhere/mnt".into(),
            device: None,
            mount_id: None,
        }
    }
}

/// A daemon that serves, and its control thread.
struct Daemon {
    shutdown: Shutdown,
    gate: Arc<Gate>,
    stage: Arc<Stage>,
    signals: [UnixStream; 3],
    control: JoinHandle<Ending>,
}

const AT_ONCE: Limit = Limit::After(Duration::ZERO);

impl Daemon {
    /// Present, and with a grace that no test waits for.
    fn start(drain: Limit, answers: &[Detached]) -> Self {
        let grace = Duration::from_secs(60);
        Self::start_with(
            Limits {
                drain,
                grace,
                ..Limits::default()
            },
            answers,
            true,
        )
    }

    fn start_with(limits: Limits, answers: &[Detached], present: bool) -> Self {
        let pair = |name| {
            let (reader, writer) = UnixStream::pair().unwrap();
            reader.set_nonblocking(true).unwrap();
            ((name, reader), writer)
        };
        let [(term, a), (int, b), (hup, c)] =
            [SignalName::Term, SignalName::Int, SignalName::Hup].map(pair);
        let play = Play {
            present,
            covered: true,
            answers: answers.to_vec(),
            calls: Vec::new(),
        };
        let stage = Arc::new(Stage {
            play: Mutex::new(play),
            called: Condvar::new(),
        });
        let shutdown = Shutdown::new().unwrap();
        shutdown.started();
        let gate = Arc::new(Gate::new());
        let control = spawn_control(
            Signals {
                lines: [term, int, hup],
            },
            shutdown.clone(),
            Arc::clone(&stage) as Arc<dyn Mounted>,
            Arc::clone(&gate),
            limits,
            Past::default(),
        );
        Self {
            shutdown,
            gate,
            stage,
            signals: [a, b, c],
            control: control.unwrap(),
        }
    }

    fn signal(&self, nth: usize) {
        (&self.signals[nth]).write_all(b"X").unwrap();
    }

    fn served(&self, how: Served, present: bool) {
        self.shutdown.serving_ended(how, present);
    }

    fn end(self) -> (Ending, Vec<Call>) {
        let ending = self.control.join().unwrap();
        let calls = self.stage.play().calls.clone();
        (ending, calls)
    }
}

const TERM: Cause = Cause::Signal(SignalName::Term);

#[test]
fn a_signal_detaches_politely_and_waits_for_serving() {
    let daemon = Daemon::start(Limit::Never, &[]);
    daemon.signal(0);
    daemon.stage.wait_for(POLITE);
    daemon.served(Served::Closed, false);
    assert_eq!(daemon.end(), (Ending::Finished(TERM), vec![POLITE]));
}

#[test]
fn a_busy_mount_is_detached_lazily_and_a_second_signal_cuts_it_off() {
    let daemon = Daemon::start(Limit::Never, &[Detached::Busy]);
    daemon.signal(0);
    daemon.stage.wait_for(LAZY);
    assert!(
        daemon.gate.enter().is_some(),
        "what is open goes on working"
    );
    daemon.signal(1);
    daemon.stage.wait_for(Call::Abort);
    assert!(
        daemon.gate.enter().is_none(),
        "the gate closes before the cut"
    );
    daemon.served(Served::Failed, false);
    assert_eq!(
        daemon.end(),
        (Ending::Finished(TERM), vec![POLITE, LAZY, Call::Abort])
    );
}

#[test]
fn the_deadline_cuts_it_off() {
    let daemon = Daemon::start(AT_ONCE, &[Detached::Busy]);
    daemon.signal(2);
    daemon.stage.wait_for(Call::Abort);
    daemon.served(Served::Closed, false);
    let cause = Cause::Signal(SignalName::Hup);
    assert_eq!(
        daemon.end(),
        (Ending::Finished(cause), vec![POLITE, LAZY, Call::Abort])
    );
}

#[test]
fn five_signals_at_once_are_one_request() {
    let daemon = Daemon::start(Limit::Never, &[]);
    // Before all have come it can't get past the detach.
    let held = daemon.stage.play();
    for nth in [0, 1, 2, 0, 1] {
        daemon.signal(nth);
    }
    drop(held);
    daemon.stage.wait_for(POLITE);
    daemon.served(Served::Closed, false);
    let (ending, calls) = daemon.end();
    assert_eq!(ending.exit_code(), ExitCode::Success);
    assert_eq!(calls, [POLITE]);
}

#[test]
fn a_mount_that_is_gone_is_not_detached_and_a_signal_starts_the_deadline() {
    let daemon = Daemon::start_with(
        Limits {
            drain: AT_ONCE,
            ..Limits::default()
        },
        &[],
        false,
    );
    daemon.signal(0);
    daemon.stage.wait_for(Call::Abort);
    daemon.served(Served::Closed, false);
    let (ending, calls) = daemon.end();
    assert_eq!(ending.exit_code(), ExitCode::Success);
    assert_eq!(
        (ending, calls),
        (Ending::Finished(Cause::Unmounted), vec![Call::Abort])
    );
}

#[test]
fn the_dead_mount_of_an_aborted_connection_is_removed() {
    let daemon = Daemon::start(Limit::Never, &[]);
    daemon.served(Served::Closed, true);
    assert_eq!(
        daemon.end(),
        (Ending::Finished(Cause::ConnectionAborted), vec![LAZY])
    );
}

#[test]
fn serving_that_fails_is_an_internal_error() {
    let daemon = Daemon::start(Limit::Never, &[]);
    daemon.served(Served::Failed, true);
    let (ending, calls) = daemon.end();
    assert_eq!(
        (ending.exit_code(), calls),
        (ExitCode::Internal, vec![LAZY])
    );
}

#[test]
fn a_covered_mount_is_left_alone_and_its_connection_given_up() {
    let daemon = Daemon::start(AT_ONCE, &[Detached::Covered]);
    daemon.signal(0);
    daemon.stage.wait_for(Call::Abort);
    daemon.served(Served::Closed, true);
    assert_eq!(
        daemon.end(),
        (Ending::Finished(TERM), vec![POLITE, Call::Abort])
    );
}

#[test]
fn asking_ends_it_like_a_signal() {
    let daemon = Daemon::start(Limit::Never, &[]);
    daemon.shutdown.request(TERM);
    daemon.shutdown.request(Cause::ServingFailed);
    daemon.stage.wait_for(POLITE);
    daemon.served(Served::Closed, false);
    assert_eq!(daemon.end(), (Ending::Finished(TERM), vec![POLITE]));
}

#[test]
fn serving_that_never_returns_is_not_waited_for() {
    let limits = Limits {
        drain: AT_ONCE,
        lazy: Limit::Never,
        grace: Duration::ZERO,
    };
    let daemon = Daemon::start_with(limits, &[Detached::Busy], true);
    let gate = Arc::clone(&daemon.gate);
    let stuck = gate.enter();
    daemon.signal(0);
    let (ending, calls) = daemon.end();
    drop(stuck);
    assert_eq!(
        (ending, calls),
        (Ending::GaveUp(TERM), vec![POLITE, LAZY, Call::Abort])
    );
}

/// The only test that raises signals: they reach the whole process.
#[test]
fn real_signals_are_recorded_from_the_first_moment() {
    let signals = Signals::install().unwrap();
    assert_eq!(signals.pending_stop(), None);
    for (number, name) in [
        (SIGHUP, SignalName::Hup),
        (SIGTERM, SignalName::Term),
        (SIGINT, SignalName::Int),
    ] {
        raise(number).unwrap();
        assert_eq!(signals.pending_stop(), Some(name));
        assert_eq!(signals.pending_stop(), Some(name), "looking takes nothing");
        raise(number).unwrap();
        assert_eq!(signals.take(), Some((name, 2)));
        assert_eq!(signals.pending_stop(), None);
    }
}

#[test]
fn a_broken_pipe_does_not_kill() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_ne!(ignored & 1 << (signal_hook::consts::SIGPIPE - 1), 0);
}

/// What only the mount table can tell: something of the stage changes, then the table does.
fn change_the_mount_table() {
    let dir = tempfile::tempdir().unwrap();
    let none: Option<&std::ffi::CStr> = None;
    mount(
        "loopfs-test",
        dir.path(),
        "tmpfs",
        MountFlags::empty(),
        none,
    )
    .unwrap();
    unmount(dir.path(), UnmountFlags::DETACH).unwrap();
}

#[test]
fn the_mount_table_tells_of_an_unmount_and_of_a_cover_that_goes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount");
        return;
    }
    let daemon = Daemon::start(Limit::Never, &[Detached::Covered]);
    daemon.signal(0);
    daemon.stage.wait_for(POLITE);
    daemon.stage.play().covered = false;
    change_the_mount_table();
    daemon.stage.wait_for(LAZY);
    daemon.served(Served::Closed, false);
    assert_eq!(daemon.end(), (Ending::Finished(TERM), vec![POLITE, LAZY]));

    let limits = Limits {
        lazy: AT_ONCE,
        ..Limits::default()
    };
    let daemon = Daemon::start_with(limits, &[], true);
    daemon.stage.play().present = false;
    change_the_mount_table();
    daemon.stage.wait_for(Call::Abort);
    daemon.served(Served::Closed, false);
    assert_eq!(
        daemon.end(),
        (Ending::Finished(Cause::Unmounted), vec![Call::Abort])
    );
}
