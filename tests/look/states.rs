//! `list`, `status` and `unmount` in each state that a mount can be in.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::looking::{Stopped, listed, look, open, socket, status};
use crate::common::process::eventually;
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, TestEnv};

#[test]
fn an_idle_mount() {
    let mount = Mount::start(&[]);
    let pid = mount.pid().as_raw_nonzero().get();
    let all = listed(&mount);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["source"], mount.src().to_str().unwrap());
    assert_eq!(all[0]["target"], mount.mnt().to_str().unwrap());
    assert_eq!(all[0]["pid"], pid);
    assert_eq!(all[0]["state"], "serving");
    assert_eq!(all[0]["mounted"], true);
    assert_eq!(all[0]["open_files"], 0);
    let status = status(&mount);
    let figures = &status["figures"];
    assert_eq!(figures["state"], "serving");
    assert_eq!(figures["pid"], pid);
    assert_eq!(figures["in_flight"], 0);
    assert_eq!(figures["cache"]["mode"], "coherent");
    assert_eq!(figures["io"]["mode"], "passthrough");
    assert!(figures["memory_bytes"].as_u64().unwrap() > 1_000_000);
    assert!(figures["threads"].as_u64().unwrap() > 3);
    assert_eq!(status["holders"].as_array().unwrap().len(), 0);
    let text = look(&mount, &["status"]).success();
    let first = format!("{} at {}\n", mount.src().display(), mount.mnt().display());
    assert!(text.starts_with(&first), "{text}");
    assert!(text.contains("\nno process is seen to use it\n"), "{text}");
    look(&mount, &["unmount"]).success();
    mount.ended();
}

/// Requests are counted and timed, and those who make them are named.
#[test]
fn a_busy_mount() {
    let mount = Mount::start(&["--cache", "none"]);
    fs::create_dir(mount.source("d")).unwrap();
    fs::write(mount.source("d/busy"), "x").unwrap();
    let held = open(&mount);
    for _ in 0..2000 {
        fs::metadata(mount.path("d/busy")).unwrap();
        fs::metadata(mount.path("d/missing")).unwrap_err();
    }
    let status = status(&mount);
    let figures = &status["figures"];
    let operations = figures["operations"].as_array().unwrap();
    let lookup = operations.iter().find(|it| it["name"] == "lookup").unwrap();
    assert!(lookup["requests"].as_u64().unwrap() >= 4000, "{lookup}");
    assert!(lookup["errors"].as_u64().unwrap() >= 2000, "{lookup}");
    let seconds = |name: &str| lookup[name].as_f64().unwrap();
    assert!(seconds("p50_seconds") > 0.0);
    assert!(seconds("p50_seconds") <= seconds("p90_seconds"));
    assert!(seconds("p90_seconds") <= seconds("p99_seconds"));
    assert!(seconds("p99_seconds") <= seconds("max_seconds"));
    assert!(lookup.get("buckets").is_none(), "not for programs");
    let files = figures["busiest_files"].as_array().unwrap();
    assert!(files.iter().any(|it| it["path"] == "d"), "{files:?}");
    let processes = figures["busiest_processes"].as_array().unwrap();
    assert_eq!(processes[0]["pid"], std::process::id(), "{processes:?}");
    let holders = status["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert_eq!(holders[0]["pid"], std::process::id());
    assert_eq!(holders[0]["uses"][0], "open held");
    assert_eq!(figures["open_files"], 1);
    drop(held);
    mount.finish();
}

/// Every line is what a textfile collector takes: a head before the samples of a name, once, and numbers.
#[test]
fn the_text_for_prometheus() {
    let mount = Mount::start(&[]);
    fs::read_dir(mount.mnt()).unwrap().count();
    let text = look(&mount, &["status", "--prometheus"]).success();
    let target = format!("target=\"{}\"", mount.mnt().display());
    let mut heads = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            assert!(["gauge", "counter", "summary"].contains(&kind), "{line}");
            assert!(!heads.contains(&name), "{line}: twice");
            heads.push(name);
        } else if !line.starts_with("# HELP ") {
            assert!(line.starts_with(heads.last().unwrap()), "{line}");
            assert!(line.contains(&target), "{line}");
            let value = line.rsplit_once("} ").unwrap().1;
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        }
    }
    for part in [
        "loopfs_up{",
        "} 1\n",
        "state=\"serving\"",
        "loopfs_requests_total{",
        "operation=\"opendir\"",
        "quantile=\"0.99\"",
        "loopfs_request_duration_seconds_count{",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    mount.finish();
}

