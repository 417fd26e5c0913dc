//! Names are bytes, and paths are walked one name at a time.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, mkdirat, open, openat};

use crate::errno;

cases! {
    /// 255 bytes are a name, 256 are too many, in every call.
    fn longest_names(t) {
        let longest = "n".repeat(255);
        let too_long = "n".repeat(256);
        fs::write(t.path(&longest), "x").unwrap();
        t.try_see("read", fs::read_to_string(t.path(&longest)));
        assert_eq!(errno(File::create(t.path(&too_long))), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::metadata(t.path(&too_long))), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::create_dir(t.path(&too_long))), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::rename(t.path(&longest), t.path(&too_long))), libc::ENAMETOOLONG);
        assert_eq!(errno(std::os::unix::fs::symlink("x", t.path(&too_long))), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::hard_link(t.path(&longest), t.path(&too_long))), libc::ENAMETOOLONG);
        t.try_see("unlink", fs::remove_file(t.path(&too_long)));
    }

    /// Every byte but NUL and `/` can be in a name.
    fn names_are_bytes(t) {
        for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
            let name = [b'_', byte, b'_'];
            fs::write(t.path(OsStr::from_bytes(&name)), [byte]).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(t.top()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 254);
        for name in &names {
            let content = fs::read(t.path(name)).unwrap();
            assert_eq!(content, name.as_bytes()[1..2]);
        }
        t.see("names", names);
    }

    /// Newlines, blanks, quotes, controls, invalid UTF-8 and names that begin with a dash.
    fn awkward_names(t) {
        for name in [&b"two\nlines"[..], b" ", b"-rf", b"\\", b"'\"", b"\xc3\x28", b"\xed\xa0\x80", b"...", b"a\rb", b"\x7f"] {
            let path = t.path(OsStr::from_bytes(name));
            t.try_see("mkdir", fs::create_dir(&path));
            t.try_see("file in it", fs::write(path.join("f"), name));
            t.try_see("content", fs::read(path.join("f")));
        }
        t.try_see("empty", fs::create_dir(format!("{}/", t.path("").display()) ));
    }

    /// Case is significant, and so is the form of a composed letter.
    fn names_are_not_folded(t) {
        for name in ["a", "A", "\u{e9}", "e\u{301}"] {
            fs::write(t.path(name), name).unwrap();
        }
        for name in ["a", "A", "\u{e9}", "e\u{301}"] {
            assert_eq!(fs::read_to_string(t.path(name)).unwrap(), name);
        }
        t.see("count", fs::read_dir(t.top()).unwrap().count());
    }

    /// A tree deeper than PATH_MAX, reached step by step.
    fn paths_beyond_path_max(t) {
        let name = "d".repeat(200);
        let mut at: OwnedFd = open(t.top(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..40 {
            mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let file = openat(&at, "f", OFlags::CREATE | OFlags::RDWR, Mode::RUSR).unwrap();
        t.try_see("write", rustix::io::write(&file, b"deep"));
        t.try_see("stat", rustix::fs::fstat(&file).map(|stat| stat.st_size));
        let xattr = rustix::fs::fsetxattr(&file, "user.deep", b"yes", rustix::fs::XattrFlags::empty());
        t.try_see("setxattr", xattr);
        t.try_see("rename", rustix::fs::renameat(&at, "f", &at, "g"));
        t.try_see("listing", rustix::fs::Dir::read_from(&at).map(Iterator::count));
        t.try_see("by path", fs::metadata(t.path([&*name; 40].join("/"))).map(|_| ()));
        // So long a path can't be removed by one; `rm` walks.
        crate::common::sh(t.top(), "rm -rf d*");
    }

    /// A file is no directory, and a trailing slash says that one is meant.
    fn trailing_slashes_and_files_as_directories(t) {
        t.file("f", "x");
        t.directory("d");
        t.try_see("f/", fs::metadata(t.path("f/")).map(|_| ()));
        t.try_see("f/x", fs::metadata(t.path("f/x")).map(|_| ()));
        t.try_see("d/", fs::metadata(t.path("d/")).map(|_| ()));
        t.try_see("create new/", File::create(t.path("new/")).map(|_| ()));
        t.try_see("mkdir new/", fs::create_dir(t.path("new/")));
        t.try_see("mkdir f", fs::create_dir(t.path("f")));
        t.try_see("mkdir d", fs::create_dir(t.path("d")));
        t.try_see("mkdir absent/d", fs::create_dir(t.path("absent/d")));
    }
}
