//! SEMANTICS.md, promise by promise: for each row of its table of promises a test of the same name, and
//! the last test here sees to that. Each shows its promise once, the way a user at a shell would
//! meet it; the corners are left to the cases in the other files of `tests/`.
//!
//! Most are a shell script, run on a plain directory and on a mount of one: both must print the
//! same, and what the promise says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use common::process::eventually;
use common::{LIMIT, Mount, Signal, TestEnv, sh};

/// `$AS` in front of a command runs it as user 4321 with group 4322, in no other group.
const AS: &str = "AS='setpriv --reuid 4321 --regid 4322 --clear-groups'; umask 022;";

/// Runs `script` on a plain directory and on a mount with `options`: what both printed.
#[track_caller]
fn same_with(options: &[&str], script: &str) -> String {
    let mount = Mount::start_in(TestEnv::new(), options);
    let (plain, mounted) = (mount.root().join("plain"), mount.path("tree"));
    let printed = [&plain, &mounted].map(|top| {
        fs::create_dir(top).unwrap();
        fs::set_permissions(top, fs::Permissions::from_mode(0o755)).unwrap();
        sh(top, &format!("{AS} {script}"))
    });
    assert_eq!(
        printed[1], printed[0],
        "the mount (left) and a plain directory (right)"
    );
    mount.finish();
    let [_, mounted] = printed;
    mounted
}

#[track_caller]
fn same(script: &str) -> String {
    same_with(&[], script)
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn who_creates() {
    let seen = same(
        r"mkdir -m 777 open; mkdir shared; chgrp 4400 shared; chmod 2777 shared
        $AS touch open/file; $AS mkdir open/dir; $AS ln -s x open/link; $AS mkfifo open/fifo
        $AS touch shared/file; $AS mkdir shared/dir
        setpriv --reuid 4321 --regid 4322 --groups 4400 mkdir shared/sub
        $AS install -m 2755 /dev/null open/setgid
        stat -c '%n %u:%g %a' open/* shared/*",
    );
    for line in [
        "open/file 4321:4322 644",
        "open/link 4321:4322 777",
        "shared/file 4321:4400 644",
        "shared/dir 4321:4400 2755",
        "shared/sub 4321:4400 2755",
    ] {
        assert!(seen.contains(line), "{line} is not in {seen}");
    }
}

#[test]
fn permissions() {
    let seen = same(
        r"echo secret >mine; chmod 600 mine; echo shared >ours; chgrp 4400 ours; chmod 640 ours
        echo listed >theirs; chmod 600 theirs; setfacl -m u:4321:r theirs
        for file in mine ours theirs; do $AS cat $file 2>&1 || true; done
        setpriv --reuid 4321 --regid 4322 --groups 4400 cat ours
        $AS touch new 2>&1 || true",
    );
    assert_eq!(
        seen,
        "cat: mine: Permission denied\ncat: ours: Permission denied\nlisted\nshared\n\
         touch: cannot touch 'new': Permission denied\n"
    );
}

#[test]
fn umask_and_default_acls() {
    let seen = same(
        r"mkdir plain inherits; setfacl -d -m u::rwx,g::rx,o::-,u:4321:rwx inherits
        umask 077; touch plain/file inherits/file; mkdir plain/dir inherits/dir; mkfifo inherits/fifo
        stat -c '%n %a' */*; getfacl -cpn inherits/dir inherits/file",
    );
    assert!(seen.contains("plain/file 600\n"), "{seen}");
    assert!(
        seen.contains("inherits/file 660\n"),
        "no umask there: {seen}"
    );
    assert!(seen.contains("default:user:4321:rwx"), "{seen}");
}

#[test]
fn set_id_bits_and_file_capabilities() {
    let seen = same(
        r"for how in root other truncate chown; do echo x >$how; chmod 6777 $how; done
        echo x >capable; chmod 777 capable; setcap cap_net_raw+ep capable
        echo y >>root
        $AS sh -c 'echo y >>other; truncate -s 0 truncate; echo y >>capable'
        chown 4321 chown
        stat -c '%n %a' *; getcap capable",
    );
    assert_eq!(
        seen,
        "capable 777\nchown 777\nother 777\nroot 6777\ntruncate 777\n"
    );
}

/// On an ext4 image of 8 MiB of which half is root's alone.
#[test]
fn quota_and_reserved_blocks() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        truncate -s 8M "$ROOT/image"; mkfs.ext4 -q -m 50 "$ROOT/image"; mount -o loop "$ROOT/image" "$SRC"
        chmod 777 "$SRC"
        AS="setpriv --reuid 4321 --regid 4322 --clear-groups"
        fill() { $2 sh -c "dd if=/dev/zero of=$1/file bs=64k 2>&1 | grep -c 'No space left'"; stat -c %s "$1/file"; rm "$1/file"; sync; }
        plain=$(fill "$SRC" "$AS"; fill "$SRC" "")
        "$LOOPFS" "$SRC" "$MNT"
        mounted=$(fill "$MNT" "$AS"; fill "$MNT" "")
        umount "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; umount "$SRC"
        echo $plain; echo $mounted"#,
        )
        .success();
    let sizes: Vec<Vec<u64>> = seen
        .lines()
        .map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect())
        .collect();
    let [plain, mounted] = sizes.as_slice() else {
        panic!("{seen}")
    };
    for [told, user, told_root, root] in
        [plain, mounted].map(|s| <[u64; 4]>::try_from(&s[..]).unwrap())
    {
        assert_eq!((told, told_root), (1, 1), "ENOSPC arrives: {seen}");
        assert!(root > user + (2 << 20), "the reserve is root's: {seen}");
    }
    assert!(plain[1].abs_diff(mounted[1]) < 1 << 18, "{seen}");
    env.assert_clean();
}