/// The daemon was killed: its mount is dead, the commands say so, and `unmount` mends it, although somebody is in it.
#[test]
fn a_dead_mount() {
    let mount = Mount::start(&[]);
    let socket = socket(&mount);
    let held = open(&mount);
    let env = mount.kill();
    assert!(socket.exists(), "what a killed daemon leaves");
    let all = listed(&env);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["state"], "dead");
    assert_eq!(all[0]["mounted"], true);
    assert!(!socket.exists(), "a look removes it");
    let status = status(&env);
    assert_eq!(status["state"], "dead");
    assert!(status["figures"].is_null());
    assert!(status["why"].as_str().unwrap().contains("loopfs unmount"));
    let up = look(&env, &["status", "--prometheus"]).success();
    assert!(
        up.contains("} 0\n") && up.contains("state=\"dead\""),
        "{up}"
    );
    look(&env, &["unmount"]).success();
    assert!(mount_at(&env.mnt()).is_none());
    drop(held);
    env.assert_clean();
}

/// SRC hangs, with a request in it. The daemon says so, and is ended.
#[test]
fn a_mount_whose_source_hangs() {
    let below = Mount::start(&[]);
    fs::write(below.path("f"), "x").unwrap();
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command.arg(below.mnt()).arg(env.mnt());
    let mount = Mount::start_command(env, command);
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"x");
    let stopped = Stopped::stop(&below);
    let path = mount.path("new");
    let stuck = thread::spawn(move || fs::metadata(path).map(drop));
    let oldest = || status(&mount)["figures"]["oldest_request"]["seconds"].as_f64();
    eventually("the request hangs", LIMIT, || {
        oldest().is_some_and(|it| it > 0.2)
    });
    let begin = Instant::now();
    let told = status(&mount);
    assert_eq!(told["figures"]["oldest_request"]["operation"], "lookup");
    assert!(told["figures"]["in_flight"].as_u64().unwrap() >= 1);
    assert_eq!(listed(&mount).len(), 1);
    eventually("it is said to hang", LIMIT, || {
        look(&mount, &["status"]).success().contains("lookup hangs")
    });
    assert!(begin.elapsed() < LIMIT);
    let forced = look(&mount, &["unmount", "--force"]);
    assert_eq!(forced.code(), 0, "{forced:?}");
    stuck.join().unwrap().unwrap_err();
    drop(stopped);
    let (env, _, log) = mount.ended_somehow();
    assert!(log.contains("requests still hang"), "{log}");
    env.assert_clean();
    below.finish();
}

/// The daemon itself does not run. What the mount table tells is told, and it is unmounted without it.
#[test]
fn a_mount_whose_daemon_is_stopped() {
    let mount = Mount::start(&[]);
    let stopped = Stopped::stop(&mount);
    let all = listed(&mount);
    assert_eq!(all[0]["state"], "silent", "{all:?}");
    assert_eq!(all[0]["pid"], mount.pid().as_raw_nonzero().get());
    assert_eq!(status(&mount)["state"], "silent");
    look(&mount, &["unmount"]).success();
    assert!(mount_at(&mount.mnt()).is_none());
    drop(stopped);
    mount.ended();
}

/// The same with somebody in it, who is cut off. Another process: one that is forked here would have to close our file
/// before it runs, and wait for the daemon with that.
#[test]
fn a_mount_in_use_whose_daemon_is_stopped() {
    let mount = Mount::start(&["--io", "cached"]);
    fs::write(mount.source("held"), "held").unwrap();
    let mut tail = std::process::Command::new("tail");
    let mut tail = tail.arg("-f").arg(mount.path("held")).spawn().unwrap();
    let holders = || status(&mount)["holders"].as_array().map_or(0, Vec::len);
    eventually("it is in use", LIMIT, || holders() == 1);
    let stopped = Stopped::stop(&mount);
    let busy = look(&mount, &["unmount", "--timeout", "0"]);
    let forced = look(&mount, &["unmount", "--force"]);
    drop(stopped);
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert_eq!(busy.code(), 32, "{busy:?}");
    assert!(busy.stderr.contains("open held"), "{busy:?}");
    assert_eq!(forced.code(), 0, "{forced:?}");
    mount.ended();
}

