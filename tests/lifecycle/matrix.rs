//! Trigger x state: each way of ending the mount while it is idle, while a file is open on it, and
//! while several programs work on it. A line a case, at the end of this file.

use std::time::Instant;

use super::load::{Load, check_kept};
use super::subject::{Held, Mode, Promise, Subject, held_in};
use crate::common::Signal;

/// What asks for the end.
#[derive(Debug, Clone, Copy)]
enum Trigger {
    Signal(Signal),
    /// `fusermount3 -u`, `umount`: only if nobody uses it.
    Polite(&'static str),
    /// `fusermount3 -uz`, `umount -l`: at once from the mount table.
    Lazy(&'static str),
    /// `umount -f`: aborts the connection, then unmounts if nobody uses it.
    Force(&'static str),
    /// `umount -l -f`: aborts the connection and unmounts.
    ForceLazy(&'static str),
    /// The connection's `abort` file in fusectl.
    Abort,
}
use Trigger::{Abort, Force, ForceLazy, Lazy, Polite};

const SIGINT: Trigger = Trigger::Signal(Signal::INT);
const SIGTERM: Trigger = Trigger::Signal(Signal::TERM);
const SIGHUP: Trigger = Trigger::Signal(Signal::HUP);

/// The log after an abort.
const CUT: &str = "was cut from outside; the dead mount is removed";

impl Trigger {
    /// Fires it. For a program: whether it succeeded, and what it printed.
    #[track_caller]
    fn fire(self, subject: &Subject) -> Result<(), String> {
        match self {
            Trigger::Signal(signal) => subject.signal(signal),
            Abort => subject.connection().abort(),
            Polite(command) | Lazy(command) | Force(command) | ForceLazy(command) => {
                let mut words = command.split(' ');
                let program = words.next().unwrap();
                let options: Vec<_> = words.collect();
                let finished = subject.try_unmount_with(program, &options);
                if !finished.status.success() {
                    return Err(finished.stderr);
                }
            }
        }
        Ok(())
    }

    /// Fires what has to succeed.
    #[track_caller]
    fn succeed(self, subject: &Subject) {
        if let Err(text) = self.fire(subject) {
            panic!("{self:?}: {text}");
        }
    }
}

/// Nobody uses the mount: it ends at once.
fn idle(trigger: Trigger, mode: Mode) {
    let subject = Subject::start(mode, &[]);
    let kept = Promise::make(&subject).close();
    let fired = Instant::now();
    match trigger {
        // It aborts first: the daemon may be quicker to remove the dead mount than umount is.
        Force(_) => drop(trigger.fire(&subject)),
        _ => trigger.succeed(&subject),
    }
    let end = subject.ends(fired);
    let env = match trigger {
        Abort => end.says(CUT).clean(),
        _ => end.clean(),
    };
    kept.check(&env);
}

/// A file is open: nothing that is polite takes the mount from its user, and whatever is not polite
/// ends it.
fn busy(trigger: Trigger, mode: Mode) {
    let subject = Subject::start(mode, &[]);
    let promise = Promise::make(&subject);
    let mut held = Held::open(&subject);
    match trigger {
        Trigger::Signal(_) => {
            trigger.succeed(&subject);
            subject.wait_detached();
            held.works();
            subject.wait_log(&format!("is held by pid {} (", std::process::id()));
            subject.wait_log("a second signal cuts them off at once");
            held.works();
            assert!(subject.is_running());
        }
        Lazy(_) => {
            trigger.succeed(&subject);
            subject.wait_detached();
            held.works();
            assert!(subject.is_running());
        }
        Polite(_) => {
            for _ in 0..3 {
                let refusal = trigger.fire(&subject).expect_err("busy");
                assert!(refusal.contains("busy"), "{refusal}");
                held.works();
            }
            assert!(subject.is_mounted() && subject.is_running());
            assert_eq!(std::fs::read(subject.path("closed")).unwrap().len(), 10_000);
        }
        Force(_) | ForceLazy(_) | Abort => {
            let fired = Instant::now();
            // `umount -f` says "busy" after it has aborted the connection.
            let _ = trigger.fire(&subject);
            held.is_cut();
            let end = subject.ends(fired);
            let end = match trigger {
                ForceLazy(_) => end,
                _ => end.says(CUT),
            };
            // The superblock lives as long as somebody has a dead file open.
            let kept = promise.close();
            let (_, expected) = held.close();
            let env = end.clean();
            kept.check(&env);
            assert!(held_in(&env) == expected, "what was fsynced is not in SRC");
            return;
        }
    }
    let kept = promise.close();
    let (mut closed, expected) = held.close();
    if let Polite(_) = trigger {
        closed = Instant::now();
        trigger.succeed(&subject);
    }
    let env = subject.ends(closed).clean();
    kept.check(&env);
    assert!(held_in(&env) == expected, "not everything is in SRC");
}

/// Several programs work on the mount: their work is cut short, and nothing that they finished is
/// lost. Several rounds, because each hits another moment.
fn under_load(trigger: Trigger, mode: Mode) {
    for _ in 0..5 {
        once_under_load(trigger, mode);
    }
}

fn once_under_load(trigger: Trigger, mode: Mode) {
    let subject = Subject::start(mode, &[]);
    let kept = Promise::make(&subject).close();
    let load = Load::start(&subject);
    if let Polite(_) = trigger {
        // It may hit a moment in which nothing is open; mostly it is refused, which changes nothing.
        let refused = (0..20).take_while(|_| match trigger.fire(&subject) {
            Ok(()) => false,
            Err(refusal) => {
                assert!(refusal.contains("busy"), "{refusal}");
                assert!(subject.is_mounted() && subject.is_running());
                true
            }
        });
        if refused.count() == 20 {
            load.stop();
            trigger.succeed(&subject);
        } else {
            load.finished();
        }
    } else {
        match trigger {
            Force(_) => drop(trigger.fire(&subject)),
            _ => trigger.succeed(&subject),
        }
        load.finished();
    }
    let end = subject.ends(Instant::now());
    let env = match trigger {
        Abort => end.says(CUT).clean(),
        _ => end.clean(),
    };
    kept.check(&env);
    check_kept(&env);
}

macro_rules! cases {
    ($($name:ident: $state:ident, $trigger:expr, $mode:ident;)*) => {
        $(#[test] fn $name() { $state($trigger, Mode::$mode); })*
    };
}

cases! {
    sigint_idle: idle, SIGINT, Foreground;
    sigint_busy: busy, SIGINT, Foreground;
    sigint_under_load: under_load, SIGINT, Foreground;
    sigterm_idle: idle, SIGTERM, Foreground;
    sigterm_busy: busy, SIGTERM, Foreground;
    sigterm_under_load: under_load, SIGTERM, Foreground;
    sighup_idle: idle, SIGHUP, Foreground;
    sighup_busy: busy, SIGHUP, Foreground;
    sighup_under_load: under_load, SIGHUP, Foreground;
    sigterm_idle_in_background: idle, SIGTERM, Background;
    sigterm_busy_in_background: busy, SIGTERM, Background;
    sigterm_under_load_in_background: under_load, SIGTERM, Background;

    fusermount_u_idle: idle, Polite("fusermount3 -u"), Foreground;
    fusermount_u_busy: busy, Polite("fusermount3 -u"), Foreground;
    fusermount_u_under_load: under_load, Polite("fusermount3 -u"), Foreground;
    fusermount_u_idle_in_background: idle, Polite("fusermount3 -u"), Background;
    fusermount_u_busy_in_background: busy, Polite("fusermount3 -u"), Background;
    umount_idle: idle, Polite("umount"), Foreground;
    umount_busy: busy, Polite("umount"), Foreground;
    umount_under_load: under_load, Polite("umount"), Foreground;

    fusermount_uz_idle: idle, Lazy("fusermount3 -uz"), Foreground;
    fusermount_uz_busy: busy, Lazy("fusermount3 -uz"), Foreground;
    fusermount_uz_under_load: under_load, Lazy("fusermount3 -uz"), Foreground;
    fusermount_uz_idle_in_background: idle, Lazy("fusermount3 -uz"), Background;
    fusermount_uz_busy_in_background: busy, Lazy("fusermount3 -uz"), Background;
    fusermount_uz_under_load_in_background: under_load, Lazy("fusermount3 -uz"), Background;
    umount_l_idle: idle, Lazy("umount -l"), Foreground;
    umount_l_busy: busy, Lazy("umount -l"), Foreground;
    umount_l_under_load: under_load, Lazy("umount -l"), Foreground;

    umount_f_idle: idle, Force("umount -f"), Foreground;
    umount_f_busy: busy, Force("umount -f"), Foreground;
    umount_f_under_load: under_load, Force("umount -f"), Foreground;
    umount_f_busy_in_background: busy, Force("umount -f"), Background;
    umount_l_f_idle: idle, ForceLazy("umount -l -f"), Foreground;
    umount_l_f_busy: busy, ForceLazy("umount -l -f"), Foreground;
    umount_l_f_under_load: under_load, ForceLazy("umount -l -f"), Foreground;

    abort_idle: idle, Abort, Foreground;
    abort_busy: busy, Abort, Foreground;
    abort_under_load: under_load, Abort, Foreground;
    abort_idle_in_background: idle, Abort, Background;
    abort_under_load_in_background: under_load, Abort, Background;
}