#[test]
fn hard_links() {
    let seen = same(
        r"mkdir d; echo one >a; ln a b; ln b d/c; echo two >>d/c; chmod 600 b
        [ a -ef d/c ]; stat -c '%h %s %a' a; rm a; stat -c '%h %s %a' b; cat d/c",
    );
    assert_eq!(seen, "3 8 600\n2 8 600\none\ntwo\n");
}

#[test]
fn inode_numbers() {
    let mount = Mount::start(&[]);
    sh(&mount.src(), "mkdir d; touch d/f; ln -s f d/l; ln d/f d/g");
    for name in ["", "d", "d/f", "d/l", "d/g"] {
        assert_eq!(ino(&mount.path(name)), ino(&mount.source(name)), "{name:?}");
    }
    let listed = |top| sh(top, "ls -fi d | sort -k 2 | grep -v '\\.\\.'");
    assert_eq!(listed(&mount.mnt()), listed(&mount.src()));
    mount.finish();
}

#[test]
fn many_inodes() {
    // Without handles it takes a kernel that can be asked to forget: Linux 6.18.
    for off in ["", "file-handles"] {
        let env = TestEnv::new();
        sh(&env.src(), "seq 1500 | xargs touch");
        let mut command = env.loopfs_limited(512, ["-f".into(), env.src(), env.mnt()]);
        command.env("LOOPFS_FEATURES_OFF", off);
        let mount = Mount::start_command(env, command);
        let seen = sh(
            &mount.mnt(),
            "find . -type f -size 0 | wc -l; for f in *; do echo $f >$f; done; cat * | sort -n | tail -1; rm *; ls",
        );
        assert_eq!(seen, "1500\n1500\n", "without {off:?}");
        mount.finish();
    }
}

#[test]
fn file_handles() {
    let script = r#"mkdir -p d/sub; echo content >d/sub/file; echo gone >d/gone
        python3 - <<'END'
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def handle(path):
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount = ctypes.c_int()
    assert libc.name_to_handle_at(-100, path.encode(), buffer, ctypes.byref(mount), 0) == 0
    return buffer
def content(handle):
    file = libc.open_by_handle_at(top, handle, os.O_RDONLY)
    return os.read(file, 99) if file >= 0 else os.strerror(ctypes.get_errno())
top = os.open(".", os.O_RDONLY)
file, gone = handle("d/sub/file"), handle("d/gone")
os.rename("d/sub", "moved")
os.unlink("d/gone")
print(content(file), content(gone))
END"#;
    assert_eq!(same(script), "b'content\\n' Stale file handle\n");
}