/// Detached and still open: no longer in the mount table, and known all the same.
#[test]
fn a_draining_mount() {
    let mount = Mount::start(&[]);
    let held = open(&mount);
    let said = look(&mount, &["unmount", "--lazy"]);
    assert_eq!(said.code(), 0, "{said:?}");
    assert!(said.stderr.contains("serves what is open"), "{said:?}");
    let all = listed(&mount);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["state"], "draining");
    assert_eq!(all[0]["mounted"], false);
    let status = status(&mount);
    assert_eq!(status["figures"]["cause"], "unmounted from outside");
    assert_eq!(status["holders"][0]["pid"], std::process::id());
    let again = look(&mount, &["unmount"]);
    assert_eq!(again.code(), 0, "{again:?}");
    assert!(again.stderr.contains("is unmounted already"), "{again:?}");
    drop(held);
    mount.ended();
}

/// Something else lies on top: it is never taken, and what is below is told of.
#[test]
fn a_covered_mount() {
    let mount = Mount::start(&[]);
    let none: Option<&std::ffi::CStr> = None;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("cover", mount.mnt(), "tmpfs", flags, none).unwrap();
    let cover = mount_at(&mount.mnt()).unwrap();
    let status = status(&mount);
    assert_eq!(status["state"], "serving");
    assert_eq!(status["covered_by"][0], mount.mnt().to_str().unwrap());
    for words in [
        &["unmount"][..],
        &["unmount", "--force"],
        &["unmount", "--lazy"],
    ] {
        let refused = look(&mount, words);
        assert_eq!(refused.code(), 32, "{refused:?}");
        assert!(refused.stderr.contains("unmount that first"), "{refused:?}");
        assert_eq!(mount_at(&mount.mnt()), Some(cover.clone()));
    }
    rustix::mount::unmount(mount.mnt(), rustix::mount::UnmountFlags::empty()).unwrap();
    mount.finish();
}

/// Nothing there: an error for who looks, none for who unmounts.
#[test]
fn no_mount() {
    let env = TestEnv::new();
    let nothing = look(&env, &["status"]);
    assert_eq!(nothing.code(), 32);
    let line = format!(
        "loopfs: nothing of loopfs is mounted at {}; 'loopfs list' shows what is\n",
        env.mnt().display()
    );
    assert_eq!(nothing.stderr, line);
    let nothing = look(&env, &["unmount"]);
    assert_eq!(nothing.code(), 0);
    assert!(
        nothing
            .stderr
            .starts_with("nothing of loopfs is mounted at"),
        "{nothing:?}"
    );
    assert_eq!(listed(&env).len(), 0);
}

/// Names with anything in them: one line in a table, and whole in JSON.
#[test]
fn a_name_that_is_no_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let env = TestEnv::new();
    let source = env.root().join(OsStr::from_bytes(b"a\nb\xff\\"));
    fs::create_dir(&source).unwrap();
    let mut command = env.loopfs(["-f"]);
    command.arg(&source).arg(env.mnt());
    let mount = Mount::start_command(env, command);
    let all = listed(&mount);
    let root = mount.root().to_str().unwrap();
    assert_eq!(all[0]["source"], format!("{root}/a\nb\\xff\\\\"));
    let text = look(&mount, &["status"]).success();
    assert!(
        text.starts_with(&format!("{root}/a\\nb\\xff\\\\ at ")),
        "{text}"
    );
    let text = look(&mount, &["status", "--prometheus"]).success();
    assert!(text.contains(r"/a\nb\\xff\\\\"), "{text}");
    assert!(Path::new(root).exists());
    mount.finish();
}

/// A look costs nothing that anybody waits for: it comes back at once.
#[test]
fn looking_is_quick() {
    let mount = Mount::start(&[]);
    let begin = Instant::now();
    for _ in 0..5 {
        status(&mount);
    }
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    mount.finish();
}
