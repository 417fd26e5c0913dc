//! Who keeps whom out, and what ends a lock: the same for every pair of sides.

use std::fs;
use std::path::Path;

use super::agent::{Agent, quoted};
use crate::common::{Mount, Signal, sh};
use crate::{Forwarding, Mnt, Side, Src};

const STYLES: [&str; 3] = ["flock", "posix", "ofd"];

/// Two programs and the sides that they work on.
const PAIRS: [(Side, Side); 3] = [(Mnt, Src), (Src, Mnt), (Mnt, Mnt)];

/// Runs `story` for two programs that have the same file open as `f`, one on each side of each pair, both
/// on SRC, and both on a mount that forwards nothing: what they see must be the same.
#[track_caller]
fn same_everywhere(story: impl Fn(&mut Agent, &mut Agent) -> Vec<String>) -> Vec<String> {
    let forwarding = Forwarding::start(&[]);
    let told = |(one, other): (Side, Side)| {
        let name = format!("file-{one:?}-{other:?}");
        fs::write(forwarding.path(Src, &name), [b'x'; 1000]).unwrap();
        let mut one = Agent::with(&forwarding.path(one, &name));
        let mut other = Agent::with(&forwarding.path(other, &name));
        story(&mut one, &mut other)
    };
    let expected = told((Src, Src));
    for pair in PAIRS {
        assert_eq!(
            told(pair),
            expected,
            "{pair:?} (left) and SRC alone (right)"
        );
    }
    forwarding.0.finish();
    let local = Mount::start(&[]);
    fs::write(local.source("file"), [b'x'; 1000]).unwrap();
    let [mut one, mut other] = [(); 2].map(|()| Agent::with(&local.path("file")));
    assert_eq!(
        story(&mut one, &mut other),
        expected,
        "not forwarded (left)"
    );
    drop((one, other));
    local.finish();
    expected
}

/// Every kind of lock against every other, shared and exclusive.
#[test]
fn shared_and_exclusive_locks_of_every_kind() {
    let seen = same_everywhere(|one, other| {
        let mut seen = Vec::new();
        for first in STYLES {
            for second in STYLES {
                for (held, wanted) in [("sh", "sh"), ("sh", "ex"), ("ex", "sh"), ("ex", "ex")] {
                    assert_eq!(one.ask(&format!("{first}('f', '{held}')")), "ok");
                    let answer = other.ask(&format!("{second}('f', '{wanted}')"));
                    seen.push(format!("{first} {held}, {second} {wanted}: {answer}"));
                    for (agent, style) in [(&mut *one, first), (&mut *other, second)] {
                        assert_eq!(agent.ask(&format!("{style}('f', 'un')")), "ok");
                    }
                }
            }
        }
        seen
    });
    for line in [
        "flock sh, flock sh: ok",
        "flock ex, flock sh: EAGAIN",
        "flock ex, posix ex: ok",
        "posix sh, ofd ex: EAGAIN",
        "ofd ex, posix sh: EAGAIN",
    ] {
        assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:#?}");
    }
}

/// Locks of ranges, split, joined and turned into the other kind, as the other program finds them.
#[test]
fn ranges() {
    let seen = same_everywhere(|one, other| {
        let mut seen = Vec::new();
        for style in ["posix", "ofd"] {
            for (kind, start, length) in [
                ("ex", 0, 100),
                ("un", 20, 40),
                ("sh", 80, 100),
                ("ex", 500, 0),
                ("sh", 600, 1),
            ] {
                let answer = one.ask(&format!("{style}('f', '{kind}', {start}, {length})"));
                assert_eq!(answer, "ok");
            }
            for (start, length) in [
                (0, 10),
                (20, 1),
                (20, 41),
                (60, 5),
                (90, 5),
                (150, 100),
                (180, 320),
                (600, 1),
                (10_000_000, 1),
                (0, 0),
            ] {
                for kind in ["sh", "ex"] {
                    let answer =
                        other.ask(&format!("getlk('posix', 'f', '{kind}', {start}, {length})"));
                    // The process is another test's.
                    let place = answer
                        .rsplit_once(", ")
                        .map_or(&*answer, |(place, _)| place);
                    let tried = other.ask(&format!("posix('f', '{kind}', {start}, {length})"));
                    assert_eq!(other.ask("posix('f', 'un')"), "ok");
                    seen.push(format!("{style} {kind} {start} {length}: {place} {tried}"));
                }
            }
            assert_eq!(one.ask(&format!("{style}('f', 'un')")), "ok");
            assert_eq!(other.ask("getlk('posix', 'f', 'ex')"), "free");
        }
        seen
    });
    for line in [
        "posix ex 20 41: ('ex', 60, 20 EAGAIN",
        "ofd sh 150 100: free ok",
    ] {
        assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:#?}");
    }
}