#[test]
fn open_renamed_or_unlinked() {
    let seen = same(
        r"echo one >old; exec 3<>old 4<>old; mv old new; echo two >old
        cat <&3; rm new; echo three >&3; stat -L -c %h /dev/fd/3; cat <&4; cat old",
    );
    assert_eq!(seen, "one\n0\none\nthree\ntwo\n");
}

#[test]
fn names() {
    let seen = same(
        r#"touch "$(printf 'new\nline')" "$(printf '\377\376')" "$(printf '%0255d' 7)" " " -- "-rf"
        touch "$(printf '%0256d' 7)" 2>&1 | grep -o 'File name too long'
        top=$PWD; for i in $(seq 30); do mkdir "$(printf '%0200d' 7)"; cd -P "$(printf '%0200d' 7)"; done
        echo deep >file; cat file; cd "$top"; ls | wc -l; rm -r ./0*; LC_ALL=C ls -b"#,
    );
    assert_eq!(
        seen,
        "File name too long\ndeep\n7\n\\ \n-rf\nnew\\nline\n\\377\\376\n"
    );
}

#[test]
fn symlinks() {
    let seen = same(
        r"mkdir d; echo here >d/f; ln -s d/f in; ln -s /proc/self/comm out; ln -s loop loop; ln -s none dangling
        readlink in out loop dangling; cat in out; cat loop 2>&1 || true; [ ! -e dangling ]; stat -c %s in",
    );
    assert_eq!(
        seen,
        "d/f\n/proc/self/comm\nloop\nnone\nhere\ncat\ncat: loop: Too many levels of symbolic links\n3\n"
    );
}

#[test]
fn times() {
    let seen = same(
        r"touch -d '1969-12-31 23:59:58.123456789Z' before; touch -d '2038-01-19 03:14:08.000000001Z' after
        touch -a -d 2001-01-01Z after; ln -s before link; touch -h -d 2002-02-02Z link
        TZ=UTC stat -c '%n %.9Y %x' before after link",
    );
    assert!(seen.contains("before -1.876543211"), "{seen}");
    assert!(
        seen.contains("after 2147483648.000000001 2001-01-01"),
        "only one of the two was set: {seen}"
    );
    assert!(seen.contains("link 1012608000.000000000"), "{seen}");
}

#[test]
fn data() {
    let seen = same(
        r"truncate -s 8M sparse; echo x | dd of=sparse bs=1 seek=4194304 conv=notrunc status=none
        [ $(stat -c %b sparse) -lt 64 ]; cp --sparse=always sparse copy; cmp sparse copy; du -k copy | cut -f 1
        head -c 1M /dev/zero | tr '\0' y >full; fallocate -p -o 65536 -l 131072 full; stat -c '%s %b' full
        fallocate -z -o 0 -l 4096 full; tr -d '\0' <full | wc -c
        for i in 1 2 3 4; do (for j in $(seq 100); do echo $i >>log; done) & done; wait; sort log | uniq -c
        truncate -s 5G large; echo end >>large; tail -c 4 large; stat -c %s large",
    );
    assert!(seen.contains("1048576 1792\n913408\n"), "{seen}");
    assert!(seen.contains("    100 3\n"), "{seen}");
    assert!(seen.ends_with("end\n5368709124\n"), "{seen}");
}

