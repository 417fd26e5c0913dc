//! Which times change by what: modification and change time right after every kind of write, access times
//! as SRC is mounted, and who may set times to what.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
    copy_file_range, fallocate, futimens, lsetxattr, sendfile, utimensat,
};

use super::content::read_write;
use super::raw::{Mapping, aligned, truncate};
use super::special::on_mount;
use crate::common::tree::pattern;
use crate::common::user::{NOBODY, OTHER};
use crate::common::{TestEnv, as_user, sh};
use crate::{Tree, chmod};

const OMIT: Timespec = special(UTIME_OMIT);
const NOW: Timespec = special(UTIME_NOW);
const PAST: Timespec = at(1_000_000, 5);

const fn special(tv_nsec: i64) -> Timespec {
    at(0, tv_nsec)
}

const fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec {
        tv_sec,
        tv_nsec: tv_nsec as _,
    }
}

fn set(path: &Path, access: Timespec, modification: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: access,
        last_modification: modification,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// (modification, change) as (seconds, nanoseconds).
fn written(meta: &fs::Metadata) -> [(i64, i64); 2] {
    [
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ]
}

/// Until the clock of time stamps has moved: two changes within one tick of it have one time.
fn next_tick() {
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    let _ = rustix::event::poll(&mut [], Some(&moment));
}

/// What `act` changes: the modification time, the change time, by stat(2) and by fstat(2), right after.
/// The descriptor was opened before, and is the one that `act` gets.
fn see_change(t: &mut Tree, path: &Path, what: &str, act: impl FnOnce(&File)) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    futimens(
        &file,
        &Timestamps {
            last_access: PAST,
            last_modification: PAST,
        },
    )
    .unwrap();
    next_tick();
    let before = written(&file.metadata().unwrap());
    act(&file);
    let by_name = written(&fs::metadata(path).unwrap());
    let by_descriptor = written(&file.metadata().unwrap());
    assert_eq!(by_name, by_descriptor, "{what}");
    drop(file);
    assert_eq!(
        written(&fs::metadata(path).unwrap()),
        by_name,
        "{what}, and closed"
    );
    let [modified, changed] = [0, 1].map(|which| before[which] != by_name[which]);
    t.see(what, (modified, changed));
}

