//! Several ends at once: signals together, signals against unmounts, and both during the end.

use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::load::{Load, check_kept};
use super::subject::{Held, Mode, Promise, Subject, held_in, umount2, until};
use crate::common::process::{Watched, run};
use crate::common::{LIMIT, Signal};

const ALL: [Signal; 5] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::TERM,
    Signal::INT,
];

fn five_at_once(subject: &Subject) {
    for signal in ALL {
        subject.signal(signal);
    }
}

#[test]
fn five_signals_at_once_idle() {
    for _ in 0..20 {
        let subject = Subject::foreground();
        let told = Instant::now();
        five_at_once(&subject);
        subject.ends(told).clean();
    }
}

/// What comes together is one request: the open file goes on working.
#[test]
fn five_signals_at_once_busy() {
    for mode in [Mode::Foreground, Mode::Background] {
        let subject = Subject::start(mode, &[]);
        // Stopped, it finds all five when it goes on: their order then is nobody's.
        subject.signal(Signal::STOP);
        five_at_once(&subject);
        subject.signal(Signal::CONT);
        let told = Instant::now();
        subject.ends(told).clean();

        let subject = Subject::start(mode, &[]);
        let mut held = Held::open(&subject);
        subject.signal(Signal::STOP);
        five_at_once(&subject);
        subject.signal(Signal::CONT);
        subject.wait_detached();
        held.works();
        let (closed, expected) = held.close();
        let env = subject.ends(closed).clean();
        assert!(held_in(&env) == expected);
    }
}

/// Some of the five may come when the first has been acted on: they cut the load off.
#[test]
fn five_signals_at_once_under_load() {
    for mode in [Mode::Foreground, Mode::Background].repeat(3) {
        let subject = Subject::start(mode, &[]);
        let kept = Promise::make(&subject).close();
        let load = Load::start(&subject);
        five_at_once(&subject);
        load.finished();
        let env = subject.ends(Instant::now()).clean();
        kept.check(&env);
        check_kept(&env);
    }
}

/// Five at once in every moment of the end that the first has begun.
#[test]
fn signals_during_the_end() {
    for step in 0..40 {
        let subject = Subject::foreground();
        let kept = Promise::make(&subject).close();
        let told = Instant::now();
        subject.signal(Signal::TERM);
        until(told + Duration::from_micros(50 * step));
        five_at_once(&subject);
        kept.check(&subject.ends(told).clean());
    }
}

/// A signal every now and then until it has ended.
#[test]
fn signals_until_it_has_ended() {
    for _ in 0..10 {
        let subject = Subject::foreground();
        let daemon = Watched::new(subject.pid()).unwrap();
        let told = Instant::now();
        while !daemon.wait_end(Duration::from_micros(100)) {
            five_at_once(&subject);
            assert!(told.elapsed() < LIMIT, "it hangs");
        }
        subject.ends(told).clean();
    }
}

/// Both at the same time; who is first differs from round to round.
fn signal_against(unmount: impl Fn(&Subject) + Sync, load: bool) {
    for round in 0..10 {
        let subject = Subject::foreground();
        let kept = Promise::make(&subject).close();
        let load = load.then(|| Load::of(&subject, 2));
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                unmount(&subject);
            });
            start.wait();
            until(Instant::now() + Duration::from_micros(200 * round));
            subject.signal(Signal::TERM);
        });
        let under_load = load.is_some();
        if let Some(load) = load {
            load.finished();
        }
        let env = subject.ends(Instant::now()).clean();
        kept.check(&env);
        if under_load {
            check_kept(&env);
        }
    }
}

/// An unmount whose mount the daemon may have taken away, or be taking away, before it.
fn unmount(subject: &Subject, program: &str, options: &[&str]) {
    let mut command = Command::new(program);
    run(command.args(options).arg(subject.mnt()), LIMIT);
}

#[test]
fn sigterm_against_fusermount_u_idle() {
    signal_against(|subject| unmount(subject, "fusermount3", &["-u"]), false);
}

#[test]
fn sigterm_against_fusermount_uz_idle() {
    signal_against(|subject| unmount(subject, "fusermount3", &["-uz"]), false);
}

#[test]
fn sigterm_against_fusermount_uz_under_load() {
    signal_against(|subject| unmount(subject, "fusermount3", &["-uz"]), true);
}

#[test]
fn sigterm_against_umount_f_under_load() {
    signal_against(|subject| unmount(subject, "umount", &["-f"]), true);
}

#[test]
fn sigterm_against_umount2_idle() {
    signal_against(
        |subject| {
            // The daemon may have been quicker.
            let _ = umount2(&subject.mnt(), UnmountFlags::DETACH);
        },
        false,
    );
}

#[test]
fn sigterm_against_an_abort_under_load() {
    signal_against(|subject| subject.connection().abort(), true);
}

/// Twenty at once on one mount with a file open: one of them takes it, and the file works on.
#[test]
fn twenty_fusermount_uz_on_one_mount() {
    for mode in [Mode::Foreground, Mode::Background] {
        let subject = Subject::start(mode, &[]);
        let mut held = Held::open(&subject);
        let taken: usize = thread::scope(|scope| {
            let one = || {
                let finished = subject.try_unmount_with("fusermount3", &["-uz"]);
                usize::from(finished.status.success())
            };
            let all: Vec<_> = (0..20).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert!(taken >= 1);
        subject.wait_detached();
        held.works();
        let (closed, expected) = held.close();
        let env = subject.ends(closed).clean();
        assert!(held_in(&env) == expected);
    }
}

/// Twenty mounts, each with a file being written, unmounted lazily at the same time.
#[test]
fn twenty_mounts_unmounted_lazily_in_parallel() {
    let subjects: Vec<_> = (0..20).map(|_| Subject::foreground()).collect();
    let start = Barrier::new(subjects.len());
    thread::scope(|scope| {
        for subject in subjects {
            let start = &start;
            scope.spawn(move || {
                let mut held = Held::open(&subject);
                start.wait();
                subject.unmount_with("fusermount3", &["-uz"]);
                subject.wait_detached();
                held.works();
                let (closed, expected) = held.close();
                let env = subject.ends(closed).clean();
                assert!(held_in(&env) == expected);
            });
        }
    });
}
