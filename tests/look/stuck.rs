//! A mount whose daemon is stopped, asked about by its own name and by names in it: every command comes back, and says what
//! is in the way.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::looking::{Stopped, listed};
use crate::common::process::run;
use crate::common::table::mount_at;
use crate::common::{Finished, LIMIT, Mount, TestEnv};

/// Nothing of it is kept by the kernel: every name on the way is asked for.
const ASKED_FOR: &[&str] = &["-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0"];

/// `loopfs WORDS PLACE`, sooner than anybody gives up waiting.
#[track_caller]
fn about(env: &TestEnv, words: &[&str], place: &Path) -> Finished {
    let begin = Instant::now();
    let mut command = env.loopfs(words);
    let finished = run(command.arg(place), LIMIT);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "{words:?} took {took:?}");
    finished
}

/// Each of `commands`, with its place, at the same time: each waits for what is stuck.
#[track_caller]
fn all_about<const N: usize>(env: &TestEnv, commands: [(&[&str], &Path); N]) -> [Finished; N] {
    thread::scope(|scope| {
        let running = commands.map(|(words, place)| scope.spawn(move || about(env, words, place)));
        running.map(|it| it.join().unwrap())
    })
}

#[test]
fn places_in_a_mount_that_is_stuck() {
    let mount = Mount::start(ASKED_FOR);
    let inside = mount.path("x/y");
    fs::create_dir_all(&inside).unwrap();
    let stopped = Stopped::stop(&mount);
    let at = mount.mnt();
    let [refusals @ .., found_inside, found, told] = all_about(
        &mount,
        [
            (&["status"], &inside),
            (&["unmount"], &inside),
            (&["unmount", "--force"], &inside),
            (&["top"], &inside),
            (&["upgrade"], &inside),
            (&["doctor"], &inside),
            (&["doctor"], &at),
            (&["status"], &at),
        ],
    );
    for refused in refusals {
        assert_eq!(refused.code(), 32, "{refused:?}");
        let line = format!(
            "loopfs: MNT '{}': the mount on the way to it ({}) did not answer within 2 seconds: 'loopfs doctor' shows what \
             helps\n",
            inside.display(),
            at.display()
        );
        assert_eq!(refused.stderr, line);
    }
    for found in [found_inside, found] {
        assert_eq!(found.code(), 2, "{found:?}");
        let wrong = format!(
            "WRONG  {}: its daemon is there and does not answer",
            at.display()
        );
        assert!(found.stdout.contains(&wrong), "{found:?}");
        let mend = format!("kill -CONT {}\n", mount.pid().as_raw_nonzero());
        assert!(found.stdout.contains(&mend), "{found:?}");
    }
    assert!(told.success().contains("silent"));
    let forced = about(&mount, &["unmount", "--force"], &mount.mnt());
    assert_eq!(forced.code(), 0, "{forced:?}");
    assert!(mount_at(&mount.mnt()).is_none());
    drop(stopped);
    mount.ended();
}

/// One that is mounted in it is known by its name; that it can't be reached is said by whoever has to go there.
#[test]
fn a_mount_in_one_that_is_stuck() {
    let lower = Mount::start(ASKED_FOR);
    let other = lower.root().join("other");
    let upper = lower.path("x/y");
    fs::create_dir(&other).unwrap();
    fs::create_dir_all(&upper).unwrap();
    run(&mut lower.loopfs([&other, &upper]), LIMIT).success();
    fs::write(other.join("held"), "").unwrap();
    let held = fs::File::open(upper.join("held")).unwrap();
    let stopped = Stopped::stop(&lower);
    let remount = ["-o", "remount,ro", other.to_str().unwrap()];
    let [told, found, remounted, covered, idle, lazy] = all_about(
        &lower,
        [
            (&["status"], &upper),
            (&["doctor"], &upper),
            (&remount, &upper),
            (&["unmount", "--force"], &lower.mnt()),
            (&["unmount", "--timeout", "0"], &upper),
            (&["unmount", "--lazy"], &upper),
        ],
    );
    let told = told.success();
    assert!(told.contains("serving"), "{told}");
    let fine = format!("ok     {}: serving", upper.display());
    assert!(found.stdout.contains(&fine), "{found:?}");
    assert_eq!(remounted.code(), 32, "{remounted:?}");
    let why = "a mount on the way there does not answer";
    assert!(remounted.stderr.contains(why), "{remounted:?}");
    assert_eq!(covered.code(), 32, "{covered:?}");
    assert!(covered.stderr.contains("unmount that first"), "{covered:?}");
    let why = "can't unmount: a mount that lies on the way there does not answer";
    for refused in [idle, lazy] {
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    let states = || -> Vec<String> {
        let text = |it: &serde_json::Value| it["state"].as_str().unwrap().to_owned();
        listed(&lower).iter().map(text).collect()
    };
    assert_eq!(states(), ["silent", "serving"]);
    // No way leads to it, but nobody waits for it any more.
    let forced = about(&lower, &["unmount", "--force"], &upper);
    assert_eq!(forced.code(), 2, "{forced:?}");
    let cut = format!(
        "who used {} is cut off, but it stays\nloopfs: {why}",
        upper.display()
    );
    assert!(forced.stderr.starts_with(&cut), "{forced:?}");
    let error = held.metadata().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    drop((held, stopped));
    about(&lower, &["unmount"], &upper).success();
    assert!(mount_at(&upper).is_none());
    lower.finish();
}
