//! What an unprivileged user must not get through a mount that root made: rights that SRC would refuse, by
//! way of what the kernel knew of a file before it changed in SRC.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use rustix::fs::{Mode, fchmod};

use crate::common::user::NOBODY;
use crate::common::{Mount, TestEnv, as_user, sh};

/// What is asked of the kernel once stays known for as long as a test may take.
const KNOWN: [&str; 2] = ["-o", "entry_timeout=3600,attr_timeout=3600"];

fn mode(mount: &Mount, name: &str) -> u32 {
    fs::symlink_metadata(mount.source(name)).unwrap().mode() & 0o7777
}

/// A file of `NOBODY` in SRC with mode 0755.
fn their_file(mount: &Mount, name: &str) {
    fs::write(mount.source(name), "a program").unwrap();
    fs::set_permissions(mount.source(name), fs::Permissions::from_mode(0o755)).unwrap();
    chown(mount.source(name), Some(NOBODY), Some(NOBODY)).unwrap();
}

/// A file that was taken from its owner in SRC: who had it can't make it set-user-ID root any more, nor
/// change its group, its ACL or its times, through a descriptor from before or by name.
#[test]
fn a_former_owner_has_no_rights() {
    let mount = Mount::start(&KNOWN);
    their_file(&mount, "f");
    let path = mount.path("f");
    as_user(NOBODY, NOBODY, &[], || {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        fchmod(&file, Mode::from_raw_mode(0o700)).expect("it is theirs");
    });
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    chown(mount.source("f"), Some(0), Some(0)).unwrap();
    fs::set_permissions(mount.source("f"), fs::Permissions::from_mode(0o755)).unwrap();
    as_user(NOBODY, NOBODY, &[], || {
        let refused = Err(rustix::io::Errno::PERM);
        assert_eq!(fchmod(&file, Mode::from_raw_mode(0o4755)), refused);
        let refused = |result: std::io::Result<()>| {
            let errno = result.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::EPERM));
        };
        refused(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o4755),
        ));
        refused(chown(&path, None, Some(NOBODY)));
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        refused(file.set_times(times));
        let acl = [2_u8, 0, 0, 0]; // an empty one: version 2, no entries
        let set = rustix::fs::fsetxattr(
            &file,
            "system.posix_acl_access",
            &acl,
            rustix::fs::XattrFlags::empty(),
        );
        assert!(set.is_err());
    });
    drop(file);
    assert_eq!(mode(&mount, "f"), 0o755);
    assert_eq!(fs::metadata(mount.source("f")).unwrap().gid(), 0);
    mount.finish();
}

