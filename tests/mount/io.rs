//! `--io`: who reads and writes what is open. The daemon's own account of what it read and wrote tells.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};

use crate::common::process::{eventually, run};
use crate::common::tree::pattern;
use crate::common::{LIMIT, Mount, TestEnv, sh};

const SIZE: usize = 4 << 20;

/// What the daemon has read and written so far, in bytes, replies included: proc_pid_io(5).
fn account(mount: &Mount) -> (u64, u64) {
    let path = format!("/proc/{}/io", mount.pid().as_raw_nonzero());
    let text = fs::read_to_string(path).unwrap();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().parse().unwrap()
    };
    (value("rchar:"), value("wchar:"))
}

/// Writes a file, and reads another one twice: how much of that went through the daemon, in files.
fn through_the_daemon(mount: &Mount) -> (u64, u64) {
    let content = pattern(1, SIZE);
    fs::write(mount.source("old"), &content).unwrap();
    let rounded = |bytes: u64| (bytes + SIZE as u64 / 2) / SIZE as u64;

    let before = account(mount);
    let file = File::create(mount.path("new")).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    let between = account(mount);
    assert!(fs::read(mount.source("new")).unwrap() == content);
    let old = File::open(mount.path("old")).unwrap();
    for _ in 0..2 {
        let mut seen = vec![0; SIZE];
        old.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == content);
    }
    let after = account(mount);
    // A write is read from /dev/fuse and written to SRC.
    (rounded(between.1 - before.1), rounded(after.0 - between.0))
}

#[test]
fn each_way() {
    for (options, expected, words) in [
        (&[][..], (0, 0), "by the kernel (passthrough)"),
        (&["--io", "auto"], (0, 0), "by the kernel (passthrough)"),
        (
            &["-o", "io=passthrough"],
            (0, 0),
            "by the kernel (passthrough)",
        ),
        (
            &["--io", "cached", "-o", "io=direct"],
            (1, 1),
            "no passthrough, as --io says",
        ),
        (&["--io=direct"], (1, 2), "no passthrough, as --io says"),
        (&["-o", "noatime"], (1, 1), "no passthrough, with noatime"),
    ] {
        let mount = Mount::start(options);
        assert_eq!(through_the_daemon(&mount), expected, "{options:?}");
        assert!(mount.log().contains(words), "{options:?}: {}", mount.log());
        mount.finish();
    }
}

/// Whether a listing brings attributes along, by the daemon's own account of its requests.
#[test]
fn listings_with_attributes_and_without() {
    for (when, with, without) in [("always", 2, 0), ("never", 0, 2), ("auto", 1, 1)] {
        let env = TestEnv::new();
        fs::write(env.src().join("f"), "").unwrap();
        let options = format!("cache=none,readdirplus={when}");
        let mut command = env.loopfs(["-f", "-o", &options]);
        command.arg(env.src()).arg(env.mnt());
        command.env("RUST_LOG", "loopfs=trace");
        let mount = Mount::start_command(env, command);
        assert_eq!(fs::read_dir(mount.mnt()).unwrap().count(), 1);
        // The second one finds the end.
        assert_eq!(
            (mount.requests("readdirplus"), mount.requests("readdir")),
            (with, without),
            "{when}"
        );
        mount.finish();
    }
}

/// With `--io cached` the kernel opens files without asking if it hears of all changes, and nothing else is different for
/// programs that work on MNT.
#[test]
fn files_that_are_opened_without_asking() {
    for (cache, off, asks) in [
        ("coherent", "", false),
        ("coherent", "no-opens", true),
        ("ttl", "", true),
    ] {
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f", "--io=cached", "--cache", cache]);
        command.arg(env.src()).arg(env.mnt());
        command.env("RUST_LOG", "loopfs=trace");
        command.env("LOOPFS_FEATURES_OFF", off);
        let mount = Mount::start_command(env, command);
        let said = mount
            .log()
            .contains("opens and closes files without asking");
        assert_eq!(said, !asks, "{cache} {off}");

        let path = mount.path("f");
        fs::write(&path, "one").unwrap();
        for _ in 0..10 {
            assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        }
        assert_eq!(mount.requests("open") >= 10, asks, "{cache} {off}");
        assert_eq!(mount.requests("release") >= 10, asks, "{cache} {off}");

        let open = |options: &mut fs::OpenOptions| options.open(&path).unwrap();
        let appending = [
            open(File::options().append(true)),
            open(File::options().append(true)),
        ];
        for (number, mut file) in appending.iter().cycle().take(6).enumerate() {
            write!(file, "{number}").unwrap();
        }
        assert_eq!(fs::read_to_string(mount.source("f")).unwrap(), "one012345");
        let file = open(File::options().read(true).write(true));
        file.set_len(4).unwrap();
        file.sync_all().unwrap();
        drop(open(File::options().write(true).truncate(true)));
        assert_eq!(fs::metadata(mount.source("f")).unwrap().len(), 0);
        file.write_all_at(&pattern(3, SIZE), 0).unwrap();
        fs::copy(&path, mount.path("copy")).unwrap();
        assert!(fs::read(mount.source("copy")).unwrap() == pattern(3, SIZE));

        // What only its creator may write, and what has lost its name.
        let only = File::options()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(mount.path("only"));
        only.unwrap().write_all_at(b"x", 0).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all_at(b"still", 0).unwrap();
        let mut seen = vec![0; SIZE];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen.starts_with(b"still") && seen[5..] == pattern(3, SIZE)[5..]);
        drop((file, appending));
        mount.finish();
    }
}