/// Which process has the lock, where it is one's: SRC is told of an open file, which is nobody's.
#[test]
fn whose_lock_it_is() {
    let forwarding = Forwarding::start(&[]);
    for (holds, asks) in [(Src, Src), (Src, Mnt), (Mnt, Mnt), (Mnt, Src)] {
        let path = |side| forwarding.path(side, "f");
        let (mut holder, mut other) = (Agent::with(&path(holds)), Agent::with(&path(asks)));
        assert_eq!(holder.ask("posix('f', 'ex', 3, 4)"), "ok");
        let process = match (holds, asks) {
            (Mnt, Src) => "-1".to_owned(),
            _ => holder.pid().to_string(),
        };
        let answer = other.ask("getlk('posix', 'f', 'sh')");
        assert_eq!(
            answer,
            format!("('ex', 3, 4, {process})"),
            "{holds:?} {asks:?}"
        );
        // One's own locks are in nobody's way.
        assert_eq!(holder.ask("getlk('posix', 'f', 'ex')"), "free");
    }
    forwarding.0.finish();
}

/// A lock ends with an unlock, with the closing of the file and with the process: whoever waits gets it.
#[test]
fn what_ends_a_lock_wakes_who_waits() {
    let forwarding = Forwarding::start(&[]);
    for (holds, waits) in PAIRS {
        let mut waiter = Agent::with(&forwarding.path(waits, "f"));
        for style in STYLES {
            let path = forwarding.path(holds, "f");
            let mut holder = Agent::with(&path);
            let mut is_woken = |holder: &mut Agent, end: &dyn Fn(&mut Agent)| {
                assert_eq!(holder.ask(&format!("{style}('f', 'ex')")), "ok");
                waiter.wait_in(&format!("{style}('f', 'sh', 0, 0, True)"));
                end(holder);
                assert_eq!(waiter.hear(), "ok", "{holds:?} {waits:?} {style}");
                assert_eq!(waiter.ask(&format!("{style}('f', 'un')")), "ok");
            };
            is_woken(&mut holder, &|holder| {
                assert_eq!(holder.ask(&format!("{style}('f', 'un')")), "ok");
            });
            is_woken(&mut holder, &|holder| {
                assert_eq!(holder.ask("close('f')"), "ok");
            });
            holder.open("f", &path);
            is_woken(&mut holder, &|holder| holder.signal(Signal::KILL));
        }
    }
    forwarding.0.finish();
}

/// A process's locks of a file end when it closes any descriptor of that file; an open file's, with
/// its last one, whoever has it.
#[test]
fn closing_and_forking() {
    let seen = same_everywhere(|one, other| {
        let path = quoted(Path::new(
            &one.ask("os.readlink('/proc/self/fd/%d' % files['f'])"),
        ));
        let mut seen = Vec::new();
        for style in STYLES {
            let mut look = |what: &str, other: &mut Agent| {
                let answer = other.ask(&format!("{style}('f', 'ex')"));
                other.ask(&format!("{style}('f', 'un')"));
                seen.push(format!("{style} {what}: {answer}"));
            };
            // In the end whoever waits gets it; how soon after a close is not for this test.
            let free = |other: &mut Agent| {
                assert_eq!(other.ask(&format!("{style}('f', 'ex', 0, 0, True)")), "ok");
                assert_eq!(other.ask(&format!("{style}('f', 'un')")), "ok");
            };
            let take = |one: &mut Agent| {
                assert_eq!(one.ask(&format!("{style}('f', 'ex')")), "ok");
            };
            take(one);
            assert_eq!(one.ask(&format!("open_('g', {path})")), "ok");
            look("taken", other);
            assert_eq!(one.ask("close('g')"), "ok");
            look("another open file closed", other);
            take(one);
            assert_eq!(one.ask("dup('f', 'g') and close('g')"), "ok");
            look("a copy closed", other);
            take(one);
            let mine = one.ask(&format!("in_child(lambda: {style}('f', 'ex'))"));
            look(&format!("a child had it open and got {mine}"), other);
            take(one);
            let child = one.ask("fork()");
            assert_eq!(one.ask("close('f')"), "ok");
            look("closed, but open in a child", other);
            assert_eq!(one.ask(&format!("end_child({child})")), "ok");
            free(other);
            assert_eq!(one.ask(&format!("open_('f', {path})")), "ok");
        }
        seen
    });
    for line in [
        "posix another open file closed: ok",
        "posix a child had it open and got EAGAIN: EAGAIN",
        "posix closed, but open in a child: ok",
        "ofd a copy closed: EAGAIN",
        "flock a child had it open and got ok: EAGAIN",
        "flock closed, but open in a child: EAGAIN",
    ] {
        assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:#?}");
    }
}

