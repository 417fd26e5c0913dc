//! What can't be mounted: one line that says why, the right exit code, nothing mounted or left.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;

use crate::common::mount::arguments;
use crate::common::process::processes_naming;
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, Signal, TestEnv, run};

const USAGE: i32 = 1;
const SYSTEM: i32 = 2;
const MOUNT_FAILED: i32 = 32;

/// Refused with SRC and MNT as they are made by `prepare`, in the foreground and the background.
#[track_caller]
fn refused(prepare: impl Fn(&TestEnv), code: i32, words: &[&str]) {
    for foreground in [true, false] {
        let env = TestEnv::new();
        prepare(&env);
        let mut list = arguments(&[&env.src(), &env.mnt()]);
        if foreground {
            list.insert(0, "-f".into());
        }
        let (status, line) = env.refused(list);
        check(status, &line, code, words);
    }
}

#[track_caller]
fn check(status: i32, line: &str, code: i32, words: &[&str]) {
    assert_eq!(status, code, "{line}");
    let lower = line.to_lowercase();
    for word in words {
        assert!(
            lower.contains(&word.to_lowercase()),
            "{word:?} is not in {line:?}"
        );
    }
    assert!(!line.contains("panicked"), "{line}");
}

#[test]
fn mnt_is_missing() {
    refused(
        |env| fs::remove_dir(env.mnt()).unwrap(),
        MOUNT_FAILED,
        &["mnt", "does not exist", "--mkdir"],
    );
}

#[test]
fn mnt_is_a_file() {
    let prepare = |env: &TestEnv| {
        fs::remove_dir(env.mnt()).unwrap();
        fs::write(env.mnt(), "").unwrap();
    };
    refused(prepare, MOUNT_FAILED, &["mnt", "not a directory"]);
}

#[test]
fn mnt_is_a_dangling_symlink() {
    let prepare = |env: &TestEnv| {
        fs::remove_dir(env.mnt()).unwrap();
        symlink("nowhere", env.mnt()).unwrap();
    };
    refused(prepare, MOUNT_FAILED, &["nowhere", "does not exist"]);
}

#[test]
fn src_is_missing() {
    refused(
        |env| fs::remove_dir(env.src()).unwrap(),
        MOUNT_FAILED,
        &["src", "no such file or directory"],
    );
}

#[test]
fn src_is_a_file() {
    let prepare = |env: &TestEnv| {
        fs::remove_dir(env.src()).unwrap();
        fs::write(env.src(), "").unwrap();
    };
    refused(prepare, MOUNT_FAILED, &["src", "not a directory"]);
}

/// `--mkdir` that fails otherwise leaves no directory.
#[test]
fn mkdir_is_undone_when_mounting_fails() {
    let env = TestEnv::new();
    fs::remove_dir(env.mnt()).unwrap();
    fs::remove_dir(env.src()).unwrap();
    env.refused(arguments(&[&"--mkdir", &env.src(), &env.mnt()]));
    assert!(!env.mnt().exists());
}

/// A dead mount is recognised, its cure is named, and `--replace-stale` is that cure.
#[test]
fn mnt_is_on_a_dead_mount() {
    let env = Mount::start(&[]).kill();
    fs::write(env.src().join("f"), "x").unwrap();
    assert_eq!(
        fs::metadata(env.mnt()).unwrap_err().raw_os_error(),
        Some(libc::ENOTCONN)
    );
    let (status, line) = env.refused([env.src(), env.mnt()]);
    check(
        status,
        &line,
        MOUNT_FAILED,
        &["transport endpoint is not connected", "--replace-stale"],
    );
    let mount = Mount::start_in(env, &["--replace-stale"]);
    assert!(mount.path("f").exists());
    mount.finish();
}