cases! {
    /// Right after each kind of write.
    fn modification_and_change_right_after_each_kind_of_write(t) {
        let path = t.file("f", pattern(1, 32_768));
        let other = File::open(t.file("other", pattern(2, 32_768))).unwrap();
        let mut buffer = vec![b'd'; 3 * 4_096];
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let mut see = |what: &str, act: &mut dyn FnMut(&File)| see_change(t, &path, what, |file| act(file));
        see("pwrite", &mut |file| file.write_all_at(b"x", 0).unwrap());
        see("pwrite at the end", &mut |file| file.write_all_at(b"x", 32_768).unwrap());
        see("pwrite of nothing", &mut |file| assert_eq!(file.write_at(b"", 0).unwrap(), 0));
        see("O_DIRECT", &mut |_| {
            let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
            direct.write_all_at(aligned(&mut buffer, 4_096), 4_096).unwrap();
        });
        see("O_SYNC", &mut |_| {
            let sync = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(&path).unwrap();
            sync.write_all_at(b"s", 1).unwrap();
        });
        see("append", &mut |_| {
            let append = OpenOptions::new().append(true).open(&path).unwrap();
            append.write_all_at(b"s", 1).unwrap();
        });
        see("mapped, msync", &mut |file| {
            let mut map = Mapping::new(file, 4_096, true).unwrap();
            map.bytes()[0] = 1;
            map.sync().unwrap();
        });
        see("mapped and read", &mut |file| assert_eq!(Mapping::new(file, 4_096, true).unwrap().bytes()[0], 1));
        see("mapped, fsync", &mut |file| {
            let mut map = Mapping::new(file, 4_096, true).unwrap();
            map.bytes()[0] = 2;
            file.sync_all().unwrap();
        });
        for size in [10_000, 10_000, 20_000, 0, 0, 32_768] {
            see(&format!("ftruncate {size}"), &mut |file| file.set_len(size).unwrap());
        }
        for size in [32_768, 100, 40_000] {
            see(&format!("truncate {size}"), &mut |_| truncate(&path, size).unwrap());
        }
        for (name, mode) in [
            ("fallocate", FallocateFlags::empty()), ("keep size", FallocateFlags::KEEP_SIZE), ("punch", punch),
            ("zero", FallocateFlags::ZERO_RANGE),
        ] {
            see(name, &mut |file| fallocate(file, mode, 4_096, 8_192).unwrap());
            see("beyond the end", &mut |file| fallocate(file, mode, 1 << 20, 8_192).unwrap());
        }
        see("copy_file_range", &mut |file| assert_eq!(copy_file_range(&other, Some(&mut 0), file, Some(&mut 0), 100).unwrap(), 100));
        see("copy_file_range of nothing", &mut |file| assert_eq!(copy_file_range(&other, Some(&mut 0), file, Some(&mut 0), 0).unwrap(), 0));
        see("copy_file_range from its end", &mut |file| assert_eq!(copy_file_range(&other, Some(&mut 32_768), file, Some(&mut 0), 10).unwrap(), 0));
        see("sendfile", &mut |file| assert_eq!(sendfile(file, &other, Some(&mut 0), 100).unwrap(), 100));
        see("O_TRUNC", &mut |_| drop(File::create(&path).unwrap()));
        see("O_TRUNC of nothing", &mut |_| drop(File::create(&path).unwrap()));
        see("read", &mut |file| assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 0));
        see("fsync", &mut |file| file.sync_all().unwrap());
        see("a failed write", &mut |_| assert!(File::open(&path).unwrap().write_at(b"x", 0).is_err()));
    }

    /// Right after each change of an inode.
    fn change_right_after_each_change_of_an_inode(t) {
        let path = t.file("f", "content");
        let mut see = |what: &str, act: &mut dyn FnMut(&File)| see_change(t, &path, what, |file| act(file));
        let flags = XattrFlags::empty();
        let acl = super::xattrs::acl(&[(1, 6, 0), (2, 7, 1), (4, 4, 0), (0x10, 7, 0), (0x20, 0, 0)]);
        see("chmod", &mut |_| chmod(&path, 0o640));
        see("chmod to the same", &mut |_| chmod(&path, 0o640));
        see("chown", &mut |_| chown(&path, Some(1), None).unwrap());
        see("chown to the same", &mut |_| chown(&path, Some(1), None).unwrap());
        see("setxattr", &mut |_| lsetxattr(&path, "user.a", b"1", flags).unwrap());
        see("setxattr to the same", &mut |_| lsetxattr(&path, "user.a", b"1", flags).unwrap());
        see("removexattr", &mut |_| rustix::fs::lremovexattr(&path, "user.a").unwrap());
        see("a failed removexattr", &mut |_| assert!(rustix::fs::lremovexattr(&path, "user.a").is_err()));
        see("setting an ACL", &mut |_| lsetxattr(&path, "system.posix_acl_access", &acl, flags).unwrap());
        see("removing it", &mut |_| rustix::fs::lremovexattr(&path, "system.posix_acl_access").unwrap());
        see("link", &mut |_| fs::hard_link(&path, path.with_file_name("g")).unwrap());
        see("rename of a link", &mut |_| fs::rename(path.with_file_name("g"), path.with_file_name("h")).unwrap());
        see("unlink", &mut |_| fs::remove_file(path.with_file_name("h")).unwrap());
        see("access time", &mut |_| set(&path, at(5, 5), OMIT).unwrap());
        see("access time now", &mut |_| set(&path, NOW, OMIT).unwrap());
        see("modification time", &mut |_| set(&path, OMIT, at(5, 5)).unwrap());
        see("neither", &mut |_| set(&path, OMIT, OMIT).unwrap());
    }

    /// Every combination of a time, now, and left alone, by everybody, with and without the right to write:
    /// EPERM for who may not set it, EACCES for who may not write.
    fn who_may_set_which_time(t) {
        for (kind, mode) in [("file", 0o644), ("file", 0o666), ("directory", 0o755), ("directory", 0o777)] {
            let path = if kind == "file" { t.file(kind, "x") } else { t.directory(kind) };
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            chmod(&path, mode);
            for access in [OMIT, NOW, at(5, 6)] {
                for modification in [OMIT, NOW, at(7, 8)] {
                    for uid in [0, NOBODY, OTHER] {
                        set(&path, PAST, PAST).unwrap();
                        let result = as_user(uid, uid, &[], || set(&path, access, modification));
                        let what = format!("{kind} {mode:o} by {uid}: {} {}", access.tv_nsec, modification.tv_nsec);
                        t.try_see(&what, result);
                        let meta = fs::metadata(&path).unwrap();
                        // What was set to now is not the same on both trees; that it was set is.
                        let seen = [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())]
                            .map(|time| if time.0 > 1_000_000_000 { (1, 0) } else { time });
                        t.see("times", seen);
                    }
                }
            }
            if kind == "file" { fs::remove_file(&path).unwrap() } else { fs::remove_dir(&path).unwrap() }
        }
    }

    /// Times as far as the file system goes, to the past and to the future, with every fraction.
    fn times_far_away(t) {
        let path = t.file("f", "x");
        for secs in [
            i64::MIN, -(1 << 40), -(1 << 31) - 1, -(1 << 31), -1_000_000_000, -1, 0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
            15_032_385_535, 15_032_385_536, 1 << 40, i64::MAX,
        ] {
            for nanos in [0, 1, 500_000_000, 999_999_999] {
                t.try_see("set", set(&path, at(secs, nanos), at(secs, nanos)));
                let meta = fs::metadata(&path).unwrap();
                t.see(&format!("{secs} {nanos}"), [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())]);
            }
        }
        for nanos in [-1, 1_000_000_000, i64::MAX, UTIME_NOW + 5] {
            t.try_see("no nanoseconds", set(&path, at(0, nanos), OMIT));
            t.try_see("no nanoseconds", set(&path, OMIT, at(0, nanos)));
        }
        // The seconds of a time that is now, or left alone, mean nothing.
        t.try_see("seconds beside now", set(&path, at(77, UTIME_NOW), at(77, UTIME_OMIT)));
        t.see("omitted", fs::metadata(&path).unwrap().mtime());
    }

    /// Access times: what reads, and what does not, is seen on the file.
    fn access_times_of_a_read_file(t) {
        let path = t.file("f", pattern(3, 9_000));
        symlink("f", t.path("l")).unwrap();
        t.directory("d");
        t.file("d/f", "");
        let mut see = |path: &Path, what: &str, act: &mut dyn FnMut(&Path)| {
            // Older than the modification: relatime has it follow the next read.
            set(path, at(1, 0), NOW).unwrap();
            act(path);
            t.see(what, fs::symlink_metadata(path).unwrap().atime() != 1);
        };
        see(&path, "read", &mut |path| drop(fs::read(path).unwrap()));
        see(&path, "pread of nothing", &mut |path| assert_eq!(File::open(path).unwrap().read_at(&mut [], 0).unwrap(), 0));
        see(&path, "open and close", &mut |path| drop(File::open(path).unwrap()));
        see(&path, "stat", &mut |path| assert!(fs::metadata(path).is_ok()));
        see(&path, "O_DIRECT", &mut |path| {
            let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
            direct.read_at(aligned(&mut [0; 8_192], 4_096), 0).unwrap();
        });
        see(&path, "mapped", &mut |path| {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut map = Mapping::new(&file, 4_096, false).unwrap();
            assert_ne!(map.bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>(), 0);
        });
        see(&path, "sendfile", &mut |path| {
            sendfile(File::create(path.with_file_name("out")).unwrap(), File::open(path).unwrap(), None, 100).unwrap();
        });
        see(&path, "O_NOATIME", &mut |path| {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(path).unwrap();
            file.read_at(&mut [0; 5], 0).unwrap();
        });
        see(&path.with_file_name("d"), "readdir", &mut |path| assert!(fs::read_dir(path).unwrap().count() > 0));
        see(&path.with_file_name("d"), "readdir, O_NOATIME", &mut |path| {
            let folder = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(path).unwrap();
            assert_eq!(rustix::fs::Dir::read_from(folder).unwrap().count(), 3);
        });
        see(&path.with_file_name("d"), "opendir", &mut |path| drop(File::open(path).unwrap()));
        see(&path.with_file_name("d"), "a name in it", &mut |path| drop(File::open(path.join("f")).unwrap()));
        see(&path.with_file_name("l"), "readlink", &mut |path| drop(fs::read_link(path).unwrap()));
        sh(path.parent().unwrap(), "printf '#!/bin/true\n' >script; cp /bin/true true; chmod 755 script true");
        for name in ["script", "true"] {
            see(&path.with_file_name(name), name, &mut |path| assert!(Command::new(path).status().unwrap().success()));
        }
    }

    /// What is read by copying, and what an ioctl changes, the kernel's client does not know by itself.
    fn access_and_change_times_behind_the_kernel(t) {
        let on_mount = on_mount(t);
        let path = t.file("f", pattern(3, 9_000));
        let change_of = |what: &str, act: &dyn Fn(&File)| {
            set(&path, at(1, 0), NOW).unwrap();
            next_tick();
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let before = written(&file.metadata().unwrap())[1];
            act(&file);
            let meta = file.metadata().unwrap();
            (what.to_owned(), meta.atime() != 1, before != written(&meta)[1])
        };
        let seen = [
            change_of("a read at the end", &|file| assert_eq!(file.read_at(&mut [0; 5], 9_000).unwrap(), 0)),
            change_of("O_NOATIME by fcntl", &|file| {
                rustix::fs::fcntl_setfl(file, OFlags::NOATIME).unwrap();
                file.read_at(&mut [0; 5], 0).unwrap();
            }),
            change_of("read by copy_file_range", &|file| {
                let target = File::create(path.with_file_name("out")).unwrap();
                copy_file_range(file, Some(&mut 0), target, None, 100).unwrap();
            }),
            change_of("chattr", &|file| {
                let before = rustix::fs::ioctl_getflags(file).unwrap();
                rustix::fs::ioctl_setflags(file, before ^ rustix::fs::IFlags::NODUMP).unwrap();
            }),
        ];
        for (what, accessed, changed) in seen {
            // Nobody is told of that (SEMANTICS.md).
            if what == "O_NOATIME by fcntl" {
                assert_eq!((accessed, changed), (on_mount, false));
            } else {
                t.see(&what, (accessed, changed));
            }
        }
    }

    /// What is written through a mapping has its time when the page is touched. In the mode `cached` only when it
    /// is written to SRC: by msync(2), munmap(2), close(2) or by itself (SEMANTICS.md).
    fn mapped_writes_have_their_time_at_once(t) {
        let path = t.file("f", pattern(3, 9_000));
        for how in ["msync", "munmap", "close", "fsync"] {
            let file = read_write(&path);
            futimens(&file, &Timestamps { last_access: PAST, last_modification: PAST }).unwrap();
            let mut map = Mapping::new(&file, 8_192, true).unwrap();
            let other = read_write(&path);
            map.bytes()[100] ^= 1;
            let changed = |file: &File| file.metadata().unwrap().mtime() != PAST.tv_sec;
            assert!(changed(&other), "{how}");
            match how {
                "msync" => map.sync().unwrap(),
                "munmap" => drop(map),
                "close" => drop(file),
                _ => other.sync_all().unwrap(),
            }
            t.see(how, changed(&other));
        }
    }

    /// What was read since it was last written is not stamped again, as SRC is mounted here (relatime).
    fn access_times_of_a_second_read(t) {
        let path = t.file("f", pattern(3, 9_000));
        let file = read_write(&path);
        let read = || {
            next_tick();
            file.read_at(&mut [0; 100], 0).unwrap();
            let meta = file.metadata().unwrap();
            (meta.atime(), meta.atime_nsec())
        };
        let first = read();
        t.see("twice", first == read());
        file.write_all_at(b"x", 5_000).unwrap();
        next_tick();
        fs::read(&path).unwrap();
        let meta = file.metadata().unwrap();
        t.see("after a write", first == (meta.atime(), meta.atime_nsec()));
    }
}

