//! Times, sizes, statvfs, and the file flags of chattr(1).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, IFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, ioctl_getflags,
    ioctl_setflags, utimensat,
};

use crate::common::as_user;
use crate::common::user::{NOBODY, OTHER};
use crate::errno;

const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_OMIT as _,
};
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW as _,
};

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

/// (access time, modification time), seconds and nanoseconds.
fn times(path: &Path) -> [(i64, i64); 2] {
    let meta = fs::symlink_metadata(path).unwrap();
    [
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
    ]
}

cases! {
    /// Times to the nanosecond, far in the future, at the epoch, and before it with a fraction.
    fn exact_times(t) {
        let path = t.file("f", "x");
        for time in [(0, 0), (1, 1), (1_700_000_000, 999_999_999), (4_300_000_000, 5), (-1, 0), (-1, 1), (-1, 999_999_999), (-86_400 * 365 * 20, 123_456_789), (-2, 500_000_000)] {
            t.try_see("set", set(&path, at(time.0, time.1), at(time.0 + 5, time.1)));
            let now = times(&path);
            assert_eq!(now, [time, (time.0 + 5, time.1)]);
            t.see("times", now);
        }
    }

    /// UTIME_OMIT leaves each time alone; UTIME_NOW is now.
    fn omit_and_now(t) {
        let path = t.file("f", "x");
        set(&path, at(100, 1), at(200, 2)).unwrap();
        set(&path, OMIT, at(300, 3)).unwrap();
        assert_eq!(times(&path), [(100, 1), (300, 3)]);
        set(&path, at(400, 4), OMIT).unwrap();
        assert_eq!(times(&path), [(400, 4), (300, 3)]);
        set(&path, OMIT, OMIT).unwrap();
        assert_eq!(times(&path), [(400, 4), (300, 3)]);
        set(&path, OMIT, NOW).unwrap();
        let [access, modification] = times(&path);
        assert_eq!(access, (400, 4));
        assert!(modification.0 > 1_500_000_000);
        t.try_see("bad nanoseconds", set(&path, at(0, 1_000_000_000), OMIT));
    }

    /// Times of symlinks are their own; without NOFOLLOW they are the target's.
    fn times_of_symlinks(t) {
        let path = t.file("f", "x");
        set(&path, at(10, 0), at(20, 0)).unwrap();
        symlink("f", t.path("l")).unwrap();
        t.try_see("set", set(&t.path("l"), at(30, 7), at(40, 8)));
        assert_eq!(times(&t.path("l")), [(30, 7), (40, 8)]);
        assert_eq!(times(&path), [(10, 0), (20, 0)]);
        let both = Timestamps { last_access: at(50, 0), last_modification: at(60, 0) };
        utimensat(CWD, t.path("l"), &both, AtFlags::empty()).unwrap();
        assert_eq!(times(&path), [(50, 0), (60, 0)]);
    }

    /// Times of directories, through their path and through a descriptor.
    fn times_of_directories(t) {
        let path = t.directory("d");
        t.try_see("set", set(&path, at(-5, 6), at(7, 8)));
        t.see("times", times(&path));
        let file = File::open(&path).unwrap();
        let both = Timestamps { last_access: at(9, 10), last_modification: OMIT };
        t.try_see("futimens", rustix::fs::futimens(&file, &both));
        assert_eq!(times(&path), [(9, 10), (7, 8)]);
    }

    /// Who may set times: the owner to any, whoever may write only to now.
    fn who_may_set_times(t) {
        let path = t.file("f", "x");
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        crate::chmod(&path, 0o666);
        t.try_see("owner, any", as_user(NOBODY, NOBODY, &[], || set(&path, at(1, 2), at(3, 4))));
        t.try_see("writer, now", as_user(OTHER, OTHER, &[], || set(&path, NOW, NOW)));
        t.try_see("writer, any", as_user(OTHER, OTHER, &[], || set(&path, at(1, 2), at(3, 4))));
        t.try_see("writer, one now", as_user(OTHER, OTHER, &[], || set(&path, OMIT, NOW)));
        crate::chmod(&path, 0o644);
        t.try_see("reader, now", as_user(OTHER, OTHER, &[], || set(&path, NOW, NOW)));
    }

    /// What changes the modification and change times, and what does not.
    fn what_changes_which_time(t) {
        let path = t.file("f", "content");
        let past = at(1_000_000, 0);
        let mut change = |what: &str, act: &dyn Fn()| {
            set(&path, past, past).unwrap();
            let before = fs::symlink_metadata(&path).unwrap();
            // Two changes within one tick of the clock would have one time.
            let next_tick = || {
                let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let _ = rustix::event::poll(&mut [], Some(&moment));
            };
            next_tick();
            act();
            let after = fs::symlink_metadata(&path).unwrap();
            let modified = (before.mtime(), before.mtime_nsec()) != (after.mtime(), after.mtime_nsec());
            let changed = (before.ctime(), before.ctime_nsec()) != (after.ctime(), after.ctime_nsec());
            t.see(what, (modified, changed));
        };
        let open = || OpenOptions::new().write(true).open(&path).unwrap();
        change("write", &|| open().write_all(b"x").unwrap());
        change("truncate to the same size", &|| open().set_len(7).unwrap());
        change("truncate", &|| open().set_len(5).unwrap());
        change("chmod", &|| crate::chmod(&path, 0o600));
        change("link", &|| fs::hard_link(&path, path.with_file_name("g")).unwrap());
        change("unlink of the other", &|| fs::remove_file(path.with_file_name("g")).unwrap());
        change("rename", &|| {
            fs::rename(&path, path.with_file_name("g")).unwrap();
            fs::rename(path.with_file_name("g"), &path).unwrap();
        });
        change("open for writing", &|| drop(open()));
        change("O_TRUNC", &|| drop(File::create(&path).unwrap()));
        change("O_TRUNC of an empty file", &|| drop(File::create(&path).unwrap()));
        change("stat", &|| assert!(fs::metadata(&path).unwrap().is_file()));
    }

    /// Creating, removing and renaming changes the times of the directory.
    fn directory_times_follow_its_names(t) {
        let folder = t.directory("d");
        let stamp = || set(&folder, at(5, 0), at(5, 0)).unwrap();
        let changed = |t: &mut crate::Tree, what: &str| {
            t.see(what, times(&folder)[1] != (5, 0));
            stamp();
        };
        stamp();
        fs::write(folder.join("f"), "").unwrap();
        changed(t, "create");
        fs::write(folder.join("f"), "x").unwrap();
        changed(t, "write");
        fs::rename(folder.join("f"), folder.join("g")).unwrap();
        changed(t, "rename");
        fs::hard_link(folder.join("g"), t.path("out")).unwrap();
        changed(t, "link elsewhere");
        fs::remove_file(folder.join("g")).unwrap();
        changed(t, "unlink");
    }

    /// Everything that stat shows, but for device and inode numbers and times of the moment.
    fn stat_shows_the_files_own(t) {
        let path = t.file("f", vec![b'x'; 10_000]);
        std::os::unix::fs::chown(&path, Some(12_345), Some(54_321)).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let meta = fs::metadata(&path).unwrap();
        t.see("file", (meta.mode(), meta.nlink(), meta.uid(), meta.gid(), meta.len(), meta.blocks(), meta.blksize()));
        let meta = fs::metadata(t.directory("d")).unwrap();
        t.see("directory", (meta.mode(), meta.nlink(), meta.len(), meta.blocks(), meta.blksize()));
    }

    /// statvfs gives the totals of the file system below.
    fn statvfs_is_the_file_systems(t) {
        let seen = rustix::fs::statvfs(t.top()).unwrap();
        t.see("totals", (seen.f_bsize, seen.f_frsize, seen.f_blocks, seen.f_files, seen.f_namemax));
    }

    /// FS_IOC_GETFLAGS and SETFLAGS; append-only and immutable files hold.
    fn file_flags(t) {
        let path = t.file("f", "x");
        let file = File::open(&path).unwrap();
        let before = ioctl_getflags(&file).unwrap();
        t.see("flags", before.bits());
        t.try_see("append-only", ioctl_setflags(&file, before | IFlags::APPEND));
        t.see("flags", ioctl_getflags(&file).unwrap().bits());
        t.try_see("overwrite", OpenOptions::new().write(true).open(&path).map(|_| ()));
        t.try_see("append", OpenOptions::new().append(true).open(&path).map(|_| ()));
        t.try_see("unlink", fs::remove_file(&path));
        t.try_see("immutable", ioctl_setflags(&file, before | IFlags::IMMUTABLE));
        t.try_see("append", OpenOptions::new().append(true).open(&path).map(|_| ()));
        t.try_see("chmod", fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)));
        t.try_see("back", ioctl_setflags(&file, before));
        t.try_see("unlink", fs::remove_file(&path));
        let folder = File::open(t.directory("d")).unwrap();
        t.try_see("directory", ioctl_getflags(&folder).map(|flags| flags.bits()));
        let output = crate::common::sh(t.top(), "echo y >g; chattr +d g; lsattr g; chattr -d g; lsattr -d d");
        t.see("lsattr", output.replace(&*t.top().to_string_lossy(), ""));
    }

    /// Of each flag alone: what its owner gets when it sets it, and what root gets.
    fn every_file_flag_by_its_owner_and_by_root(t) {
        for uid in [NOBODY, 0] {
            // But for FS_EXTENT_FL, of which ext4 makes something or not by what is not written out yet.
            for bit in (0..32).filter(|bit| *bit != 19) {
                for (path, what) in [(t.file("f", "x"), "file"), (t.directory("d"), "directory")] {
                    std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
                    let result = as_user(uid, uid, &[], || {
                        let file = File::open(&path).unwrap();
                        let flags = ioctl_getflags(&file).unwrap();
                        ioctl_setflags(&file, flags ^ IFlags::from_bits_retain(1 << bit))
                    });
                    t.try_see(&format!("{what} {:#x} by {uid}", 1_u32 << bit), result);
                    let file = File::open(&path).unwrap();
                    let flags = ioctl_getflags(&file).unwrap();
                    t.see("flags", format!("{:#x}", flags.bits()));
                    let _ = ioctl_setflags(&file, flags & !(IFlags::IMMUTABLE | IFlags::APPEND));
                    if what == "file" { fs::remove_file(&path).unwrap() } else { fs::remove_dir(&path).unwrap() }
                }
            }
        }
    }

    /// The flags that chattr(1) sets are root's or the owner's to set.
    fn file_flags_by_others(t) {
        let path = t.file("f", "x");
        let refused = as_user(NOBODY, NOBODY, &[], || {
            let file = File::open(&path).unwrap();
            let flags = ioctl_getflags(&file).unwrap();
            (errno(ioctl_setflags(&file, flags | IFlags::NOATIME)), errno(ioctl_setflags(&file, flags | IFlags::IMMUTABLE)))
        });
        t.see("refused", refused);
    }
}
