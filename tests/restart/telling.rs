//! The serving process ends while it tells the kernel of a change and has to wait for a program that waits for an answer.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::{self, JoinHandle};

use super::supervised::Supervised;
use crate::common::connection::Connection;
use crate::common::process::{Watched, eventually};
use crate::common::{LIMIT, Mount, Signal, TestEnv, run};

/// A program whose request is not answered by the first process.
type Asks = JoinHandle<io::Result<()>>;

/// The kernel has a directory locked until a name in it is made.
fn makes_a_name(source: &Path, target: &Path) -> Asks {
    fs::create_dir(source.join("d")).unwrap();
    fs::write(source.join("d/old"), "").unwrap();
    // So that it is remembered.
    fs::metadata(target.join("d/old")).unwrap();
    let new = target.join("d/new");
    thread::spawn(move || fs::create_dir(new))
}

fn changes_a_name(source: &Path) {
    fs::rename(source.join("d/old"), source.join("d/other")).unwrap();
}

/// And a page until it is read.
fn reads_a_page(source: &Path, target: &Path) -> Asks {
    fs::write(source.join("f"), "old").unwrap();
    let file = File::open(target.join("f")).unwrap();
    thread::spawn(move || {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0)
    })
}

fn changes_a_page(source: &Path) {
    let file = File::options().write(true).open(source.join("f")).unwrap();
    file.write_at(b"new", 0).unwrap();
}

type Case = (&'static str, fn(&Path, &Path) -> Asks, fn(&Path));

const CASES: [Case; 2] = [
    ("mkdir=stall", makes_a_name, changes_a_name),
    ("read=stall", reads_a_page, changes_a_page),
];

const OPTIONS: [&str; 6] = ["--cache", "coherent", "--io", "cached", "--threads", "2"];

/// Cuts the connection when the test fails: nothing else could end who hangs then.
struct Unhang(Connection);

impl Drop for Unhang {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort();
        }
    }
}

/// Has the kernel told of a change that it can't take note of before a program has its answer; the program.
#[track_caller]
fn stuck(mount: &Mount, who: &Watched, (fault, asks, changes): Case) -> Asks {
    let program = asks(&mount.src(), &mount.mnt());
    eventually(fault, LIMIT, || mount.log().contains("is not answered, as"));
    changes(&mount.src());
    who.wait_stuck("loopfs-tell");
    program
}

#[test]
fn the_next_process_answers_whom_a_killed_one_waits_for() {
    for case in CASES {
        let mount = Supervised::start_with_faults(case.0, &OPTIONS);
        let child = mount.child();
        let _unhang = Unhang(Connection::of(mount.entry()));
        let program = stuck(&mount, &child, case);
        child.signal(Signal::KILL);
        mount.wait_restarts(1);
        program.join().unwrap().unwrap();
        // Which lets the old one go.
        assert!(child.wait_end(LIMIT), "it waits still");
        mount.kill_child();
        mount.into_mount().finish();
    }
}

#[test]
fn an_upgrade_does_not_wait_for_whom_only_the_next_process_answers() {
    let mount = Supervised::start_with_faults(CASES[0].0, &OPTIONS);
    let child = mount.child();
    let _unhang = Unhang(Connection::of(mount.entry()));
    let program = stuck(&mount, &child, CASES[0]);
    let mut command = mount.loopfs(["upgrade"]);
    command.arg(mount.mnt());
    run(&mut command, LIMIT).success();
    program.join().unwrap().unwrap();
    assert!(child.wait_end(LIMIT), "it waits still");
    mount.into_mount().finish();
}

/// Without a next process the program gets an error, and nothing is left hanging. One that reads a page may ask once more, and
/// wait until it is killed: SEMANTICS.md says so.
#[test]
fn without_a_next_process_the_program_gets_an_error() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command
        .args(OPTIONS)
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FAULTS", CASES[0].0);
    let mount = Mount::start_command(env, command);
    let daemon = Watched::new(mount.pid()).unwrap();
    let _unhang = Unhang(Connection::of(mount.entry()));
    let program = stuck(&mount, &daemon, CASES[0]);
    mount.signal(Signal::KILL);
    assert!(daemon.wait_end(LIMIT), "it waits still");
    program.join().unwrap().unwrap_err();
    let kind = fs::metadata(mount.path("unknown")).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::NotConnected, "the connection stays");
    mount.kill();
}