/// Access times as SRC is mounted: none, after each read, or as relatime has it; and none by reading through a
/// mount that has `noatime` itself.
#[test]
fn access_times_as_src_is_mounted() {
    let env = TestEnv::new();
    let script = r#"
        mount --bind "$SRC" "$SRC"; mkdir "$SRC/d"; echo x >"$SRC/d/f"; echo y >"$SRC/f"
        # What a read of a file, and of a directory, does to a time that is old, and to one that is new.
        look() {
            for time in 2001-01-01 2040-01-01; do
                touch -a -d $time "$1/f" "$1/d"; cat "$1/f" >/dev/null; ls "$1/d" >/dev/null
                TZ=UTC stat -c '%x' "$1/f" "$1/d" | grep -c $time || true
            done
        }
        both() { echo $(look "$SRC"); "$LOOPFS" "$SRC" "$MNT"; echo $(look "$MNT"); end; }
        end() { umount "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; }
        for option in relatime noatime strictatime nodiratime; do
            mount -o remount,bind,atime,diratime,$option "$SRC"; echo $option; both
        done
        mount -o remount,bind,atime,strictatime,diratime "$SRC"
        "$LOOPFS" -o noatime "$SRC" "$MNT"; echo noatime through MNT: $(look "$MNT"); end
        umount "$SRC""#;
    let seen = env.private_script(script).success();
    let expected =
        "relatime\n0 2\n0 2\nnoatime\n2 2\n2 2\nstrictatime\n0 0\n0 0\nnodiratime\n1 2\n1 2\n";
    let expected = format!("{expected}noatime through MNT: 2 2\n");
    assert_eq!(seen, expected);
    env.assert_clean();
}

/// On a user's own mount SRC decides what that user may do to times: what it refuses costs no program its
/// open(2), be it O_TRUNC of another's empty file, or `noatime` and another's file to read.
#[test]
fn times_of_others_on_a_users_own_mount() {
    let env = TestEnv::new();
    let script = r#"
        mkdir "$ROOT/dev"; mount -t tmpfs -o mode=755 dev "$ROOT/dev"
        mknod "$ROOT/dev/fuse" c 10 229; chmod 666 "$ROOT/dev/fuse"; mount --bind "$ROOT/dev/fuse" /dev/fuse
        mount --bind "$SRC" "$SRC"; mount -o remount,bind,strictatime "$SRC"
        chown 65534:65534 "$MNT" "$SRC"; cd "$SRC"
        echo x >theirs; echo x >own; : >empty; chmod 666 theirs own empty; chown 65534 own
        touch -d 2001-01-01 theirs own empty
        AS="setpriv --reuid 65534 --regid 65534 --clear-groups timeout 30"
        $AS "$LOOPFS" -o noatime "$SRC" "$MNT" </dev/null
        $AS sh -euc 'cd "$MNT"; cat theirs own; : >empty; echo emptied'
        $AS fusermount3 -u "$MNT"; timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]
        TZ=UTC stat -c '%n %x' theirs own | cut -c 1-12; cd /; umount "$SRC""#;
    let seen = env.private_script(script).success();
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(&lines[..3], ["x", "x", "emptied"]);
    assert_ne!(lines[3], "theirs 2001-", "marked, as SRC is mounted");
    assert_eq!(lines[4], "own 2001-01-", "{seen}");
    env.assert_clean();
}
