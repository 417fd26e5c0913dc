//! Open files after the end was asked for: who is named, what a second signal and the deadline do,
//! and that the status is 0 all the same.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::{Load, check_kept};
use super::subject::{Held, Mode, PROMPT, Subject, held_in};
use crate::common::process::wait_child;
use crate::common::{LIMIT, Mount, Signal};

/// How long a daemon is watched that must not end.
const A_WHILE: Duration = Duration::from_millis(1_500);

/// A shell that has a file of the mount open until it is let go.
struct Shell(Child);

impl Shell {
    /// Runs `script`, which opens something; returns when it has.
    #[track_caller]
    fn holding(mount: &Mount, script: &str) -> Self {
        let ready = mount.root().join("shell-is-ready");
        let script = format!("{script}; : >\"$1\"; read -r _ || :");
        let child = Command::new("sh")
            .args(["-euc", &script, "sh"])
            .args([&ready, &mount.mnt()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        crate::common::process::eventually("the shell holds a file", LIMIT, || ready.exists());
        std::fs::remove_file(&ready).unwrap();
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    #[track_caller]
    fn let_go(mut self) {
        let mut line = self.0.stdin.take().unwrap();
        let _ = line.write_all(b"go\n");
        drop(line);
        assert!(wait_child(&mut self.0, LIMIT).unwrap().success());
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everybody who holds it is named with pid, command and path, and again when that changes; what a
/// second signal would do is said too.
#[test]
fn holders_are_named_and_named_again_when_they_change() {
    let subject = Subject::foreground();
    std::fs::create_dir(subject.path("dir")).unwrap();
    let writer = Shell::holding(&subject, "exec 3>\"$2/dir/written\"");
    let visitor = Shell::holding(&subject, "cd \"$2/dir\"");
    subject.signal(Signal::TERM);
    subject.wait_detached();
    subject.wait_log("A second signal cuts it off at once");
    let mnt = subject.mnt();
    let by_writer = format!(
        "{} is held by pid {} (sh): open dir/written",
        mnt.display(),
        writer.pid()
    );
    let by_visitor = format!(
        "{} is held by pid {} (sh): working directory dir",
        mnt.display(),
        visitor.pid()
    );
    subject.wait_log(&by_writer);
    subject.wait_log(&by_visitor);
    subject.wait_log("a second signal cuts them off at once");
    visitor.let_go();
    crate::common::process::eventually("the rest is named again", LIMIT, || {
        subject.log().matches(&by_writer).count() == 2
    });
    assert_eq!(subject.log().matches(&by_visitor).count(), 1);
    writer.let_go();
    let env = subject.ends(Instant::now()).clean();
    assert!(env.src().join("dir/written").exists());
}

/// A mapping holds the mount as an open file does, and what is written to it is not lost.
#[test]
fn a_program_that_runs_from_the_mount_holds_it() {
    let subject = Subject::foreground();
    let copied = std::fs::copy("/bin/sleep", subject.path("sleep"));
    copied.unwrap();
    let mut program = Command::new(subject.path("sleep"))
        .arg("60")
        .spawn()
        .unwrap();
    subject.signal(Signal::TERM);
    subject.wait_detached();
    subject.wait_log(&format!("is held by pid {} (sleep)", program.id()));
    assert!(subject.is_running());
    program.kill().unwrap();
    program.wait().unwrap();
    subject.ends(Instant::now()).clean();
}

/// At the deadline the connection is cut, and the log says who was cut off.
fn deadline(mode: Mode, seconds: &str) {
    let limit = Duration::from_secs(seconds.parse().unwrap());
    let subject = Subject::start(mode, &["--drain-timeout", seconds]);
    let mut held = Held::open(&subject);
    let told = Instant::now();
    subject.signal(Signal::TERM);
    subject.wait_detached();
    if !limit.is_zero() {
        held.works();
        subject.wait_log(&format!("is held by pid {} (", std::process::id()));
    }
    let end = subject
        .ends_with(0, told, limit + PROMPT)
        .says("time is up: ");
    assert!(end.took >= limit, "cut off after {:?}", end.took);
    let end = if limit.is_zero() {
        end
    } else {
        end.says(&format!("cut off: pid {} (", std::process::id()))
    };
    held.is_cut();
    let (_, expected) = held.close();
    assert!(held_in(&end.clean()) == expected);
}

#[test]
fn drain_timeout_of_a_second() {
    deadline(Mode::Foreground, "1");
}

#[test]
fn drain_timeout_of_a_second_in_background() {
    deadline(Mode::Background, "1");
}

#[test]
fn drain_timeout_of_zero() {
    deadline(Mode::Foreground, "0");
}

/// A deadline of zero is none for an idle mount, whose end takes its moment.
#[test]
fn drain_timeout_of_zero_idle() {
    for _ in 0..10 {
        let subject = Subject::start(Mode::Foreground, &["--drain-timeout", "0"]);
        let told = Instant::now();
        subject.signal(Signal::TERM);
        let end = subject.ends(told);
        assert!(!end.log.contains("cut off"), "{}", end.log);
        end.clean();
    }
}

#[test]
fn drain_timeout_of_zero_under_load() {
    for _ in 0..5 {
        let subject = Subject::start(Mode::Foreground, &["--drain-timeout", "0"]);
        let load = Load::start(&subject);
        subject.signal(Signal::TERM);
        load.finished();
        let env = subject.ends(Instant::now()).clean();
        check_kept(&env);
    }
}

/// Without a deadline it waits for the last close, or for a second signal.
#[test]
fn drain_timeout_never() {
    let subject = Subject::start(Mode::Foreground, &["--drain-timeout", "never"]);
    let mut held = Held::open(&subject);
    subject.signal(Signal::HUP);
    subject.wait_detached();
    subject.wait_log("goes on working for as long as they need");
    subject.stays(A_WHILE);
    held.works();
    let (closed, expected) = held.close();
    assert!(held_in(&subject.ends(closed).clean()) == expected);
}

/// A second signal ends the wait at once.
fn second_signal(mode: Mode, second: Signal) {
    let subject = Subject::start(mode, &["--drain-timeout", "never"]);
    let mut held = Held::open(&subject);
    subject.signal(Signal::TERM);
    subject.wait_detached();
    subject.wait_log(&format!("is held by pid {} (", std::process::id()));
    held.works();
    let told = Instant::now();
    subject.signal(second);
    let end = subject
        .ends(told)
        .says("the second signal: ")
        .says(&format!("cut off: pid {} (", std::process::id()));
    held.is_cut();
    let (_, expected) = held.close();
    assert!(held_in(&end.clean()) == expected);
}

#[test]
fn a_second_signal_cuts_at_once() {
    for second in [Signal::TERM, Signal::INT, Signal::HUP] {
        second_signal(Mode::Foreground, second);
    }
}

#[test]
fn a_second_signal_cuts_at_once_in_background() {
    second_signal(Mode::Background, Signal::TERM);
}

/// The five of a third, fourth and further signal change nothing about the cut.
#[test]
fn signals_during_the_cut() {
    for _ in 0..10 {
        let subject = Subject::start(Mode::Foreground, &["--drain-timeout", "never"]);
        let mut held = Held::open(&subject);
        subject.signal(Signal::TERM);
        subject.wait_detached();
        let told = Instant::now();
        for signal in [Signal::INT, Signal::HUP, Signal::TERM].repeat(5) {
            subject.signal(signal);
        }
        let end = subject.ends(told);
        held.is_cut();
        drop(held);
        end.clean();
    }
}

/// After a lazy unmount from outside there is no deadline; a signal starts it, a second one ends it.
#[test]
fn after_an_external_lazy_unmount_a_signal_starts_the_deadline() {
    let subject = Subject::start(Mode::Foreground, &["--drain-timeout", "1"]);
    let mut held = Held::open(&subject);
    subject.unmount_with("fusermount3", &["-uz"]);
    subject.wait_detached();
    subject.stays(A_WHILE);
    held.works();
    let told = Instant::now();
    subject.signal(Signal::TERM);
    let limit = Duration::from_secs(1);
    let end = subject
        .ends_with(0, told, limit + PROMPT)
        .says("time is up: ");
    assert!(end.took >= limit, "cut off after {:?}", end.took);
    held.is_cut();
    drop(held);
    end.clean();
}

/// With `--lazy-timeout` an unmount from outside has a deadline of its own.
#[test]
fn lazy_timeout_of_a_second() {
    for mode in [Mode::Foreground, Mode::Background] {
        let subject = Subject::start(mode, &["--lazy-timeout", "1", "--drain-timeout", "never"]);
        let mut held = Held::open(&subject);
        let asked = Instant::now();
        subject.unmount_with("fusermount3", &["-uz"]);
        subject.wait_detached();
        held.works();
        let limit = Duration::from_secs(1);
        let end = subject
            .ends_with(0, asked, limit + PROMPT)
            .says("time is up: ");
        assert!(end.took >= limit, "cut off after {:?}", end.took);
        held.is_cut();
        drop(held);
        end.clean();
    }
}

#[test]
fn after_an_external_lazy_unmount_two_signals_cut() {
    for mode in [Mode::Foreground, Mode::Background] {
        let subject = Subject::start(mode, &["--drain-timeout", "never"]);
        let mut held = Held::open(&subject);
        subject.unmount_with("umount", &["-l"]);
        subject.wait_detached();
        subject.signal(Signal::TERM);
        subject.wait_log(&format!("is held by pid {} (", std::process::id()));
        held.works();
        let told = Instant::now();
        subject.signal(Signal::TERM);
        let end = subject.ends(told);
        held.is_cut();
        drop(held);
        end.clean();
    }
}

/// A hundred files open and written after the lazy unmount: the last close ends it, not one before.
#[test]
fn the_last_of_a_hundred_closes_ends_it() {
    let subject = Subject::foreground();
    let mut files: Vec<_> = (0..100)
        .map(|number| std::fs::File::create_new(subject.path(format!("{number}"))).unwrap())
        .collect();
    subject.unmount_with("fusermount3", &["-uz"]);
    subject.wait_detached();
    for (number, file) in files.iter_mut().enumerate() {
        write!(file, "file {number}").unwrap();
    }
    let last = files.pop().unwrap();
    drop(files);
    subject.stays(Duration::from_millis(200));
    last.sync_all().unwrap();
    drop(last);
    let env = subject.ends(Instant::now()).clean();
    for number in 0..100 {
        let content = std::fs::read_to_string(env.src().join(number.to_string())).unwrap();
        assert_eq!(content, format!("file {number}"));
    }
}
