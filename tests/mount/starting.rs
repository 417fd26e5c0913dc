//! Starting: foreground, background, options, and what the mount table shows.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use crate::common::process::{
    processes_naming, program_name, run, session, wait_child, wait_readable,
};
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, Signal, TestEnv};

/// Foreground: type `fuse.loopfs`, SRC as the source, and SRC's tree below MNT.
#[test]
fn foreground_mount_is_in_the_table() {
    let env = TestEnv::new();
    fs::write(env.src().join("f"), "content").unwrap();
    let mount = Mount::start_in(env, &[]);
    let entry = mount.entry();
    assert_eq!(entry.kind, "fuse.loopfs");
    assert_eq!(entry.source, mount.src().as_os_str());
    for option in ["allow_other", "default_permissions"] {
        assert!(
            entry.super_options.contains(option),
            "root's default: {entry:?}"
        );
    }
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "content");
    fs::write(mount.path("g"), "through").unwrap();
    assert_eq!(fs::read_to_string(mount.source("g")).unwrap(), "through");
    mount.finish();
}

/// Background: the parent returns when the mount can be used, and not before.
#[test]
fn background_returns_when_usable() {
    let env = TestEnv::new();
    fs::write(env.src().join("f"), "content").unwrap();
    let mount = Mount::background(env, &[]);
    assert_eq!(mount.entry().kind, "fuse.loopfs");
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "content");
    mount.finish();
}

/// The daemon in the background has a session of its own, `/` as its directory, and /dev/null as
/// its standard streams: whoever waits for the end of its caller's pipe does not wait for it.
#[test]
fn background_daemon_lets_go_of_its_caller() {
    lets_go_of_its_caller(&[]);
}

/// Supervisor and child.
#[test]
fn supervised_daemon_lets_go_of_its_caller() {
    lets_go_of_its_caller(&["--supervise"]);
}

#[track_caller]
fn lets_go_of_its_caller(options: &[&str]) {
    let env = TestEnv::new();
    let mut command = env.loopfs(options);
    let mut parent = command
        .args([env.src(), env.mnt()])
        .env("RUST_LOG", "warn")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (parent.stdout.take().unwrap(), parent.stderr.take().unwrap());
    assert!(
        wait_child(&mut parent, LIMIT)
            .expect("the parent returns")
            .success()
    );
    for pipe in [
        std::os::fd::AsFd::as_fd(&stdout),
        std::os::fd::AsFd::as_fd(&stderr),
    ] {
        let closed = wait_readable(&[(pipe, rustix::event::PollFlags::IN)], LIMIT);
        assert!(closed, "the daemon keeps its caller's pipe");
    }
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    let daemons = processes_naming(env.root());
    for daemon in &daemons {
        let proc = format!("/proc/{}", daemon.pid.as_raw_nonzero());
        let link = |name: &str| fs::read_link(format!("{proc}/{name}")).unwrap();
        assert_eq!(link("cwd").to_str(), Some("/"));
        for stream in ["fd/0", "fd/1", "fd/2"] {
            assert_eq!(link(stream).to_str(), Some("/dev/null"));
        }
        assert_ne!(session(daemon.pid), session(rustix::process::getpid()));
    }
    daemons[0].signal(Signal::TERM);
    assert!(daemons.iter().all(|daemon| daemon.wait_end(LIMIT)));
    env.assert_clean();
}

/// What is other than whoever started it may think is said, of a mount that is there.
#[test]
fn what_is_amiss_is_said() {
    let env = TestEnv::new();
    let ordinary = env.loopfs(["-f"]);
    let mut command = Command::new("prlimit");
    command
        .args(["--fsize=1048576", "setpriv", "--bounding-set=-sys_resource"])
        .arg(ordinary.get_program())
        .args(ordinary.get_args())
        .args([env.src(), env.mnt()])
        .env("RUST_LOG", "warn,loopfs=info,fuser::reply=off")
        .env("LOOPFS_FEATURES_OFF", "statmount, passthru");
    let mount = Mount::start_command(env, command);
    mount.signal(Signal::TERM);
    let (env, status, log) = mount.ended_somehow();
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{log}");
    for line in [
        "no file can be written beyond 1048576 bytes",
        "LOOPFS_FEATURES_OFF: 'passthru' switches nothing off",
    ] {
        assert!(log.contains(line), "{log}");
    }
    assert!(!log.contains("'statmount'"), "{log}");
    env.assert_clean();
}

/// No descriptor of the caller reaches the daemon: one that it kept would keep the caller's locks,
/// pipes and mounts alive.
#[test]
fn background_daemon_inherits_no_descriptor() {
    let env = TestEnv::new();
    let mark = env.root().join("mark");
    File::create(&mark).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-euc", r#"exec 7<"$1"; exec "$2" "$3" "$4""#, "sh"])
        .arg(&mark)
        .arg(crate::common::env::LOOPFS)
        .arg(env.src())
        .arg(env.mnt());
    run(&mut command, LIMIT).success();
    let daemon = processes_naming(env.root()).remove(0);
    let open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", daemon.pid.as_raw_nonzero()))
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_end(LIMIT));
    assert!(!open.contains(&mark), "{open:?}");
    env.assert_clean();
}