#[test]
fn ways_to_read_and_write() {
    for io in ["passthrough", "cached", "direct"] {
        let seen = same_with(
            &["--io", io],
            r#"python3 - <<'END'
import mmap, os
f = os.open("f", os.O_RDWR | os.O_CREAT); g = os.open("f", os.O_RDONLY)
times = lambda: (os.fstat(g).st_mtime_ns, os.fstat(g).st_ctime_ns)
def fresh(what, act, sizes=True):
    os.utime("f", ns=(1, 1)); act(); s = os.fstat(g)
    print(what, s.st_size, s.st_mtime_ns > 1, os.pread(g, 9, 0), os.stat("f").st_blocks)
fresh("write", lambda: os.write(f, b"12345"))
fresh("append", lambda: os.write(os.open("f", os.O_WRONLY | os.O_APPEND), b"678"))
m = mmap.mmap(f, 8)
def mapped(): m[0:2] = b"mm"; m.flush()
fresh("mapped", mapped)
fresh("truncate", lambda: os.truncate("f", 3))
fresh("copy", lambda: os.copy_file_range(g, f, 3, 0, 3))
fresh("vectors", lambda: os.pwritev(f, [b"a", b"b"], 1))
for what, act in (("closed for writing", lambda: os.write(g, b"x")), ("negative", lambda: os.pwrite(f, b"x", -1))):
    try: act()
    except OSError as e: print(what, e.strerror)
END
            cmp f f; md5sum <f"#,
        );
        assert!(seen.contains("mapped 8 True b'mm345678'"), "{io}: {seen}");
    }
}

#[test]
fn rename() {
    let seen = same(
        r#"echo a >a; echo b >b; mkdir d
        python3 - <<'END'
import ctypes, os, stat
libc = ctypes.CDLL(None, use_errno=True)
def rename(old, new, flags):
    result = libc.renameat2(-100, old, -100, new, flags)
    print(flags, os.strerror(ctypes.get_errno()) if result else "done")
rename(b"a", b"b", 1)
rename(b"a", b"b", 2)
print(open("a").read(), open("b").read())
rename(b"b", b"d/b", 4)
left = os.lstat("b")
print(stat.S_ISCHR(left.st_mode), left.st_rdev, open("d/b").read())
END
        mv d/b a; cat a"#,
    );
    assert_eq!(
        seen,
        "1 File exists\n2 done\nb\n a\n\n4 done\nTrue 0 a\n\na\n"
    );
}

#[test]
fn extended_attributes() {
    let seen = same(
        r"touch f; ln -s f l; setfattr -n user.a -v 1 f; setfattr -n trusted.b -v 2 f; setfattr -h -n trusted.c -v 3 l
        setfattr -n security.d -v 4 f; setfattr -n user.a -v 5 f; setfattr -x user.none f 2>&1 | grep -o 'No such attribute'
        getfattr -hd -m - f l; setfattr -h -n user.e -v 6 l 2>&1 | grep -o 'not permitted'; $AS getfattr -d -m - f",
    );
    for line in [
        "No such attribute",
        "user.a=\"5\"",
        "trusted.b=\"2\"",
        "trusted.c=\"3\"",
        "security.d=\"4\"",
        "not permitted",
    ] {
        assert!(seen.contains(line), "{line} is not in {seen}");
    }
    assert_eq!(seen.matches("trusted.b").count(), 1, "hidden from the user");
}

#[test]
fn locks() {
    let seen = same(
        r"touch f; exec 3>f; flock 3
        flock -n f echo taken || echo busy
        (exec 3>&-; flock -s f echo waited) & waiter=$!
        exec 3>&-; wait $waiter
        flock -n f echo free",
    );
    assert_eq!(seen, "busy\nwaited\nfree\n");
}

#[test]
fn forwarded_locks() {
    let mount = Mount::start(&["--forward-locks"]);
    let (src, mnt) = (mount.src(), mount.mnt());
    for (holder, other) in [(&mnt, &src), (&src, &mnt)] {
        let script = format!(
            r#"touch f; cat >lock.py <<'END'
import fcntl, os, subprocess, sys
how, path = sys.argv[1:]
lock = getattr(fcntl, how)
file = os.open(path, os.O_RDWR)
try:
    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print(how, "free")
except OSError as error:
    print(how, error.strerror)
END
            for how in flock lockf; do
                python3 - $how '{other}/f' <<'END'
import fcntl, os, subprocess, sys
how, path = sys.argv[1:]
file = os.open("f", os.O_RDWR)
getattr(fcntl, how)(file, fcntl.LOCK_EX)
ask = lambda: subprocess.run(["python3", "lock.py", how, path], check=True)
ask(); getattr(fcntl, how)(file, fcntl.LOCK_UN); ask()
END
            done"#,
            other = other.display()
        );
        let busy = "Resource temporarily unavailable";
        assert_eq!(
            sh(holder, &script),
            format!("flock {busy}\nflock free\nlockf {busy}\nlockf free\n")
        );
    }
    mount.finish();
}