/// What opening without asking gives up: a file that others remove in SRC while it is open is gone as soon as the daemon
/// has no descriptor at hand for it.
#[test]
fn a_file_opened_without_asking_may_go_with_its_name_in_src() {
    let env = TestEnv::new();
    let mut command = env.loopfs_limited(64, ["-f", "--io=cached", "--cache=coherent"]);
    command.arg(env.src()).arg(env.mnt());
    let mount = Mount::start_command(env, command);
    sh(
        &mount.src(),
        "mkdir many; for i in $(seq 200); do echo $i >many/$i; done",
    );
    // Once, because the first that is opened is asked for.
    fs::read(mount.path("many/1")).unwrap();
    fs::write(mount.source("f"), pattern(1, SIZE)).unwrap();
    let file = File::open(mount.path("f")).unwrap();
    fs::remove_file(mount.source("f")).unwrap();
    file.read_exact_at(&mut [0], 0).unwrap();
    sh(&mount.mnt(), "cat many/* >/dev/null");
    let read = file.read_at(&mut [0], SIZE as u64 / 2);
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::ESTALE));
    drop(file);
    mount.finish();
}

/// Whoever is asked for passthrough alone gives that or nothing; otherwise there is a way round.
#[test]
fn where_there_is_no_passthrough() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f".into(), env.src(), env.mnt()]);
    command.env("LOOPFS_FEATURES_OFF", "passthrough");
    let mount = Mount::start_command(env, command);
    assert_eq!(through_the_daemon(&mount), (1, 1));
    assert!(mount.log().contains("no passthrough, it is switched off"));
    let env = mount.finish();

    let mut command = env.loopfs(["-f".into(), "--io=passthrough".into(), env.src(), env.mnt()]);
    command.env("LOOPFS_FEATURES_OFF", "passthrough");
    let (status, line) = env.refused_by(&mut command);
    assert_eq!(status, 32);
    assert!(
        line.contains("io=passthrough can't be had: it is switched off"),
        "{line}"
    );

    let (status, line) = env.refused([
        "--io=passthrough".as_ref(),
        "-onoatime".as_ref(),
        env.src().as_os_str(),
        env.mnt().as_os_str(),
    ]);
    assert_eq!(status, 32);
    assert!(
        line.contains("with noatime") && line.contains("io=auto"),
        "{line}"
    );

    let (status, line) = env.refused([
        "--io=fast".as_ref(),
        env.src().as_os_str(),
        env.mnt().as_os_str(),
    ]);
    assert_eq!(status, 1);
    assert!(line.contains("fast"), "{line}");
}

/// The root of a user namespace is not let: files go through the daemon there, and it says so.
#[test]
fn in_a_user_namespace() {
    let env = TestEnv::new();
    let script = "
        unshare -Urm sh -eu -c '
            \"$LOOPFS\" -v \"$SRC\" \"$MNT\" 2>&1 | grep -o \"no passthrough, it takes CAP_SYS_ADMIN\"
            echo x >\"$MNT/f\"; cat \"$SRC/f\"; umount \"$MNT\"
            \"$LOOPFS\" --io passthrough \"$SRC\" \"$MNT\" && exit 9 || echo $?'
        timeout 20 pidwait -f \"^$LOOPFS\" || [ $? -eq 1 ]";
    let finished = env.private_script(script);
    assert!(
        finished
            .stderr
            .contains("can't be had: it takes CAP_SYS_ADMIN"),
        "{finished:?}"
    );
    assert_eq!(
        finished.success(),
        "no passthrough, it takes CAP_SYS_ADMIN\nx\n32\n"
    );
    env.assert_clean();
}