/// MNT may be non-empty, as with mount(8); what it held is covered and there again afterwards.
#[test]
fn mnt_may_be_non_empty() {
    let env = TestEnv::new();
    fs::write(env.mnt().join("covered"), "x").unwrap();
    let mount = Mount::start_in(env, &[]);
    assert!(!mount.path("covered").exists());
    let env = mount.finish();
    assert_eq!(fs::read_to_string(env.mnt().join("covered")).unwrap(), "x");
}

/// Relative paths and symlinks as SRC and MNT mean what they name at the start.
#[test]
fn relative_paths_and_symlinks_are_resolved() {
    let env = TestEnv::new();
    symlink("src", env.root().join("source-link")).unwrap();
    symlink("mnt", env.root().join("target-link")).unwrap();
    fs::write(env.src().join("f"), "x").unwrap();
    // The directory is among the arguments (as fsname) so that the guard finds the daemon.
    let marker = format!("fsname={}", env.root().display());
    let command = env.loopfs(["-f", "-o", &marker, "./source-link", "target-link"]);
    let mount = Mount::start_command(env, command);
    assert_eq!(mount.entry().source, mount.root().as_os_str());
    assert!(mount.path("f").exists());
    mount.finish();
}

/// Paths with blanks, newlines and bytes that are no UTF-8.
#[test]
fn awkward_paths() {
    use std::os::unix::ffi::OsStrExt;
    for name in [
        &b"with blank"[..],
        b"two\nlines",
        b"comma,comma",
        b"back\\slash\\040",
        b"\xff\xfe",
    ] {
        let env = TestEnv::new();
        let name = std::ffi::OsStr::from_bytes(name);
        let (source, target) = (env.root().join(name), env.mnt().join(name));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("f"), "x").unwrap();
        let mut command = env.loopfs([&source, &target]);
        run(&mut command, LIMIT).success();
        let entry = mount_at(&target).expect("mounted");
        assert_eq!(entry.source, source.as_os_str());
        assert!(target.join("f").exists());
        let daemon = processes_naming(env.root()).remove(0);
        daemon.signal(Signal::TERM);
        assert!(daemon.wait_end(LIMIT));
        env.assert_clean();
    }
}

/// `--mkdir` makes MNT and removes it again, in the foreground and in the background.
#[test]
fn mkdir_makes_and_removes_mnt() {
    for background in [false, true] {
        let env = TestEnv::new();
        fs::remove_dir(env.mnt()).unwrap();
        let mount = if background {
            Mount::background(env, &["--mkdir"])
        } else {
            Mount::start_in(env, &["--mkdir"])
        };
        fs::write(mount.path("f"), "x").unwrap();
        let env = mount.finish();
        assert!(!env.mnt().exists(), "background: {background}");
        assert!(env.src().join("f").exists());
    }
}

/// `--mkdir` on a directory that exists uses it and leaves it.
#[test]
fn mkdir_leaves_what_was_there() {
    let env = Mount::start(&["--mkdir"]).finish();
    assert!(env.mnt().is_dir());
}

/// `-r`: every call that would change something answers EROFS; reading works.
#[test]
fn read_only_refuses_every_change() {
    for option in [&["-r"][..], &["-o", "ro"]] {
        let env = TestEnv::new();
        fs::write(env.src().join("f"), "content").unwrap();
        fs::create_dir(env.src().join("d")).unwrap();
        let mount = Mount::start_in(env, option);
        let (file, folder) = (mount.path("f"), mount.path("d"));
        let results = [
            ("write", fs::write(&file, "x")),
            ("create", fs::write(mount.path("new"), "x")),
            (
                "truncate",
                rustix_path(
                    rustix::fs::open(&file, rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
                        .map(drop),
                ),
            ),
            ("mkdir", fs::create_dir(mount.path("e"))),
            ("rmdir", fs::remove_dir(&folder)),
            ("unlink", fs::remove_file(&file)),
            ("rename", fs::rename(&file, mount.path("g"))),
            ("link", fs::hard_link(&file, mount.path("g"))),
            ("symlink", symlink("x", mount.path("l"))),
            (
                "chmod",
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)),
            ),
            ("chown", std::os::unix::fs::chown(&file, Some(1), None)),
            (
                "utimens",
                rustix_path(rustix::fs::utimensat(
                    rustix::fs::CWD,
                    &file,
                    &rustix::fs::Timestamps {
                        last_access: rustix::fs::Timespec {
                            tv_sec: 1,
                            tv_nsec: 0,
                        },
                        last_modification: rustix::fs::Timespec {
                            tv_sec: 1,
                            tv_nsec: 0,
                        },
                    },
                    rustix::fs::AtFlags::empty(),
                )),
            ),
            (
                "setxattr",
                rustix_path(rustix::fs::setxattr(
                    &file,
                    "user.a",
                    b"x",
                    rustix::fs::XattrFlags::empty(),
                )),
            ),
            (
                "removexattr",
                rustix_path(rustix::fs::removexattr(&file, "user.a")),
            ),
            (
                "mknod",
                rustix_path(rustix::fs::mknodat(
                    rustix::fs::CWD,
                    mount.path("p"),
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RUSR,
                    0,
                )),
            ),
        ];
        for (what, result) in results {
            assert_eq!(
                result.map_err(|error| error.raw_os_error()),
                Err(Some(libc::EROFS)),
                "{what}"
            );
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "content");
        assert_eq!(fs::read_dir(mount.mnt()).unwrap().count(), 2);
        assert!(
            mount.entry().options.split(',').any(|word| word == "ro"),
            "{:?}",
            mount.entry()
        );
        mount.finish();
    }
}