#[test]
fn listing() {
    let seen = same(
        r#"mkdir d; python3 - <<'END'
import os, ctypes
for i in range(3000): open("d/%d" % i, "w").close()
libc = ctypes.CDLL(None)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = libc.readdir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
name = lambda entry: ctypes.string_at(entry + 19)
stream = libc.opendir(b"d")
seen, places = [], []
while True:
    places.append(libc.telldir(stream))
    entry = libc.readdir(stream)
    if not entry: break
    seen.append(name(entry))
    if len(seen) == 1000:
        for i in range(3000, 3500): open("d/%d" % i, "w").close()
kept = [n for n in seen if n not in (b".", b"..") and int(n) < 3000]
print(len(kept), len(set(kept)))
for i in (2500, 10, 1700):
    libc.seekdir(stream, places[i])
    assert name(libc.readdir(stream)) == seen[i], i
END
        ls d | wc -l"#,
    );
    assert_eq!(seen, "3000 3000\n3500\n");
}

#[test]
fn file_flags() {
    let seen = same(
        r"touch f; chattr +a f; echo x >>f; echo y >f 2>/dev/null || echo refused; lsattr f | cut -c 6
        chattr -a +i f; rm f 2>&1 | grep -o 'not permitted'; chattr -i f; rm f; lsattr -d . | wc -l",
    );
    assert_eq!(seen, "refused\na\nnot permitted\n1\n");
}