/// On an overlayfs, which is made of other file systems itself.
#[test]
fn over_an_overlayfs() {
    let env = TestEnv::new();
    let script = "
        o=$SRC.layers; mkdir $o; mount -t tmpfs o $o; mkdir $o/l $o/u $o/w
        mount -t overlay -o lowerdir=$o/l,upperdir=$o/u,workdir=$o/w overlay \"$SRC\"
        \"$LOOPFS\" --io passthrough \"$SRC\" \"$MNT\"
        pid=$(pgrep -f \"^$LOOPFS .*$SRC\"); written() { sed -n 's/^wchar: //p' /proc/$pid/io; }
        before=$(written); head -c 4000000 /dev/zero >\"$MNT/f\"; stat -c %s $o/u/f
        [ $(($(written) - before)) -lt 100000 ] && echo passed
        umount \"$MNT\"; timeout 20 pidwait -f \"^$LOOPFS\" || [ $? -eq 1 ]";
    assert_eq!(env.private_script(script).success(), "4000000\npassed\n");
    env.assert_clean();
}

/// Who closes a file in the middle of what others do with it, and who opens it in another way.
#[test]
fn opens_of_one_file_that_come_and_go() {
    let mount = Mount::start(&[]);
    fs::write(mount.source("f"), vec![b'.'; 100]).unwrap();
    let mut open: Vec<File> = Vec::new();
    for round in 0..200_usize {
        let file = match round % 3 {
            0 => File::open(mount.path("f")).unwrap(),
            _ => File::options()
                .read(true)
                .write(true)
                .open(mount.path("f"))
                .unwrap(),
        };
        if round % 3 > 0 {
            file.write_all_at(
                &[b"abcdefghijklmnopqrstuvwxyz"[round % 26]],
                (round % 100) as u64,
            )
            .unwrap();
        }
        open.push(file);
        if round % 2 == 0 {
            open.swap_remove(round * 7 % open.len());
        }
        let (seen, expected) = (
            fs::read(mount.path("f")).unwrap(),
            fs::read(mount.source("f")).unwrap(),
        );
        assert!(seen == expected, "round {round}");
        for other in &open {
            let mut seen = vec![0; 100];
            other.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen == expected, "round {round}");
        }
    }
    drop(open);
    mount.finish();
}

/// A program that was written through MNT runs as soon as its writer has closed it, in SRC too, and while others
/// have it open; also where the kernel wants a file that is open for a backing file (before Linux 6.16).
#[test]
fn a_program_is_free_when_its_writer_has_closed_it() {
    for off in ["", "backing-by-path"] {
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f".into(), env.src(), env.mnt()]);
        command.env("LOOPFS_FEATURES_OFF", off);
        program_is_free(Mount::start_command(env, command));
    }
}

fn program_is_free(mount: Mount) {
    fs::copy("/bin/true", mount.path("t")).unwrap();
    let writer = File::options().append(true).open(mount.path("t")).unwrap();
    let reader = File::open(mount.path("t")).unwrap();
    for path in [mount.path("t"), mount.source("t")] {
        let busy = std::process::Command::new(&path).status().unwrap_err();
        assert_eq!(
            busy.kind(),
            std::io::ErrorKind::ExecutableFileBusy,
            "{}",
            path.display()
        );
    }
    drop(writer);
    for path in [mount.path("t"), mount.source("t")] {
        run(&mut std::process::Command::new(path), LIMIT).success();
    }
    drop(reader);
    mount.finish();
}

/// `--low-latency` asks the kernel for CPUs that are quick to wake up while requests come, and no longer.
#[test]
fn low_latency_while_requests_come() {
    let mount = Mount::start(&["--low-latency"]);
    let asks = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", mount.pid().as_raw_nonzero()));
        let mut targets = descriptors
            .unwrap()
            .flatten()
            .map(|fd| fs::read_link(fd.path()));
        targets
            .any(|target| target.is_ok_and(|target| target.as_os_str() == "/dev/cpu_dma_latency"))
    };
    for round in 0..3 {
        eventually("it asks while requests come", LIMIT, || {
            assert!(fs::metadata(mount.path(format!("missing-{round}"))).is_err());
            asks()
        });
        eventually("and no longer", LIMIT, || !asks());
    }
    mount.finish();

    let env = TestEnv::new();
    let script = "mount -t tmpfs none /dev; mknod /dev/fuse c 10 229; mknod /dev/null c 1 3
        \"$LOOPFS\" --low-latency \"$SRC\" \"$MNT\" || echo $?";
    let finished = env.private_script(script);
    assert!(
        finished.stderr.contains("/dev/cpu_dma_latency"),
        "{finished:?}"
    );
    assert_eq!(finished.success(), "2\n");
    env.assert_clean();
}
