//! Hundreds of mounts and unmounts in one go. `LOOPFS_TEST_CYCLES` says how many (200; 2,000 before
//! a release).

use std::fs;
use std::time::Instant;

use rustix::mount::UnmountFlags;

use super::subject::{Mode, Subject, umount2};
use crate::common::{Signal, TestEnv};

/// Each cycle ends with nothing left, connection included ([`super::subject::End::clean`]); and what
/// this process, which saw them all, has open and mounted is what it was.
#[test]
fn many_cycles() {
    let cycles: usize = match std::env::var("LOOPFS_TEST_CYCLES") {
        Ok(number) => number.parse().expect("LOOPFS_TEST_CYCLES is a number"),
        Err(_) => 200,
    };
    let mut env = TestEnv::new();
    for cycle in 0..cycles {
        let mode = if cycle % 10 == 9 {
            Mode::Background
        } else {
            Mode::Foreground
        };
        let subject = Subject::start_in(env, mode, &[]);
        fs::write(subject.path("f"), cycle.to_string()).unwrap();
        let told = Instant::now();
        match cycle % 5 {
            0 => subject.signal(Signal::TERM),
            1 => umount2(&subject.mnt(), UnmountFlags::empty()).unwrap(),
            2 => umount2(&subject.mnt(), UnmountFlags::DETACH).unwrap(),
            3 => subject.connection().abort(),
            _ => subject.unmount_with("fusermount3", &["-u"]),
        }
        env = subject.ends(told).clean();
        let content = fs::read_to_string(env.src().join("f")).unwrap();
        assert_eq!(content, cycle.to_string());
        // The log of a thousand cycles is nobody's reading.
        fs::remove_file(env.root().join("daemon.log")).unwrap();
    }
}

/// The daemon itself leaks nothing while it serves: descriptors and threads after thousands of
/// operations are those from before.
#[test]
fn a_long_life_leaks_no_descriptors_and_no_threads() {
    let subject = Subject::foreground();
    let used = || {
        let pid = subject.pid().as_raw_nonzero();
        let count = |what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        (count("fd"), count("task"))
    };
    let work = || {
        for number in 0..500 {
            let path = subject.path(format!("{}", number % 7));
            fs::write(&path, "x").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"x");
            assert!(fs::read_dir(subject.mnt()).unwrap().count() > 0);
            fs::remove_file(&path).unwrap();
        }
    };
    work();
    let before = used();
    (0..4).for_each(|_| work());
    // A RELEASE or FORGET may still be on its way: the kernel waits for neither.
    crate::common::process::eventually("nothing more is open", crate::common::LIMIT, || {
        let now = used();
        now.0 <= before.0 && now.1 == before.1
    });
    let told = Instant::now();
    subject.signal(Signal::TERM);
    subject.ends(told).clean();
}