/// `--replace-stale` takes dead mounts only: a live one is mounted over, and there again afterwards.
#[test]
fn replace_stale_leaves_live_mounts_alone() {
    let mount = Mount::start(&[]);
    let before = mount.entry().clone();
    let mut command = mount.loopfs(arguments(&[&"--replace-stale", &mount.src(), &mount.mnt()]));
    run(&mut command, LIMIT).success();
    assert_ne!(
        mount_at(&mount.mnt()),
        Some(before.clone()),
        "the second one is on top"
    );
    let second = processes_naming(mount.root())
        .into_iter()
        .find(|process| process.pid != mount.pid());
    let second = second.expect("the second daemon");
    second.signal(Signal::TERM);
    assert!(second.wait_end(LIMIT));
    assert_eq!(mount_at(&mount.mnt()), Some(before));
    fs::write(mount.path("f"), "x").unwrap();
    mount.finish();
}

#[test]
fn options_that_nobody_knows_are_named() {
    let env = TestEnv::new();
    let (status, line) = env.refused(arguments(&[&"-o", &"allow_othr", &env.src(), &env.mnt()]));
    check(status, &line, USAGE, &["allow_othr", "allow_other"]);
    let (status, line) = env.refused(arguments(&[
        &"-o",
        &"max_read=many",
        &env.src(),
        &env.mnt(),
    ]));
    check(status, &line, USAGE, &["max_read"]);
}

/// No SRC, no MNT, or too much: clap's own usage text, status 1.
#[test]
fn wrong_number_of_paths() {
    let env = TestEnv::new();
    for list in [
        vec![],
        vec![env.src()],
        vec![env.src(), env.mnt(), env.mnt()],
    ] {
        let finished = run(&mut env.loopfs(list), LIMIT);
        assert_eq!(finished.code(), USAGE, "{finished:?}");
        assert!(finished.stderr.contains("Usage"), "{finished:?}");
    }
}

/// Help and version go to stdout with status 0.
#[test]
fn help_and_version() {
    let env = TestEnv::new();
    for (option, word) in [
        ("-h", "SRC"),
        ("--help", "MNT"),
        ("-V", "loopfs"),
        ("--version", "loopfs"),
    ] {
        let finished = run(&mut env.loopfs([OsStr::new(option)]), LIMIT);
        assert_eq!((finished.code(), finished.stderr.as_str()), (0, ""));
        assert!(finished.stdout.contains(word), "{finished:?}");
    }
}

/// Runs `loopfs SRC MNT` in a private mount namespace after `prepare`; it must be refused there.
#[track_caller]
fn refused_in_private(prepare: &str, code: i32, words: &[&str]) {
    let env = TestEnv::new();
    let script = format!(
        r#"{prepare}
        set +e
        $RUN "$LOOPFS" "$SRC" "$MNT" >"$ROOT/out" 2>"$ROOT/err" </dev/null
        echo "code $?"
        grep -c " $MNT " /proc/self/mountinfo
        exit 0"#
    );
    let seen = env.private_script(&script).success();
    let line = fs::read_to_string(env.root().join("err")).unwrap();
    let status = seen
        .lines()
        .next()
        .and_then(|l| l.strip_prefix("code "))
        .unwrap()
        .parse()
        .unwrap();
    check(status, line.trim_end(), code, words);
    assert_eq!(line.trim_end().lines().count(), 1, "one clear line: {line}");
    assert_eq!(fs::read_to_string(env.root().join("out")).unwrap(), "");
    assert_eq!(seen.lines().nth(1), Some("0"), "something is mounted");
    env.assert_clean();
}

/// A /dev of its own without the FUSE device.
const WITHOUT_FUSE: &str = r"
    mount -t tmpfs -o mode=755 dev /dev
    mknod -m 666 /dev/null c 1 3
    RUN=";

#[test]
fn dev_fuse_is_missing() {
    refused_in_private(WITHOUT_FUSE, SYSTEM, &["/dev/fuse"]);
}

/// Something else in its place: the kernel does not take it for a FUSE connection.
#[test]
fn dev_fuse_is_something_else() {
    refused_in_private(
        "mount --bind /dev/null /dev/fuse; RUN=",
        MOUNT_FAILED,
        &["refused"],
    );
}