/// Another user's name in a sticky directory can't be removed or moved because one's own had been there.
#[test]
fn a_sticky_directory_keeps_a_name_that_changed_hands() {
    let mount = Mount::start(&KNOWN);
    fs::create_dir(mount.source("tmp")).unwrap();
    fs::set_permissions(mount.source("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    for name in ["tmp/f", "tmp/g"] {
        their_file(&mount, name);
        fs::metadata(mount.path(name)).unwrap();
    }
    fs::create_dir(mount.source("tmp/d")).unwrap();
    chown(mount.source("tmp/d"), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::metadata(mount.path("tmp/d")).unwrap();
    sh(
        &mount.source("tmp"),
        "rm f g; rmdir d; echo victim >f; echo victim >g; mkdir d; chown 1 f g d",
    );
    as_user(NOBODY, NOBODY, &[], || {
        let denied = |result: std::io::Result<()>, what| {
            let errno = result.unwrap_err().raw_os_error();
            assert!(
                matches!(errno, Some(libc::EPERM | libc::EACCES)),
                "{what}: {errno:?}"
            );
        };
        denied(fs::remove_file(mount.path("tmp/f")), "unlink");
        denied(
            fs::rename(mount.path("tmp/g"), mount.path("tmp/mine")),
            "rename",
        );
        denied(fs::remove_dir(mount.path("tmp/d")), "rmdir");
    });
    sh(
        &mount.source("tmp"),
        "[ $(cat f g | grep -c victim) = 2 ]; [ -d d ]",
    );
    fs::remove_file(mount.path("tmp/g")).expect("root may");
    mount.finish();
}

/// The flags of a file are its owner's, and immutability is root's, whichever number the ioctl has.
#[test]
fn flags_are_the_owners() {
    let mount = Mount::start(&[]);
    fs::write(mount.source("f"), "").unwrap();
    fs::create_dir(mount.source("d")).unwrap();
    their_file(&mount, "own");
    let seen = sh(
        &mount.mnt(),
        r#"python3 - <<'END'
import errno, fcntl, os, struct
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
for name in ("f", "d", "own"):
    file = os.open(name, os.O_RDONLY)
    for number in (0x40086602, 0x40046602):
        for flags in (0x10, 0x40):
            try:
                fcntl.ioctl(file, number, struct.pack("q", flags))
                print(name, hex(number), hex(flags), "done")
            except OSError as error:
                print(name, hex(number), hex(flags), errno.errorcode[error.errno])
END"#,
    );
    for line in seen.lines() {
        let theirs = line == "own 0x40086602 0x40 done"; // nodump, of their own file
        let refused =
            line.ends_with("EPERM") || line.ends_with("EACCES") || line.ends_with("ENOTTY");
        assert!(theirs || refused, "{line}");
    }
    assert_eq!(seen.lines().count(), 12);
    assert!(seen.contains("done"), "{seen}");
    for name in ["f", "d"] {
        let flags = sh(&mount.src(), &format!("lsattr -d {name} | cut -d' ' -f1"));
        assert!(
            !flags.contains('i') && !flags.contains('d'),
            "{name}: {flags}"
        );
    }
    mount.finish();
}

/// Root of a user namespace still acts for the owners that it has names for, as in SRC, and for no others.
#[test]
fn root_of_a_container_acts_for_its_own_users() {
    let mount = Mount::start(&[]);
    let script = r#"
        mkdir t; chown 100000:100000 t; cd t
        python3 - <<'END'
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    if libc.unshare(0x10000000): sys.exit("unshare: %d" % ctypes.get_errno())
    os.write(ready[1], b"x"); os.read(go[0], 1)
    os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)
    def attempt(what, act):
        try: act(); print(what, "done")
        except OSError as error: print(what, error.strerror)
    open("own", "w").close()
    attempt("chown", lambda: os.chown("own", 33, 33))
    attempt("chmod", lambda: os.chmod("own", 0o4711))
    attempt("utime", lambda: os.utime("own", (1, 1)))
    attempt("foreign", lambda: os.chmod("foreign", 0o777))
    attempt("unlink", lambda: os.unlink("own"))
    sys.stdout.flush(); os._exit(0)
os.read(ready[0], 1)
open("foreign", "w").close(); os.chown("foreign", 5, 5); os.chmod("foreign", 0o755)
for kind in ("uid", "gid"): open("/proc/%d/%s_map" % (child, kind), "w").write("0 100000 65536")
os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
END
        stat -c '%a' foreign"#;
    let seen = [mount.src(), mount.mnt()].map(|top| {
        let seen = sh(&top, script);
        fs::remove_dir_all(mount.source("t")).unwrap();
        seen
    });
    assert_eq!(seen[1], seen[0], "the mount (left) and SRC (right)");
    assert_eq!(
        seen[0],
        "chown done\nchmod done\nutime done\nforeign Operation not permitted\nunlink done\n755\n"
    );
    mount.finish();
}

/// A source that was mounted without set-user-ID programs, devices and execution has none on MNT either,
/// unless that is asked for.
#[test]
fn restrictions_of_the_source_are_taken_over() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        shown() { findmnt -n -o VFS-OPTIONS "$MNT" | tr , '\n' | grep -E '^(nosuid|nodev|noexec)$' | sort | tr '\n' ' '; echo; }
        end() { umount "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; }
        mount -t tmpfs -o nosuid,nodev,noexec stick "$SRC"
        "$LOOPFS" "$SRC" "$MNT"; shown; end
        "$LOOPFS" -o suid,exec "$SRC" "$MNT"; shown; end
        mount -o remount,suid,dev,exec "$SRC"
        "$LOOPFS" "$SRC" "$MNT"; shown; end
        umount "$SRC""#,
        )
        .success();
    assert_eq!(seen, "nodev noexec nosuid \nnodev \n\n");
    env.assert_clean();
}

/// Removals that fail cost no descriptor for good, or a user could use up all of them.
#[test]
fn failed_removals_keep_nothing_open() {
    let env = TestEnv::new();
    let mut command = env.loopfs_limited(128, KNOWN);
    command.arg("-f").arg(env.src()).arg(env.mnt());
    let mount = Mount::start_command(env, command);
    sh(
        &mount.mnt(),
        "for i in $(seq 300); do mkdir $i; : >$i/x; done; rmdir * 2>/dev/null || true",
    );
    let fds = format!("/proc/{}/fd", mount.pid().as_raw_nonzero());
    let open = fs::read_dir(fds).unwrap().count();
    assert!(open < 100, "{open} of 128 descriptors are in use");
    sh(&mount.mnt(), "cat 1/x 300/x; rm -r *");
    mount.finish();
}