/// A lock is free when the close that ends it has returned, to programs on the mount: although the
/// kernel tells the daemon of it a moment later.
#[test]
fn a_lock_is_free_once_its_file_is_closed() {
    let forwarding = Forwarding::start(&["--threads", "4"]);
    let path = forwarding.path(Mnt, "f");
    let (mut one, mut other) = (Agent::new(), Agent::new());
    for round in 0..150 {
        for style in ["flock", "ofd"] {
            for agent in [&mut one, &mut other] {
                agent.open("f", &path);
                assert_eq!(
                    agent.ask(&format!("{style}('f', 'ex')")),
                    "ok",
                    "{style} {round}"
                );
                assert_eq!(agent.ask("close('f')"), "ok");
            }
        }
    }
    let script = "for i in $(seq 100); do flock -n f true; done";
    sh(&forwarding.0.mnt(), script);
    forwarding.0.finish();
}

/// Of a program that locks for reading through one descriptor and for writing through another one.
#[test]
fn descriptors_that_can_read_and_that_can_write() {
    let seen = same_everywhere(|one, other| {
        let path = quoted(Path::new(
            &one.ask("os.readlink('/proc/self/fd/%d' % files['f'])"),
        ));
        for (name, flags) in [
            ("r", "os.O_RDONLY"),
            ("w", "os.O_WRONLY"),
            ("b", "os.O_RDWR"),
        ] {
            assert_eq!(one.ask(&format!("open_('{name}', {path}, {flags})")), "ok");
        }
        let mut seen = Vec::new();
        let mut ask = |agent: &mut Agent, what: &str| {
            seen.push(format!("{what}: {}", agent.ask(what)));
        };
        for what in [
            "posix('r', 'ex', 0, 10)",
            "posix('w', 'sh', 0, 10)",
            "posix('r', 'sh', 0, 10)",
            "posix('r', 'sh', 30, 5)",
        ] {
            ask(one, what);
        }
        assert_eq!(other.ask("posix('f', 'ex', 100, 10)"), "ok");
        // A thread waits to read when the process begins to write, in the same place too.
        assert_eq!(
            one.ask("thread(lambda: posix('r', 'sh', 0, 200, True)) > 0"),
            "True"
        );
        for what in ["posix('w', 'ex', 20, 10)", "posix('b', 'ex', 5, 5)"] {
            ask(one, what);
        }
        for start in [0, 5, 20, 30] {
            let what = format!("getlk('ofd', 'f', 'ex', {start}, 1)[:3]");
            ask(other, &what);
        }
        ask(other, "posix('f', 'un', 100, 10)");
        ask(one, "joined()");
        ask(other, "getlk('ofd', 'f', 'ex')[:3]");
        ask(one, "close('b')");
        ask(other, "posix('f', 'ex')");
        seen
    });
    for line in [
        "posix('r', 'ex', 0, 10): EBADF",
        "getlk('ofd', 'f', 'ex', 5, 1)[:3]: ('ex', 5, 5)",
        "getlk('ofd', 'f', 'ex')[:3]: ('sh', 0, 200)",
        "posix('f', 'ex'): ok",
    ] {
        assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:#?}");
    }
}

/// flock turned from shared into exclusive and back.
#[test]
fn flock_is_turned_into_the_other_kind() {
    same_everywhere(|one, other| {
        let mut seen = Vec::new();
        for (agent, what) in [
            (0, "flock('f', 'sh')"),
            (1, "flock('f', 'sh')"),
            (0, "flock('f', 'ex')"),
            (1, "flock('f', 'un')"),
            (0, "flock('f', 'ex')"),
            (1, "flock('f', 'sh')"),
            (0, "flock('f', 'sh')"),
            (1, "flock('f', 'sh')"),
        ] {
            let agent = if agent == 0 { &mut *one } else { &mut *other };
            seen.push(format!("{what}: {}", agent.ask(what)));
        }
        seen
    });
}

/// On a read-only mount, and of a file without a name.
#[test]
fn files_that_can_only_be_read_and_files_without_a_name() {
    let forwarding = Forwarding::start(&["-r"]);
    fs::write(forwarding.path(Src, "f"), "x").unwrap();
    let mut on_src = Agent::with(&forwarding.path(Src, "f"));
    let mut on_mnt = Agent::new();
    let path = quoted(&forwarding.path(Mnt, "f"));
    assert_eq!(on_mnt.ask(&format!("open_('f', {path})")), "EROFS");
    on_mnt.ask(&format!("open_('f', {path}, os.O_RDONLY)"));
    fs::remove_file(forwarding.path(Src, "f")).unwrap();
    for style in STYLES {
        assert_eq!(on_mnt.ask(&format!("{style}('f', 'sh')")), "ok");
        assert_eq!(on_src.ask(&format!("{style}('f', 'ex')")), "EAGAIN");
        assert_eq!(on_mnt.ask(&format!("{style}('f', 'un')")), "ok");
        assert_eq!(on_src.ask(&format!("{style}('f', 'ex')")), "ok");
        assert_eq!(on_mnt.ask(&format!("{style}('f', 'sh')")), "EAGAIN");
        assert_eq!(on_src.ask(&format!("{style}('f', 'un')")), "ok");
    }
    drop((on_src, on_mnt));
    forwarding.0.finish();
}
