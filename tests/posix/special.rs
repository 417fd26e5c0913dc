//! FIFOs, sockets, device nodes, ioctls, and what is not there.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};

use crate::common::process::wait_child;
use crate::common::user::NOBODY;
use crate::common::{LIMIT, as_user, sh};
use crate::errno;

cases! {
    /// mknod of every kind, as root.
    fn nodes_of_every_kind(t) {
        let mode = Mode::from_raw_mode(0o640);
        for (name, kind, device) in [
            ("file", FileType::RegularFile, 0),
            ("fifo", FileType::Fifo, 0),
            ("socket", FileType::Socket, 0),
            ("whiteout", FileType::CharacterDevice, 0),
            ("null", FileType::CharacterDevice, makedev(1, 3)),
            ("large", FileType::BlockDevice, makedev(4_000, 1_000_000)),
        ] {
            t.try_see(name, mknodat(CWD, t.path(name), kind, mode, device));
            let meta = fs::symlink_metadata(t.path(name)).unwrap();
            t.see("made", (meta.mode(), meta.rdev()));
            assert_eq!(meta.rdev(), device);
        }
        t.try_see("again", mknodat(CWD, t.path("fifo"), FileType::Fifo, mode, 0));
    }

    /// Users make FIFOs and sockets, no devices.
    fn devices_are_for_root(t) {
        crate::chmod(t.top(), 0o777);
        let made = as_user(NOBODY, NOBODY, &[], || {
            let node = |name, kind| mknodat(CWD, t.path(name), kind, Mode::RUSR, makedev(1, 3)).is_ok();
            [node("fifo", FileType::Fifo), node("socket", FileType::Socket), node("null", FileType::CharacterDevice)]
        });
        assert_eq!(made, [true, true, false]);
        t.see("made", made);
    }

    /// A FIFO joins two processes; the daemon never opens it.
    fn fifos_join_processes(t) {
        sh(t.top(), "mkfifo p");
        let path = t.path("p");
        let mut writer = Command::new("sh").args(["-c", "seq 1 20000 >p"]).current_dir(t.top()).spawn().unwrap();
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert!(wait_child(&mut writer, LIMIT).expect("writer ends").success());
        assert_eq!(text.lines().count(), 20_000);
        t.see("length", text.len());
        let nobody_reads = open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        assert_eq!(errno(nobody_reads), libc::ENXIO);
    }

    /// A socket's name connects to the process that bound it.
    fn sockets_connect(t) {
        // The name of a socket is short; the directory is given as the current one of a child.
        let listener = UnixListener::bind(t.path("s")).unwrap();
        let mut client = UnixStream::connect(t.path("s")).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        t.try_see("open", File::open(t.path("s")).map(|_| ()));
        drop(listener);
        t.try_see("nobody listens", UnixStream::connect(t.path("s")).map(|_| ()));
    }

    /// O_TMPFILE: not in the FUSE library used, so the mount says that it can't (SEMANTICS.md).
    fn o_tmpfile_is_a_known_limit(t) {
        let result = open(t.top(), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR);
        if on_mount(t) {
            assert_eq!(errno(result), libc::EOPNOTSUPP);
        } else {
            result.unwrap();
        }
    }

    /// An ioctl that no file system knows.
    fn unknown_ioctls_are_refused(t) {
        t.file("f", "x");
        // BLKGETSIZE64 is for block devices only.
        let seen = sh(t.top(), "python3 -c '
import fcntl, os
for path in [\"f\", \".\"]:
    try: fcntl.ioctl(os.open(path, os.O_RDONLY), 0x80081272, bytes(8)); print(\"worked\")
    except OSError as error: print(error.strerror)'");
        t.see("answer", seen);
    }

    /// Inotify tells of changes made through the same tree.
    fn inotify_of_own_changes(t) {
        use rustix::fs::inotify::{CreateFlags, ReadFlags, WatchFlags};
        let watch = rustix::fs::inotify::init(CreateFlags::NONBLOCK).unwrap();
        rustix::fs::inotify::add_watch(&watch, t.top(), WatchFlags::ALL_EVENTS).unwrap();
        let _ = ReadFlags::CREATE;
        t.file("f", "x");
        fs::rename(t.path("f"), t.path("g")).unwrap();
        fs::remove_file(t.path("g")).unwrap();
        let mut buffer = vec![0_u8; 65_536];
        let length = rustix::io::read(&watch, &mut buffer[..]).unwrap();
        t.see("bytes of events", length > 0);
    }
}

pub(crate) fn on_mount(t: &crate::Tree) -> bool {
    rustix::fs::statfs(t.top()).unwrap().f_type == 0x6573_5546 // FUSE_SUPER_MAGIC
}