fn rustix_path(result: rustix::io::Result<()>) -> std::io::Result<()> {
    result.map_err(Into::into)
}

/// Words of the -o list that are flags of the mount reach the kernel.
#[test]
fn mount_flags_reach_the_kernel() {
    let env = TestEnv::new();
    fs::write(env.src().join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(env.src().join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = Mount::start_in(env, &["-o", "ro,noexec,nosuid,nodev,noatime"]);
    let options: Vec<_> = mount.entry().options.split(',').collect();
    for word in ["ro", "noexec", "nosuid", "nodev", "noatime"] {
        assert!(options.contains(&word), "{word} is not in {options:?}");
    }
    let refused = Command::new(mount.path("script")).spawn().map(drop);
    assert_eq!(
        refused.map_err(|error| error.raw_os_error()),
        Err(Some(libc::EACCES))
    );
    mount.finish();
}

/// `fsname=` and `subtype=` are what the table shows.
#[test]
fn fsname_and_subtype() {
    let mount = Mount::start(&["-o", "fsname=a name,subtype=other"]);
    assert_eq!(mount.entry().kind, "fuse.other");
    assert_eq!(mount.entry().source, "a name");
    mount.finish();
}

/// What fstab and mount(8) pass on is accepted.
#[test]
fn words_of_fstab_are_accepted() {
    let words = "rw,defaults,_netdev,nofail,user,uhelper=x,noauto,x-systemd.automount,X-mount.mkdir,comment=y";
    Mount::start(&["-o", words]).finish();
}

/// Any number of event loops serves the same tree.
#[test]
fn one_thread_and_eight() {
    for threads in ["1", "8"] {
        let mount = Mount::start(&["--threads", threads]);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let mount = &mount;
                scope.spawn(move || {
                    for number in 0..50 {
                        let path = mount.path(format!("{worker}-{number}"));
                        fs::write(&path, format!("{number}")).unwrap();
                        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{number}"));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(mount.mnt()).unwrap().count(), 200);
        mount.finish();
    }
}

/// Every thread of the daemon has a name that says whose it is.
#[test]
fn threads_have_names() {
    let mount = Mount::start(&["--threads", "3"]);
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.pid().as_raw_nonzero())).unwrap();
    let names: Vec<_> = tasks
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("comm")).unwrap())
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    assert_eq!(program_name(mount.pid()).as_deref(), Some("loopfs"));
    mount.finish();
}

/// The same SRC can be mounted twice; each mount ends by itself.
#[test]
fn two_mounts_of_one_src() {
    let first = Mount::start(&[]);
    let second = TestEnv::new();
    let command = second.loopfs([
        std::ffi::OsStr::new("-f"),
        first.src().as_os_str(),
        second.mnt().as_os_str(),
    ]);
    let second = Mount::start_command(second, command);
    fs::write(first.path("f"), "x").unwrap();
    assert_eq!(fs::read_to_string(second.path("f")).unwrap(), "x");
    second.finish();
    assert_eq!(fs::read_to_string(first.path("f")).unwrap(), "x");
    first.finish();
}

/// SRC contains MNT: the mount can be used and walked, without an end or a deadlock in it.
#[test]
fn src_contains_mnt() {
    let env = TestEnv::new();
    fs::create_dir(env.src().join("inside")).unwrap();
    fs::write(env.src().join("f"), "x").unwrap();
    let target = env.src().join("inside");
    let mut command = env.loopfs([env.src(), target.clone()]);
    run(&mut command, LIMIT).success();
    let mut walk = Command::new("find");
    walk.arg(&target).arg("-xdev");
    let found = run(&mut walk, LIMIT).success();
    assert_eq!(
        found.lines().count(),
        3,
        "MNT, f and the covered directory: {found}"
    );
    assert_eq!(fs::metadata(target.join("f")).unwrap().len(), 1);
    let daemon = processes_naming(env.root()).remove(0);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_end(LIMIT));
    env.assert_clean();
}