/// What is mounted below SRC without set-user-ID programs, capabilities and devices has none on MNT either,
/// although MNT is one mount and allows them; what lies beside it does.
#[test]
fn restrictions_of_what_is_mounted_below_the_source_hold() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        mkdir "$SRC/stick"
        mount -t tmpfs -o nosuid,nodev stick "$SRC/stick"
        for place in . stick; do
            cd "$SRC/$place"
            cp "$(command -v id)" program; cp program able; chmod 6755 program
            setcap cap_dac_override+ep able; mknod null c 1 3; chmod 666 null; mkdir -m 2755 dir
        done
        cd /; "$LOOPFS" "$SRC" "$MNT"
        for place in . stick; do
            cd "$MNT/$place"
            stat -c '%a %n' program dir; (ls -l program | cut -c1-10)
            setpriv --reuid 65534 --regid 65534 --clear-groups ./program -u
            getcap able; { echo x >null; } 2>&1 | cut -d: -f3- || true
        done 2>&1
        # Until the daemon has ended it may be busy.
        cd /; umount "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; umount "$SRC/stick""#,
        )
        .success();
    assert_eq!(
        seen,
        "6755 program\n2755 dir\n-rwsr-sr-x\n0\nable cap_dac_override=ep\n\
         755 program\n2755 dir\n-rwxr-xr-x\n65534\n cannot create null: No such device or address\n"
    );
    env.assert_clean();
}

/// A file that was taken from its owner in SRC and made set-user-ID: who had it can't keep it under another name
/// (`fs.protected_hardlinks`), unless that could be done in SRC.
#[test]
fn a_former_owner_gets_no_link() {
    let mount = Mount::start(&KNOWN);
    their_file(&mount, "f");
    fs::create_dir(mount.source("d")).unwrap();
    chown(mount.source("d"), Some(NOBODY), Some(NOBODY)).unwrap();
    let link = |old: std::path::PathBuf, new: std::path::PathBuf| {
        as_user(NOBODY, NOBODY, &[], || {
            let linked = fs::hard_link(old, new);
            linked.map_err(|error| error.raw_os_error())
        })
    };
    assert_eq!(link(mount.path("f"), mount.path("d/theirs")), Ok(()));
    chown(mount.source("f"), Some(0), Some(0)).unwrap();
    fs::set_permissions(mount.source("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    let expected = link(mount.source("f"), mount.source("d/there"));
    assert_eq!(link(mount.path("f"), mount.path("d/here")), expected);
    mount.finish();
}

/// One capability of somebody who is not root is good for the same on MNT as in SRC.
#[test]
fn a_single_capability_is_good_for_what_it_is_in_the_source() {
    let mount = Mount::start(&[]);
    let seen = |top: &std::path::Path, name: &str| {
        let script = r#"
            with() {
                capability=$1; shift
                setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps "+$capability" \
                    --ambient-caps "+$capability" "$@" 2>&1 || echo refused
            }
            mkdir DIR; cd DIR
            touch given kept; chmod 644 given
            with chown chown 5:6 given; stat -c '%u:%g' given
            with fowner chown 7:8 given; stat -c '%u:%g' given
            touch program; chmod 6777 program
            with fsetid sh -c 'echo x >>program'; stat -c %a program
            with chown sh -c 'echo x >>program'; stat -c %a program
            touch shared; chown 65534:7 shared
            with fsetid chmod 2775 shared; stat -c %a shared
            with chown chmod 2775 shared; stat -c %a shared
            touch still; chown 65534 still
            with linux_immutable chattr +i still; lsattr still | cut -c5; chattr -i still
            with fowner chattr +i still >&2 | head -0; lsattr still | cut -c5"#;
        sh(top, &script.replace("DIR", name))
    };
    let expected = seen(&mount.src(), "plain").replace("plain", "");
    assert_eq!(
        seen(&mount.mnt(), "mounted").replace("mounted", ""),
        expected
    );
    assert_eq!(expected.lines().next(), Some("5:6"), "{expected}");
    mount.finish();
}

/// Where /proc is that of another pid namespace, a number stands for somebody else there, whose groups are not the caller's.
#[test]
fn nobody_has_the_groups_of_a_namesake_in_another_pid_namespace() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        setpriv --groups 1234 sleep 60 & other=$!; export other
        echo x >"$SRC/f"; chown 65534:1234 "$SRC/f"; chmod 2770 "$SRC/f"
        unshare --pid --fork sh -euc '
            "$LOOPFS" -f "$SRC" "$MNT" 2>"$ROOT/daemon.log" & daemon=$!
            timeout 20 sh -c "until mountpoint -q $MNT; do :; done"
            echo $((other - 1)) >/proc/sys/kernel/ns_last_pid
            setpriv --reuid 65534 --regid 65534 --clear-groups setfacl -m u:1:r "$MNT/f" & caller=$!
            wait $caller
            [ $caller -eq $other ]
            stat -c %a "$SRC/f"
            umount "$MNT"; wait $daemon'
        kill $other"#,
        )
        .success();
    assert_eq!(seen, "770\n");
    env.assert_clean();
}