/// On a tmpfs of 1 MiB.
#[test]
fn errors() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        mount -t tmpfs -o size=1M small "$SRC"
        "$LOOPFS" "$SRC" "$MNT"
        for top in "$SRC" "$MNT"; do
            dd if=/dev/zero of="$top/file" bs=64k count=32 2>&1 | grep -o 'No space left on device'
            stat -c %s "$top/file"; fallocate -l 2M "$top/other" 2>&1 | grep -o 'No space left on device'
            rm "$top"/*; timeout 20 sh -c 'until [ "$(stat -f -c %f "$0")" = 256 ]; do :; done' "$SRC"
            echo fits >"$top/file"; cat "$top/file"; rm "$top/file"
        done
        umount "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; umount "$SRC""#,
        )
        .success();
    let once = "No space left on device\n1048576\nNo space left on device\nfits\n";
    assert_eq!(seen, once.repeat(2));
    env.assert_clean();
}

/// A tmpfs below SRC, whose first inodes have numbers that SRC's file system has too.
#[test]
fn mounts_below_src() {
    let env = TestEnv::new();
    let seen = env
        .private_script(
            r#"
        mkdir "$SRC/inside" "$SRC/self"; echo below >"$SRC/inside/covered"
        mount -t tmpfs inner "$SRC/inside"; echo over >"$SRC/inside/file"; mkdir "$SRC/inside/dir"
        "$LOOPFS" "$SRC" "$SRC/self"
        cd "$SRC/self"; cat inside/file; ls inside; echo through >inside/new; ls self
        find . -printf '%i\n' | sort | uniq -d
        mv inside/file . 2>&1 || true; cat file
        cd /; umount "$SRC/self"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]
        cat "$SRC/inside/new"; umount "$SRC/inside"; ls "$SRC/inside""#,
        )
        .success();
    assert_eq!(seen, "over\ndir\nfile\nover\nthrough\ncovered\n");
    env.assert_clean();
}

#[test]
fn one_file_system() {
    for without in ["", "private-copy"] {
        let env = TestEnv::new();
        let seen = env
            .private_script(&format!(
                r#"
            mkdir "$SRC/inside"; echo below >"$SRC/inside/covered"
            mount --bind "$SRC" "$SRC"; mount --make-shared "$SRC"
            mount -t tmpfs inner "$SRC/inside"; echo over >"$SRC/inside/file"
            LOOPFS_FEATURES_OFF={without} "$LOOPFS" --one-file-system -o entry_timeout=0 "$SRC" "$MNT"
            ls "$MNT"; ls "$MNT/inside" 2>&1 || true
            mkdir "$MNT/later"; mount -t tmpfs later "$SRC/later"; touch "$SRC/later/file"
            ls "$MNT/later" 2>&1 || true
            umount "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]
            umount "$SRC/later" "$SRC/inside" "$SRC""#
            ))
            .success();
        let mnt = env.mnt();
        let mnt = mnt.display();
        let expected = if without.is_empty() {
            "inside\ncovered\n".to_owned()
        } else {
            // What is mounted can't be entered; that much is possible without a copy of the mount.
            format!(
                "inside\nls: cannot access '{mnt}/inside': Invalid cross-device link\n\
                 ls: cannot access '{mnt}/later': Invalid cross-device link\n"
            )
        };
        assert_eq!(seen, expected);
        env.assert_clean();
    }
}

#[test]
fn changes_in_src() {
    let mount = Mount::start(&["-o", "entry_timeout=1,attr_timeout=1"]);
    let (theirs, ours) = (mount.source("f"), mount.path("f"));
    fs::write(&theirs, "one").unwrap();
    assert_eq!(fs::read_to_string(&ours).unwrap(), "one");
    fs::write(&theirs, "other").unwrap();
    assert_eq!(
        fs::read_to_string(&ours).unwrap(),
        "other",
        "at once, at each open"
    );
    fs::write(&theirs, "").unwrap();
    fs::read(&ours).unwrap();
    fs::write(&theirs, "longer than before").unwrap();
    assert_eq!(fs::File::open(&ours).unwrap().metadata().unwrap().len(), 18);
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(mount.source("new"), "").unwrap();
    let changed = Instant::now();
    // The kernel counts it in ticks of its clock, of up to a hundredth of a second.
    let limit = Duration::from_millis(1_100);
    eventually("the new mode is seen", LIMIT, || {
        // Looked at before the clock: a look that begins later than the limit must see it.
        let late = changed.elapsed() > limit;
        let mode = fs::metadata(&ours).unwrap().mode() & 0o777;
        assert!(mode == 0o600 || !late, "not seen after {limit:?}");
        mode == 0o600
    });
    assert!(mount.path("new").exists());
    fs::remove_file(&theirs).unwrap();
    eventually("the name is gone", LIMIT, || !ours.exists());
    mount.finish();
}

#[test]
fn a_bug_in_loopfs() {
    let env = TestEnv::new();
    fs::write(env.src().join("f"), "").unwrap();
    let mut command = env.loopfs(["-f", "--threads", "1"]);
    command.arg(env.src()).arg(env.mnt());
    command.env("LOOPFS_FAULTS", "readlink=panic");
    let mount = Mount::start_command(env, command);
    std::os::unix::fs::symlink("f", mount.source("l")).unwrap();
    for _ in 0..3 {
        let error = fs::read_link(mount.path("l")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(mount.path("f").exists(), "everything else goes on");
    }
    assert!(mount.log().contains("panicked"), "{}", mount.log());
    mount.signal(Signal::TERM);
    let (env, status, _) = mount.ended_somehow();
    assert!(status.is_some_and(|status| status.success()));
    env.assert_clean();
}

/// The promises in SEMANTICS.md and the tests above are the same list.
#[test]
fn each_promise_has_a_test_of_its_name() {
    let promises: Vec<String> = include_str!("../SEMANTICS.md")
        .split("\n## ")
        .find_map(|section| section.strip_prefix("Promises\n"))
        .expect("a section of promises")
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .skip(1) // the heading
        .map(|topic| {
            let words = topic.replace(|c: char| !c.is_ascii_alphanumeric(), " ");
            let words: Vec<_> = words.split_whitespace().collect();
            words.join("_").to_lowercase()
        })
        .collect();
    let this = include_str!("promises.rs");
    let tests: Vec<&str> = this
        .split("#[test]\nfn ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
        .filter(|name| !name.starts_with("each_promise"))
        .collect();
    assert!(promises.len() > 20, "the table was read: {promises:?}");
    assert_eq!(promises, tests, "SEMANTICS.md (left) and the tests (right)");
}