/// A user who may not open /dev/fuse, and no helper: the helper is what is missed.
#[test]
fn fusermount3_is_missing() {
    let prepare = r#"
        mkdir "$ROOT/empty"
        helper=$(command -v fusermount3)
        mount -t tmpfs -o mode=755 dev "$ROOT/empty"
        mknod "$ROOT/empty/fuse" c 10 229; chmod 600 "$ROOT/empty/fuse"
        mount --bind "$ROOT/empty/fuse" /dev/fuse
        chown 65534:65534 "$MNT"
        for file in "$helper" /bin/fusermount3 /usr/bin/fusermount3 /bin/fusermount /usr/bin/fusermount; do
            [ ! -e "$file" ] || mount --bind /dev/null "$file" 2>/dev/null || true
        done
        RUN="setpriv --reuid 65534 --regid 65534 --clear-groups""#;
    refused_in_private(prepare, SYSTEM, &["fusermount3"]);
}

/// A user who may not open /dev/fuse: the helper opens it as that user, and is refused too.
#[test]
fn permission_is_denied() {
    let prepare = r#"
        mkdir "$ROOT/dev"
        mount -t tmpfs -o mode=755 dev "$ROOT/dev"
        mknod "$ROOT/dev/fuse" c 10 229; chmod 600 "$ROOT/dev/fuse"
        mount --bind "$ROOT/dev/fuse" /dev/fuse
        chown 65534:65534 "$MNT"
        RUN="setpriv --reuid 65534 --regid 65534 --clear-groups""#;
    refused_in_private(prepare, SYSTEM, &["permission"]);
}

/// MNT that the user does not own: fusermount3 refuses, its reason is passed on.
#[test]
fn mnt_is_somebody_elses() {
    let prepare = r#"
        mkdir "$ROOT/dev"
        mount -t tmpfs -o mode=755 dev "$ROOT/dev"
        mknod "$ROOT/dev/fuse" c 10 229; chmod 666 "$ROOT/dev/fuse"
        mount --bind "$ROOT/dev/fuse" /dev/fuse
        RUN="setpriv --reuid 65534 --regid 65534 --clear-groups""#;
    refused_in_private(prepare, MOUNT_FAILED, &["mnt"]);
}

/// Too few open files for anything are told before anything is tried, whatever would be the first to fail; the least will do.
#[test]
fn a_limit_on_open_files_that_is_too_low_is_named() {
    for options in [&["-f"][..], &[], &["--supervise"], &["--threads=64"]] {
        for limit in [6, 12, 25, 63] {
            let env = TestEnv::new();
            let mut command = env.loopfs_limited(limit, options);
            let (code, line) = env.refused_by(command.args([env.src(), env.mnt()]));
            let says = format!("this process may have {limit} files open, and 64 are the least");
            check(code, &line, SYSTEM, &[&says, "ulimit -n", "LimitNOFILE="]);
        }
    }
    for options in [&[][..], &["--supervise"], &["--threads=64"]] {
        let env = TestEnv::new();
        let mut command = env.loopfs_limited(64, options);
        run(command.args([env.src(), env.mnt()]), LIMIT).success();
        fs::write(env.mnt().join("f"), "x").unwrap();
        assert_eq!(fs::read(env.src().join("f")).unwrap(), b"x");
        run(&mut env.loopfs(arguments(&[&"unmount", &env.mnt()])), LIMIT).success();
        env.assert_clean();
    }
}

/// Symlinks that lead to each other are called that.
#[test]
fn src_is_a_loop_of_symlinks() {
    let prepare = |env: &TestEnv| {
        fs::remove_dir(env.src()).unwrap();
        symlink("src", env.src()).unwrap();
    };
    refused(
        prepare,
        MOUNT_FAILED,
        &["src", "too many symbolic links", "name the directory"],
    );
}
