//! Names and what they lead to: hard links, symlinks, rename with its flags, removal.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, open, renameat_with};

use crate::errno;

fn rename(t: &crate::Tree, from: &str, to: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, t.path(from), CWD, t.path(to), flags)
}

cases! {
    /// All names of a file are one inode: number, count, content and mode are shared at once.
    fn hard_links_share_everything(t) {
        let first = t.file("first", "content");
        let folder = t.directory("d");
        fs::hard_link(&first, folder.join("second")).unwrap();
        fs::hard_link(folder.join("second"), t.path("third")).unwrap();
        let numbers: Vec<_> = [first.clone(), folder.join("second"), t.path("third")]
            .iter().map(|path| fs::metadata(path).unwrap()).collect();
        assert!(numbers.iter().all(|meta| meta.ino() == numbers[0].ino() && meta.nlink() == 3));
        fs::write(t.path("third"), "changed").unwrap();
        crate::chmod(&folder.join("second"), 0o600);
        t.try_see("content", fs::read_to_string(&first));
        t.try_see("mode", fs::metadata(&first).map(|meta| meta.mode()));
        fs::remove_file(&first).unwrap();
        t.try_see("count", fs::metadata(t.path("third")).map(|meta| meta.nlink()));
        fs::remove_file(t.path("third")).unwrap();
        t.try_see("count", fs::metadata(folder.join("second")).map(|meta| meta.nlink()));
    }

    /// The last link that the file system allows, and EMLINK for the one after it.
    fn links_up_to_the_limit(t) {
        let file = t.file("f", "x");
        t.directory("d");
        let limit = (1..=70_000).find(|number| fs::hard_link(&file, t.path(format!("d/{number}"))).is_err());
        t.see("the first that fails", limit);
        assert_eq!(errno(fs::hard_link(&file, t.path("one more"))), libc::EMLINK);
        t.see("links", fs::metadata(&file).unwrap().nlink());
        fs::remove_file(t.path("d/1")).unwrap();
        t.try_see("with one less", fs::hard_link(&file, t.path("one more")));
        fs::remove_dir_all(t.path("d")).unwrap();
    }

    /// What link(2) refuses.
    fn link_errors(t) {
        let file = t.file("f", "x");
        let folder = t.directory("d");
        t.try_see("onto a name", fs::hard_link(&file, t.file("g", "y")));
        t.try_see("a directory", fs::hard_link(&folder, t.path("e")));
        t.try_see("absent", fs::hard_link(t.path("absent"), t.path("e")));
        t.try_see("into a file", fs::hard_link(&file, t.path("f/e")));
        assert_eq!(errno(fs::hard_link(&folder, t.path("e"))), libc::EPERM);
    }

    /// A hard link to a symlink is to the symlink itself, unless it is asked to follow.
    fn hard_links_to_symlinks(t) {
        t.file("f", "x");
        symlink("f", t.path("l")).unwrap();
        linkat(CWD, t.path("l"), CWD, t.path("same"), AtFlags::empty()).unwrap();
        linkat(CWD, t.path("l"), CWD, t.path("followed"), AtFlags::SYMLINK_FOLLOW).unwrap();
        t.try_see("same", fs::read_link(t.path("same")));
        t.see("kind", fs::symlink_metadata(t.path("followed")).unwrap().is_file());
        t.see("links", fs::metadata(t.path("f")).unwrap().nlink());
    }

    /// Symlinks: short and longest targets, dangling, circular, absolute, not UTF-8.
    fn symlink_targets(t) {
        use std::os::unix::ffi::OsStrExt;
        let longest = "x/".repeat(2_047) + "y";
        let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe\x01");
        for (name, target) in [("short", "a".as_ref()), ("longest", longest.as_ref()), ("bytes", bytes)] {
            t.try_see(name, symlink(target, t.path(name)));
            let back = fs::read_link(t.path(name)).unwrap();
            assert_eq!(back.as_os_str(), target);
            t.see("length", fs::symlink_metadata(t.path(name)).unwrap().len());
        }
        t.try_see("too long", symlink(longest.clone() + "z", t.path("too long")));
        t.try_see("empty", symlink("", t.path("empty")));
        symlink("nowhere", t.path("dangling")).unwrap();
        t.try_see("dangling", fs::metadata(t.path("dangling")).map(|_| ()));
        symlink("circle", t.path("circle")).unwrap();
        t.try_see("circle", fs::metadata(t.path("circle")).map(|_| ()));
        t.try_see("exists", symlink("a", t.path("short")));
        t.try_see("readlink of a file", fs::read_link(t.file("f", "")));
    }

    /// O_NOFOLLOW refuses a symlink with ELOOP; O_PATH gives the symlink itself.
    fn nofollow_refuses_symlinks(t) {
        t.file("f", "x");
        symlink("f", t.path("l")).unwrap();
        let refused = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(t.path("l"));
        assert_eq!(errno(refused), libc::ELOOP);
        let link = open(t.path("l"), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
        t.see("kind", File::from(link).metadata().unwrap().file_type().is_symlink());
        t.try_see("O_CREAT|O_EXCL", File::create_new(t.path("l")).map(|_| ()));
        symlink("made through it", t.path("dangling")).unwrap();
        t.try_see("O_CREAT through a dangling link", File::create(t.path("dangling")).map(|_| ()));
        t.see("made", t.path("made through it").exists());
    }

    /// rename replaces files, moves between directories, and knows when both names are one file.
    fn rename_replaces(t) {
        let (a, b) = (t.file("a", "a"), t.file("b", "b"));
        let before = fs::metadata(&a).unwrap().ino();
        fs::rename(&a, &b).unwrap();
        assert_eq!(fs::metadata(&b).unwrap().ino(), before);
        t.try_see("content", fs::read_to_string(&b));
        let folder = t.directory("d");
        fs::rename(&b, folder.join("c")).unwrap();
        t.try_see("moved", fs::read_to_string(folder.join("c")));
        fs::hard_link(folder.join("c"), t.path("same")).unwrap();
        t.try_see("onto a link of itself", fs::rename(folder.join("c"), t.path("same")));
        t.see("both stay", (folder.join("c").exists(), t.path("same").exists()));
        t.try_see("onto itself", fs::rename(t.path("same"), t.path("same")));
    }

    /// rename of directories, over empty ones and full ones, into themselves, over files.
    fn rename_of_directories(t) {
        t.directory("a");
        t.file("a/f", "x");
        t.directory("empty");
        t.directory("full");
        t.file("full/g", "y");
        t.file("file", "z");
        t.try_see("over a full one", fs::rename(t.path("a"), t.path("full")));
        t.try_see("over a file", fs::rename(t.path("a"), t.path("file")));
        t.try_see("a file over one", fs::rename(t.path("file"), t.path("empty")));
        t.try_see("into itself", fs::rename(t.path("a"), t.path("a/b")));
        t.try_see("over an empty one", fs::rename(t.path("a"), t.path("empty")));
        t.try_see("content", fs::read_to_string(t.path("empty/f")));
        t.see("links", fs::metadata(t.top()).unwrap().nlink());
        t.try_see("absent", fs::rename(t.path("absent"), t.path("x")));
        t.try_see("the current directory", fs::rename(t.path("empty/."), t.path("x")));
    }

    /// RENAME_NOREPLACE.
    fn rename_noreplace(t) {
        t.file("a", "a");
        t.file("b", "b");
        assert_eq!(errno(rename(t, "a", "b", RenameFlags::NOREPLACE)), libc::EEXIST);
        t.try_see("onto nothing", rename(t, "a", "c", RenameFlags::NOREPLACE));
        t.try_see("c", fs::read_to_string(t.path("c")));
        t.try_see("b", fs::read_to_string(t.path("b")));
    }

    /// RENAME_EXCHANGE, of a file and a directory too.
    fn rename_exchange(t) {
        t.file("a", "a");
        t.directory("d");
        t.file("d/f", "in d");
        t.try_see("exchange", rename(t, "a", "d", RenameFlags::EXCHANGE));
        t.try_see("d", fs::read_to_string(t.path("d")));
        t.try_see("a/f", fs::read_to_string(t.path("a/f")));
        t.try_see("with nothing", rename(t, "a", "absent", RenameFlags::EXCHANGE));
        t.try_see("with what is in it", rename(t, "a", "a/f", RenameFlags::EXCHANGE));
        t.try_see("both flags", rename(t, "a", "d", RenameFlags::EXCHANGE | RenameFlags::NOREPLACE));
    }

    /// RENAME_WHITEOUT leaves the character device 0:0 in the old place.
    fn rename_whiteout(t) {
        t.file("a", "a");
        t.try_see("whiteout", rename(t, "a", "b", RenameFlags::WHITEOUT));
        let left = fs::symlink_metadata(t.path("a")).unwrap();
        assert!(left.file_type().is_char_device() && left.rdev() == 0);
        t.try_see("b", fs::read_to_string(t.path("b")));
    }

    /// What rmdir and unlink refuse.
    fn removal_errors(t) {
        t.directory("d");
        t.file("d/f", "x");
        t.file("f", "x");
        assert_eq!(errno(fs::remove_dir(t.path("d"))), libc::ENOTEMPTY);
        t.try_see("rmdir of a file", fs::remove_dir(t.path("f")));
        t.try_see("unlink of a directory", fs::remove_file(t.path("d")));
        t.try_see("absent", fs::remove_file(t.path("absent")));
        t.try_see("below a file", fs::remove_file(t.path("f/x")));
        t.try_see("rmdir of .", fs::remove_dir(t.path("d/.")));
        t.try_see("rmdir of ..", fs::remove_dir(t.path("d/..")));
        fs::remove_file(t.path("d/f")).unwrap();
        t.try_see("when empty", fs::remove_dir(t.path("d")));
    }

    /// Counts of links of directories follow what is made and removed in them.
    fn directory_link_counts(t) {
        let count = |t: &crate::Tree| fs::metadata(t.top()).unwrap().nlink();
        let mut counts = vec![count(t)];
        t.directory("a");
        counts.push(count(t));
        t.directory("b");
        counts.push(count(t));
        fs::rename(t.path("a"), t.path("b/a")).unwrap();
        counts.push(count(t));
        fs::remove_dir(t.path("b/a")).unwrap();
        fs::remove_dir(t.path("b")).unwrap();
        counts.push(count(t));
        t.see("counts", counts);
    }

    /// A directory that is removed while it is open, or the current one of a process, is empty and dead.
    fn a_removed_directory_is_dead(t) {
        let path = t.directory("d");
        let open_one = File::open(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        let create = rustix::fs::openat(&open_one, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
        t.try_see("create in it", create.map(|_| ()));
        t.try_see("attributes", open_one.metadata().map(|meta| meta.nlink()));
        let names: io::Result<Vec<_>> = rustix::fs::Dir::read_from(&open_one).unwrap()
            .map(|entry| Ok(entry?.file_name().to_owned())).collect();
        t.see("names", names.map(|names| names.len()).unwrap_or_default());
    }

    /// `..` leads to the parent, also after a directory was moved.
    fn dot_dot_follows_a_move(t) {
        t.directory("a");
        t.directory("b");
        t.directory("a/d");
        t.file("b/mark", "b");
        let inside = File::open(t.path("a/d")).unwrap();
        fs::rename(t.path("a/d"), t.path("b/d")).unwrap();
        let mark = rustix::fs::openat(&inside, "../mark", OFlags::RDONLY, Mode::empty());
        t.try_see("mark", mark.map(|_| ()));
        t.see("same", fs::metadata(t.path("b/d/..")).unwrap().ino() == fs::metadata(t.path("b")).unwrap().ino());
    }
}
